"""The typed recipes: one class a verb. Field docstrings are the help text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.images import ImageContrastRecipe, ModelImages
from palate.recipes.losses import (
    REFERENCE_FREE,
    TOKEN_WEIGHTED,
    Dpo,
    Loss,
    Mixture,
    Positive,
    Strict,
    TokenWeights,
    members,
)
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.pairing import PairingRecipe as PairingRecipe

Count = Annotated[int, Field(ge=1)]
Dtype = Literal["bfloat16", "float32", "float16"]


class LoraRecipe(Strict):
    r: Count = 16
    """Rank."""
    alpha: Positive = 32.0
    """Scale: updates are multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get adapters; the vocabulary head never does."""


Trained = Literal["frozen", "trained"]


class VisionRecipe(Strict):
    """Of a model that sees: what of it is trained, and what is kept of images."""

    tower: Trained = "frozen"
    """The vision tower."""
    projector: Trained = "frozen"
    """What turns its features into those of tokens."""
    language: Trained = "trained"
    """The language model. frozen: to align a projector first; only without `lora`."""
    tower_learning_rate: Positive | None = None
    """Of a trained tower; default: the run's."""
    projector_learning_rate: Positive | None = None
    """Of a trained projector; default: the run's."""
    features: Literal["auto", "cached", "live"] = "auto"
    """What tower and projector make of an image, where neither is trained. cached: computed once,
    before the first step, and kept on the disk, for later runs too; live: once a batch. auto:
    cached where each image is asked for twice or more and all of them take `features_gb` at most.
    """
    features_gb: Positive = 20.0
    """Most disk that `auto` takes."""
    features_dir: Path | None = None
    """Folder of them; default: <output_dir>/../image_features."""

    def problems(self) -> Iterator[tuple[str, str]]:
        trained = [part for part in ("tower", "projector") if getattr(self, part) == "trained"]
        for part in ("tower", "projector"):
            if part not in trained and getattr(self, f"{part}_learning_rate") is not None:
                yield f"{part}_learning_rate", f"only with `{part}: trained`"
        if not trained and self.language == "frozen":
            yield "language", "frozen, and nothing else is trained"
        if trained and self.features == "cached":
            yield "features", f"those of a trained {trained[0]} change with every step: delete it"
        if self.features != "auto" and "features_gb" in self.model_fields_set:
            yield "features_gb", "only with `features: auto`"
        if self.features == "live" and self.features_dir is not None:
            yield "features_dir", "nothing is kept with `features: live`"


class ModelRecipe(Strict):
    path: str
    """Hub name or local folder."""
    revision: str | None = None
    """Hub revision."""
    dtype: Dtype = "bfloat16"
    """Weights and activations; policy and reference share it."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = (
        None
    )
    """Default: sdpa, row by row on the CPU so that no row's numbers depend on its batch; eager for
    models that sdpa cannot run."""
    chat_template: Path | Literal["model", "plain"] = "model"
    """The tokenizer's own template, a Jinja file, or `plain` (see docs/data.md). A model without a
    template takes conversational data only with one of the latter two."""
    trust_remote_code: bool = False
    """Run code shipped with the model. Never needed for models in transformers."""
    lora: LoraRecipe | None = None
    """Train adapters; leave out for full fine-tuning."""
    vision: VisionRecipe | None = None
    """Of a model that sees; default: tower and projector frozen."""
    images: ModelImages = ModelImages()
    """How large images are shown, and how much of a video. Of models that see."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.lora is not None and self.vision is not None and self.vision.language == "frozen":
            yield "vision.language", "only without `lora`, which trains the language model"


class DataSource(Strict):
    path: str
    """File (JSONL, JSON, CSV, Parquet, each also .gz), `datasets` folder, or hub name."""
    name: str | None = None
    """Source name in metrics and reports; default: the file's stem."""
    format: str | None = None
    """Reader; default: recognised from the columns."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a `datasets` folder or hub data set."""
    limit: Count | None = None
    """Keep this many rows, drawn with the recipe's seed."""
    ignore: tuple[str, ...] = ()
    """Columns to do without, as if the file had none of these names: for those that would refuse
    their row and mean nothing here."""


class LengthRecipe(Strict):
    """Truncation, in tokens. Every row it touches is counted in data.json."""

    max_prompt_tokens: Count = 512
    max_response_tokens: Count = 512
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    """Limit of prompt and response together, for each response by itself; default: none beyond the
    two above. After those are applied, a response that still does not fit is treated as `response`
    says; a row whose prompt leaves no room for one token of each response is dropped."""
    prompt: Literal["drop", "keep_start", "keep_end"] = "drop"
    """A longer prompt: drop the row, or keep one end of it."""
    response: Literal["keep_start", "drop"] = "keep_start"
    """A longer response: cut it (no end-of-response token then), or drop the row."""
    max_image_tokens: Count | None = None
    """Limit of the tokens that stand for the images and videos of a prompt and a response; they
    count to the limits above too. A row with more is dropped; default: no limit of their own."""


