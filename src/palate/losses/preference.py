"""The table of preference losses, and how they are combined.

A loss is one function and one row of LOSSES. Its keyword arguments are the fields of its recipe.

    member = Member(type="tdpo2", options={"beta": 0.1})
    needs = combined_needs([member])       # what to ask the model and the reference for
    output = compute([member], chosen, rejected, weight=pair_weights)
    output.value({"pair": 64, "chosen_token": 9000, "sequence": 128}).backward()
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from palate.losses.nll import cpo, orpo, sft
from palate.losses.pairwise import (
    anchor,
    dpo,
    dpo_norm,
    fdpo,
    hinge,
    ipo_mean,
    ipo_sum,
    rdpo,
    simpo,
)
from palate.losses.sequence import LossOutput, LossTerm, SequenceStats
from palate.losses.tdpo import tdpo1, tdpo2
from palate.losses.unpaired import kto

Side = Literal["chosen", "rejected"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a loss must be given beside policy log-probs.

    Attributes:
        reference: reference log-probs.
        kl: KL(ref || policy) of every response token.
        kl_gradient: sides whose KL carries a gradient; on the others it is a number, and its
            vocabulary work may run without one.
        length: it divides by response lengths.
    """

    reference: bool
    kl: bool = False
    kl_gradient: frozenset[Side] = frozenset()
    length: bool = False


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """One row of the table.

    Attributes:
        function: (chosen, rejected, *, options) for pairs; (stats, *, desirable, kl_baseline,
            options) for unpaired feedback.
        inputs: which of the two.
        ranks: it contrasts two responses; False where it looks at the chosen one alone.
        token_weights: per-token weights of the log-ratios have a meaning for it.
        reduction: over tokens, and over the batch, in words.
        reward: implicit reward that it reports.
        paper: where it comes from.
    """

    function: Callable[..., LossOutput]
    needs: Needs
    inputs: Literal["pair", "unpaired"] = "pair"
    ranks: bool = True
    token_weights: bool = False
    reduction: str
    reward: str
    paper: str


_SUMMED = "log-ratios summed over tokens; mean over pairs"
_AVERAGED = "log-ratios averaged over tokens; mean over pairs"
_RATIO = Needs(reference=True)
_MEAN_RATIO = Needs(reference=True, length=True)

LOSSES: dict[str, LossSpec] = {
    "dpo": LossSpec(
        function=dpo,
        needs=_RATIO,
        token_weights=True,
        reduction=_SUMMED,
        reward="beta m",
        paper="arXiv:2305.18290",
    ),
    "rdpo": LossSpec(
        function=rdpo,
        needs=_RATIO,
        token_weights=True,
        reduction=_SUMMED,
        reward="beta m",
        paper="arXiv:2403.00409",
    ),
    "ipo_mean": LossSpec(
        function=ipo_mean,
        needs=_MEAN_RATIO,
        token_weights=True,
        reduction=_AVERAGED,
        reward="beta m / n",
        paper="arXiv:2310.12036",
    ),
    "ipo_sum": LossSpec(
        function=ipo_sum,
        needs=_RATIO,
        token_weights=True,
        reduction=_SUMMED,
        reward="beta m",
        paper="arXiv:2310.12036",
    ),
    "hinge": LossSpec(
        function=hinge,
        needs=_RATIO,
        token_weights=True,
        reduction=_SUMMED,
        reward="beta m",
        paper="arXiv:2305.10425, arXiv:2309.06657",
    ),
    "simpo": LossSpec(
        function=simpo,
        needs=Needs(reference=False, length=True),
        reduction="log-probs averaged over tokens; mean over pairs",
        reward="beta log policy(y) / n",
        paper="arXiv:2405.14734",
    ),
    "dpo_norm": LossSpec(
        function=dpo_norm,
        needs=_MEAN_RATIO,
        token_weights=True,
        reduction=_AVERAGED,
        reward="beta m / n",
        paper="arXiv:2411.15124",
    ),
    "kto": LossSpec(
        function=kto,
        needs=_RATIO,
        inputs="unpaired",
        reduction="log-ratios summed over tokens; mean over sequences",
        reward="beta m",
        paper="arXiv:2402.01306",
    ),
    "orpo": LossSpec(
        function=orpo,
        needs=Needs(reference=False, length=True),
        reduction="log-probs averaged over tokens, mean over pairs; likelihood: mean over all "
        "chosen tokens of the step",
        reward="log odds of the mean token probability",
        paper="arXiv:2403.07691",
    ),
    "cpo": LossSpec(
        function=cpo,
        needs=Needs(reference=False),
        reduction="log-probs summed over tokens, mean over pairs; likelihood: mean over all "
        "chosen tokens of the step",
        reward="beta log policy(y)",
        paper="arXiv:2401.08417",
    ),
    "fdpo": LossSpec(
        function=fdpo,
        needs=_RATIO,
        token_weights=True,
        reduction=_SUMMED,
        reward="beta f'(exp m)",
        paper="arXiv:2309.16240",
    ),
    "tdpo1": LossSpec(
        function=tdpo1,
        needs=Needs(reference=True, kl=True, kl_gradient=frozenset({"chosen", "rejected"})),
        reduction="log-ratios and KL summed over tokens; mean over pairs",
        reward="beta (m + K)",
        paper="arXiv:2404.11999",
    ),
    "tdpo2": LossSpec(
        function=tdpo2,
        needs=Needs(reference=True, kl=True, kl_gradient=frozenset({"rejected"})),
        reduction="log-ratios and KL summed over tokens; mean over pairs",
        reward="beta (m + alpha K)",
        paper="arXiv:2404.11999",
    ),
    "anchor": LossSpec(
        function=anchor,
        needs=_RATIO,
        ranks=False,
        reduction=_SUMMED,
        reward="beta m",
        paper="arXiv:2406.11839",
    ),
    "sft": LossSpec(
        function=sft,
        needs=Needs(reference=False),
        ranks=False,
        reduction="mean over all chosen tokens of the step",
        reward="log policy(y)",
        paper="maximum likelihood",
    ),
}
"""Recipe `type` -> loss."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One loss of an objective, chosen by name.

    Attributes:
        type: key of LOSSES.
        options: keyword arguments of its function.
        weight: multiplies its terms.
    """

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    @classmethod
    def of(cls, recipe: Any) -> Member:
        """The member that a recipe of a loss describes: its `type`, `weight` and options."""
        options = recipe.model_dump(exclude={"type", "weight"})
        return cls(type=recipe.type, options=options, weight=recipe.weight)

    @property
    def spec(self) -> LossSpec:
        """The row of the table.

        Raises:
            ValueError: no such loss.
        """
        if self.type not in LOSSES:
            raise ValueError(f"no loss {self.type!r}; there are {', '.join(sorted(LOSSES))}")
        return LOSSES[self.type]


