"""Which colour, dash and marker belong to which run and to which loss, in every figure alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palate.report.reader import Run

PALETTE: tuple[tuple[str, str], ...] = (
    ("#0072B2", "#5AB4F0"),
    ("#D55E00", "#FF9455"),
    ("#00805C", "#34CFA1"),
    ("#A8437F", "#F09CCB"),
    ("#8F6400", "#F2C14E"),
    ("#4D4D4D", "#C9C9C9"),
    ("#2A7F9E", "#9ADCF0"),
)
"""On light and on dark ground. Okabe and Ito's hues, their lightness moved for 3:1 contrast."""

DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 2.0), (1.4, 1.6), (7.0, 2.0, 1.4, 2.0))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LOSS_NAMES = {
    "dpo": "DPO",
    "rdpo": "rDPO",
    "ipo_mean": "IPO (mean)",
    "ipo_sum": "IPO (sum)",
    "hinge": "hinge",
    "simpo": "SimPO",
    "dpo_norm": "DPO (length-normalised)",
    "kto": "KTO",
    "orpo": "ORPO",
    "cpo": "CPO",
    "fdpo": "f-DPO",
    "tdpo1": "TDPO1",
    "tdpo2": "TDPO2",
    "anchor": "anchor",
    "sft": "SFT",
    "bradley_terry": "Bradley-Terry",
    "rao_kupper": "Rao-Kupper",
    "davidson": "Davidson",
    "plackett_luce": "Plackett-Luce",
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "reinforce++": "REINFORCE++",
    "online_dpo": "online DPO",
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """Indices into PALETTE, DASHES and MARKERS."""

    colour: int = 0
    dash: int = 0

    @property
    def marker(self) -> str:
        return MARKERS[self.colour % len(MARKERS)]


def loss_name(loss: str | None) -> str:
    """The name that papers use; the type itself for any other loss."""
    return LOSS_NAMES.get(loss, loss) if loss else "no loss"


@dataclass(frozen=True, kw_only=True)
class Styles:
    """Runs of different losses: colour by loss. Runs of one loss: colour by run."""

    by_run: dict[str, Style]
    by_loss: dict[str, Style]

    @classmethod
    def of(cls, runs: Sequence[Run], losses: Sequence[str] = ()) -> Styles:
        """Styles of the trained runs, by name, and of their and `losses`' types."""
        trained = [run for run in runs if run.trains]
        types = list(dict.fromkeys([run.loss_type or "" for run in trained] + list(losses)))
        several = len({run.loss_type for run in trained}) > 1
        crowded = several and len(trained) > len({run.loss_type for run in trained})
        by_run: dict[str, Style] = {}
        ranks: dict[str, int] = {}
        for i, run in enumerate(trained):
            key = run.loss_type or ""
            rank = ranks[key] = ranks.get(key, -1) + 1
            colour = types.index(key) if several else i
            by_run[run.name] = Style(
                colour=colour % len(PALETTE), dash=(rank if crowded else i) % len(DASHES)
            )
        by_loss = {
            key: Style(colour=i % len(PALETTE), dash=i % len(DASHES)) for i, key in enumerate(types)
        }
        return cls(by_run=by_run, by_loss=by_loss)
