"""A scalar reward model as a scorer of chats and texts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from transformers import PreTrainedTokenizerBase

from palate.data.encode import Drop, Encoder
from palate.data.items import Item, Tokens, sequence_key
from palate.data.layouts import Layout
from palate.data.schema import Content, Message, Preference, Response
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits, has_images
from palate.data.templates import Refused
from palate.errors import ModelError
from palate.models.compiled import use_packed
from palate.models.image_cache import RecentFeatures
from palate.models.limits import context_of, padding_id
from palate.models.loading import load_tokenizer
from palate.models.model import Ask, Model
from palate.models.pictures import Pictures, open_pictures
from palate.models.reward_config import Scale
from palate.models.reward_files import load_reward_model
from palate.models.verdicts import exact_layout
from palate.recipes.schema import Dtype, LengthRecipe, ModelRecipe
from palate.rewards.names import short_name
from palate.rewards.texts import as_chat

MOST_KNOWN = 65_536
"""Responses whose rewards by all heads are kept between calls, some 25 MB."""
Encoded = tuple[Tokens, Tokens] | str
"""A prompt and a response to it, or why they cannot be scored."""

log = logging.getLogger("palate")


class ModelScorer:
    """Rewards of a reward model, chats and texts rendered and ended exactly as in its training.

    A score depends neither on the batch, nor its size, order or padding, nor on what else is in it,
    to rounding. Nothing is cut but prompts that training would have cut, too: what does not fit the
    backbone's context has no score, and a reason.

    Args:
        model: a folder or hub name for `load_reward_model`, or a model.
        tokenizer: default: the one saved with the model.
        revision: of a hub model.
        dtype: of the backbone; default: as trained.
        head: of a model with several the one that scores; default: the mean of all.
        normalised: score (r - mean) / deviation, of the rewards on the training distribution.
        device: default: where there is an accelerator, that.
        batch_tokens: most tokens of one forward pass, padding included; one sequence always fits.
        trust_remote_code: run code that came with the model.

    Raises:
        ModelError: unreadable, or `normalised` of a model that does not say by what.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        dtype: Dtype | None = None,
        head: int | None = None,
        normalised: bool = False,
        device: torch.device | str | None = None,
        batch_tokens: int = 8192,
        trust_remote_code: bool = False,
        name: str | None = None,
    ) -> None:
        # The images of a model that others have in hand are theirs.
        self._forgets = not isinstance(model, Model)
        if isinstance(model, Model):
            self.model, path = model, model.spec.model.path
        else:
            path = str(model)
            key = (path, dtype, revision, trust_remote_code)
            self.model = _loaded(key, shared=head is not None)
        if device is None:
            there = torch.accelerator.is_available()
            device = (torch.accelerator.current_accelerator() if there else None) or "cpu"
        self.model.to(device).eval()
        use_packed(self.model.base)
        self.name = name or short_name(path) + ("" if head is None else f" head {head}")
        self.batch_tokens = batch_tokens
        self.counts: Counter[str] = Counter()
        spec = self.model.spec
        saved = _has_tokenizer(path)
        tokenizer_recipe = spec.model
        if saved:
            tokenizer_recipe = ModelRecipe(
                path=path, revision=revision, trust_remote_code=trust_remote_code
            )
        self.tokenizer = tokenizer or load_tokenizer(tokenizer_recipe)
        # A saved tokenizer carries the template of the training.
        template = "model" if saved or tokenizer is not None else spec.model.chat_template
        self.pictures = self._open_pictures(tokenizer_recipe)
        self.encoder = Encoder(self.tokenizer, template, self._limits(), self.pictures)
        self._forms = spec.forms or (("chat",) if self.tokenizer.chat_template else ("text",))
        self._layout: Layout | None = None
        if head is not None and not head < spec.heads > 1:
            raise ModelError(f"{path}: no head {head}: it has {spec.heads}, counted from 0")
        self.head = head
        self._scale = Scale(mean=0.0, deviation=1.0, n=0)
        if normalised:
            scales = [spec.scale] if head is None else list(spec.scales)
            scale = scales[head or 0] if scales else None
            if scale is None or not scale.deviation > 0:
                raise ModelError(f"{path}: no mean and deviation of rewards are saved with it")
            self._scale = scale

    @property
    def traits(self) -> Traits:
        """It reads images where its backbone sees and its processor is at hand."""
        return Traits() if self.pictures is None else Traits(modalities=TEXT_AND_IMAGES)

    def _open_pictures(self, recipe: ModelRecipe) -> Pictures | None:
        if self.model.pictures is not None:
            return self.model.pictures
        try:
            pictures = open_pictures(self.model, recipe, self.tokenizer)
        except ModelError as error:
            log.warning("%s: reads no images: %s", self.name, error)
            return None
        if pictures is not None:
            pictures.features = RecentFeatures(self.model, pictures)
        return pictures

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Rewards; a prompt is run once for all of its responses, an image once for all prompts.

        A text goes to a model of chats as one turn of the user.

        Raises:
            ModelError: chats for a model that was trained on plain text alone.
        """
        scored = self.score_encoded([self._encoded(g.prompt, g.responses) for g in groups])
        if self.pictures is not None and self._forgets:
            self.pictures.forget()
        return scored

    def score_encoded(self, groups: Sequence[Sequence[Encoded]]) -> list[list[Score]]:
        """As `score`, of what has been made ids already.

        Args:
            groups: responses to one prompt each, every one with the ids of its prompt.
        """
        scores: dict[tuple[int, int], Score] = {}
        known = self._known_heads([ids for group in groups for ids in group])
        wanted: list[tuple[int, Tokens, list[tuple[int, Tokens]]]] = []
        for i, group in enumerate(groups):
            by_prompt: dict[Tokens, list[tuple[int, Tokens]]] = {}
            for j, ids in enumerate(group):
                if isinstance(ids, str):
                    scores[i, j] = Score(None, ids)
                elif self.head is not None and (heads := known.get(sequence_key(*ids))):
                    scores[i, j] = Score.of(self._scaled(heads[self.head]))
                else:
                    by_prompt.setdefault(ids[0], []).append((j, ids[1]))
            for prompt, answers in by_prompt.items():
                if self.model.spec.whole_rendering:
                    prompt, answers = _longer_prompt(prompt, answers)
                wanted.append((i, prompt, answers))
        if self._layout is None:
            self._layout = exact_layout(self.model)
        layout = self._layout
        items: list[Item] = []
        places: list[list[tuple[int, int]]] = []
        for i, prompt, answers in wanted:
            for part in self._parts(prompt, answers, layout):
                items.append(Item.of(prompt, *(ids for _, ids in part)))
                places.append([(i, j) for j, _ in part])
        for chunk in self._batches(items, layout):
            rewards = iter(self._rewards([items[k] for k in chunk], layout))
            for k in chunk:
                for i, j in places[k]:
                    scores[i, j] = Score.of(next(rewards))
        return [[scores[i, j] for j in range(len(group))] for i, group in enumerate(groups)]

    def _limits(self) -> LengthRecipe:
        config = self.model.config.get_text_config()
        context = context_of(config)
        trained = self.model.spec.length
        cuts = trained is not None and trained.prompt != "drop"
        return LengthRecipe(
            max_prompt_tokens=trained.max_prompt_tokens if cuts and trained else context,
            max_response_tokens=context,
            max_tokens=context,
            prompt=trained.prompt if trained is not None else "drop",
            response="drop",
        )

    def _encoded(self, prompt: Content, responses: Sequence[Content | str]) -> list[Encoded]:
        """Ids of the prompt with each response, or why it cannot be scored."""
        chat = not isinstance(prompt, str) or "text" not in self._forms
        if chat and "chat" not in self._forms:
            raise ModelError(f"{self.name}: trained on plain text, and this is a chat")
        asked = as_chat(prompt) if chat else prompt
        sides = [_side(response, chat) for response in responses]
        if self.model.spec.whole_rendering:
            return [self._rendered(asked, side) for side in sides]
        rows = [
            Preference(
                id="",
                source="",
                kind="demonstration",
                prompt=asked,
                responses=(Response(content=s),),
            )
            for s in sides
        ]
        encoded: list[Encoded] = []
        for item in (row.item for row in self.encoder.encode(rows)):
            if isinstance(item, Drop):
                encoded.append(item.reason)
                continue
            ((asked_tokens, answer),) = item.sequences
            end = answer.ids[-1]
            if end not in self.model.spec.end_tokens:
                raise ModelError(
                    f"{self.name}: reads its reward at {self._ends()}, and this ends with "
                    f"{self.encoder.tokens.special.get(end, end)!r}"
                )
            encoded.append((asked_tokens, answer))
        return encoded

    def _rendered(self, prompt: Content, response: Content) -> Encoded:
        """As transformers' classifiers are fed: the whole chat (or text), less trailing padding."""
        if has_images(prompt) or has_images(response):
            return "has images, and a model of others is fed texts"
        if isinstance(prompt, str):
            assert isinstance(response, str)
            ids = list(self.tokenizer(prompt + response, verbose=False)["input_ids"])
        else:
            assert not isinstance(response, str)
            try:
                rendered = self.encoder.template.render(prompt, [response])
            except Refused as error:
                return error.reason
            text = rendered.prompt + rendered.responses[0]
            ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        pad = self.model.config.get_text_config().pad_token_id
        while len(ids) > 2 and ids[-1] == pad:
            ids.pop()
        if len(ids) < 2:
            return "fewer than two tokens"
        if len(ids) > self.encoder.length.max_prompt_tokens:
            return "longer than the model's context"
        return Tokens((ids[0],)), Tokens(tuple(ids[1:]))

    def _ends(self) -> str:
        return ", ".join(repr(text) for text in self.model.spec.end_tokens.values())

    def _parts(
        self, prompt: Tokens, answers: Sequence[tuple[int, Tokens]], layout: Layout
    ) -> Iterator[list[tuple[int, Tokens]]]:
        """Responses that share a pass, within the budget of tokens; one always fits."""
        part: list[tuple[int, Tokens]] = []
        for answer in answers:
            lengths = [len(ids) for _, ids in [*part, answer]]
            tokens = len(prompt) + sum(lengths)
            if layout != "shared":
                tokens = len(lengths) * (len(prompt) + max(lengths))
            if part and tokens > self.batch_tokens:
                yield part
                part = []
            part.append(answer)
        if part:
            yield part

    def _batches(self, items: Sequence[Item], layout: Layout) -> Iterator[list[int]]:
        """Indices of items alike in length, within the budget of tokens."""
        size = [_tokens(item, layout) for item in items]
        chunk: list[int] = []
        total = rows = 0
        for k in sorted(range(len(items)), key=lambda k: (size[k], k)):
            # Shared rows have no padding; of plain ones the last is the longest so far.
            if layout == "shared":
                more = total + size[k]
            else:
                more = (rows + len(items[k].responses)) * size[k]
            if chunk and more > self.batch_tokens:
                yield chunk
                chunk, total, rows = [], 0, 0
            chunk.append(k)
            total += size[k]
            rows += len(items[k].responses)
        if chunk:
            yield chunk

    @torch.no_grad()
    def _rewards(self, items: Sequence[Item], layout: Layout) -> list[float]:
        pad_id = padding_id(self.tokenizer, self.model.base)
        batch = self.model.collator(layout, pad_id=pad_id, keep_last=True)(items)
        outputs = self.model(batch.to(self.model.device), Ask(heads=("reward",)))
        if self.head is None:
            return list(map(self._scaled, outputs.rewards.tolist()))
        heads = list(map(tuple, outputs.by_head.tolist()))
        _KNOWN_HEADS.setdefault(self.model, {}).update(zip(batch.keys, heads, strict=True))
        return [self._scaled(rewards[self.head]) for rewards in heads]

    def _scaled(self, reward: float) -> float:
        return (reward - self._scale.mean) / self._scale.deviation

    def _known_heads(self, asked: Sequence[Encoded]) -> dict[str, tuple[float, ...]]:
        """Rewards of all heads by content key, of what scorers of this model's heads were asked.

        So the first head's pass is all's. Where there are many, what is asked about now is kept:
        of one call all heads are asked one after another.
        """
        known = _KNOWN_HEADS.setdefault(self.model, {})
        if len(known) > MOST_KNOWN:
            keys = {sequence_key(*ids) for ids in asked if not isinstance(ids, str)}
            kept = {key: known[key] for key in keys & known.keys()}
            known.clear()
            known.update(kept)
        return known