def combined_needs(members: Sequence[Member]) -> Needs:
    """What all members together need."""
    needs = [member.spec.needs for member in members]
    return Needs(
        reference=any(n.reference for n in needs),
        kl=any(n.kl for n in needs),
        kl_gradient=frozenset().union(*(n.kl_gradient for n in needs)),
        length=any(n.length for n in needs),
    )


def compute(
    members: Sequence[Member],
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    weight: Tensor | None = None,
) -> LossOutput:
    """One loss on B pairs, or the weighted sum of several (`mixture`).

    Args:
        members: at least one, all of pairs.
        weight: [B] weights of the pairs, see `apply_weight`.

    Raises:
        ValueError: no member, an unknown one, or one of unpaired feedback.
    """
    output = mixture(members, chosen, rejected)
    return output if weight is None else apply_weight(output, weight)


def compute_unpaired(
    member: Member,
    stats: SequenceStats,
    *,
    desirable: Tensor,
    kl_baseline: Tensor,
    weight: Tensor | None = None,
) -> LossOutput:
    """A loss of unpaired feedback on S responses; arguments as in `kto`.

    Raises:
        ValueError: unknown member, or one of pairs.
    """
    if member.spec.inputs != "unpaired":
        raise ValueError(f"{member.type} takes pairs")
    output = member.spec.function(
        stats, desirable=desirable, kl_baseline=kl_baseline, **member.options
    )
    output = _scaled(output, member.weight)
    return output if weight is None else apply_weight(output, weight)


def mixture(
    members: Sequence[Member], chosen: SequenceStats, rejected: SequenceStats
) -> LossOutput:
    """Weighted sum of losses on the same B pairs.

    Terms and statistics are named `<type>/<name>` (`<type>.<index>/<name>` where a type occurs
    twice). Rewards, and statistics under their plain names, are those of the first member that
    ranks. A single member keeps its own names.
    """
    if not members:
        raise ValueError("a mixture needs at least one loss")
    for member in members:
        if member.spec.inputs != "pair":
            raise ValueError(f"{member.type} takes single responses, not pairs")
    outputs = [
        _scaled(member.spec.function(chosen, rejected, **member.options), member.weight)
        for member in members
    ]
    if len(outputs) == 1:
        return outputs[0]
    lead = next((i for i, member in enumerate(members) if member.spec.ranks), 0)
    terms: list[LossTerm] = []
    statistics = dict(outputs[lead].statistics)
    for label, output in zip(_labels(members), outputs, strict=True):
        terms += [dataclasses.replace(t, name=f"{label}/{t.name}") for t in output.terms]
        statistics |= {f"{label}/{key}": value for key, value in output.statistics.items()}
    return dataclasses.replace(outputs[lead], terms=tuple(terms), statistics=statistics)


def apply_weight(output: LossOutput, weight: Tensor) -> LossOutput:
    """Multiplies the losses of every term by the weight of their pair (or sequence).

    Args:
        weight: [B] (or [S]). Denominators stay counts, so a weight of 2 is a row twice in the
            numerator only; rewards and statistics are not weighted.
    """
    terms = tuple(
        dataclasses.replace(term, losses=term.losses * weight.to(term.losses))
        for term in output.terms
    )
    return dataclasses.replace(output, terms=terms)


def _scaled(output: LossOutput, weight: float) -> LossOutput:
    if weight == 1.0:
        return output
    terms = tuple(dataclasses.replace(t, losses=weight * t.losses) for t in output.terms)
    return dataclasses.replace(output, terms=terms)


def _labels(members: Sequence[Member]) -> list[str]:
    count = Counter(member.type for member in members)
    return [
        member.type if count[member.type] == 1 else f"{member.type}.{index}"
        for index, member in enumerate(members)
    ]
