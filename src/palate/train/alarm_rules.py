"""What goes wrong in online learning, as rules over the history of a log: what is seen, and what to
do.

A rule reads figures and returns what it sees in words, or None. Runs differ in scale, so that most
compare a run with its own beginning. docs/online-alarms.md has each with its reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from palate.recipes.alarms import AlarmName, ThresholdsRecipe
from palate.train.history import History, values_of

ENTROPY = ("entropy", "entropy/sampled")
KL = ("kl/exact", "kl/k1", "kl/k3")
"""The first that is logged counts."""
NO_PARTS = ("reward/std", "reward/group_std")
WATCHED = frozenset(
    (
        *ENTROPY,
        *KL,
        "reward",
        "samples/commonest",
        "length/mean",
        "eos/rate",
        "truncated/rate",
        "value/explained_variance",
        "value/loss",
        "ratio/first",
        "groups/zero_variance",
        "mismatch/kl",
    )
)
"""Figures that rules read, besides the components of the reward."""
VARIANCE_LINES = 8
"""A share of groups is counted over so many lines: one line may have few groups."""
NEVER_LINES = 32
"""A value model that has learnt nothing after so many lines will not."""
SHORTENED = 4.0
"""immediate_eos: the mean length then over `immediate_tokens`."""
NO_CHANGE = (0.0, 0.0, 0.0)

Check = Callable[[History, ThresholdsRecipe], str | None]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An alarm.

    Attributes:
        title: what happens. advice: what to do.
        check: what is seen, in words with figures; None while all is well.
        at_once: needs no second line that says the same.
    """

    title: str
    advice: str
    check: Check
    at_once: bool = False


def is_watched(name: str) -> bool:
    """Whether a rule may read this figure."""
    return name in WATCHED or is_component(name)


def is_component(name: str) -> bool:
    return name.startswith("reward/") and name not in NO_PARTS


def _first(history: History, names: tuple[str, ...]) -> str:
    """The first of some figures that the last line has; the last of them where it has none."""
    line = history.last[-1]
    return next((name for name in names if name in line), names[-1])


def entropy_collapse(history: History, limits: ThresholdsRecipe) -> str | None:
    name = _first(history, ENTROPY)
    then, now, reward = history.then(name), history.now(name), history.change("reward")
    if then is None or now is None or reward is None or then <= 0 or reward[2] < limits.errors:
        return None
    commonest = history.now("samples/commonest")
    is_same = commonest is not None and commonest >= limits.commonest
    if now > then * (limits.entropy_of_same if is_same else limits.entropy):
        return None
    same = f", and {commonest:.0%} of the responses are one and the same text" if is_same else ""
    return (
        f"entropy from {then:.3g} to {now:.3g} nats a token{same}, while the reward rose from "
        f"{reward[0]:.3g} to {reward[1]:.3g}"
    )


def kl_explosion(history: History, limits: ThresholdsRecipe) -> str | None:
    name = _first(history, KL)
    now, halfway = history.now(name), history.halfway(name)
    if now is None or halfway is None or not history.has_two_ends:
        return None
    if now >= limits.kl_from and now >= limits.kl_growth * max(halfway, 0.0):
        times = f"{now / halfway:.1f} times" if halfway > 0 else "up from"
        return f"{name} is {now:.3g} nats a response, {times} what it was halfway ({halfway:.3g})"
    length = history.now("length/mean")
    if length and now >= limits.kl_far and now / length >= limits.kl_token:
        return f"{name} is {now:.3g} nats a response, {now / length:.2g} a token"
    return None


def length_growth(history: History, limits: ThresholdsRecipe) -> str | None:
    then, now, errors = history.change("length/mean") or NO_CHANGE
    if errors < limits.errors or now - then < limits.length_change_tokens:
        return None
    return _lengths(then, now) if now >= limits.length_growth * then else None


def length_collapse(history: History, limits: ThresholdsRecipe) -> str | None:
    then, now, errors = history.change("length/mean") or NO_CHANGE
    if -errors < limits.errors or then - now < limits.length_change_tokens:
        return None
    return _lengths(then, now) if now <= limits.length_collapse * then else None


