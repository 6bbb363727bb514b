"""Prompts to scored responses: one rollout, the same on every process.

Each process has a share of the prompts written and scored, and all get all of it. Draws depend on
the run's seed and the rollout's number, so that a rollout which was interrupted comes out again.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from palate.data.prompts import PolicyPrompt, PromptDraws
from palate.data.scorer import Group as ScoredGroup
from palate.data.scorer import Score, Scorer, ask
from palate.errors import RunError
from palate.models.generation.engine import Completion, Engine, Sampling
from palate.recipes.rl import RlRecipe
from palate.recipes.rl_algorithms import Grouped, OnlineDpo
from palate.recipes.rl_engines import ServerEngine
from palate.rewards.groups import score_concurrently
from palate.store.files import append_jsonl, read_jsonl
from palate.train.rollouts.responses import Group, Response, Rollout
from palate.train.rollouts.shape import shape_rewards, whiten_rewards

RESAMPLE_LIMIT = 5
"""Prompts drawn for one rollout at most, in multiples of its own; a recipe may say otherwise."""
HELD_OUT = -1
"""Stands for the number of a rollout where held-out prompts are sampled."""
PAPER_TOP_K = 50
"""What the released code of arXiv:2406.09279 sampled from: transformers' default."""
EQUAL, CUT, STALE = "all rewards of its group are equal", "no end", "too old"


