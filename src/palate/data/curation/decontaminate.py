"""Pairs whose prompt, or image and prompt, is in an evaluation set."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from palate.data.content import image_key
from palate.data.curation.base import KEEP, Block, Dropped, Judgement, Means, RowStep
from palate.data.curation.evaluation_files import EvaluationSet, Item
from palate.data.curation.overlap import NgramIndex
from palate.data.curation.text import digest, turns_of, words_of
from palate.data.schema import Content, Preference
from palate.recipes.curation import Decontaminate

_PLACEHOLDER = "<image>"
_OVERLAP = 0.5


@dataclass
class _Found:
    """What an evaluation set has in common with the pairs.

    Attributes:
        rows: pairs by rule. by_source: pairs by source and rule. items: pairs by evaluation prompt.
    """

    rows: Counter[str] = field(default_factory=Counter)
    by_source: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    items: Counter[int] = field(default_factory=Counter)


class DecontaminateStep(RowStep):
    """Holds the evaluation prompts as digests and n-gram hashes, 16 bytes an n-gram, and of the
    pairs nothing. A pair in several sets is dropped for the first and counted for each.

    Raises:
        DataError: an evaluation file that cannot be used.
    """

    name = "decontaminate"

    def __init__(self, recipe: Decontaminate, means: Means) -> None:
        self.recipe = recipe
        self._sets = [EvaluationSet(file, recipe.missing_images) for file in recipe.against]
        self._names = _told_apart(
            [file.name or s.name for file, s in zip(recipe.against, self._sets, strict=True)]
        )
        self._found = [_Found() for _ in self._sets]
        self._set_of: list[int] = []
        self._images: list[frozenset[str] | None] = []
        self._has_images: list[bool] = []
        self._exact: dict[bytes, list[int]] = defaultdict(list)
        self._by_image: dict[str, list[int]] = defaultdict(list)
        self._too_short = [0] * len(self._sets)
        self._without_digest = 0
        ngrams = None if recipe.ngram is None else NgramIndex(recipe.ngram)
        for number, one in enumerate(self._sets):
            for item in one.items():
                self._add(number, item, ngrams)
        if ngrams is not None:
            ngrams.finish()
        self._ngrams = ngrams

    def _add(self, number: int, item: Item, ngrams: NgramIndex | None) -> None:
        place = len(self._set_of)
        self._set_of.append(number)
        self._images.append(item.images)
        self._has_images.append(item.has_images)
        texts = [_words(text) for role, text in item.turns if role != "system"]
        if self.recipe.exact and any(texts):
            self._exact[digest(texts)].append(place)
        if self.recipe.images == "alone":
            for image in item.images or ():
                self._by_image[image].append(place)
        # A system turn that an evaluation set puts before every prompt is no prompt.
        if ngrams is not None and not ngrams.add(texts):
            self._too_short[number] += 1

    def judge(self, block: Block) -> list[Judgement]:
        matches: list[dict[int, str]] = [self._equal(row) for row in block.rows]
        if self._ngrams is not None:
            rule = f"{self.recipe.ngram}-gram overlap"
            share = self.recipe.overlap or _OVERLAP
            for k, item in self._ngrams.matches([self._texts(row) for row in block.rows], share):
                matches[k].setdefault(item, rule)
        return [self._judged(row, found) for row, found in zip(block.rows, matches, strict=True)]

    def _equal(self, row: Preference) -> dict[int, str]:
        """Evaluation prompts equal to the whole prompt or to a user turn of it."""
        if not self.recipe.exact:
            return {}
        turns = [(role, _words(text)) for role, text in turns_of(row.prompt) if role != "system"]
        keys = {digest([text for _, text in turns])}
        keys |= {digest([text]) for role, text in turns if role != "assistant" and text}
        return {item: "same prompt" for key in keys for item in self._exact.get(key, ())}

    def _texts(self, row: Preference) -> list[str]:
        contents: list[Content] = [row.prompt]
        if self.recipe.texts == "all":
            contents += [response.content for response in row.responses]
        return [_words(text) for c in contents for role, text in turns_of(c) if role != "system"]

    def _judged(self, row: Preference, matches: dict[int, str]) -> Judgement:
        images = _digests(row)
        self._without_digest += row.has_images and not images
        found: dict[int, str] = {}
        for item, rule in matches.items():
            if row.has_images is not self._has_images[item]:
                continue
            theirs = self._images[item]
            if not row.has_images or theirs is None:
                found[item] = rule
            elif theirs & images:
                found[item] = f"same image, {rule}"
        for image in images:
            for item in self._by_image.get(image, ()):
                found.setdefault(item, "same image")
        if not found:
            return KEEP
        by_set: dict[int, str] = {}
        for item in sorted(found, key=lambda item: (_rank(found[item]), item)):
            number = self._set_of[item]
            by_set.setdefault(number, found[item])
            self._found[number].items[item] += 1
        for number, rule in by_set.items():
            self._found[number].rows[rule] += 1
            self._found[number].by_source[row.source][rule] += 1
        first = min(by_set)
        return Dropped(f"in {self._names[first]}: {by_set[first]}")

    def account(self) -> dict[str, Any]:
        """For each evaluation set, by name:

        prompts: it has. prompts_found: of them, in the pairs. pairs: that have one, by rule.
        by_source: the same by source. most_pairs_of_a_prompt: high where evaluation prompts share
        their wording. without_prompt: records that have none. too_short: prompts of fewer words
        than an n-gram. images_not_read: prompts that were compared by their text alone.
        """
        prompts = Counter(self._set_of)
        sets = {}
        for number, (one, found) in enumerate(zip(self._sets, self._found, strict=True)):
            sets[self._names[number]] = {
                "prompts": prompts[number],
                "prompts_found": len(found.items),
                "pairs": dict(sorted(found.rows.items())),
                "by_source": {
                    source: dict(sorted(rules.items()))
                    for source, rules in sorted(found.by_source.items())
                },
                "most_pairs_of_a_prompt": max(found.items.values(), default=0),
                "without_prompt": one.without_prompt,
                "too_short": self._too_short[number],
                "images_not_read": one.images_not_read,
            }
        return {"sets": sets, "pairs_with_unread_images": self._without_digest}


def _words(text: str) -> str:
    # Where the picture stands is written down by some and not by others.
    return " ".join(words_of(text.replace(_PLACEHOLDER, " ")))


def _digests(row: Preference) -> frozenset[str]:
    read = [i for i in row.all_images if i.digest is not None or i.data is not None]
    return frozenset(map(image_key, read))


def _rank(rule: str) -> int:
    """The plainest evidence first."""
    return 0 if rule.endswith("same prompt") else 1 if "overlap" in rule else 2


def _told_apart(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return found