def _lengths(then: float, now: float) -> str:
    return f"mean length from {then:.1f} to {now:.1f} tokens"


def eos_collapse(history: History, limits: ThresholdsRecipe) -> str | None:
    if "eos/rate" in history.last[-1]:
        then, now, errors = history.change("eos/rate") or NO_CHANGE
    else:
        then, now, errors = history.change("truncated/rate") or NO_CHANGE
        then, now, errors = 1 - then, 1 - now, -errors
    if -errors < limits.errors or then < limits.eos_from or now > limits.eos * then:
        return None
    return f"{now:.0%} of the responses end by themselves, {then:.0%} at the beginning"


def immediate_eos(history: History, limits: ThresholdsRecipe) -> str | None:
    then, now = history.then("length/mean"), history.now("length/mean")
    if then is None or now is None or then < SHORTENED * limits.immediate_tokens:
        return None
    if now > limits.immediate_tokens:
        return None
    return f"responses end after {now:.1f} tokens, {then:.1f} at the beginning"


def value_divergence(history: History, limits: ThresholdsRecipe) -> str | None:
    variance, loss = history.now("value/explained_variance"), history.now("value/loss")
    known, losses = history.extremes("value/explained_variance"), history.extremes("value/loss")
    if variance is not None and known is not None and variance <= limits.explained_variance:
        if known[1] > 0:
            return f"explained variance of the values {known[1]:.2f} at best, {variance:.2f} now"
        if known[1] <= limits.explained_variance and history.count >= NEVER_LINES:
            return f"explained variance of the values {variance:.2f}, never above {known[1]:.2f}"
    if loss is None or losses is None or (variance is not None and variance > 0):
        return None
    if losses[0] > 0 and loss >= limits.value_loss * losses[0] and history.has_two_ends:
        return f"value loss {losses[0]:.3g} at its lowest, {loss:.3g} now"
    return None


def ratio_off(history: History, limits: ThresholdsRecipe) -> str | None:
    first = history.last[-1].get("ratio/first")
    if first is None or first <= limits.ratio:
        return None
    return f"the ratio of the first update of a rollout is off by up to {first:.3g}; 1 is right"


def no_variance(history: History, limits: ThresholdsRecipe) -> str | None:
    shares = values_of(history.last[-VARIANCE_LINES:], "groups/zero_variance")
    if len(shares) < VARIANCE_LINES:
        return None
    share = sum(shares) / len(shares)
    if share < limits.zero_variance:
        return None
    reward = history.now("reward")
    at = "" if reward is None else f"; mean reward {reward:.3g}"
    return f"in {share:.0%} of the groups all responses have one reward{at}"


def mismatch(history: History, limits: ThresholdsRecipe) -> str | None:
    then, now = history.then("mismatch/kl"), history.now("mismatch/kl")
    if now is None:
        return None
    if now >= limits.mismatch_most:
        return f"engine and trainer differ by {now:.3g} nats a token"
    errors = (history.change("mismatch/kl") or NO_CHANGE)[2]
    if then is None or errors < limits.errors or now < limits.mismatch_from:
        return None
    if now < limits.mismatch_growth * then:
        return None
    return f"engine and trainer differ by {now:.3g} nats a token, {then:.2g} at the beginning"


def component_conflict(history: History, limits: ThresholdsRecipe) -> str | None:
    changes: dict[str, tuple[float, float, float]] = {}
    for name in sorted(history.last[-1]):
        change = history.change(name) if is_component(name) else None
        if change is not None and _is_large(change, limits):
            changes[name] = change
    risen = {name: c for name, c in changes.items() if c[2] > 0}
    fallen = {name: c for name, c in changes.items() if c[2] < 0}
    if not risen or not fallen:
        return None
    up, down = max(risen, key=lambda n: risen[n][2]), min(fallen, key=lambda n: fallen[n][2])
    return f"{_moved(up, risen[up])}, while {_moved(down, fallen[down])}"


