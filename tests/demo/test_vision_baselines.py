"""What baselines can and cannot know, the projector's start, and shares with twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from palate.demo.vision.baselines import (
    ProbePair,
    length_baseline,
    majority_baseline,
    ridge_probe,
    telling_word,
)
from palate.demo.vision.measures import couple_of, share
from palate.demo.vision.projector import start_projector

COLOURS = ("red", "blue", "teal")


def pairs(n: int, seed: int, noise: float = 0.3) -> list[ProbePair]:
    """Questions about a colour, and whether there is one, about images that show colours."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        own, other = rng.choice(3, 2, replace=False)
        image = 3 * np.eye(3)[own] + noise * rng.standard_normal(3)
        if rng.random() < 0.5:
            chosen, rejected = (f"The shape is {COLOURS[i]}." for i in (own, other))
        else:
            asked = rng.choice([own, other])
            thing = f"{COLOURS[asked]} shape."
            chosen, rejected = f"Yes, there is a {thing}", f"No, there is no {thing}"
            if asked == other:
                chosen, rejected = rejected, chosen
        made.append(ProbePair(image=image, chosen=chosen, rejected=rejected))
    return made


def test_the_probe_is_ridge_regression_in_every_product() -> None:
    """The dual's weights give what the primal's do, every product of feature and answer written
    out."""
    from palate.demo.vision import baselines

    train, test = pairs(40, 0), pairs(60, 1)

    def products(of: list[ProbePair], mean: np.ndarray, deviation: float) -> np.ndarray:
        answers = sorted({a for p in (*train, *test) for a in (p.chosen, p.rejected)})
        rows = []
        for p in of:
            said = np.array([float(a == p.chosen) - float(a == p.rejected) for a in answers])
            seen = np.append((p.image - mean) / deviation, 1.0)
            rows.append(np.outer(seen, said).ravel())
        return np.array(rows)

    images = np.stack([p.image for p in train])
    mean, deviation = images.mean(0), images.std() + 1e-9
    x, z = products(train, mean, deviation), products(test, mean, deviation)
    agreed = []
    for penalty in baselines.PENALTIES:
        strength = penalty * np.diag(x @ x.T).mean()
        w = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ np.ones(len(x)))
        agreed.append(bool(((z @ w > 0) == (ridge_probe(train, test) == 1)).all()))
    assert any(agreed)


def test_probes_know_what_a_product_of_feature_and_answer_tells() -> None:
    train, test = pairs(300, 0), pairs(300, 1)
    whole = ridge_probe(train, test)
    assert whole.mean() > 0.9
    is_colour = np.array([p.chosen.startswith("The") for p in test])
    word = ridge_probe(train, test, telling_word)
    # "Yes" alone does not say to what.
    assert word[is_colour].mean() > 0.9 and 0.3 < word[~is_colour].mean() < 0.7


def test_length_and_majority_count_what_they_cannot_tell_as_half() -> None:
    def pair(chosen: str, rejected: str) -> ProbePair:
        return ProbePair(image=np.zeros(2), chosen=chosen, rejected=rejected)

    train = [pair("a", "bb"), pair("a", "ccc"), pair("ccc", "a")]
    test = [pair("a", "bb"), pair("bb", "a"), pair("a", "x"), pair("dd", "ee")]
    assert length_baseline(test).tolist() == [0, 1, 0.5, 0.5]
    assert majority_baseline(train, test).tolist() == [1, 0, 1, 0.5]


def test_intervals_are_of_twins() -> None:
    """Twins of which one is always right leave nothing open; two alike count once."""
    couples = [couple_of({"id": f"test-{i // 2}-{i}"}) for i in range(200)]
    assert len(set(couples)) == 100
    blind = share(np.tile([1.0, 0.0], 100), couples, confidence=0.95, seed=0)
    assert blind.value == 0.5 and blind.interval == (0.5, 0.5)
    rng = np.random.default_rng(0)
    alike = np.repeat((rng.random(100) < 0.8).astype(float), 2)
    low, high = share(alike, couples, confidence=0.95, seed=0).interval
    wide = high - low
    low, high = share(alike, [str(i) for i in range(200)], confidence=0.95, seed=0).interval
    assert wide / (high - low) == pytest.approx(np.sqrt(2), rel=0.1)


class Projector(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_1, self.act = nn.Linear(inputs, outputs), nn.GELU()
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


@pytest.mark.parametrize("inputs", [48, 16])
def test_the_projector_starts_where_images_differ(inputs: int) -> None:
    """Features that have nearly all in common come out apart, and as long as embeddings."""
    draws = torch.Generator().manual_seed(0)
    common = 10 * torch.rand(inputs, generator=draws)
    size = 2.0 ** -torch.arange(inputs).float()
    features = common + size * torch.randn(400, inputs, generator=draws)
    embeddings = 0.1 * torch.randn(50, 24, generator=draws)
    projector = Projector(inputs, 24)
    start_projector(projector, features, embeddings)
    with torch.no_grad():
        out = projector(features)
    assert out.mean(0).abs().max() < 1e-4
    assert out.std().item() == pytest.approx(embeddings.std().item(), rel=1e-2)
    apart = torch.corrcoef(out)[~torch.eye(400, dtype=torch.bool)]
    assert apart.mean().abs() < 0.05 < torch.corrcoef(features).mean()