LengthUnit = Literal["characters", "words"]


class Limits(Strict):
    """How long a text may be."""

    min: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=0)] | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min is None and self.max is None:
            yield "min", "give `min`, `max` or both"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield "min", f"above max ({self.max}): no text is that long"

    def broken_by(self, length: int) -> str | None:
        """Which limit a length breaks ("under 3", "over 20"); None where it keeps both."""
        if self.min is not None and length < self.min:
            return f"under {self.min}"
        if self.max is not None and length > self.max:
            return f"over {self.max}"
        return None


class DataRecipe(Strict):
    train: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    eval: tuple[DataSource, ...] = ()
    """Held-out sources; never trained on."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Hold out this share of the prompts of `train`; only without `eval`."""
    pairing: PairingRecipe | None = None
    """Required where a source holds ratings. Where none does, only `flips` and `ties` apply."""
    mixture: MixtureRecipe | None = None
    """How much of each source of `train`, of what is left after holding out; default: all."""
    image_contrast: ImageContrastRecipe | None = None
    """Further pairs: the chosen answer under its own image and under another. Held-out pairs stay
    as they are. For losses of pairs, and models that see."""
    length: LengthRecipe = LengthRecipe()

    @property
    def holds_out(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.eval) or self.eval_fraction is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.eval and self.eval_fraction is not None:
            yield "eval_fraction", "only without `eval`: the held-out rows come from one of the two"
        if self.mixture is not None and self.mixture.tokenizer is not None:
            yield "mixture.tokenizer", "the model's own tokenizer counts: delete the key"


class SftDataRecipe(DataRecipe):
    turns: Literal["last", "all"] = "last"
    """Of conversations (`messages`): learn the last answer, or every answer, each as an example of
    its own with the turns before it as its prompt."""


class ReferenceRecipe(Strict):
    kind: Literal["auto", "frozen_copy", "adapter_off", "cache"] = "auto"
    """auto: adapter_off with LoRA, else frozen_copy. cache: computed once, reused across runs."""
    path: str | None = None
    """Reference model other than the starting policy, frozen or cached."""
    cache_dir: Path | None = None
    """Folder of the cache (kind: cache); default: <output_dir>/../reference_cache."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.cache_dir is not None and self.kind != "cache":
            yield "cache_dir", f"only with `kind: cache`, not with {self.kind}"
        if self.path is not None and self.kind == "adapter_off":
            yield "path", "adapter_off is the starting policy itself: use `kind: frozen_copy`"


class LoopRecipe(Strict):
    """The training loop, whatever it optimises."""

    micro_batch_tokens: Count | None = None
    """Most tokens of one forward pass of one process; what responses share counts once."""
    epochs: Positive = 1.0
    max_steps: Count | None = None
    """Optimizer steps; overrides epochs."""
    learning_rate: Positive = 1e-6
    optimizer: Literal["adamw", "rmsprop", "sgd"] = "adamw"
    optimizer_precision: Literal["float32", "model"] = "float32"
    """float32: updates add up in a float32 copy of bfloat16 weights, for 4 bytes a trained weight
    and float32 moments; model: in the weights' own dtype, where small ones round to nothing.
    Adapters are float32 in any case."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Schedule after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up from 0."""
    warmup_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of all steps, instead of warmup_steps."""
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: bool = False
    log_every_steps: Count = 1
    eval_every_steps: Count | None = None
    """Default: at the end only (when there is evaluation data)."""
    save_every_steps: Count | None = None
    """Checkpoint interval; default: at the end only."""
    keep_checkpoints: Count | None = None
    """Keep this many; default all."""
    report_to: tuple[str, ...] = ()
    """tensorboard, wandb, trackio ...; metrics.jsonl is always written."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.warmup_fraction is not None and self.warmup_steps:
            yield "warmup_fraction", "only without warmup_steps"
        if self.keep_checkpoints is not None and self.save_every_steps is None:
            yield "keep_checkpoints", "needs save_every_steps: without it there is one checkpoint"


class OfflineRecipe(LoopRecipe):
    """The training loop over a fixed set of items."""

    batch_size_pairs: Count = 8
    """Pairs (sft: examples) of one optimizer step, over all processes and accumulation steps."""
    micro_batch_size_pairs: Count = 4
    """Pairs of one forward pass of one process."""
    micro_batch_tokens: Count | None = None
    """Most tokens of one forward pass of one process, in place of micro_batch_size_pairs; what
    responses share counts once, and a pair with more is run by itself."""
    eval_batch_size_pairs: Count = 8
    early_stop_patience: Count | None = None
    """Stop after this many evaluations without a better eval loss; needs eval_every_steps."""
    data_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that lay out batches ahead; 0: none but the run's own. Results are the same."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        total, micro = self.batch_size_pairs, self.micro_batch_size_pairs
        if self.micro_batch_tokens is not None:
            if "micro_batch_size_pairs" in self.model_fields_set:
                yield "micro_batch_tokens", "only without micro_batch_size_pairs"
        elif total > micro and total % micro:
            yield "batch_size_pairs", f"{total} is no multiple of micro_batch_size_pairs ({micro})"
        if self.early_stop_patience is not None and self.eval_every_steps is None:
            yield "early_stop_patience", "needs eval_every_steps: it counts evaluations"


