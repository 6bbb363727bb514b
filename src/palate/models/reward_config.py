"""`reward_config.json`: what a saved reward model says of itself beside its weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from palate.errors import ModelError, in_one_line
from palate.recipes.reward import HeadRecipe, Pooling
from palate.recipes.schema import LengthRecipe, ModelRecipe
from palate.store.files import read_json


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Rewards on the training distribution: (r - mean) / deviation is the normalised score."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """What a saved reward model says of itself beside its weights.

    Attributes:
        model: recipe of the backbone it was trained from.
        forms: of the prompts in training; empty where not known.
        end_tokens: id -> text of the tokens that responses end with.
        template_sha256: of the chat template in training.
        length: limits that the training rows were within.
        scale: None until it is measured.
        heads: how many there are; the reward is their mean.
        scales: of each head, where there are several; empty until they are measured.
        whole_rendering: of a model that others trained: the score is read at whatever token the
            template (or the text) ends with, as transformers does.
    """

    model: ModelRecipe
    head: HeadRecipe = dataclasses.field(default_factory=HeadRecipe)
    pooling: Pooling = "token"
    forms: tuple[Literal["chat", "text"], ...] = ()
    end_tokens: dict[int, str] = dataclasses.field(default_factory=dict)
    template_sha256: str | None = None
    length: LengthRecipe | None = None
    scale: Scale | None = None
    heads: int = 1
    scales: tuple[Scale, ...] = ()
    whole_rendering: bool = False


CONFIG = "reward_config.json"
VERSION = 1
Files = Literal["classifier", "adapter_classifier", "backbone", "adapter", "head"]
"""Which files there are beside it; see `palate.models.reward_files`."""


def document(spec: RewardSpec, files: Files) -> dict[str, Any]:
    """The content of reward_config.json."""
    more: dict[str, Any] = {}
    if spec.heads > 1:
        more = {"heads": spec.heads, "scales": [dataclasses.asdict(scale) for scale in spec.scales]}
    if spec.whole_rendering:
        more["whole_rendering"] = True
    return {
        "version": VERSION,
        "files": files,
        "model": spec.model.model_dump(mode="json"),
        "head": spec.head.model_dump(mode="json"),
        "pooling": spec.pooling,
        "forms": list(spec.forms),
        "end_tokens": [{"id": i, "text": text} for i, text in sorted(spec.end_tokens.items())],
        "chat_template_sha256": spec.template_sha256,
        "length": None if spec.length is None else spec.length.model_dump(mode="json"),
        "scale": None if spec.scale is None else dataclasses.asdict(spec.scale),
        **more,
    }


def read_spec(path: str | Path) -> RewardSpec:
    """What a model that palate saved says of itself.

    Raises:
        ModelError: not such a folder.
    """
    folder = Path(path)
    if not (folder / CONFIG).exists():
        check_no_run(folder)
        raise ModelError(f"{path}: no reward model of palate's: {CONFIG} is missing")
    return read_config(folder)[1]


def check_no_run(folder: Path) -> None:
    """Refuses a run folder: its model is in the folder `model` inside.

    Raises:
        ModelError: it is one.
    """
    if (folder / "model" / CONFIG).exists():
        raise ModelError(f"{folder}: a run's folder; its model is {folder / 'model'}")


def read_config(folder: Path) -> tuple[Files, RewardSpec]:
    """Which files a saved model has, and what it says of itself.

    Raises:
        ModelError: not what palate writes, or written by a later version.
        RunError: unreadable, or no JSON.
    """
    stored = read_json(folder / CONFIG)
    try:
        if stored["version"] > VERSION:
            raise ModelError(f"{folder}: saved by a later version of palate")
        length, scale = stored["length"], stored["scale"]
        spec = RewardSpec(
            model=ModelRecipe.model_validate(stored["model"]),
            head=HeadRecipe.model_validate(stored["head"]),
            pooling=_one_of(stored["pooling"], get_args(Pooling), "pooling"),
            forms=tuple(_one_of(form, ("chat", "text"), "forms") for form in stored["forms"]),
            end_tokens={int(t["id"]): str(t["text"]) for t in stored["end_tokens"]},
            template_sha256=stored["chat_template_sha256"],
            length=None if length is None else LengthRecipe.model_validate(length),
            scale=None if scale is None else Scale(**scale),
            heads=int(stored.get("heads", 1)),
            scales=tuple(Scale(**entry) for entry in stored.get("scales", ())),
            whole_rendering=bool(stored.get("whole_rendering", False)),
        )
        return _one_of(stored["files"], get_args(Files), "files"), spec
    except KeyError as error:
        raise ModelError(f"{folder / CONFIG}: not a reward model's: no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        text = in_one_line(error, 200)
        raise ModelError(f"{folder / CONFIG}: not a reward model's: {text}") from error


def _one_of(value: Any, known: tuple[Any, ...], field: str) -> Any:
    if value not in known:
        raise ValueError(f"{field}: expected one of {', '.join(known)}, got {value!r}")
    return value
