"""What the frozen tower sees of the pairs' images, for probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from palate.demo.vision.baselines import Array, ProbePair
from palate.store.files import read_jsonl

IMAGES_AT_ONCE = 16


def probe_pairs(model: str, sources: Mapping[str, Path]) -> dict[str, list[ProbePair]]:
    """The pairs of files as baselines see them.

    Args:
        model: folder whose tower is asked. sources: name -> file of pairs, one image each.
    """
    rows = {name: list(read_jsonl(file)) for name, file in sources.items()}
    wanted = {sources[name].parent / row["images"][0]: None for name in rows for row in rows[name]}
    features = pooled_features(model, list(wanted))
    return {
        name: [
            ProbePair(
                image=features[sources[name].parent / row["images"][0]],
                chosen=row["chosen"][0]["content"],
                rejected=row["rejected"][0]["content"],
            )
            for row in of
        ]
        for name, of in rows.items()
    }


def pooled_features(model: str, images: list[Path]) -> dict[Path, Array]:
    """Mean of the tower's features, float64 [d], of each image."""
    import torch

    from palate.models.loading import load_model, load_tokenizer
    from palate.models.processor import load_processor
    from palate.recipes.schema import ModelRecipe

    recipe = ModelRecipe(path=model)
    loaded: Any = load_model(recipe)
    tower = loaded.model.vision_tower.eval()
    processor = load_processor(recipe, load_tokenizer(recipe))
    features: dict[Path, Array] = {}
    for start in range(0, len(images), IMAGES_AT_ONCE):
        chunk = images[start : start + IMAGES_AT_ONCE]
        pixels = [processor.process(file.read_bytes()).pixels["pixel_values"] for file in chunk]
        with torch.no_grad():
            maps = tower(torch.cat(pixels).to(loaded.dtype)).last_hidden_state
        pooled = maps.float().mean((2, 3)).double().numpy()
        features |= dict(zip(chunk, np.asarray(pooled), strict=True))
    return features