def _is_large(change: tuple[float, float, float], limits: ThresholdsRecipe) -> bool:
    then, now, errors = change
    size = max(abs(then), abs(now))
    return abs(errors) >= limits.component and abs(now - then) >= limits.component_change * size


def _moved(name: str, change: tuple[float, float, float]) -> str:
    return f"{name} from {change[0]:.3g} to {change[1]:.3g}"


RULES: Mapping[AlarmName, Rule] = {
    "entropy_collapse": Rule(
        title="The policy collapses to one answer",
        advice="Read the last samples: is the one answer good? Raise `kl.coefficient` (with no KL: "
        "set one), add `algorithm.entropy_coefficient`, lower `train.learning_rate`, or set "
        "`algorithm.epsilon_high` above `epsilon`; go on from a checkpoint before the fall.",
        check=entropy_collapse,
    ),
    "kl_explosion": Rule(
        title="The KL to the reference explodes",
        advice="Rewards are no longer earned near the reference: look for reward hacking in the "
        "samples. Raise `kl.coefficient` or adapt it (`kl.target`), lower `train.learning_rate`, "
        "set `algorithm.target_kl` or fewer `train.num_iterations`.",
        check=kl_explosion,
    ),
    "length_growth": Rule(
        title="Responses grow long",
        advice="Compare the reward of long and of short samples: many scorers like length. Score "
        "length against it (`reward.overlong`), choose `loss_type` dr_grpo or dapo over grpo, or a "
        "scorer that is balanced for length.",
        check=length_growth,
    ),
    "length_collapse": Rule(
        title="Responses grow short",
        advice="Check what a short response earns: a penalty for missing ends or a cost of length "
        "may be worth more than an answer. Set `rollout.min_new_tokens`, or lower the penalty.",
        check=length_collapse,
    ),
    "eos_collapse": Rule(
        title="Responses no longer end",
        advice="Set `reward.missing_eos`, check that the stop token is scored and trained on (and "
        "is not the padding token), and that `rollout.max_new_tokens` leaves room to end.",
        check=eos_collapse,
    ),
    "immediate_eos": Rule(
        title="Responses end at once",
        advice="The end pays more than any answer: set `rollout.min_new_tokens`, lower "
        "`reward.missing_eos.penalty`, and look at what the scorer gives empty responses.",
        check=immediate_eos,
    ),
    "value_divergence": Rule(
        title="The value model diverges",
        advice="Advantages are noise now: lower `value.learning_rate`, set `value.warmup_steps`, "
        "keep `value.epsilon`, scale the reward (`reward.mean` and `deviation`), or start the "
        "value model from the reward model.",
        check=value_divergence,
    ),
    "ratio_off": Rule(
        title="The ratio of the first update is not 1",
        advice="Policy and sampler are the same there, so that log-probs are computed in two ways: "
        "dropout, temperature, padding or another layout in one of them. Gradients are wrong until "
        "that is found; an error of this library where the recipe has none of it.",
        check=ratio_off,
        at_once=True,
    ),
    "no_variance": Rule(
        title="Groups have no variance",
        advice="Nothing is learnt from equal rewards. With a high reward the task is solved: stop, "
        "or take harder prompts. With a low one it is too hard: easier prompts, more "
        "`rollout.num_generations`, a reward with steps, or `algorithm.zero_variance: resample`.",
        check=no_variance,
    ),
    "mismatch": Rule(
        title="Engine and trainer drift apart",
        advice="Samples no longer come from the policy that is trained. Check that weights reach "
        "the engine, its log-probs are processed ones at the same temperature, and number formats; "
        "set `rollout.engine.correction`, or bound its staleness.",
        check=mismatch,
    ),
    "component_conflict": Rule(
        title="One part of the reward pays for another",
        advice="A hint of reward hacking: read samples with a high score. Weigh the falling "
        "component more, make it a gate, or cap the rising one.",
        check=component_conflict,
    ),
}
