"""The algorithms of online learning as recipes. Field names are TRL's where it has the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Dpo, Loss, NotNegative, Positive, Strict, members
from palate.recipes.schema import Count

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"]


class PolicyGradient(Strict):
    """What all policy gradients have: a clipped ratio, and what a token's loss is divided by."""

    epsilon: Positive = 0.2
    """The ratio is clipped below at 1 - epsilon ..."""
    epsilon_high: Positive | None = None
    """... and above at 1 + epsilon_high; default: epsilon (0.28 in DAPO's clip-higher)."""
    delta: Positive | None = None
    """Most that the ratio of a token with a negative advantage counts (two-sided clipping,
    arXiv:2505.07291); above 1 + epsilon."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """sequence: one ratio a response, the geometric mean of its tokens' (GSPO,
    arXiv:2507.18071)."""
    log_ratio_clamp: Positive | None = None
    """Of log-ratios before they are exponentiated, in nats; default: none."""
    loss_type: LossType = "dapo"
    """What sums over tokens are divided by. grpo: each response's by its tokens, then by responses;
    dr_grpo: by responses times max_new_tokens; dapo: by the tokens of the update; bnpo: as dapo,
    since here no micro-batch is divided by its own; cispo: as dapo, with the ratio clipped above
    and held constant as a weight (arXiv:2506.13585), its bound 1 + epsilon_high."""
    entropy_coefficient: NotNegative = 0.0
    """Times the entropy of each token's distribution, added to what is maximised."""
    mask_truncated_completions: bool = False
    """Responses without an end are not trained on."""
    advantage_filter: Positive | None = None
    """Advantages more than so many deviations from the mean of the rollout become 0 (3 in
    StableReinforce, arXiv:2505.02835), which stay in what is divided by; default: none."""
    target_kl: Positive | None = None
    """The passes over a rollout end once the policy has moved so far from the one that sampled:
    mean of (ratio - 1) - log ratio over tokens."""

    @property
    def needs_groups(self) -> bool:
        """Whether a response is compared with others to the same prompt."""
        return False

    def problems(self) -> Iterator[tuple[str, str]]:
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if self.delta is not None and self.delta <= 1 + high:
            yield "delta", f"not above 1 + epsilon_high ({1 + high:g}): it would clip the other"
        if self.epsilon >= 1:
            yield "epsilon", "1 or more clips nothing below"
        if self.loss_type == "cispo":
            # A recipe with every key written out has the default.
            if self.epsilon != type(self).model_fields["epsilon"].default:
                yield "epsilon", "cispo clips above only: use epsilon_high"
            if self.delta is not None:
                yield "delta", "not with cispo, whose ratio is a weight"

    def conflicts(self, *, updates: int, off_policy: bool) -> Iterator[tuple[str, str]]:
        """Settings that come to nothing.

        Args:
            updates: of a rollout. off_policy: whether the engine samples from another policy.
        """
        if self.target_kl is not None and updates == 1:
            yield "algorithm.target_kl", "with one update a rollout the policy has not moved yet"


class Ppo(PolicyGradient):
    """Proximal policy optimisation, arXiv:1707.06347, with a value model and GAE."""

    type: Literal["ppo"] = "ppo"
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    lam: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    whiten_advantages: bool = True
    """Less their mean, over their deviation, over all tokens of the rollout and all processes."""
    truncated: Literal["terminal", "bootstrap"] = "terminal"
    """A response without an end: nothing follows it, or the value of its last state does."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.mask_truncated_completions and self.truncated == "bootstrap":
            yield "truncated", "`mask_truncated_completions` trains on no such response"


class Grouped(PolicyGradient):
    """Algorithms that compare the responses to one prompt."""

    zero_variance: Literal["keep", "drop", "resample"] = "keep"
    """Groups whose rewards are all exactly equal, which have no gradient but a KL's. drop: not
    trained on; resample: other prompts are drawn in their place (DAPO's dynamic sampling)."""
    resample_limit: Count | None = None
    """Prompts drawn at most for one rollout, as a multiple of its own; default: 5."""

    @property
    def needs_groups(self) -> bool:
        return True

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.resample_limit is not None and self.zero_variance != "resample":
            yield "resample_limit", "only with `zero_variance: resample`"


class Grpo(Grouped):
    """Group-relative policy optimisation, arXiv:2402.03300, and its relatives by `loss_type`."""

    type: Literal["grpo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the deviation of the group, or of the whole rollout, or
    nothing (Dr. GRPO, arXiv:2503.20783: dividing makes easy and hard prompts count more)."""


class Rloo(Grouped):
    """REINFORCE with the mean of a group's other responses as baseline, arXiv:2402.14740."""

    type: Literal["rloo"] = "rloo"
    loss_type: LossType = "dr_grpo"
    """As in grpo; dr_grpo is the sum over a response, up to a constant."""
    whiten_advantages: bool = False


class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++, arXiv:2501.03262: no value model, returns whitened over the whole rollout."""

    type: Literal["reinforce++"] = "reinforce++"
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    baseline: Literal["none", "group"] = "none"
    """group: the score less the mean of its group (REINFORCE++-baseline)."""

    @property
    def needs_groups(self) -> bool:
        return self.baseline == "group"


class OnlineDpo(Strict):
    """Preference losses on pairs of the policy's own responses: online and semi-online DPO, TDPO
    (arXiv:2402.04792, arXiv:2506.21495). The KL is the loss's own."""

    type: Literal["online_dpo"] = "online_dpo"
    loss: Loss = Dpo()
    labels: Literal["soft", "sampled", "hard"] = "soft"
    """With p = sigmoid((r_a - r_b) / scale). soft: both orders, weighted by p and 1 - p; sampled:
    one order, drawn by p; hard: the higher score is chosen. Hard labels have another fixed
    point."""
    scale: Positive = 1.0
    """Of soft and sampled labels."""
    pairs: Literal["best_worst", "all", "random"] = "best_worst"
    """Of a group: its best and worst response, every two, or disjoint ones at random."""
    sync_every: Count | Literal["inf"] = 1
    """Updates between two rollouts: 1 is online, more semi-online, inf samples once for all
    epochs' prompts."""

    @property
    def needs_groups(self) -> bool:
        return True

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.labels == "hard" and self.scale != 1.0:
            yield "scale", "only of soft and sampled labels"
        for loss in members(self.loss):
            if loss.type == "kto":
                yield "loss", "kto takes no pairs"
            if loss.type in ("sft", "anchor", "cpo", "orpo") and self.labels == "soft":
                yield "labels", f"{loss.type} imitates the chosen response: soft labels have none"
        if {loss.type for loss in members(self.loss)} <= {"sft", "anchor"}:
            yield "loss", "compares nothing"


Algorithm = Annotated[
    Ppo | Grpo | Rloo | ReinforcePlusPlus | OnlineDpo, Field(discriminator="type")
]