_KNOWN_HEADS: WeakKeyDictionary[Model, dict[str, tuple[float, ...]]] = WeakKeyDictionary()


def forget() -> None:
    """Lets go of what the heads of models remember of one another's passes."""
    _KNOWN_HEADS.clear()


_Source = tuple[str, Dtype | None, str | None, bool]
"""Path, dtype, revision, and whether its code may be run."""
_SHARED: WeakValueDictionary[_Source, Model] = WeakValueDictionary()


def _loaded(source: _Source, *, shared: bool) -> Model:
    """A model from its files; scorers of the heads of one share it."""
    path, dtype, revision, code = source
    key = (str(Path(path).resolve()), dtype, revision, code)
    model = _SHARED.get(key) if shared else None
    if model is None:
        model = load_reward_model(path, dtype=dtype, revision=revision, trust_remote_code=code)
        if shared:
            _SHARED[key] = model
    return model


def _longer_prompt(
    prompt: Tokens, answers: Sequence[tuple[int, Tokens]]
) -> tuple[Tokens, list[tuple[int, Tokens]]]:
    """What all responses begin with goes to the prompt: of texts that were rendered whole it is
    the prompt."""
    if len(answers) < 2:
        return prompt, list(answers)
    every = [tokens.ids for _, tokens in answers]
    first, last = min(every), max(every)
    # Each response keeps a token to be scored at.
    most = min(map(len, every)) - 1
    n = next((k for k in range(most) if first[k] != last[k]), most)
    longer = Tokens(prompt.ids + every[0][:n])
    return longer, [(j, Tokens(tokens.ids[n:])) for j, tokens in answers]


def _tokens(item: Item, layout: Layout) -> int:
    """Length of its row, or of the longest of its rows."""
    if layout == "shared":
        return item.n_tokens
    return max(len(prompt) + len(response) for prompt, response in item.sequences)


def _side(response: Content | str, chat: bool) -> Content:
    if isinstance(response, str):
        return [Message(role="assistant", content=response)] if chat else response
    return response


def _has_tokenizer(path: str) -> bool:
    """Checkpoints of a run have no tokenizer of their own: it is the base model's."""
    return not Path(path).is_dir() or (Path(path) / "tokenizer_config.json").exists()
