"""Rewards by every head of a model, remembered while other heads may ask for them."""

from __future__ import annotations

from collections import OrderedDict

MOST_KNOWN = 65_536
"""Responses that are remembered between calls, some 25 MB; of one call all are. An evaluation asks
one head about a whole benchmark before it asks the next."""


class HeadScoreCache:
    """Rewards by every head of the responses that were asked about last, by content key.

    Scorers of a model's heads share one, so that the first head's pass is all's.
    """

    def __init__(self) -> None:
        self._heads: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        self._room = MOST_KNOWN

    def __len__(self) -> int:
        return len(self._heads)

    def expect(self, responses: int) -> None:
        """Makes room for a call about so many: all heads are asked about them one after another."""
        self._room = max(MOST_KNOWN, responses)

    def clear(self) -> None:
        """Forgets all."""
        self._heads.clear()

    def get(self, key: str) -> tuple[float, ...] | None:
        """The rewards of one response, which is then the last that was asked about."""
        if key in self._heads:
            self._heads.move_to_end(key)
        return self._heads.get(key)

    def put(self, key: str, heads: tuple[float, ...]) -> None:
        """Remembers one, and forgets those that were asked about longest ago."""
        self._heads[key] = heads
        self._heads.move_to_end(key)
        while len(self._heads) > self._room:
            self._heads.popitem(last=False)
