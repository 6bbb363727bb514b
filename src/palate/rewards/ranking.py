"""A judge that ranks all responses to a prompt in one question."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import numpy.typing as npt

from palate.data.scorer import Group, Score
from palate.recipes import scorers as recipes
from palate.rewards.chat import Chat
from palate.rewards.judge import ALONE, ASKED, NO_VERDICT, Judge, Pairwise
from palate.rewards.questions import rank_question, read_ranking

Wins = npt.NDArray[np.float64]


class Ranking(Judge):
    """Asks for rankings; a score is the mean of 1 for each other response of the group that a
    response stands before, and half of that for a tie, over votes and both orders.

    The second order is the first one backwards. Pairs are counted by whether the same response
    stood before the other both times.
    """

    def __init__(self, recipe: recipes.PairwiseJudge, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat, "ranking", relative=True)
        self.swap = recipe.swap
        self.ties = recipe.ties

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """No value for a response alone, nor for a group of which either order gave no ranking that
        could be read."""
        asked = [(g, order) for g, group in enumerate(groups) for order in self._orders(group)]
        questions = [
            rank_question(
                groups[g].prompt,
                [groups[g].responses[i] for i in order],
                ties=self.ties,
                reasoning=self.recipe.reasoning,
                instructions=self.recipe.instructions,
            )
            for g, order in asked
        ]
        self._count(ASKED, len(questions))
        wins: list[list[Wins]] = [[] for _ in groups]
        reasons: list[str | None] = [ALONE if len(g.responses) == 1 else None for g in groups]
        texts: list[list[str]] = [[] for _ in groups]
        answered = zip(asked, questions, self._replies(questions), strict=True)
        for (g, order), question, replies in answered:
            read_text = partial(read_ranking, n=len(order), ties=self.ties)
            rankings = [self._vote(reply, read_text) for reply in replies]
            self._keep(question, [reply.whole for reply in replies], rankings)
            read = [_wins(ranks, order) for ranks in rankings if ranks is not None]
            if read:
                wins[g].append(np.mean(read, axis=0))
            else:
                refused = next((r.refused for r in replies if r.refused is not None), None)
                reasons[g] = refused or NO_VERDICT
            headed = ", ".join(f"{k}: response {i + 1}" for k, i in enumerate(order, 1))
            texts[g] += [f"[{headed}]\n{reply.whole}" for reply in replies if not reply.refused]
        return [
            self._scores(group, wins[g], reasons[g], "\n\n".join(texts[g]) or None)
            for g, group in enumerate(groups)
        ]

    def _orders(self, group: Group) -> list[list[int]]:
        order = list(range(len(group.responses)))
        if len(order) < 2:
            return []
        return [order, order[::-1]] if self.swap else [order]

    def _scores(
        self, group: Group, wins: Sequence[Wins], reason: str | None, text: str | None
    ) -> list[Score]:
        n = len(group.responses)
        if reason is not None or not n:
            return [Score(None, reason, text)] * n
        if len(wins) > 1:
            for i, j in combinations(range(n), 2):
                there, back = (order[i, j] - 0.5 for order in wins)
                same = there * back > 0 or there == back == 0
                self._count(Pairwise.AGREE if same else Pairwise.DISAGREE)
        means = np.mean(wins, axis=0).sum(axis=1) / (n - 1)
        return [Score(float(mean), text=text) for mean in means]


def _wins(ranks: Sequence[int], order: Sequence[int]) -> Wins:
    """[n, n] 1 where the response of the row stands before that of the column, half for a tie, 0 on
    the diagonal.

    Args:
        ranks: of the responses as they stood. order: which stood where.
    """
    of_response = np.empty(len(order))
    of_response[list(order)] = ranks
    before = of_response[:, None] < of_response[None, :]
    alike = of_response[:, None] == of_response[None, :]
    wins: Wins = before + alike / 2
    np.fill_diagonal(wins, 0.0)
    return wins
