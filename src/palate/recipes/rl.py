"""The recipe of online learning: prompts, rollouts, rewards, an algorithm, a KL.

algorithm   ppo | grpo | rloo | reinforce++ | online_dpo, each with its own numbers
kl          form, place, future: which gradient holds the policy near its reference
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.alarms import AlarmsRecipe
from palate.recipes.losses import REFERENCE_FREE, NotNegative, Positive, Strict, members
from palate.recipes.prompts import PromptsRecipe
from palate.recipes.rl_algorithms import Algorithm, Grpo, OnlineDpo, PolicyGradient, Ppo
from palate.recipes.rl_engines import Engine, LocalEngine, ServerEngine
from palate.recipes.schema import (
    Count,
    LengthRecipe,
    LoopRecipe,
    ModelRecipe,
    ReferenceRecipe,
    RunRecipe,
)
from palate.recipes.scorers import Scorer, compares

KlForm = Literal["k1", "k2", "k3", "exact"]


class KlRecipe(Strict):
    """What holds the policy near its reference: an estimate of KL(policy || reference) or its exact
    value, in the reward or in the loss.

    What each combination converges to is in docs/online.md: k1 in the reward, and exact in the loss
    with `future`, reach reference * exp(reward / coefficient); the others something else.
    """

    coefficient: NotNegative = 0.05
    """Times the KL in nats (TRL's beta)."""
    form: KlForm = "k1"
    """With r the log-ratio of policy to reference at the token that was drawn: k1 r, k2 r^2 / 2, k3
    exp(-r) - 1 + r; exact: the sum over the whole vocabulary."""
    place: Literal["reward", "loss"] = "reward"
    """reward: subtracted from each token's reward, without a gradient (k1 alone is right there);
    loss: added to the loss of each token (k1 alone is wrong there)."""
    future: bool = False
    """In the loss: tokens are also answerable for the KL of those after them, as they are for the
    reward; without it the fixed point is another."""
    bias_correction: bool = False
    """Of k3 in the loss: weighted by the ratio of the policy to the one that sampled, so that its
    gradient is that of KL(policy || reference) (TRL's use_bias_correction_kl); without it, that
    of KL(reference || policy)."""
    target: Positive | None = None
    """KL of a response, in nats, that the coefficient is adapted to (Ziegler et al.,
    arXiv:1909.08593); default: it is fixed."""
    horizon: Count | None = None
    """Responses in which an adapted coefficient may change e-fold; default: 10000."""
    clamp: Positive | None = None
    """Of the log-ratio of a token in k1, k2 and k3, in nats; default: none."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.place == "reward" and self.form != "k1":
            yield "form", f"{self.form} in the reward has another gradient than a KL's: use k1"
        if self.place == "loss" and self.form == "k1":
            yield "form", "k1 in the loss has no gradient in the mean: use exact, k2 or k3"
        if self.future and self.place == "reward":
            yield "future", "only with `place: loss`: a reward counts what follows already"
        if self.bias_correction and self.form != "k3":
            yield "bias_correction", "only with `form: k3`"
        if self.horizon is not None and self.target is None:
            yield "horizon", "only with `target`"
        if self.clamp is not None and self.form == "exact":
            yield "clamp", "only of log-ratios of tokens: not with `form: exact`"
        if self.coefficient == 0 and self.target is not None:
            yield "target", "a coefficient of 0 adapts to nothing"


class MissingEosRecipe(Strict):
    """What a response without its end is worth."""

    penalty: NotNegative | None = None
    """Subtracted from its score (TRL's missing_eos_penalty)."""
    value: float | None = None
    """In place of its score (-10 in the code of arXiv:2406.09279)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.penalty is None) is (self.value is None):
            yield "penalty", "give one of `penalty` and `value`"


class OverlongRecipe(Strict):
    """Soft punishment of length, arXiv:2503.14476: none up to `max_tokens` less `cache_tokens`,
    from there along a line down to -`penalty` at `max_tokens`, and never below."""

    max_tokens: Count
    cache_tokens: Count
    penalty: Positive = 1.0

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.cache_tokens > self.max_tokens:
            yield "cache_tokens", f"above max_tokens ({self.max_tokens})"


class RewardSignalRecipe(Strict):
    """What responses are worth."""

    scorer: Scorer
    """By its `type`: model, function, rule, verifier, rubric, judge, hybrid, mixture ..."""
    mean: float | None = None
    """Of its scores under the reference: subtracted, before all that follows."""
    deviation: Positive | None = None
    """Of those: scores are divided by it."""
    clip: Positive | None = None
    """Scores are held within +- this."""
    missing_eos: MissingEosRecipe | None = None
    overlong: OverlongRecipe | None = None
    whiten: bool = False
    """Scores of a rollout over their deviation, the mean kept (TRL's old whiten_rewards)."""
    unscored: Literal["drop", "stop"] = "drop"
    """Of a response that has no score. drop: it is not trained on, and counted; stop: the run
    ends."""
    placement: Literal["last", "spans"] = "last"
    """last: the score is the reward of the last token; spans: where the scorer gives values of
    tokens or steps, each is the reward of its own last token as it is, and the score is not used.
    Penalties are paid at the last token in both. For ppo and reinforce++."""
    workers: Count = 1
    """Requests to a scorer under way at once, for servers and verifiers."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.mean is None) is not (self.deviation is None) and self.mean is None:
            yield "mean", "goes with `deviation`"
        if self.placement == "spans":
            for name in ("mean", "deviation", "clip"):
                if getattr(self, name) is not None:
                    yield name, "of scores, which `placement: spans` does not use"
            if self.whiten:
                yield "whiten", "of scores, which `placement: spans` does not use"
            if self.missing_eos is not None and self.missing_eos.value is not None:
                yield (
                    "missing_eos.value",
                    "`placement: spans` has no score to replace: use `penalty`",
                )


class RolloutRecipe(Strict):
    """What is sampled between two updates of the policy that samples."""

    batch_size_prompts: Count = 16
    """Prompts of one rollout, over all processes."""
    num_generations: Count = 8
    """Responses to each prompt: a group."""
    eval_generations: Count = 1
    """Responses to each held-out prompt."""
    max_new_tokens: Count = 64
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """No response ends before."""
    temperature: Positive = 1.0
    """In all log-probs too: of the policy, the reference and the policy that sampled."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Below 1 the policy that is trained is not the one that samples: only with `correction`."""
    engine: Engine = LocalEngine()

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min_new_tokens >= self.max_new_tokens:
            yield "min_new_tokens", f"leaves nothing of max_new_tokens ({self.max_new_tokens})"
        if self.top_p < 1.0 and self.engine.correction is None:
            yield "top_p", "samples from another policy than the one trained: set engine.correction"


class ValueRecipe(Strict):
    """The value model of PPO."""

    kind: Literal["separate", "shared"] = "separate"
    """separate: a model of its own; shared: a head on the policy's trunk."""
    path: str | None = None
    """A reward model that palate trained, or any with one linear score, to start from (separate);
    default: that of `reward.scorer` where it is one, else the policy's own weights and a new head.
    """
    learning_rate: Positive | None = None
    """Default: the policy's."""
    coefficient: Positive = 0.1
    """Of the value loss."""
    epsilon: Positive | None = 0.2
    """Values move at most so far from those at the rollout; null: freely."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First optimizer steps in which the value model learns alone."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind == "shared" and self.path is not None:
            yield "path", "only with `kind: separate`"


class PromptLengthRecipe(Strict):
    """How long prompts may be, in tokens. What it drops and cuts is counted in data.json."""

    max_prompt_tokens: Count = 512
    prompt: Literal["drop", "keep_start", "keep_end"] = "drop"
    """A longer prompt: drop it, or keep one end of it."""
    max_image_tokens: Count | None = None
    """Limit of the tokens that stand for a prompt's images; one with more is dropped."""

    def of_encoder(self) -> LengthRecipe:
        """As encoders take it, which limit responses too."""
        return LengthRecipe(
            max_prompt_tokens=self.max_prompt_tokens,
            prompt=self.prompt,
            max_image_tokens=self.max_image_tokens,
        )


class RlTrainRecipe(LoopRecipe):
    """The optimizer's side: how a rollout is cut into updates."""

    num_mini_batches: Count = 1
    """Updates of one pass over a rollout."""
    num_iterations: Count = 1
    """Passes over a rollout; each in another order."""
    micro_batch_tokens: Count | None = 4096
    """Most tokens of one forward pass of one process; a prompt counts once for its
    group; null: all of an update that it has."""
    layout: Literal["auto", "plain", "shared"] = "auto"
    """auto: a group is one shared row where the start-of-run check passes, else plain rows."""
    head_memory_mb: Count = 256
    """Budget of the vocabulary head's working memory."""
    extra_metrics: tuple[Literal["entropy", "reverse_kl"], ...] = ()
    """What the loss does not need but the log should show; each costs time."""


class RlRecipe(RunRecipe):
    """Online learning of a policy from rewards of its own responses."""

    model: ModelRecipe
    prompts: PromptsRecipe
    reward: RewardSignalRecipe
    algorithm: Algorithm = Grpo()
    kl: KlRecipe | None = None
    """Default: k1 in the reward at 0.05 for ppo, rloo and reinforce++; none for grpo. Of online_dpo
    the loss has its own."""
    rollout: RolloutRecipe = RolloutRecipe()
    value: ValueRecipe | None = None
    """Of ppo."""
    reference: ReferenceRecipe | None = None
    """Default: kind auto. An error where nothing asks for a reference."""
    length: PromptLengthRecipe = PromptLengthRecipe()
    train: RlTrainRecipe = RlTrainRecipe()
    alarms: AlarmsRecipe = AlarmsRecipe()
    fidelity: Literal["corrected", "paper"] = "corrected"
    """paper: as the released code of arXiv:2406.09279 does it where that differs: log-probs and
    values of the sampling policy are taken anew before each update, so that no ratio is clipped,
    without the temperature; samples from the 50 likeliest tokens; whitening within an update;
    updates in the order of the prompts. Only with ppo. docs/online.md has the differences."""

    @property
    def effective_kl(self) -> KlRecipe | None:
        """`kl`, or the algorithm's own; None where the coefficient is 0."""
        kl = self.kl
        if kl is None and self.algorithm.type in ("ppo", "rloo", "reinforce++"):
            kl = KlRecipe()
        return None if kl is None or (kl.coefficient == 0 and kl.target is None) else kl

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.train.num_mini_batches * self.train.num_iterations

    @property
    def measures_rollouts(self) -> bool:
        """Whether a rollout is run through the trainer before the first update on it. Where there
        is one update and nothing else asks, the update is the first look itself."""
        kl = self.effective_kl
        return not isinstance(self.algorithm, OnlineDpo) and (
            isinstance(self.algorithm, Ppo)
            or self.updates_per_rollout > 1
            or self.rollout.engine.correction is not None
            or (kl is not None and (kl.place == "reward" or kl.target is not None))
        )

    @property
    def needs_reference(self) -> bool:
        if isinstance(self.algorithm, OnlineDpo):
            return not {loss.type for loss in members(self.algorithm.loss)} <= REFERENCE_FREE
        return self.effective_kl is not None or "reverse_kl" in self.train.extra_metrics

    def problems(self) -> Iterator[tuple[str, str]]:
        algorithm, rollout, train = self.algorithm, self.rollout, self.train
        if isinstance(algorithm, OnlineDpo) and train.num_mini_batches > 1:
            yield (
                "train.num_mini_batches",
                "online_dpo updates once on each batch of prompts: use algorithm.sync_every",
            )
        vision = self.model.vision
        if vision is not None and vision.features == "cached":
            yield "model.vision.features", "features are made once a batch here: use live or auto"
        if self.model.lora is not None and self.model.lora.dropout:
            yield "model.lora.dropout", "the ratio of the first update would not be 1: use 0"
        if rollout.batch_size_prompts % train.num_mini_batches:
            yield (
                "train.num_mini_batches",
                f"does not divide rollout.batch_size_prompts ({rollout.batch_size_prompts})",
            )
        if algorithm.needs_groups and rollout.num_generations < 2:
            yield "rollout.num_generations", f"{algorithm.type} compares responses: 2 or more"
        if self.value is not None and not isinstance(algorithm, Ppo):
            yield "value", f"{algorithm.type} has no value model"
        if self.kl is not None and isinstance(algorithm, OnlineDpo):
            yield "kl", "the loss of online_dpo has its own beta: delete the key"
        if self.reference is not None and not self.needs_reference:
            yield "reference", "nothing asks for it: there is no KL"
        if self.reference is not None and self.reference.kind == "cache":
            yield "reference.kind", "what is not sampled yet is in no cache"
        wants_adapters = self.reference is not None and self.reference.kind == "adapter_off"
        if wants_adapters and self.model.lora is None:
            yield "reference.kind", "adapter_off needs model.lora"
        if self.fidelity == "paper":
            if not isinstance(algorithm, Ppo):
                yield "fidelity", "paper: only with `algorithm.type: ppo`"
            if isinstance(rollout.engine, ServerEngine):
                yield "fidelity", "paper: only with the engine in this process"
            if self.kl is not None and self.kl.target is not None:
                yield "kl.target", "not with `fidelity: paper`, whose coefficient is fixed"
            if isinstance(algorithm, PolicyGradient) and algorithm.target_kl is not None:
                yield "algorithm.target_kl", "not with `fidelity: paper`, whose ratio is always 1"
        if compares(self.reward.scorer):
            if not algorithm.needs_groups:
                yield (
                    "reward.scorer",
                    f"compares the responses to one prompt, and {algorithm.type} takes each by "
                    "itself",
                )
            if self.prompts.holds_out and rollout.eval_generations < 2:
                yield "rollout.eval_generations", "reward.scorer compares responses: 2 or more"
        if rollout.eval_generations > 1 and not self.prompts.holds_out:
            yield "rollout.eval_generations", "needs `prompts.eval` or `prompts.eval_fraction`"
        if self.reward.placement == "spans" and algorithm.type not in ("ppo", "reinforce++"):
            yield "reward.placement", f"{algorithm.type} has one advantage for a response"
        if self.reward.placement == "spans" and algorithm.needs_groups:
            yield "reward.placement", "spans have no group to be compared in: `baseline: none`"
        if train.eval_every_steps is not None and not self.prompts.holds_out:
            yield "train.eval_every_steps", "needs `prompts.eval` or `prompts.eval_fraction`"
        if isinstance(algorithm, PolicyGradient):
            yield from algorithm.conflicts(
                updates=self.updates_per_rollout, off_policy=rollout.engine.correction is not None
            )
