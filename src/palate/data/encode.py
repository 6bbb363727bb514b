"""Rows to token ids: rendered, tokenised prompt and response apart, ended once, cut to length.

One rule for the border: prompt and response are tokenised separately and joined as ids, which is
what a model sees when it writes the response. BOS and EOS are added here, never by the tokenizer.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.data.images import ImageError
from palate.data.items import Desirable, Item, Label, PairLabel, Ranks, Tokens
from palate.data.placing import ImageText, ImageTexts, bare_turns, placed, written_out
from palate.data.schema import (
    Content,
    Message,
    Preference,
    image_of,
    images_in,
    parts_in,
    text_in,
    video_of,
)
from palate.data.templates import PLAIN, PROBE, PROBE_ANSWER, ChatTemplate, Refused, Rendered
from palate.data.tokenizer import SequenceTokenizer
from palate.data.truncate import MANY_IMAGES, TooLong, truncate, truncate_prompt
from palate.data.videos import with_frames
from palate.errors import DataError
from palate.recipes.schema import LengthRecipe

SAME_TOKENS = "chosen and rejected are the same tokens"
SAME_CUT = "chosen and rejected are the same tokens after truncation"
NO_TOKENS = "response without a token"
NO_START = "empty prompt, and the tokenizer has no BOS"
HAS_IMAGES = "holds images, and the model reads none"
AS_IMAGES = "this model takes no videos: up to %d frames of each are shown as images"


@dataclass(frozen=True)
class Drop:
    """Why a row cannot be used."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One row encoded or dropped.

    Attributes:
        cut: what was cut of it: prompt, chosen, rejected, response.
        left_out: of a ranked row that does without some responses, why, once for each.
    """

    item: Item | Drop
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt to sample from, and whether it was cut to the limit."""

    tokens: Tokens
    cut: bool = False


