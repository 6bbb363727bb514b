"""Curves of online learning: which are drawn together, what each is called, where alarms are marked
in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

GROUPS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "reward",
        "Reward",
        "The mean score of the policy's own responses, and each component of it: a mean that rises "
        "hides a component that falls. A policy gradient learns from the spread within groups; "
        "groups of equal rewards teach nothing.",
        ("reward", "reward/*", "reward/std", "reward/group_std", "groups/zero_variance"),
    ),
    (
        "rl-kl",
        "Distance from the reference",
        "KL(policy ‖ reference) of a response along the policy's own samples: exact over the "
        "vocabulary, or estimated from the tokens that were drawn (k1 without bias, k3 never below "
        "zero).",
        ("kl/exact", "kl/k1", "kl/k3", "kl/coefficient"),
    ),
    (
        "policy",
        "Policy and update",
        "Entropy says how many answers are left. The ratio is of the policy that is updated to the "
        "one that sampled: 1 in the first update of a rollout, and clipped where it goes too far.",
        (
            *("entropy", "entropy/sampled", "samples/commonest"),
            *("ratio/mean", "ratio/max", "ratio/first", "clip/low", "clip/high"),
            *("advantages/mean", "advantages/std", "loss", "grad_norm", "learning_rate"),
        ),
    ),
    (
        "responses",
        "Responses",
        "How long they are, whether they end by themselves, and which are not trained on.",
        ("length/mean", "length/max", "eos/rate", "truncated/rate", "unscored", "dropped/*"),
    ),
    (
        "value",
        "Value model",
        "Explained variance of 1 is perfect, 0 what a constant reaches; below zero the values are "
        "worse than none.",
        ("value/explained_variance", "value/loss", "value/clip", "grad_norm/value"),
    ),
    (
        "engine",
        "Engine and time",
        "How far the engine that samples is from the policy that is trained, and where the time "
        "goes.",
        (
            *("mismatch/kl", "mismatch/max", "mismatch/weight", "staleness"),
            *("seconds/*", "tokens/generated"),
        ),
    ),
)
"""Key, title, text and metrics; `*` stands for every name that begins so and has no other place."""

SHARED = ("loss", "grad_norm", "learning_rate")
"""Metrics of every kind of training, whose titles stand with the others."""

TITLES: dict[str, tuple[str, str, float | None]] = {
    "reward": ("Mean reward", "reward", None),
    "reward/std": ("Spread of rewards", "standard deviation", None),
    "reward/group_std": ("Spread within groups", "standard deviation", None),
    "groups/zero_variance": ("Groups without variance", "share of groups", None),
    "kl/exact": ("KL, exact", "nats a response", 0.0),
    "kl/k1": ("KL, k1", "nats a response", 0.0),
    "kl/k3": ("KL, k3", "nats a response", 0.0),
    "kl/coefficient": ("Coefficient of the KL", "coefficient", None),
    "entropy": ("Entropy of the next token", "nats a token", 0.0),
    "entropy/sampled": ("Entropy, from sampled tokens", "nats a token", 0.0),
    "samples/commonest": ("Commonest response", "share of responses", None),
    "ratio/mean": ("Ratio, mean", "ratio", 1.0),
    "ratio/max": ("Ratio, largest", "ratio", 1.0),
    "ratio/first": ("Ratio in the first update", "distance from 1", 0.0),
    "clip/low": ("Clipped below", "share of tokens", None),
    "clip/high": ("Clipped above", "share of tokens", None),
    "advantages/mean": ("Advantages, mean", "advantage", 0.0),
    "advantages/std": ("Advantages, spread", "standard deviation", None),
    "length/mean": ("Length, mean", "tokens", None),
    "length/max": ("Length, longest", "tokens", None),
    "eos/rate": ("Responses that end", "share of responses", None),
    "truncated/rate": ("Responses that were cut", "share of responses", None),
    "unscored": ("Without a score", "responses a rollout", None),
    "value/explained_variance": ("Explained variance", "share", 0.0),
    "value/loss": ("Value loss", "loss", None),
    "value/clip": ("Values clipped", "share of tokens", None),
    "grad_norm/value": ("Gradient norm of the value model", "norm before clipping", None),
    "mismatch/kl": ("Engine against trainer", "nats a token", 0.0),
    "mismatch/max": ("Engine against trainer, largest", "nats", 0.0),
    "mismatch/weight": ("Importance weight", "weight", 1.0),
    "staleness": ("Age of tokens", "updates", None),
    "tokens/generated": ("Tokens sampled", "tokens a line", None),
}
"""Title, unit, and a value worth a line of its own; those of families are made by `title_of`."""

_FAMILIES = {
    "reward/": ("Reward: {}", "reward"),
    "dropped/": ("Not trained on: {}", "responses a line"),
    "seconds/": ("Seconds: {}", "seconds a line"),
}

ALARM_CURVES: dict[str, tuple[str, ...]] = {
    "entropy_collapse": ("entropy", "entropy/sampled", "samples/commonest", "reward"),
    "kl_explosion": ("kl/exact", "kl/k1", "kl/k3"),
    "length_growth": ("length/mean", "length/max"),
    "length_collapse": ("length/mean", "length/max"),
    "eos_collapse": ("eos/rate", "truncated/rate"),
    "immediate_eos": ("eos/rate", "length/mean"),
    "value_divergence": ("value/explained_variance", "value/loss"),
    "ratio_off": ("ratio/first", "ratio/mean", "ratio/max"),
    "no_variance": ("groups/zero_variance", "reward/group_std"),
    "mismatch": ("mismatch/kl", "mismatch/max"),
    "component_conflict": ("reward/*",),
}
"""In which curves an alarm is marked."""


def title_of(name: str) -> tuple[str, str, float | None] | None:
    """Title, unit and level of a metric of online learning; None of any other."""
    if name in TITLES:
        return TITLES[name]
    for start, (title, unit) in _FAMILIES.items():
        if name.startswith(start):
            return title.format(name.removeprefix(start)), unit, None
    return None


def rl_groups(logged: Iterable[str]) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """GROUPS with the names that stand for the families that were logged."""
    names = sorted(set(logged))
    for key, title, text, members in GROUPS:
        expanded: list[str] = []
        for member in members:
            if member.endswith("*"):
                start = member[:-1]
                expanded += [n for n in names if n.startswith(start) and n not in TITLES]
            else:
                expanded.append(member)
        yield key, title, text, tuple(expanded)


def marks_alarm(alarm: str, name: str) -> bool:
    """Whether an alarm is marked in the curve of a metric."""
    is_component = name.startswith("reward/") and name not in TITLES
    curves = ALARM_CURVES.get(alarm, ())
    return name in curves or (is_component and "reward/*" in curves)