class TrainRecipe(OfflineRecipe):
    layout: Literal["auto", "plain", "shared"] = "auto"
    """auto: shared where the start-of-run check passes, else plain. Shared rows run what responses
    begin with once, and no padding."""
    head_memory_mb: Count = 256
    """Budget of the vocabulary head's working memory."""
    extra_metrics: tuple[Literal["kl", "reverse_kl", "entropy"], ...] = ()
    """Statistics that the loss does not need but the log should show; each costs time."""


class SftTrainRecipe(TrainRecipe):
    learning_rate: Positive = 1e-5
    extra_metrics: tuple[Literal["entropy"], ...] = ()
    """Statistics that the loss does not need but the log should show."""


class RunRecipe(Strict):
    """What every verb that writes a run folder has."""

    output_dir: Path
    """Run folder. A folder with a finished or interrupted run is refused unless `resume`."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    resume: bool = False
    """Continue an interrupted run of the same recipe from its last complete checkpoint."""


class SftRecipe(RunRecipe):
    """Supervised fine-tuning on demonstrations or on the chosen side of pairs."""

    model: ModelRecipe
    data: SftDataRecipe
    train: SftTrainRecipe = SftTrainRecipe()

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from _evaluation_problems(self.data, self.train)


class TuneRecipe(RunRecipe):
    """Preference tuning of a policy."""

    model: ModelRecipe
    data: DataRecipe
    loss: Loss = Dpo()
    token_weights: TokenWeights | None = None
    """Per-token weights of the log-ratios."""
    reference: ReferenceRecipe | None = None
    """Default: kind auto. An error with a loss that has no reference."""
    train: TrainRecipe = TrainRecipe()

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from _evaluation_problems(self.data, self.train)
        types = [loss.type for loss in members(self.loss)]
        if not isinstance(self.loss, Mixture) and self.loss.weight != 1.0:
            yield "loss.weight", "only inside a mixture: use the learning rate"
        if self.token_weights is not None:
            # An SFT term beside a weighted loss stays unweighted; alone, nothing would be weighted.
            allowed = TOKEN_WEIGHTED | ({"sft"} if len(types) > 1 else set())
            if unfit := sorted(set(types) - allowed):
                fitting = ", ".join(sorted(TOKEN_WEIGHTED))
                yield (
                    "token_weights",
                    f"has no meaning for {', '.join(unfit)}; it weights {fitting}",
                )
        if set(types) <= REFERENCE_FREE:
            name = " + ".join(types)
            if self.reference is not None:
                yield "reference", f"{name} has no reference"
            for metric in ("kl", "reverse_kl"):
                if metric in self.train.extra_metrics:
                    yield "train.extra_metrics", f"{metric} needs a reference, and {name} has none"
        elif (
            self.reference is not None
            and self.reference.kind == "adapter_off"
            and self.model.lora is None
        ):
            yield "reference.kind", "adapter_off needs model.lora"


def _evaluation_problems(data: DataRecipe, train: TrainRecipe) -> Iterator[tuple[str, str]]:
    if train.eval_every_steps is not None and not data.holds_out:
        yield "train.eval_every_steps", "needs `data.eval` or `data.eval_fraction`"


class DemoRecipe(RunRecipe):
    """Controlled sentiment on this machine: sample, score, pair, tune three ways, compare."""

    output_dir: Path = Path("runs/demo")
    resume: bool = True
    """Finished parts of an earlier run of the same demo are reused."""
    model: str | None = None
    """Hub or local model; default: the packaged Gemma 3 270M (extra `demo`), with `online` the
    packaged SmolLM2 135M Instruct."""
    quick: bool = False
    """Fewer pairs and steps: under 4 minutes on two cores, with `online` under 6."""
    vision: bool = False
    """A model that sees, in place of sentiment: a reward model and policies on pairs of which the
    image alone tells the better answer."""
    online: bool = False
    """Online learning of sentiment: PPO, GRPO, RLOO and online DPO beside best-of-n and offline
    methods, and a run without a KL that collapses."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.vision and self.online:
            yield "online", "only without `vision`"
        if self.vision and self.model is not None:
            yield "model", "only without `vision`, which has a packaged model of its own"
