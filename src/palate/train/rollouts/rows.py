"""Rollouts as rows of their files, and back: an update that was interrupted goes on from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from palate.data.prompts import PolicyPrompt
from palate.data.schema import Content, images_in, text_in
from palate.data.thumbnails import pictures
from palate.errors import RunError
from palate.recipes.images import ImagesRecipe
from palate.store.rollouts import RolloutRow
from palate.train.rollouts.responses import Group, Response, Rollout


def rows_of(rollout: Rollout, prompts: Sequence[PolicyPrompt]) -> list[RolloutRow]:
    """One row a response."""
    texts = {group.prompt: _text(prompts[group.prompt].content) for group in rollout.groups}
    shown = {
        number: pictures(images_in(prompts[number].content), ImagesRecipe()) for number in texts
    }
    return [
        RolloutRow(
            rollout=rollout.number,
            version=response.version,
            prompt=prompts[response.prompt].id,
            source=prompts[response.prompt].source,
            prompt_text=texts[response.prompt],
            sample=response.sample,
            text=response.text,
            response_ids=response.response_ids,
            finished=response.finished,
            score=response.score,
            reason=response.reason or "",
            parts={name: v for name, v in response.parts.items() if v is not None},
            reward=None if math.isnan(response.reward) else response.reward,
            advantage=_advantage(response),
            dropped=response.dropped or "",
            tokens=response.tokens,
            images=shown[response.prompt],
        )
        for response in rollout.responses
    ]


def rollout_of(rows: Sequence[RolloutRow], prompts: Sequence[PolicyPrompt]) -> Rollout:
    """What `rows_of` made rows of, as far as updates ask for it.

    Raises:
        RunError: a prompt that the run no longer has.
    """
    numbers = {prompt.id: number for number, prompt in enumerate(prompts)}
    groups: list[Group] = []
    for row in rows:
        if row.prompt not in numbers:
            raise RunError(f"rollout {row.rollout}: the run's prompts have no `{row.prompt}` now")
        number = numbers[row.prompt]
        if not groups or groups[-1].prompt != number:
            groups.append(Group(prompt=number, responses=[]))
        groups[-1].responses.append(
            Response(
                prompt=number,
                sample=row.sample,
                response_ids=row.response_ids,
                finished=row.finished,
                text=row.text,
                version=row.version,
                score=row.score,
                reason=row.reason or None,
                parts=dict(row.parts),
                reward=math.nan if row.reward is None else row.reward,
                dropped=row.dropped or None,
                tokens=dict(row.tokens),
            )
        )
    return Rollout(number=rows[0].rollout, groups=groups)


def _advantage(response: Response) -> float | None:
    """Of the response, where all of its tokens have the same."""
    advantages = response.tokens.get("advantages")
    if advantages is None or not len(advantages) or np.any(advantages != advantages[0]):
        return None
    return float(advantages[0])


def _text(content: Content) -> str:
    """A prompt as people read it."""
    if isinstance(content, str):
        return content
    return "\n\n".join(f"{turn['role']}: {text_in(turn['content'])}" for turn in content)
