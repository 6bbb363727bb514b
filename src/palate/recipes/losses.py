"""Loss choices of a recipe. Each class is one published loss; its defaults are the paper's.

The field names of a class are exactly the keyword arguments of the function in
`palate.losses.preference` registered under the same `type`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError


def _make_strict(schema: Any, cls: type[BaseModel]) -> None:
    """Strict numbers and booleans in the fields of `cls`, and no empty text, which as a path is the
    current folder. Lists may still be tuples, and text paths."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        if schema.get("type") == "str":
            schema.setdefault("min_length", 1)
        if schema.get("type") != "model" or schema["cls"] is cls:  # sections are strict by now
            for part in schema.values():
                _make_strict(part, cls)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _make_strict(part, cls)


class Strict(BaseModel):
    """Base of every recipe node: unknown keys are errors, values are frozen and finite.

    Numbers and booleans are not converted: true is not read as 1.0, nor '1_0' as 10.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        # A command needs the recipes of its own verb alone.
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_strict(schema, cls)
        return schema

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings that contradict each other: (dotted key below this node, message) each."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        problems: list[tuple[str, str]] = list(self.problems())
        if problems:
            context: dict[str, Any] = {
                "problems": problems,
                "text": "; ".join(f"`{key}`: {message}" for key, message in problems),
            }
            raise PydanticCustomError("problems", "{text}", context)
        return self


Probability = Annotated[float, Field(ge=0.0, lt=0.5)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


class LossBase(Strict):
    weight: Positive = 1.0
    """Multiplies this loss; only inside a mixture."""


class Dpo(LossBase):
    """Direct preference optimisation, arXiv:2305.18290; label_smoothing > 0 is cDPO."""

    type: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    """Strength of the pull towards the reference."""
    label_smoothing: Probability = 0.0
    """Assumed probability that a label is flipped (cDPO)."""


class RobustDpo(LossBase):
    """rDPO, arXiv:2403.00409: unbiased under labels flipped with the given probability."""

    type: Literal["rdpo"] = "rdpo"
    beta: Positive = 0.1
    label_smoothing: Probability = 0.1
    """Probability that a label is flipped; above 0."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.label_smoothing == 0:
            yield "label_smoothing", "rdpo without flipped labels is dpo: use `type: dpo`"


class Ipo(LossBase):
    """IPO, arXiv:2310.12036. `ipo_mean` averages log-ratios over tokens, `ipo_sum` sums them."""

    type: Literal["ipo_mean", "ipo_sum"]
    beta: Positive = 0.1
    """The paper's tau: the target margin is 1 / (2 beta)."""


class Hinge(LossBase):
    """Hinge loss on the DPO margin (SLiC, arXiv:2305.10425; RSO, arXiv:2309.06657)."""

    type: Literal["hinge"] = "hinge"
    beta: Positive = 0.1


class SimPo(LossBase):
    """SimPO, arXiv:2405.14734: length-normalised, reference-free, with a target margin."""

    type: Literal["simpo"] = "simpo"
    beta: Positive = 2.0
    gamma: Annotated[float, Field(ge=0.0)] = 1.0
    """Target reward margin."""


class DpoNorm(LossBase):
    """Length-normalised DPO: log-ratios averaged over tokens (Tulu 3, arXiv:2411.15124)."""

    type: Literal["dpo_norm"] = "dpo_norm"
    beta: Positive = 5.0
    label_smoothing: Probability = 0.0


class Kto(LossBase):
    """KTO, arXiv:2402.01306, on unpaired feedback (pairs are split into two examples)."""

    type: Literal["kto"] = "kto"
    beta: Positive = 0.1
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0


class Orpo(LossBase):
    """ORPO, arXiv:2403.07691: token-mean NLL of chosen + beta times the odds-ratio loss."""

    type: Literal["orpo"] = "orpo"
    beta: Positive = 0.1


