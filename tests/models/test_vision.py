"""Models that see, against their own forward: images in any turn, text beside them, shared rows.

The model's own way has pixels and every sequence in a row of its own, unpadded; ours has features
that were computed once for each image, several sequences a row, and positions and masks made here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from palate.data.items import Item, PairLabel, PlacedImage, Tokens
from palate.data.layouts import Layout, SequenceBatch, collate
from palate.models import attention
from palate.models.attention import use_rows
from palate.models.backbone import Backbone
from palate.models.structure import backbone_of
from palate.models.vision import image_features
from tiny_vision import END, FAMILIES, IMAGE, START, WORDS, tiny_vision_model

SHARING = [name for name, family in FAMILIES.items() if family.shares]


def words(n: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(10, WORDS, (n,), generator=generator).tolist())


class Seen:
    """A tiny model, and images for it."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.family = FAMILIES[family]
        self.model = tiny_vision_model(family, dtype=dtype)
        self.own = backbone_of(self.model)
        self.sizes: dict[int, int] = {}
        self.grids: dict[int, tuple[int, int, int] | None] = {}

    def pixels(self, number: int) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.family.pixels(number).items()
        }

    def digest(self, number: int) -> str:
        return hashlib.sha256(str(number).encode()).hexdigest()

    def features(self, number: int) -> dict[str, Tensor]:
        return image_features(self.own, [self.pixels(number)], None)[0]

    def tokens(self, parts: Sequence[int | tuple[int, ...]]) -> Tokens:
        """Ids of texts (tuples) and images (numbers)."""
        ids: list[int] = []
        images = []
        for part in parts:
            if isinstance(part, tuple):
                ids += part
                continue
            if part not in self.sizes:
                with torch.no_grad():
                    self.sizes[part] = len(next(iter(self.features(part).values())))
                grid = self.pixels(part).get("image_grid_thw")
                self.grids[part] = None
                if grid is not None:
                    t, h, w = grid[0].tolist()
                    self.grids[part] = (t, h // 2, w // 2)
            ids.append(START)
            images.append(
                PlacedImage(len(ids), self.sizes[part], self.digest(part), self.grids[part])
            )
            ids += [IMAGE] * self.sizes[part] + [END]
        return Tokens(tuple(ids), images=tuple(images))

    def filled(self, batch: SequenceBatch, numbers: Sequence[int], *, features: bool) -> Any:
        """The batch with the pixels or features of its images."""
        if batch.images is None:
            return batch
        by_digest = {self.digest(number): number for number in numbers}
        given = [by_digest[digest] for digest in batch.images.digests]
        parts: dict[str, Any] = (
            {"features": tuple(map(self.features, given))}
            if features
            else {"pixels": tuple(map(self.pixels, given))}
        )
        images = dataclasses.replace(batch.images, **parts)
        object.__setattr__(batch, "images", images)
        return batch

    def own_states(self, prompt: Tokens, response: Tokens, numbers: Sequence[int]) -> Tensor:
        """[n, d] states by the model's own forward, pixels and all."""
        ids = torch.tensor([prompt.ids + response.ids])
        by_digest = {self.digest(number): number for number in numbers}
        placed = [by_digest[image.digest] for image in (*prompt.images, *response.images)]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if placed:
            pixels = [self.pixels(number) for number in placed]
            inputs |= {name: torch.cat([p[name] for p in pixels]) for name in pixels[0]}
        kind = self.model.config.model_type
        if kind.startswith("qwen"):
            inputs["mm_token_type_ids"] = (ids == IMAGE).long()
        if kind == "gemma3":
            inputs["token_type_ids"] = (ids == IMAGE).long()
        if kind == "paligemma":
            types = torch.zeros_like(ids)
            types[:, len(prompt) :] = 1
            inputs["token_type_ids"] = types
            if not placed:
                return self._text_of_paligemma(prompt, ids)
        states: Tensor = self.own(**inputs, use_cache=False).last_hidden_state[0]
        return states

    def _text_of_paligemma(self, prompt: Tokens, ids: Tensor) -> Tensor:
        """Its forward wants images: its language model by a mask of our own."""
        n = ids.shape[1]
        place = torch.arange(n)
        visible = (place[:, None] >= place[None]) | (
            (place[:, None] < len(prompt)) & (place[None] < len(prompt))
        )
        states: Tensor = self.own.language_model(
            input_ids=ids, attention_mask=visible[None, None], use_cache=False
        ).last_hidden_state[0]
        return states


def pair(prompts: Sequence[Tokens], responses: Sequence[Tokens], name: str) -> Item:
    return Item(
        prompts=tuple(prompts), responses=tuple(responses), label=PairLabel(), id=name, source="s"
    )


def pairs_of(seen: Seen) -> list[Item]:
    """Two images past the window, one in the second turn and in a response, none at all, and the
    same words with other images."""
    text = [words(n, n) for n in (5, 6, 14, 9, 13, 8)]
    both = seen.tokens([(1, *text[0]), 0, text[1], 1, text[2]])
    later = seen.tokens([(1, *text[3]), text[4], 1, text[0]])
    pointing = seen.tokens([text[5], 0, text[1]])
    plain = Tokens((1, *text[2]))
    other = seen.tokens([(1, *text[0]), 2, text[1], 3, text[2]])
    return [
        pair([both] * 2, [Tokens(words(13, 21)), Tokens(words(9, 22))], "two images"),
        pair([later] * 2, [pointing, Tokens(words(7, 23))], "an answer with an image"),
        pair([plain] * 2, [Tokens(words(6, 24)), Tokens(words(11, 25))], "text"),
        pair([both, other], [Tokens(words(8, 26)), Tokens(words(8, 26))], "own prompts"),
    ]


NUMBERS = (0, 1, 2, 3)


def states_of(
    seen: Seen, items: Sequence[Item], layout: Layout, *, features: bool
) -> tuple[Tensor, SequenceBatch]:
    backbone = Backbone(seen.model)
    batch = collate(items, layout=layout, pad_id=0, keep_last=True, vision=backbone.vision)
    return backbone(seen.filled(batch, NUMBERS, features=features)), batch


def expected_states(seen: Seen, items: Sequence[Item]) -> list[Tensor]:
    return [
        seen.own_states(prompt, response, NUMBERS)[len(prompt) - 1 :]
        for item in items
        for prompt, response in item.sequences
    ]


def responses_of(states: Tensor, batch: SequenceBatch) -> list[Tensor]:
    """[n + 1, d] of each sequence: what predicts its first token, and its tokens."""
    found = []
    for s in range(batch.n_sequences):
        mine = batch.segment == s
        assert batch.target_positions is not None
        places = [batch.predict[mine][:1], batch.target_positions[mine]]
        found.append(states[torch.cat(places)])
    return found


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_states_are_those_of_the_models_own_forward(family: str, layout: Layout) -> None:
    if layout == "shared" and not FAMILIES[family].shares:
        pytest.skip("layers that are not attention run plain")
    seen = Seen(family)
    items = pairs_of(seen)
    with torch.no_grad():
        expected = expected_states(seen, items)
        states, batch = states_of(seen, items, layout, features=False)
        again, _ = states_of(seen, items, layout, features=True)
    # Alone each image is rounded otherwise than in one pass with others.
    assert torch.allclose(states, again, atol=FAMILIES[family].close)
    scale = torch.cat(expected).abs().mean()
    for own, ours in zip(expected, responses_of(states, batch), strict=True):
        assert (own - ours).abs().max() < FAMILIES[family].close * max(1.0, float(scale))


@pytest.mark.parametrize("family", SHARING)
def test_rows_without_padding_are_the_same(family: str) -> None:
    """With the attention that training uses, which takes the structure of rows as it is."""
    seen = Seen(family)
    items = pairs_of(seen)
    with torch.no_grad():
        expected = expected_states(seen, items)
        use_rows(seen.model)
        states, batch = states_of(seen, items, "shared", features=True)
    for own, ours in zip(expected, responses_of(states, batch), strict=True):
        assert (own - ours).abs().max() < 2 * FAMILIES[family].close


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3", "llava_next", "smolvlm"])
def test_gradients_of_a_trained_tower_are_those_of_the_models_own(family: str) -> None:
    seen = Seen(family, torch.float64)
    items = pairs_of(seen)
    parameters = dict(seen.model.named_parameters())

    def gradients(states: Sequence[Tensor]) -> dict[str, Tensor]:
        seen.model.zero_grad()
        generator = torch.Generator().manual_seed(3)
        total = sum(
            (s * torch.randn(s.shape, generator=generator, dtype=s.dtype)).sum() for s in states
        )
        torch.as_tensor(total).backward()
        return {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}

    own = gradients(expected_states(seen, items))
    states, batch = states_of(seen, items, "shared", features=False)
    ours = gradients(responses_of(states, batch))
    assert own.keys() == ours.keys() and any("vis" in name for name in own)
    largest = max(float(g.abs().max()) for g in own.values())
    assert max(float((own[n] - ours[n]).abs().max()) for n in own) < 1e-6 * largest


def test_an_image_goes_through_the_tower_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen("qwen2_5_vl")
    items = pairs_of(seen)
    calls: list[int] = []
    seen.own.visual.register_forward_pre_hook(
        lambda _, args, given: calls.append(len(given["grid_thw"])), with_kwargs=True
    )
    with torch.no_grad():
        states_of(seen, items, "shared", features=False)
    # Four images, of which two stand under three pairs: all in one pass.
    assert calls == [4]


def test_a_frozen_tower_is_outside_of_autograd() -> None:
    seen = Seen("gemma3")
    for name, parameter in seen.model.named_parameters():
        parameter.requires_grad_("language_model" in name)
    assert not any(f.requires_grad for f in seen.features(0).values())
    seen.model.requires_grad_(True)
    assert all(f.requires_grad for f in seen.features(0).values())


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_tokens_that_see_later_ones_do_so_in_shared_rows(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, states are far from the model's own: what the comparison above would show."""
    seen = Seen(family)
    items = pairs_of(seen)
    expected = expected_states(seen, items)
    whole = attention._visible
    monkeypatch.setattr(
        attention,
        "_visible",
        lambda until, positions, windows, begin=None: whole(until, positions, windows),
    )
    states, batch = states_of(seen, items, "shared", features=True)
    gaps = [
        float((own - ours).abs().max())
        for own, ours in zip(expected, responses_of(states, batch), strict=True)
    ]
    assert max(gaps) > 1e-3
