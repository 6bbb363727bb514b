"""Scores kept on disk as they come: every response is put to a scorer once, in whatever run.

Scores go to a file of lines, each under a digest of prompt and response, those of a scorer that
compares under a digest of the whole group; a later call, or a later run over the same folder, asks
only for what is not there. A line has a number for each score, or the reason why it has none.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from palate.data.content import content_key
from palate.data.schema import Content
from palate.data.scorer import Group, Score, Scorer, Traits, ask
from palate.recipes import scorers as recipes
from palate.rewards.build import make_scorer
from palate.rewards.columns import columns_read
from palate.rewards.combined import Combined
from palate.rewards.critic import Critic
from palate.rewards.groups import MOST_TOGETHER
from palate.rewards.identity import key_of
from palate.rewards.judge import Judge
from palate.rewards.names import name_of
from palate.store.files import append_jsonl
from palate.store.json_cache import JsonCache

Progress = Callable[[int, int], None]
_Stored = float | str
"""A score, or why there is none."""
_COMBINED = (
    recipes.EnsembleScorer | recipes.HeadsScorer | recipes.MixtureScorer | recipes.HybridScorer
)


class CachedScorer:
    """A scorer that is loaded when it is first needed, and asked about nothing twice.

    Args:
        load: gives the scorer.
        path: file of the lines; None keeps them in memory alone.
        relative: its scores mean something only beside those of the same group.
        chunk: groups scored between two writes.
        progress: told of groups scored and to be scored.
        columns: of the prompts' rows, which its scores depend on; it gets no others.

    Attributes:
        counts: what the scorer counted, and responses without a score by reason, in all runs.
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        path: Path | None = None,
        *,
        name: str = "",
        relative: bool = False,
        chunk: int = 256,
        progress: Progress | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.columns = tuple(columns)
        self.load = load
        self.name = name
        self.relative = relative
        self.chunk = chunk
        self.progress = progress
        self.counts: Counter[str] = Counter()
        self._loaded: list[Scorer] = []
        self._stored = JsonCache(path)
        for counted in self._stored.notes:
            self.counts.update(counted)

    def named(self, name: str) -> CachedScorer:
        """The same under another name."""
        twin = copy.copy(self)
        twin.name = name
        return twin

    @property
    def traits(self) -> Traits:
        """The scorer's, which is loaded for them."""
        return self._scorer().traits

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """As the scorer's, less texts and spans, which are not kept."""
        groups = [self._with_its_columns(group) for group in groups]
        if self.relative:
            keys = [[_digest(group, group.responses)] for group in groups]
            missing = {
                key: (group, [key])
                for (key,), group in zip(keys, groups, strict=True)
                if key not in self._stored
            }
            self._ask(list(missing.values()))
            return [[_score(stored) for stored in self._stored[key]] for (key,) in keys]
        # All responses to a prompt together, each once: groups share prompts and responses.
        keys = []
        wanted: dict[bytes, tuple[Group, dict[str, Content]]] = {}
        for group in groups:
            _, responses = wanted.setdefault(_prompt_key(group), (group, {}))
            keys.append([_digest(group, [response]) for response in group.responses])
            for key, response in zip(keys[-1], group.responses, strict=True):
                if key not in self._stored:
                    responses.setdefault(key, response)
        self._ask(
            [
                (_with(g, tuple(map(responses.__getitem__, part))), part)
                for g, responses in wanted.values()
                for part in _parts(list(responses))
            ]
        )
        return [[_score(self._stored[key][0]) for key in of_group] for of_group in keys]

    def release(self) -> None:
        """Lets go of the scorer; it is loaded again when it is needed again."""
        self._loaded.clear()

    def _with_its_columns(self, group: Group) -> Group:
        if not group.columns:
            return group
        columns = {n: group.columns[n] for n in self.columns if n in group.columns}
        return dataclasses.replace(group, columns=columns)

    def _scorer(self) -> Scorer:
        if not self._loaded:
            self._loaded.append(self.load())
        return self._loaded[0]

    def _ask(self, wanted: Sequence[tuple[Group, list[str]]]) -> None:
        """Scores groups, each with the keys of its scores: one for each, or one for all."""
        for start in range(0, len(wanted), self.chunk):
            part = wanted[start : start + self.chunk]
            scorer = self._scorer()
            before = Counter(scorer.counts)
            scored = ask(scorer, [group for group, _ in part])
            counted = Counter(scorer.counts)
            counted.subtract(before)
            counted.update(s.reason for scores in scored for s in scores if s.reason is not None)
            lines: dict[str, list[_Stored]] = {}
            for (_, keys), scores in zip(part, scored, strict=True):
                stored = [_stored(score) for score in scores]
                lines.update(
                    zip(keys, [stored] if self.relative else [[s] for s in stored], strict=True)
                )
            self._stored.add(lines, dict(+counted))
            self.counts.update(+counted)
            if self.progress is not None:
                self.progress(min(start + self.chunk, len(wanted)), len(wanted))