class Cpo(LossBase):
    """CPO, arXiv:2401.08417: reference-free sigmoid loss + NLL of chosen."""

    type: Literal["cpo"] = "cpo"
    beta: Positive = 0.1
    label_smoothing: Probability = 0.0
    nll_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the NLL of the chosen response."""


class FDpo(LossBase):
    """f-divergence DPO, arXiv:2309.16240. Reverse KL is plain DPO."""

    type: Literal["fdpo"] = "fdpo"
    beta: Positive = 0.1
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Only for divergence: alpha (default 0.5 there). The paper's: towards 0 is reverse_kl, towards
    1 forward_kl; TRL's coefficient is 1 - alpha."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.alpha is not None and self.divergence != "alpha":
            yield "alpha", f"only for `divergence: alpha`, not for {self.divergence}"


class Tdpo1(LossBase):
    """TDPO1, arXiv:2404.11999 Eq. 13-15. It has no alpha."""

    type: Literal["tdpo1"] = "tdpo1"
    beta: Positive = 0.1


class Tdpo2(LossBase):
    """TDPO2, arXiv:2404.11999 Eq. 17-18."""

    type: Literal["tdpo2"] = "tdpo2"
    beta: Positive = 0.1
    alpha: Annotated[float, Field(ge=0.0)] = 0.5
    """Weight of the KL difference, inside beta; 0 is DPO."""
    reward: Literal["trained", "released"] = "trained"
    """Logged rewards: beta (m + alpha K), or beta (m + K) as the released code logs."""


class Anchor(LossBase):
    """Anchored preference of mDPO, arXiv:2406.11839, a term beside `dpo`, `tdpo2` ...: the chosen
    response's reward is held above `delta`."""

    type: Literal["anchor"] = "anchor"
    beta: Positive = 0.1
    delta: float = 0.0
    """Reward (beta times the log-ratio) that the chosen response should have."""


class Sft(LossBase):
    """Token-mean negative log-likelihood of the chosen response."""

    type: Literal["sft"] = "sft"


SingleLoss = Annotated[
    Dpo
    | RobustDpo
    | Ipo
    | Hinge
    | SimPo
    | DpoNorm
    | Kto
    | Orpo
    | Cpo
    | FDpo
    | Tdpo1
    | Tdpo2
    | Anchor
    | Sft,
    Field(discriminator="type"),
]


class Mixture(Strict):
    """A weighted sum of losses on the same pairs, e.g. MPO or DPO + SFT."""

    type: Literal["mixture"] = "mixture"
    losses: Annotated[tuple[SingleLoss, ...], Field(min_length=2)]

    def problems(self) -> Iterator[tuple[str, str]]:
        for index, loss in enumerate(self.losses):
            if loss.type == "kto":
                yield f"losses.{index}.type", "kto takes single examples and cannot join a mixture"


Loss = Annotated[
    Dpo
    | RobustDpo
    | Ipo
    | Hinge
    | SimPo
    | DpoNorm
    | Kto
    | Orpo
    | Cpo
    | FDpo
    | Tdpo1
    | Tdpo2
    | Anchor
    | Sft
    | Mixture,
    Field(discriminator="type"),
]


REFERENCE_FREE = frozenset({"simpo", "orpo", "cpo", "sft"})
"""Losses that have no reference."""

TOKEN_WEIGHTED = frozenset({"dpo", "rdpo", "ipo_mean", "ipo_sum", "hinge", "dpo_norm", "fdpo"})
"""Losses of the two log-ratios alone, which per-token weights have a published meaning for."""


def members(loss: Loss) -> tuple[SingleLoss, ...]:
    """The losses of a mixture, or the single loss itself."""
    return loss.losses if isinstance(loss, Mixture) else (loss,)


class LdWeights(Strict):
    """LD-DPO, arXiv:2409.06411: tokens beyond the shorter response's length count `alpha`."""

    type: Literal["ld"] = "ld"
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    reference: Literal["both", "policy"] = "both"
    """Weight policy and reference log-probs (TRL), or the policy's alone (other projects)."""


class D2poWeights(Strict):
    """D2PO, arXiv:2502.14340: token t (from 1) counts gamma ** t."""

    type: Literal["d2po"] = "d2po"
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98


TokenWeights = Annotated[LdWeights | D2poWeights, Field(discriminator="type")]
