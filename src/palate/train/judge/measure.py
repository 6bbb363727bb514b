"""The held-out questions, put to a judge or a critic exactly as its scorer puts them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.data.scorer import Group, Scorer, ask
from palate.evaluate.reward.accuracy import accuracy
from palate.evaluate.reward.items import BenchmarkItem, as_groups, compare, values_of
from palate.evaluate.statistics import share_interval
from palate.intervals import wilson
from palate.recipes import scorers
from palate.recipes.judge import PointwiseKind
from palate.rewards.chat import Chat
from palate.rewards.critic import Critic
from palate.rewards.judge import CUT, UNASKED, UNREADABLE, Pairwise, Pointwise
from palate.rewards.questions import FIRST, SECOND, TIE, critique_question
from palate.train.judge.rows import Comparison, Rating, on_scale

CONFIDENCE = 0.95


def measure_pairwise(
    recipe: scorers.PairwiseJudge, chat: Chat, rows: Sequence[Comparison]
) -> dict[str, Any]:
    """Every row in both orders.

    Returns:
        pairs: `accuracy` of the probabilities over both orders, ties of the data left out.
        verdicts: single verdicts that are right, ties of the data among them where the judge may
        say so: n, right, accuracy, accuracy_ci, unreadable, cut, unasked. swap: rows with the same
        winner in both orders: n, agreement, agreement_ci. first_place: share of winners that stood
        first.
    """
    judge = Pairwise(recipe, chat)
    transcript: list[dict[str, Any]] = []
    judge.transcript = transcript.append
    rows = [row for row in rows if recipe.ties or not row.tie]
    wins = judge.compare(
        [row.prompt for row in rows], [row.better for row in rows], [row.worse for row in rows]
    )
    right = []
    for number, line in enumerate(transcript):
        row = rows[number % len(rows)]
        label = TIE if row.tie else FIRST if number < len(rows) else SECOND
        right.append(float(_likeliest(line["shares"]) == label))
    agree, disagree = judge.counts[Pairwise.AGREE], judge.counts[Pairwise.DISAGREE]
    first, second = judge.counts[Pairwise.FIRST_SLOT], judge.counts[Pairwise.SECOND_SLOT]
    scores = [[math.nan] * 2 if win is None else [win, 1.0 - win] for win in wins]
    return {
        "pairs": accuracy(compare([_item(row) for row in rows], scores), CONFIDENCE),
        "verdicts": _verdicts(judge, right, np.tile(np.arange(len(rows)), 2)),
        "swap": {
            "n": agree + disagree,
            "agreement": agree / (agree + disagree) if agree + disagree else None,
            "agreement_ci": wilson(agree, agree + disagree, CONFIDENCE),
        },
        "first_place": first / (first + second) if first + second else None,
    }


def measure_pointwise(
    recipe: scorers.PointwiseJudge,
    chat: Chat,
    rows: Sequence[Rating],
    kind: PointwiseKind,
    cuts: Sequence[float],
) -> dict[str, Any]:
    """Every response once.

    Returns:
        verdicts: likeliest ratings that are the label: as of `measure_pairwise`. error: mean
        distance of the expected rating from the label. pairs: `accuracy` over responses to one
        prompt with unequal labels; None where there are none.
    """
    judge = Pointwise(recipe, chat)
    transcript: list[dict[str, Any]] = []
    judge.transcript = transcript.append
    scored = judge.score([Group(row.prompt, (row.response,)) for row in rows])
    scores = [score for (score,) in values_of(scored)]
    labels = [on_scale(row.rating, cuts, kind) for row in rows]
    right = [
        float(_likeliest(line["shares"]) == str(label))
        for line, label in zip(transcript, labels, strict=True)
    ]
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.row, []).append(i)
    items, margins = [], []
    for members in groups.values():
        for i, j in itertools.combinations(members, 2):
            if labels[i] == labels[j]:
                continue
            a, b = (i, j) if labels[i] > labels[j] else (j, i)
            sides = (rows[a].response, rows[b].response)
            item = BenchmarkItem(
                id=rows[a].id, source=rows[a].source, prompt=rows[a].prompt, responses=sides
            )
            items.append(item)
            margins.append([scores[a], scores[b]])
    errors = [abs(s - t) for s, t in zip(scores, labels, strict=True) if not math.isnan(s)]
    places = {name: k for k, name in enumerate(groups)}
    return {
        "pairs": accuracy(compare(items, margins), CONFIDENCE) if items else None,
        "verdicts": _verdicts(judge, right, np.array([places[row.row] for row in rows])),
        "error": float(np.mean(errors)) if errors else None,
    }


def measure_critic(
    recipe: scorers.CriticScorer, scorer: Scorer, chat: Chat, rows: Sequence[Comparison]
) -> dict[str, Any]:
    """Both responses of every row, each with a critique of its own.

    Returns:
        pairs: `accuracy`. critiques: n, cut, empty, and those of the empty that were not asked for
        (see `Chat.reply`). pairs_given: `accuracy` with the critiques of the data in the place of
        written ones, where the rows have any.
    """
    critic = Critic(recipe, scorer, chat)
    items = [_item(row) for row in rows]
    scores = values_of(critic.score(as_groups(items)))
    return {
        "pairs": accuracy(compare(items, scores), CONFIDENCE),
        **_given(scorer, rows),
        "critiques": {
            "n": 2 * len(rows),
            "cut": critic.counts[Critic.CUT],
            "empty": critic.counts[Critic.EMPTY],
            "unasked": _unasked(critic.counts),
        },
    }


def _given(scorer: Scorer, rows: Sequence[Comparison]) -> dict[str, Any]:
    groups = []
    for row in rows:
        if row.critiques is None:
            return {}
        for response, critique in zip((row.better, row.worse), row.critiques, strict=True):
            groups.append(Group(critique_question(row.prompt, response), (critique,)))
    flat = [score for (score,) in values_of(ask(scorer, groups))]
    scores = [flat[2 * i : 2 * i + 2] for i in range(len(rows))]
    items = [_item(row) for row in rows]
    return {"pairs_given": accuracy(compare(items, scores), CONFIDENCE)}


def line_of(entry: dict[str, Any]) -> str:
    """One entry of evaluation.json in words."""
    parts = []
    measures = {
        "pairs": "pairs right",
        "pairs_given": "pairs right given the data's critiques",
        "verdicts": "single verdicts right",
    }
    for name, words in measures.items():
        measured = entry.get(name)
        if measured is not None and measured["n"]:
            low, high = measured["accuracy_ci"]
            parts.append(
                f"{measured['accuracy']:.1%} of {measured['n']} {words} (95% interval {low:.1%} to "
                f"{high:.1%})"
            )
    swap = entry.get("swap")
    if swap is not None and swap["n"]:
        parts.append(f"{swap['agreement']:.1%} with the same winner in both orders")
    unread = entry.get("verdicts", {}).get("unreadable", 0) + entry.get("verdicts", {}).get(
        "cut", 0
    )
    if unread:
        parts.append(f"{unread} verdicts unreadable or cut")
    if unasked := entry.get("verdicts", {}).get("unasked"):
        parts.append(f"{unasked} questions not asked")
    critiques = entry.get("critiques", {})
    for key in ("cut", "empty"):
        if critiques.get(key):
            parts.append(f"{critiques[key]} of {critiques['n']} critiques {key}")
    if entry.get("error") is not None:
        parts.append(f"ratings {entry['error']:.2f} off in the mean")
    return f"{entry['stage']}: {'; '.join(parts)}"


def _verdicts(judge: Any, right: Sequence[float], groups: Any) -> dict[str, Any]:
    low_high, _ = share_interval(right, groups, CONFIDENCE)
    return {
        "n": len(right),
        "right": int(sum(right)),
        "accuracy": sum(right) / len(right),
        "accuracy_ci": low_high,
        "unreadable": judge.counts[UNREADABLE],
        "cut": judge.counts[CUT],
        "unasked": _unasked(judge.counts),
    }


def _unasked(counts: Counter[str]) -> int:
    """Questions without an answer, for any reason."""
    return sum(n for key, n in counts.items() if key.startswith(UNASKED))


def _likeliest(shares: dict[str, float] | None) -> str | None:
    """The verdict with the most probability; None without one, and where two share it."""
    if not shares:
        return None
    top = max(shares.values())
    best = [verdict for verdict, share in shares.items() if share == top]
    return best[0] if len(best) == 1 else None


def _item(row: Comparison) -> BenchmarkItem:
    return BenchmarkItem(
        id=row.id,
        source=row.source,
        prompt=row.prompt,
        responses=(row.better, row.worse),
        tie=row.tie,
    )