class ScoreCache:
    """The scorers of an evaluation, shared where two recipes describe one.

    Args:
        folder: of the stored scores; None keeps them in memory alone.
        chunk: groups scored between two writes.

    Attributes:
        progress: told of groups scored and to be scored, where it is set.
    """

    def __init__(self, folder: Path | None = None, *, seed: int = 0, chunk: int = 256) -> None:
        self.folder = folder
        self.seed = seed
        self.chunk = chunk
        self.progress: Progress | None = None
        self._scorers: dict[str, CachedScorer] = {}

    def scorer(self, recipe: recipes.Scorer, name: str | None = None) -> Scorer:
        """The scorer of a recipe; of an ensemble or a mixture it is the members' scores that are
        kept.

        Args:
            name: default: the recipe's own, the one that the same scorer has already, or one made
                from what it is.
        """
        name = name or recipe.name
        if isinstance(recipe, _COMBINED):
            combined = make_scorer(recipe, seed=self.seed, make=self.scorer)
            combined.name = name or combined.name
            return combined
        key, plain = key_of(recipe), name_of(recipe.model_copy(update={"name": None}))
        if key not in self._scorers:
            self._scorers[key] = CachedScorer(
                lambda: self._load(recipe, key),
                None if self.folder is None else self.folder / f"scores-{key}.jsonl",
                name=plain,
                relative=recipes.compares(recipe),
                chunk=self.chunk,
                progress=self._told,
                columns=columns_read(recipe),
            )
        cached = self._scorers[key]
        if name is not None and cached.name == plain:
            cached.name = name
        return cached.named(name or cached.name)

    def release(self) -> None:
        """Lets go of all scorers that are loaded."""
        for scorer in self._scorers.values():
            scorer.release()

    def _told(self, scored: int, wanted: int) -> None:
        if self.progress is not None:
            self.progress(scored, wanted)

    def _load(self, recipe: recipes.Scorer, key: str) -> Scorer:
        scorer = make_scorer(recipe, seed=self.seed)
        if self.folder is not None and isinstance(scorer, Judge | Critic):
            # What a judge was asked and answered is the evidence for its scores.
            file = self.folder / f"verdicts-{key}.jsonl"
            scorer.transcript = lambda line: append_jsonl(file, line)
        return scorer


def counts_of(scorer: Scorer) -> Counter[str]:
    """What a scorer counted; of an ensemble or a mixture all of its members together."""
    total: Counter[str] = Counter()
    # Members may share a cache, and with it their counts.
    for counts in {id(single.counts): single.counts for single in _single(scorer)}.values():
        total.update(counts)
    return total


def _single(scorer: Scorer) -> Iterator[Scorer]:
    if isinstance(scorer, Combined):
        for member in scorer.members:
            yield from _single(member.scorer)
    else:
        yield scorer


def _parts(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), MOST_TOGETHER):
        yield keys[start : start + MOST_TOGETHER]


def _stored(score: Score) -> _Stored:
    return str(score.reason) if score.value is None else score.value


def _score(stored: _Stored) -> Score:
    return Score(None, stored) if isinstance(stored, str) else Score(stored)


def _with(group: Group, responses: tuple[Content, ...]) -> Group:
    """The prompt with other responses."""
    return dataclasses.replace(group, responses=responses, response_ids=None)


def _prompt_key(group: Group) -> bytes:
    """Of the prompt, and of the columns of its row where a scorer gets any."""
    key = content_key(group.prompt, group.source)
    if not group.columns:
        return key
    columns = json.dumps(group.columns, sort_keys=True, default=str)
    return hashlib.sha256(key + columns.encode("utf-8", "surrogatepass")).digest()


def _digest(group: Group, responses: Sequence[Content]) -> str:
    digest = hashlib.sha256(_prompt_key(group))
    for response in responses:
        digest.update(content_key(response, group.source))
    return digest.hexdigest()[:32]