class Encoder:
    """Turns rows into ids for one tokenizer, template and set of limits.

    Args:
        tokenizer: a transformers tokenizer with an EOS token.
        chat_template: `model`, `plain`, or the path of a Jinja file; used for chats alone.
        length: limits in tokens.
        images: of a model that sees; default: rows with images are dropped.

    Raises:
        ModelError: no EOS token, or a template file that cannot be read.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | Path = "model",
        length: LengthRecipe | None = None,
        images: ImageTexts | None = None,
    ) -> None:
        self.tokens = SequenceTokenizer(tokenizer)
        self.template = ChatTemplate(tokenizer, chat_template)
        self.length = length or LengthRecipe()
        self.images = images
        self._warned = False

    def encode_row(self, row: Preference) -> Item | Drop:
        """One row; see `encode`."""
        return self.encode([row])[0].item

    def encode(self, rows: Sequence[Preference], root: Path = Path()) -> list[Encoded]:
        """Encodes rows, in order: of pairs both responses, of ranked rows all that can be used.

        Of other rows the first response is taken.

        Args:
            root: folder that paths of images start from.

        Raises:
            ModelError: the template cannot be used for any chat.
            ValueError: rated rows without ranks; make pairs of them, or rank them, first.
        """
        if any(row.kind == "rated" and any(r.rank is None for r in row.responses) for row in rows):
            raise ValueError("rated rows have no token form: make pairs of them first")
        shown = [self._with_frames(row, root) if row.has_videos else row for row in rows]
        parts = [_sides(row) for row in shown]
        encoded = iter(self._encode_rows([side for sides in parts for side in sides], root))
        return [
            Encoded(item=row)
            if isinstance(row, Drop)
            else next(encoded)
            if len(sides) == 1
            else _joined(row, [next(encoded) for _ in sides])
            for row, sides in zip(shown, parts, strict=True)
        ]

    def _with_frames(self, row: Preference, root: Path) -> Preference | Drop:
        """The row with its videos as frames, as images where the model takes no videos."""
        if self.images is None:
            return Drop(HAS_IMAGES)
        try:
            if self.images.videos_as_images and not self._warned:
                self._warned = True
                logging.getLogger("palate").warning(AS_IMAGES, self.images.video_frames)
            return row.with_contents(lambda content: self._framed(content, root))
        except ImageError as error:
            return Drop(error.reason)

    def _framed(self, content: Content, root: Path) -> Content:
        if self.images is None:
            return content
        as_images = self.images.videos_as_images
        return with_frames(content, root, self.images.video_frames, as_images=as_images)

    def _encode_rows(self, rows: Sequence[Preference], root: Path) -> list[Encoded]:
        """As `encode`, of rows whose responses all answer the row's prompt."""
        shown = [self._render_usable(row, root) for row in rows]
        texts = [text for _, text, _ in shown if isinstance(text, Rendered)]
        starts = self.tokens.starts(r.prompt for r in texts)
        later = [t for r in texts for t in (r.tail, *r.responses) if t]
        continuations = self.tokens.continuations(later)
        return [
            Encoded(item=text)
            if isinstance(text, Drop)
            else self._encoded(row, text, starts, continuations, left_out, root)
            for row, text, left_out in shown
        ]

    def encode_prompt(self, prompt: Content, root: Path = Path()) -> Tokens:
        """One prompt to sample from; see `encode_prompts`.

        Raises:
            DataError: the template or the limits refuse it, or an image of it cannot be used.
            ModelError: the template cannot be used.
        """
        (encoded,) = self.encode_prompts([prompt], root)
        if isinstance(encoded, Drop):
            raise DataError(encoded.reason, field="prompt")
        return encoded.tokens

    def encode_prompts(
        self, prompts: Sequence[Content], root: Path = Path()
    ) -> list[EncodedPrompt | Drop]:
        """Prompts to sample from, in order, each exactly as training on it would see it.

        Args:
            root: folder that paths of their images start from, where these know none.

        Raises:
            ModelError: the template cannot be used for any chat.
        """
        shown = [self._shown(prompt, root) for prompt in prompts]
        texts = [rendered for _, rendered in shown if isinstance(rendered, Rendered)]
        starts = self.tokens.starts(text.prompt for text in texts)
        tails = self.tokens.continuations([text.tail for text in texts if text.tail])
        return [
            rendered
            if isinstance(rendered, Drop)
            else self._encoded_prompt(prompt, rendered, starts, tails, root)
            for prompt, rendered in shown
        ]

    def _shown(self, prompt: Content, root: Path) -> tuple[Content, Rendered | Drop]:
        """A prompt with its videos as frames, and as text."""
        try:
            prompt = self._framed(prompt, root)
            if isinstance(prompt, str):
                return prompt, Rendered(prompt=prompt, responses=())
            return prompt, self._render_chat(prompt, (), root)
        except (Refused, ImageError) as error:
            return prompt, Drop(error.reason)

    def _encoded_prompt(
        self,
        prompt: Content,
        rendered: Rendered,
        starts: dict[str, tuple[int, ...]],
        tails: dict[str, tuple[int, ...]],
        root: Path,
    ) -> EncodedPrompt | Drop:
        try:
            ids, tail = self._prompt_ids(rendered, starts, tails)
            kept = truncate_prompt(ids, tail, self.length, bos=self.tokens.bos)
            tokens = placed(kept, self._texts_of(prompt, root))
        except (Refused, TooLong, ImageError) as error:
            return Drop(error.reason)
        return EncodedPrompt(tokens, cut=kept is not ids)

    def stop_ids(self, *, chats: bool) -> frozenset[int]:
        """Ids of the last tokens of whole responses: EOS after texts, and what closes a chat.

        Args:
            chats: whether there are any, which the template is asked for.
        """
        if not chats:
            return frozenset({self.tokens.eos})
        (closed,) = self.template.render(PROBE, [PROBE_ANSWER]).responses
        ids = self.tokens.continuations([closed])[closed]
        return frozenset({self.tokens.eos, self.tokens.ended(ids)[-1]})

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids as people read it, without special tokens."""
        return self.tokens.decode(ids)

    @property
    def template_sha256(self) -> str | None:
        """Digest of the chat template in use; None where there is none."""
        return self.template.sha256

    @property
    def saved_template(self) -> str | None:
        """The template to save with a trained model, so that others render chats as training did.

        Chat interfaces add no BOS of their own to a rendered chat, so it then begins with the BOS
        of tokenizers that do.
        """
        text = self.template.text
        if text is None or not self.tokens.adds_bos:
            return text
        if self.template.setting == "plain":
            return "{{- bos_token -}}\n" + PLAIN
        assert self.tokens.bos is not None
        if self.template.begins_with(self.tokens.special[self.tokens.bos]):
            return text
        # The signs keep Jinja from taking the template's own outer blanks away, or adding one.
        body = text.removesuffix("\n")
        first = "{{- '' if rendered_chat.startswith(bos_token) else bos_token -}}"
        return (
            "{%- set rendered_chat +%}" + body + "{%+ endset -%}" + first + "{{- rendered_chat -}}"
        )

    def _render_usable(
        self, row: Preference, root: Path
    ) -> tuple[Preference, Rendered | Drop, list[str]]:
        """The row as text, a ranked one without the responses that cannot be rendered, and why."""
        rendered = self._render(row, root)
        if isinstance(rendered, Rendered) or row.kind != "rated":
            return row, rendered, []
        alone = [dataclasses.replace(row, responses=(response,)) for response in row.responses]
        faults = [self._render(single, root) for single in alone]
        left_out = [fault.reason for fault in faults if isinstance(fault, Drop)]
        if len(faults) - len(left_out) < 2:
            return row, rendered, []
        pairs = zip(row.responses, faults, strict=True)
        usable = tuple(response for response, fault in pairs if isinstance(fault, Rendered))
        row = dataclasses.replace(row, responses=usable)
        return row, self._render(row, root), left_out

    def _render(self, row: Preference, root: Path) -> Rendered | Drop:
        if row.has_images and self.images is None:
            return Drop(HAS_IMAGES)
        try:
            if isinstance(row.prompt, str):
                return self._render_text(row, row.prompt)
            sides = []
            for response in row.responses:
                assert not isinstance(response.content, str), "text answers a chat"
                sides.append(response.content)
            return self._render_chat(row.prompt, sides, root)
        except (Refused, ImageError) as error:
            return Drop(error.reason)

    def _render_chat(
        self, prompt: Sequence[Message], sides: Sequence[Sequence[Message]], root: Path
    ) -> Rendered:
        """A chat as text, with what stands for its images in their places."""
        self._refuse_special([*prompt, *(turn for side in sides for turn in side)])
        seen = self._texts_of(list(prompt), root)
        images = [seen, *(self._texts_of(list(side), root, before=len(seen)) for side in sides)]
        asked, *answered = (sum(image.tokens for image in of_text) for of_text in images)
        limit = self.length.max_image_tokens
        if limit is not None and asked + max(answered, default=0) > limit:
            raise Refused(MANY_IMAGES)
        rendered = self.template.render(bare_turns(prompt), list(map(bare_turns, sides)))
        if self.images is None or not any(images):
            return rendered
        texts = (rendered.prompt, *rendered.responses)
        prompt_text, *responses = (
            written_out(text, self.images.mark, of_text)
            for text, of_text in zip(texts, images, strict=True)
        )
        return dataclasses.replace(rendered, prompt=prompt_text, responses=tuple(responses))

    def _texts_of(self, content: Content, root: Path, before: int = 0) -> list[ImageText]:
        """What stands for each image and video of a content.

        Args:
            before: how many stand in the prompt of a response.

        Raises:
            ImageError: one cannot be used.
        """
        if not images_in(content):
            return []
        if self.images is None:
            raise ImageError(HAS_IMAGES)
        texts = []
        parts = parts_in(content)
        alone = before + sum(part["type"] != "text" for part in parts) == 1
        for part in parts:
            if part["type"] == "image":
                texts.append(self.images.of(image_of(part), root, alone=alone))
            elif part["type"] == "video":
                texts.append(self.images.of_video(video_of(part), root))
        return texts

    def _render_text(self, row: Preference, prompt: str) -> Rendered:
        sides = []
        for response in row.responses:
            assert isinstance(response.content, str), "turns answer a text"
            # Text that ends with EOS already gets no second one.
            side = response.content.removesuffix(self.tokens.special[self.tokens.eos])
            self._refuse_special([{"role": "assistant", "content": side}])
            sides.append(side)
        return Rendered(prompt=prompt, responses=tuple(sides))

    def _refuse_special(self, turns: Sequence[Message]) -> None:
        # Written out in a text it would become the token itself: an end, or another's turn.
        for turn in turns:
            if (token := self.tokens.special_in(text_in(turn["content"]))) is not None:
                raise Refused(f"text holds the special token {token}")

    def _encoded(
        self,
        row: Preference,
        rendered: Rendered,
        starts: dict[str, tuple[int, ...]],
        continuations: dict[str, tuple[int, ...]],
        left_out: Sequence[str],
        root: Path,
    ) -> Encoded:
        try:
            prompt, tail = self._prompt_ids(rendered, starts, continuations)
        except Refused as error:
            return Encoded(item=Drop(error.reason))
        tokenised = [continuations.get(text, ()) for text in rendered.responses]
        responses = [
            self._ended(ids, chat=row.conversational) if self.tokens.says_something(ids) else ()
            for ids in tokenised
        ]
        if row.kind == "rated":
            # Of several answers a bad one costs itself, not the list.
            faults = [self._fault(prompt, tail, ids) for ids in responses]
            usable = [i for i, fault in enumerate(faults) if fault is None]
            unusable = [fault for fault in faults if fault is not None]
            if len(usable) < 2:
                return Encoded(item=Drop(unusable[0]))
            left_out = [*left_out, *unusable]
            responses = [responses[i] for i in usable]
            row = dataclasses.replace(row, responses=tuple(row.responses[i] for i in usable))
        elif () in responses:
            return Encoded(item=Drop(NO_TOKENS))
        if row.kind == "pair" and responses[0] == responses[1]:
            return Encoded(item=Drop(SAME_TOKENS))
        try:
            fitted = truncate(prompt, tail, responses, self.length, bos=self.tokens.bos)
            seen = self._texts_of(row.prompt, root)
            asked = placed(fitted.prompt, seen)
            answers = [
                placed(ids, self._texts_of(response.content, root, before=len(seen)))
                for ids, response in zip(fitted.responses, row.responses, strict=False)
            ]
        except (TooLong, Refused) as error:
            return Encoded(item=Drop(error.reason))
        if row.kind == "pair" and fitted.responses[0] == fitted.responses[1]:
            return Encoded(item=Drop(SAME_CUT))
        names: tuple[str, ...] = ("chosen", "rejected") if row.kind == "pair" else ("response",)
        if row.kind == "rated":
            names = ("response",) * len(row.responses)
        cut = list(dict.fromkeys(n for n, was in zip(names, fitted.cut, strict=True) if was))
        if fitted.prompt_cut:
            cut.insert(0, "prompt")
        return Encoded(
            item=_item(row, [asked] * len(answers), answers),
            cut=tuple(cut),
            left_out=tuple(left_out),
        )

    def _fault(
        self, prompt: tuple[int, ...], tail: tuple[int, ...], response: tuple[int, ...]
    ) -> str | None:
        """Why a response cannot be used; None where it can."""
        if not response:
            return NO_TOKENS
        try:
            truncate(prompt, tail, [response], self.length, bos=self.tokens.bos)
        except TooLong as error:
            return error.reason
        return None

    def _ended(self, ids: tuple[int, ...], *, chat: bool) -> tuple[int, ...]:
        return self.tokens.ended(ids) if chat else (*ids, self.tokens.eos)

    def _prompt_ids(
        self,
        rendered: Rendered,
        starts: dict[str, tuple[int, ...]],
        continuations: dict[str, tuple[int, ...]],
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids, bos = starts[rendered.prompt], self.tokens.bos
        if bos is not None:
            # A template may write BOS, the tokenizer may add it: there is one.
            written = 0
            while written < len(ids) and ids[written] == bos:
                written += 1
            if written or self.tokens.adds_bos or not ids:
                ids = (bos, *ids[written:])
        if not ids:
            raise Refused(NO_START)
        return ids, continuations[rendered.tail] if rendered.tail else ()


def _sides(row: Preference | Drop) -> list[Preference]:
    """Both sides of a pair with prompts of their own, each as a demonstration; else the row."""
    if isinstance(row, Drop):
        return []
    if not row.has_own_prompts:
        return [row]
    assert row.kind == "pair", "only pairs have sides"
    return [
        dataclasses.replace(
            row,
            kind="demonstration",
            prompt=row.prompt if side.prompt is None else side.prompt,
            responses=(dataclasses.replace(side, prompt=None),),
        )
        for side in row.responses
    ]


def _joined(row: Preference, sides: Sequence[Encoded]) -> Encoded:
    """The pair of two sides that were encoded one by one."""
    items: list[Item] = []
    cut: list[str] = []
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if isinstance(side.item, Drop):
            return Encoded(item=side.item)
        items.append(side.item)
        cut += [name if part == "response" else part for part in side.cut]
    if items[0].sequences == items[1].sequences:
        return Encoded(item=Drop(SAME_CUT if cut else SAME_TOKENS))
    prompts = [item.prompts[0] for item in items]
    pair = _item(row, prompts, [item.responses[0] for item in items])
    return Encoded(item=pair, cut=tuple(dict.fromkeys(cut)))


def _item(row: Preference, prompts: Sequence[Tokens], responses: Sequence[Tokens]) -> Item:
    taken = len(responses) if row.kind in ("pair", "rated") else 1
    return Item(
        id=row.id,
        source=row.source,
        prompts=tuple(prompts[:taken]),
        responses=tuple(responses[:taken]),
        label=_label(row),
        written=tuple(_characters(response.content) for response in row.responses[:taken]),
    )


def _characters(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(text_in(turn["content"])) for turn in content)


def _label(row: Preference) -> Label | None:
    if row.kind == "pair":
        return PairLabel(
            margin=row.margin,
            tie=row.tie,
            probability=_share(row.chosen.votes, row.rejected.votes),
        )
    if row.kind == "rated":
        ranks = [response.rank for response in row.responses]
        return Ranks(tuple(rank for rank in ranks if rank is not None))
    desirable = row.responses[0].label
    return None if desirable is None else Desirable(desirable=desirable)


def _share(chosen: float | None, rejected: float | None) -> float | None:
    """Share of the votes for the chosen response; None where there are no counts to divide."""
    if chosen is None or rejected is None or min(chosen, rejected) < 0 or not chosen + rejected:
        return None
    return chosen / (chosen + rejected)
