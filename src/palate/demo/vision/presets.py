"""Sizes of the demonstration that sees, and the recipes of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palate.recipes.losses import Dpo, Loss, Tdpo2
from palate.recipes.reward import (
    RewardDataRecipe,
    RewardLengthRecipe,
    RewardRecipe,
    RewardTrainRecipe,
)
from palate.recipes.schema import (
    DataRecipe,
    DataSource,
    LengthRecipe,
    LoraRecipe,
    ModelRecipe,
    ReferenceRecipe,
    SftDataRecipe,
    SftRecipe,
    SftTrainRecipe,
    TrainRecipe,
    TuneRecipe,
    VisionRecipe,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything, in rows.

    Attributes:
        captions: of easy-VQA's images that the projector is aligned with.
        pairs: of easy-VQA that the reward model learns from.
        scene_pairs: of scenes, and captions of as many other scenes.
        policy_pairs: that DPO and TDPO2 learn from.
        held_out: pairs of held-out images; half as many of each other held-out set.
    """

    captions: int
    pairs: int
    scene_pairs: int
    policy_pairs: int
    held_out: int


FULL = Preset(captions=360, pairs=1280, scene_pairs=160, policy_pairs=200, held_out=96)
QUICK = Preset(captions=104, pairs=200, scene_pairs=0, policy_pairs=48, held_out=32)

METHODS: dict[str, tuple[str, Loss]] = {"dpo": ("DPO", Dpo()), "tdpo2": ("TDPO2", Tdpo2())}
"""Run folder -> name and loss, each with its paper's settings."""
BLIND = "-blind"
"""Ends the names of runs whose rows have lost their images."""

ROWS_PER_STEP = PAIRS_PER_STEP = 8
ALIGNING_RATE = 1e-3
PROJECTOR_RATE = 2e-3
REWARD_RATE = 5e-4
TUNING_RATE = 5e-4
_PROMPT, _RESPONSE = 96, 32
"""Tokens, of which no row has as many."""


def data_file(root: Path, name: str) -> Path:
    return root / "data" / f"{name}.jsonl"


def _source(root: Path, name: str, title: str | None = None) -> DataSource:
    return DataSource(path=str(data_file(root, name)), name=title or name)


def align_recipe(root: Path, *, model: str, train: str, seed: int, resume: bool) -> SftRecipe:
    """Captions teach the projector to say what the tower sees in the language model's terms.

    Adapters learn with it how captions are worded, which a projector alone would have to make the
    language model say by what it is shown.
    """
    return SftRecipe(
        output_dir=root / "align",
        seed=seed,
        resume=resume,
        model=ModelRecipe(
            path=model,
            lora=LoraRecipe(),
            vision=VisionRecipe(projector="trained", projector_learning_rate=PROJECTOR_RATE),
        ),
        data=SftDataRecipe(
            train=(_source(root, train),),
            length=LengthRecipe(max_prompt_tokens=_PROMPT, max_response_tokens=_RESPONSE),
        ),
        train=SftTrainRecipe(
            batch_size_pairs=ROWS_PER_STEP,
            micro_batch_size_pairs=ROWS_PER_STEP,
            learning_rate=ALIGNING_RATE,
            warmup_fraction=0.05,
        ),
    )


def reward_recipe(
    root: Path,
    *,
    model: str,
    train: tuple[str, ...],
    held_out: dict[str, str],
    seed: int,
    resume: bool,
) -> RewardRecipe:
    """The reward model, on the aligned model.

    Args:
        held_out: file -> name in the report.
    """
    return RewardRecipe(
        output_dir=root / "reward",
        seed=seed,
        resume=resume,
        model=ModelRecipe(
            path=model,
            lora=LoraRecipe(),
            vision=VisionRecipe(projector="trained"),
        ),
        data=RewardDataRecipe(
            train=tuple(_source(root, name) for name in train),
            eval=tuple(_source(root, name, title) for name, title in held_out.items()),
            length=RewardLengthRecipe(max_prompt_tokens=_PROMPT, max_response_tokens=_RESPONSE),
        ),
        normalise_on_items=32,
        train=RewardTrainRecipe(
            batch_size_pairs=PAIRS_PER_STEP,
            micro_batch_size_pairs=PAIRS_PER_STEP,
            eval_batch_size_pairs=16,
            learning_rate=REWARD_RATE,
            warmup_fraction=0.05,
        ),
    )


def policy_recipe(
    root: Path, run: str, *, model: str, train: str, seed: int, resume: bool
) -> TuneRecipe:
    """A policy, from the aligned model; all differ in loss, data and folder alone.

    Args:
        run: name of the run's folder: a method, or one with `BLIND` behind it.
    """
    return TuneRecipe(
        output_dir=root / run,
        seed=seed,
        resume=resume,
        model=ModelRecipe(path=model, lora=LoraRecipe()),
        data=DataRecipe(
            train=(_source(root, train),),
            length=LengthRecipe(max_prompt_tokens=_PROMPT, max_response_tokens=_RESPONSE),
        ),
        loss=METHODS[run.removesuffix(BLIND)][1],
        reference=ReferenceRecipe(kind="cache", cache_dir=root / "reference_cache"),
        train=TrainRecipe(
            batch_size_pairs=PAIRS_PER_STEP,
            micro_batch_size_pairs=PAIRS_PER_STEP,
            learning_rate=TUNING_RATE,
            warmup_fraction=0.05,
        ),
    )
