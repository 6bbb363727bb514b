"""What images do in preference data: how often one comes back, and what answers do without them.

By digests: 16 bytes an image, and 32 bytes a pair with images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.audit.sketches import Growing, share_interval
from palate.data.curation.shingles import Hashes, mix
from palate.data.schema import Preference


class Seen:
    """Digests of the images of a source's pairs, with the prompts that they stand in."""

    def __init__(self) -> None:
        # an image and the prompt, with its images, that it is in
        self._images, self._prompts = Growing(), Growing()
        # of pairs with images: question alone, question and images, chosen, rejected
        self._pairs = tuple(Growing() for _ in range(4))

    def add(
        self,
        rows: Sequence[Preference],
        ties: npt.NDArray[np.bool_],
        *,
        images: Hashes,
        of_row: npt.NDArray[np.int64],
        questions: Hashes,
        prompts: Hashes,
        responses: Hashes,
    ) -> None:
        """Takes in pairs.

        Args:
            ties: [N]. images: [I], of all rows. of_row: [I], which row each is of.
            questions: [N], texts of prompts without their images. prompts: [N], with them.
            responses: [2, N] of chosen and rejected.
        """
        self._images.add(images)
        self._prompts.add(prompts[of_row])
        pictured = np.array([row.has_images for row in rows], dtype=np.bool_) & ~ties
        columns = (questions, prompts, responses[0], responses[1])
        for column, values in zip(self._pairs, columns, strict=True):
            column.add(values[pictured])

    def merge(self, other: Seen) -> None:
        self._images.add(other._images.all())
        self._prompts.add(other._prompts.all())
        for column, values in zip(self._pairs, other._pairs, strict=True):
            column.add(values.all())

    def images(self) -> Hashes:
        """[I], one a time that an image is seen."""
        return self._images.all()

    def summary(self) -> dict[str, Any]:
        """Images under several prompts, and what can be answered without looking."""
        _, times = np.unique(self._images.all(), return_counts=True)
        return {
            "seen": int(times.sum()),
            "distinct": len(times),
            "repeated": int((times > 1).sum()),
            "most": int(times.max(initial=0)),
            "prompts": self._under_prompts(),
            "blind": self._blind(),
        }

    def _under_prompts(self) -> dict[str, Any]:
        """Of distinct images the number of different prompts that each is in."""
        if not len(images := self._images.all()):
            return {"images": 0, "several": 0, "share": None, "most": 0}
        _, first = np.unique(_together(images, self._prompts.all()), return_index=True)
        _, prompts = np.unique(images[first], return_counts=True)
        several = int((prompts > 1).sum())
        return {
            "images": len(prompts),
            "several": several,
            "share": round(several / len(prompts), 6),
            "most": int(prompts.max()),
        }

    def _blind(self) -> dict[str, Any]:
        """How far answers go by the question alone, of pairs that are no ties and whose question is
        asked about several images.

        same: pairs whose chosen answer is also chosen for the question about another image.
        decided: pairs whose two answers differ in how often they are chosen less how often they
        are rejected about other images; right: those in which that prefers the chosen one.
        """
        question, prompt, chosen, rejected = (column.all() for column in self._pairs)
        _, first = np.unique(_together(question, prompt), return_index=True)
        distinct, images = np.unique(question[first], return_counts=True)
        several = distinct[images > 1]
        is_asked_of_several = np.isin(question, several)
        question, prompt = question[is_asked_of_several], prompt[is_asked_of_several]
        chosen, rejected = chosen[is_asked_of_several], rejected[is_asked_of_several]
        elsewhere = _Elsewhere(question, prompt, chosen, rejected)
        wins_of_chosen = elsewhere.wins(chosen)
        prior = (wins_of_chosen - elsewhere.losses(chosen)) - (
            elsewhere.wins(rejected) - elsewhere.losses(rejected)
        )
        pairs, same = len(question), int((wins_of_chosen > 0).sum())
        decided, right = int((prior != 0).sum()), int((prior > 0).sum())
        # Pairs of one question hang together: they count as one observation.
        effective = len(several) / pairs if pairs else 1.0
        return {
            "pairs": len(is_asked_of_several),
            "questions": len(several),
            "pairs_of_questions": pairs,
            "same": same,
            "same_share": round(same / pairs, 6) if pairs else None,
            "decided": decided,
            "right": right,
            "right_share": round(right / decided, 6) if decided else None,
            "ci": share_interval(right * effective, decided * effective),
        }


class _Elsewhere:
    """How often an answer is chosen or rejected for the same question about other images."""

    def __init__(self, question: Hashes, prompt: Hashes, chosen: Hashes, rejected: Hashes) -> None:
        self._question, self._prompt = question, prompt
        self._sides = chosen, rejected

    def wins(self, answer: Hashes) -> npt.NDArray[np.int64]:
        return self._times(answer, 0)

    def losses(self, answer: Hashes) -> npt.NDArray[np.int64]:
        return self._times(answer, 1)

    def _times(self, answer: Hashes, side: int) -> npt.NDArray[np.int64]:
        """[N] of every pair: all times less those about its own images."""
        given = self._sides[side]
        everywhere = _counted(_together(self._question, answer), _together(self._question, given))
        return everywhere - _counted(
            _together(self._prompt, answer), _together(self._prompt, given)
        )


def _together(a: Hashes, b: Hashes) -> Hashes:
    """[N] one digest of two, in this order."""
    return mix(mix(a) ^ b)


def _counted(asked: Hashes, among: Hashes) -> npt.NDArray[np.int64]:
    """[N] how often each digest is among others."""
    among = np.sort(among)
    return np.searchsorted(among, asked, side="right") - np.searchsorted(among, asked, side="left")
