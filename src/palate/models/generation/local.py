"""Generation in this process, by a loop of our own over the model that is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palate.data.items import Tokens
from palate.errors import ModelError
from palate.models.compiled import drop_packed
from palate.models.generation.check import Decoder
from palate.models.generation.choice import decoder_of, way_of
from palate.models.generation.draws import uniforms
from palate.models.generation.engine import Completion, OnBatch, Prompt, Sampling
from palate.models.generation.next_token import NextToken
from palate.models.limits import context_of, padding_id
from palate.models.model import Model, evaluating
from palate.models.stop_tokens import stop_tokens


@dataclass
class _Row:
    """A response that is being written."""

    prompt: int
    index: int
    uniform: NDArray[np.float64]
    room: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class LocalEngine:
    """Responses by the model itself: see `palate.models.generation.engine.Engine`.

    A prompt is run once for all its samples, an image once for all its prompts; rows leave the
    batch when they are finished; the vocabulary head is run at the last position alone. The same
    weights and seed give the same responses; which rows are in the batch changes them only by
    rounding (see `palate.models.generation.draws`). Tokens that stand for images and videos are
    never drawn. Weights are read where they are: a model that is trained writes with what it has
    learned so far, in evaluation mode and with its adapters, and is left in the mode it was in.

    Args:
        batch_size: responses that are written at once.
        ends: tokens that end a response; default: those of the model's generation settings and the
            tokenizer's.
    """

    exact = True

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        batch_size: int = 64,
        ends: Iterable[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.version = 0
        self._ends = None if ends is None else frozenset(ends)
        self._use(model)

    def _use(self, model: Model) -> None:
        self.model = model
        self.pad = padding_id(self.tokenizer, model.base)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a response."""
        if self._ends is not None:
            return self._ends
        return stop_tokens(self.model.base) | {int(self.tokenizer.eos_token_id)}

    def sync(self, model: Model) -> None:
        self._use(model)
        self.version += 1

    def close(self) -> None:
        """Nothing is held between calls."""

    def take_counts(self) -> dict[str, int]:
        """Nothing: what is asked for is written."""
        return {}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_batch: OnBatch | None = None,
        skip: Collection[tuple[int, int]] = (),
    ) -> list[Completion]:
        """See `Engine.generate`.

        Raises:
            ModelError: a prompt that leaves no room in the model's context, or has images that
                the model cannot be shown.
        """
        tokens = [prompt.tokens for prompt in prompts]
        return self.write(tokens, sampling, on_batch=on_batch, skip=skip)

    @torch.no_grad()
    def write(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        *,
        on_batch: OnBatch | None = None,
        skip: Collection[tuple[int, int]] = (),
    ) -> list[Completion]:
        """As `generate`, of prompts as token ids alone."""
        ends = self.ends
        drop_packed(self.model.base)
        vision = self.model.backbone.vision
        next_token = NextToken(
            self.model.vocabulary_head(),
            sampling,
            # Read again, what stands for an image would ask for one.
            never=() if vision is None else vision.seen,
            ends=sorted(ends),
        )
        completions: list[Completion] = []
        with evaluating(self.model):
            waiting = self._groups(prompts, sampling, frozenset(skip))
            for rows in self._written(prompts, waiting, next_token, ends):
                batch = [self._completion(row, prompts[row.prompt], ends) for row in rows]
                completions += batch
                if on_batch is not None:
                    on_batch(batch)
        return sorted(completions, key=lambda c: (c.prompt, c.index))

    def _written(
        self,
        prompts: Sequence[Tokens],
        waiting: list[list[_Row]],
        next_token: NextToken,
        ends: frozenset[int],
    ) -> Iterator[list[_Row]]:
        """Rows as they are finished."""
        if not waiting:
            return
        way = way_of(self.model, self.pad)
        decoder: Decoder = decoder_of(
            self.model,
            self.pad,
            way,
            longest=max(map(len, prompts)),
            room=max(row.room for group in waiting for row in group),
            rows=min(self.batch_size, sum(map(len, waiting))),
        )
        active: list[_Row] = []
        while waiting or active:
            may_join = not active or decoder.joins
            groups = self._taken(waiting, len(active), prompts, way.pads) if may_join else []
            if groups:
                joined = [row for group in groups for row in group]
                states = decoder.start(
                    [prompts[group[0].prompt] for group in groups], [len(g) for g in groups]
                )
                counts = torch.tensor([len(g) for g in groups], device=states.device)
                self._draw(joined, states.repeat_interleave(counts, dim=0), next_token)
                active += joined
            else:
                states = decoder.step([row.ids[-1] for row in active])
                self._draw(active, states, next_token)
            going = [
                i
                for i, row in enumerate(active)
                if row.ids[-1] not in ends and len(row.ids) < row.room
            ]
            if len(going) < len(active):
                done = set(range(len(active))) - set(going)
                yield [active[i] for i in sorted(done)]
                active = [active[i] for i in going]
                decoder.keep(going)

    def _draw(self, rows: Sequence[_Row], states: Tensor, next_token: NextToken) -> None:
        written = [len(row.ids) for row in rows]
        uniform = np.array([row.uniform[n] for row, n in zip(rows, written, strict=True)])
        tokens, logps = next_token(states, uniform, written)
        for row, token, logp in zip(rows, tokens, logps, strict=True):
            row.ids.append(token)
            row.logps.append(logp)

    def _groups(
        self, prompts: Sequence[Tokens], sampling: Sampling, skip: frozenset[tuple[int, int]]
    ) -> list[list[_Row]]:
        """The rows of each prompt, no more at once than a batch, the shortest prompts first."""
        context = context_of(self.model.config.get_text_config())
        groups = []
        # Taken from the end: alike lengths together, and the longest first: memory peaks at once.
        for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), -i)):
            prompt = prompts[i]
            room = min(sampling.max_new_tokens, context - len(prompt))
            if room < 1:
                raise ModelError(
                    f"prompt {i} has {len(prompt)} tokens, and leaves no room in the model's "
                    f"context of {context}"
                )
            first = sampling.first_sample
            rows = [
                _Row(i, k, uniforms(sampling.seed, prompt, k, room), room)
                for k in range(first, first + sampling.samples_per_prompt)
                if (i, k) not in skip
            ]
            parts = [
                rows[start : start + self.batch_size]
                for start in range(0, len(rows), self.batch_size)
            ]
            groups += parts[::-1]
        return groups

    def _taken(
        self, waiting: list[list[_Row]], active: int, prompts: Sequence[Tokens], pads: bool
    ) -> list[list[_Row]]:
        """Takes from the end of `waiting` the groups that have room beside active rows.

        Args:
            pads: prompts of several lengths may be taken.
        """
        room = self.batch_size - active
        groups: list[list[_Row]] = []
        while waiting and len(waiting[-1]) <= room:
            if groups and not pads:
                first, following = (prompts[g[0].prompt] for g in (groups[0], waiting[-1]))
                if len(first) != len(following):
                    break
            groups.append(waiting.pop())
            room -= len(groups[-1])
        return groups

    def _completion(self, row: _Row, prompt: Tokens, ends: frozenset[int]) -> Completion:
        finished = row.ids[-1] in ends
        return Completion(
            prompt=row.prompt,
            index=row.index,
            prompt_ids=prompt.ids,
            response_ids=tuple(row.ids),
            logps=tuple(row.logps),
            finished=finished,
            text=self.tokenizer.decode(
                row.ids[:-1] if finished else row.ids, skip_special_tokens=True
            ),
            version=self.version,
        )
