"""Preference losses: pure functions of sequence statistics, and the table that names them.

Nothing here knows a model, a batch layout, a recipe or a device. `preference` has the table and an
example; docs/maths.md has the formulas.
"""

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
from palate.losses.preference import (
    LOSSES,
    LossSpec,
    Member,
    Needs,
    apply_weight,
    combined_needs,
    compute,
    compute_unpaired,
    mixture,
)
from palate.losses.reward import (
    PAIR_LOSSES,
    PairLabels,
    bradley_terry,
    centring,
    davidson,
    length_expert,
    length_scaled,
    likelihood,
    magnitude,
    plackett_luce,
    rao_kupper,
    shortcut_weights,
)
from palate.losses.sequence import LossOutput, LossTerm, SequenceStats
from palate.losses.tdpo import tdpo1, tdpo2
from palate.losses.token_weights import (
    TOKEN_WEIGHTS,
    TokenContext,
    TokenWeightSpec,
    Weights,
    d2po,
    ld,
)
from palate.losses.unpaired import kto

__all__ = [
    "LOSSES",
    "PAIR_LOSSES",
    "TOKEN_WEIGHTS",
    "LossOutput",
    "LossSpec",
    "LossTerm",
    "Member",
    "Needs",
    "PairLabels",
    "SequenceStats",
    "TokenContext",
    "TokenWeightSpec",
    "Weights",
    "anchor",
    "apply_weight",
    "bradley_terry",
    "centring",
    "combined_needs",
    "compute",
    "compute_unpaired",
    "cpo",
    "d2po",
    "davidson",
    "dpo",
    "dpo_norm",
    "fdpo",
    "hinge",
    "ipo_mean",
    "ipo_sum",
    "kto",
    "ld",
    "length_expert",
    "length_scaled",
    "likelihood",
    "magnitude",
    "mixture",
    "orpo",
    "plackett_luce",
    "rao_kupper",
    "rdpo",
    "sft",
    "shortcut_weights",
    "simpo",
    "tdpo1",
    "tdpo2",
]