def rollout_seed(seed: int, number: int) -> int:
    """Of the draws of a rollout: other numbers for a prompt that comes again."""
    digest = hashlib.sha256(f"{seed}/rollout/{number}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


@dataclass
class Collector:
    """Makes rollouts.

    Attributes:
        prompts: of training. stream: which come next.
        journal: folder of what a server has finished, which is never sampled again; None with an
            engine that gives the same again.
        rank, world_size: of this process.
    """

    recipe: RlRecipe
    prompts: Sequence[PolicyPrompt]
    stream: PromptDraws
    engine: Engine
    scorer: Scorer
    journal: Path | None = None
    rank: int = 0
    world_size: int = 1

    def collect(self, number: int, wanted: int) -> Rollout:
        """One rollout of `wanted` prompts.

        Raises:
            RunError: a response without a score, where the recipe says stop; no reward that differs
                within a group, among so many prompts as may be drawn.
        """
        rollout = Rollout(number=number, groups=[])
        self._samples: Counter[int] = Counter()
        algorithm = self.recipe.algorithm
        resamples = isinstance(algorithm, Grouped) and algorithm.zero_variance == "resample"
        several = algorithm.resample_limit if isinstance(algorithm, Grouped) else None
        limit = (several or RESAMPLE_LIMIT) * wanted
        while len(rollout.groups) < wanted:
            indices = self._drawn(min(wanted - len(rollout.groups), limit - rollout.drawn))
            rollout.drawn += len(indices)
            groups = self._written(indices, rollout)
            self._score(groups, rollout)
            self._leave_out(groups)
            for group in groups:
                if any(response.score is not None for response in group.responses):
                    self.stream.record(group.prompt, _pass_rate(group))
            if not resamples:
                rollout.groups += groups
                break
            varied = [group for group in groups if not group.is_equal]
            rollout.counts["resampled"] = (
                rollout.counts.get("resampled", 0) + len(groups) - len(varied)
            )
            rollout.groups += varied
            if rollout.drawn >= limit:
                break
        whiten_rewards(list(rollout.responses), self.recipe.reward)
        if not rollout.trained and resamples:
            raise RunError(
                f"rollout {number}: the rewards of each of {rollout.drawn} prompts' responses are "
                "equal: nothing tells them apart; look at prompts and reward, or set "
                "`algorithm.zero_variance: keep`"
            )
        return rollout

    # Writing ----------------------------------------------------------------------------------

    def _drawn(self, n: int) -> list[int]:
        """The next n prompts; where there are fewer they come again."""
        indices: list[int] = []
        while len(indices) < n:
            indices += self.stream.draw(min(n - len(indices), len(self.prompts)))
        return indices

    def _written(self, indices: Sequence[int], rollout: Rollout) -> list[Group]:
        """Responses to prompts; to one that comes twice as many more."""
        recipe = self.recipe.rollout
        started = time.monotonic()
        times = Counter(indices)
        sampling = self._sampling(rollout.number)
        here = list(times)[self.rank :: self.world_size]
        alike: dict[tuple[int, int], list[int]] = {}
        for index in here:
            alike.setdefault((self._samples[index], times[index]), []).append(index)
        groups: list[Group] = []
        for (before, count), places in alike.items():
            asked = replace(
                sampling,
                samples_per_prompt=count * recipe.num_generations,
                first_sample=before * recipe.num_generations,
            )
            groups += _grouped(self._generate(places, asked, rollout.number), places)
        self._samples.update(times)
        self._count([self.engine.take_counts()], rollout)
        by_prompt = {group.prompt: group for group in _gathered(groups)}
        _add(rollout.seconds, "generate", time.monotonic() - started)
        # A server may have dropped all responses to a prompt, which it counts.
        return [by_prompt[index] for index in times if index in by_prompt]

    def _count(self, here: list[Mapping[str, int]], rollout: Rollout) -> None:
        """Adds the events of all processes."""
        for events in _gathered(here):
            for event, count in events.items():
                rollout.counts[event] = rollout.counts.get(event, 0) + count

    def _generate(
        self, indices: Sequence[int], sampling: Sampling, number: int
    ) -> list[Completion]:
        prompts = [self.prompts[index].to_sample() for index in indices]
        if self.journal is None:
            return self.engine.generate(prompts, sampling)
        file = self.journal / f"{number:06d}-{self.rank}.jsonl"
        kept = _journalled(file, indices)
        journal = _Journal(file, indices)
        written = self.engine.generate(prompts, sampling, on_batch=journal, skip=kept.keys())
        return sorted([*kept.values(), *written], key=lambda c: (c.prompt, c.index))

    def held_out(self, indices: Sequence[int], samples: int) -> list[Response]:
        """Scored responses to prompts, always with the same draws; of this process alone."""
        sampling = replace(self._sampling(HELD_OUT), samples_per_prompt=samples)
        prompts = [self.prompts[index].to_sample() for index in indices]
        groups = _grouped(self.engine.generate(prompts, sampling), indices)
        for group, scores in zip(groups, self._scores(groups), strict=True):
            group.take(scores)
        return [response for group in groups for response in group.responses]

    def _sampling(self, number: int) -> Sampling:
        recipe = self.recipe.rollout
        return Sampling(
            max_new_tokens=recipe.max_new_tokens,
            min_new_tokens=recipe.min_new_tokens,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            top_k=PAPER_TOP_K if self.recipe.fidelity == "paper" else 0,
            seed=rollout_seed(self.recipe.seed, number),
        )

    # Scores -----------------------------------------------------------------------------------

    def _score(self, groups: Sequence[Group], rollout: Rollout) -> None:
        """Scores this process's share, and hands all scores to all."""
        started = time.monotonic()
        share = groups[self.rank :: self.world_size]
        before = Counter(self.scorer.counts)
        scored = self._scores(share)
        here = [(g.prompt, s) for g, s in zip(share, scored, strict=True)]
        by_prompt = dict(_gathered(here))
        self._count([Counter(self.scorer.counts) - before], rollout)
        for group in groups:
            group.take(by_prompt[group.prompt])
        unscored = [r for g in groups for r in g.responses if r.score is None]
        if unscored and self.recipe.reward.unscored == "stop":
            raise RunError(
                f"rollout {rollout.number}: a response has no score: {unscored[0].reason}"
            )
        shape_rewards([r for g in groups for r in g.responses], self.recipe.reward)
        _add(rollout.seconds, "score", time.monotonic() - started)

    def _scores(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Scores of the responses of each group."""
        asked = [_asked(self.prompts[group.prompt], group.responses) for group in groups]
        workers = self.recipe.reward.workers
        if workers > 1:
            return score_concurrently(self.scorer, asked, workers)
        return ask(self.scorer, asked)

    def _leave_out(self, groups: Sequence[Group]) -> None:
        """Marks what is not trained on, and why."""
        algorithm = self.recipe.algorithm
        engine = self.recipe.rollout.engine
        if isinstance(engine, ServerEngine):
            for group in groups:
                for response in group.trained:
                    if self.engine.version - response.version > engine.max_staleness:
                        response.dropped = STALE
        if isinstance(algorithm, OnlineDpo):
            return
        if isinstance(algorithm, Grouped) and algorithm.zero_variance == "drop":
            for group in groups:
                if group.is_equal:
                    group.drop(EQUAL)
        if algorithm.mask_truncated_completions:
            for group in groups:
                for response in group.trained:
                    if not response.finished:
                        response.dropped = CUT


def _asked(prompt: PolicyPrompt, responses: Sequence[Response]) -> ScoredGroup:
    """What a scorer is asked of responses to a prompt."""
    chat = not isinstance(prompt.content, str)
    contents: tuple[Any, ...] = tuple(
        [{"role": "assistant", "content": r.text}] if chat else r.text for r in responses
    )
    return ScoredGroup(
        prompt.content,
        contents,
        prompt.source,
        columns=prompt.columns,
        response_ids=tuple(r.response_ids for r in responses),
    )


def _grouped(completions: Sequence[Completion], indices: Sequence[int]) -> list[Group]:
    """Completions as the responses to their prompts.

    Args:
        indices: of the prompts that were asked.
    """
    groups: dict[int, Group] = {}
    for completion in completions:
        index = indices[completion.prompt]
        group = groups.setdefault(index, Group(prompt=index, responses=[]))
        group.responses.append(_response(index, completion))
    return list(groups.values())


def _response(prompt: int, completion: Completion) -> Response:
    version = completion.version
    return Response(
        prompt=prompt,
        sample=completion.index,
        response_ids=completion.response_ids,
        finished=completion.finished,
        text=completion.text,
        # As old as its oldest token.
        version=version if isinstance(version, int) else min(version),
        tokens={"sampled_logps": np.asarray(completion.logps, dtype=np.float32)},
    )


def _pass_rate(group: Group) -> float:
    """Share of the group's responses with a reward above 0, as curricula take it."""
    rewards = [r.reward for r in group.responses if r.score is not None]
    return sum(reward > 0 for reward in rewards) / len(rewards)


def _gathered(values: list[Any]) -> list[Any]:
    """The values of all processes."""
    gathered: list[Any] = gather_object(values)
    return gathered


def _add(seconds: dict[str, float], phase: str, more: float) -> None:
    seconds[phase] = seconds.get(phase, 0.0) + more


@dataclass(frozen=True)
class _Journal:
    """Writes down what is finished, as it comes.

    Attributes:
        indices: of the prompts that are asked.
    """

    file: Path
    indices: Sequence[int]

    def __call__(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            append_jsonl(
                self.file, asdict(replace(completion, prompt=self.indices[completion.prompt]))
            )


def _journalled(file: Path, indices: Sequence[int]) -> dict[tuple[int, int], Completion]:
    """What is finished already, by place of the prompt and sample."""
    places = {index: place for place, index in enumerate(indices)}
    kept: dict[tuple[int, int], Completion] = {}
    for line in read_jsonl(file) if file.exists() else []:
        if line["prompt"] in places:
            tuples = {name: tuple(v) for name, v in line.items() if isinstance(v, list)}
            completion = Completion(**line | tuples | {"prompt": places[line["prompt"]]})
            kept[completion.prompt, completion.index] = completion
    return kept
