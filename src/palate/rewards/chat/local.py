"""A causal language model on this machine as a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from palate.data.encode import Encoder
from palate.data.image_urls import as_frames
from palate.data.images import ImageError
from palate.data.items import TokenIds, Tokens
from palate.data.placing import bare_turns
from palate.data.schema import Message, images_in, text_in
from palate.data.templates import Refused
from palate.errors import DataError, ModelError
from palate.models.compiled import use_packed
from palate.models.generation.engine import Sampling
from palate.models.generation.local import LocalEngine
from palate.models.generation.rows import Row, features_of, left_padded
from palate.models.image_cache import RecentFeatures
from palate.models.limits import NO_LIMIT, context_of, padding_id
from palate.models.loading import load_model, load_tokenizer
from palate.models.model import Model
from palate.models.pictures import Pictures, pictures_of
from palate.models.stop_tokens import stop_tokens
from palate.models.vision import vision_layout
from palate.recipes.schema import LengthRecipe, ModelRecipe
from palate.recipes.scorers import LocalChat
from palate.rewards.chat.base import Reply

BLIND = "has images, and {} is a model of text alone"
NO_PLACES = "has images, and the chat template of {} is none that training takes"
NO_PROCESSOR = "has images, and the image processor cannot be loaded: {}"


class LocalModel:
    """Answers by transformers; a sample depends on the seed, its question and its number.

    Questions become the tokens that training on them would use, and an answer is begun as training
    writes it. A question with a special token written out in it (an end of turn, say), which no
    training takes, is not asked, and neither is one that leaves no room in the model's context: the
    answer says so. An answer that comes to the end of the context is cut there. A template that
    training refuses is asked as it renders, and not about images.

    A model that sees is shown the images of a question as training shows them, each run once, and
    videos as frames, which are images.

    Raises:
        ModelError: unreadable, or without a chat template.
    """

    def __init__(self, recipe: LocalChat) -> None:
        model = ModelRecipe(
            path=recipe.path, revision=recipe.revision, dtype=recipe.dtype, images=recipe.images
        )
        self.tokenizer = load_tokenizer(model)
        no_limits = LengthRecipe(max_prompt_tokens=NO_LIMIT, max_response_tokens=NO_LIMIT)
        encoder = Encoder(self.tokenizer, recipe.chat_template, no_limits)
        if encoder.template.text is None:
            raise ModelError(
                f"{recipe.path}: has no chat template, and a judge is asked in chats: set "
                "`chat_template`"
            )
        self._template = encoder.template
        self._encoder = encoder if _trains(encoder) else None
        self.tokenizer.chat_template = encoder.template.text
        self.model: Any = load_model(model).eval()
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        use_packed(self.model)
        self._policy = Model.policy(self.model).eval()
        self.batch_size = recipe.batch_size
        self.name = recipe.path.rstrip("/").rpartition("/")[2]
        self._pad = padding_id(self.tokenizer, self.model)
        self._vision = vision_layout(self.model.config)
        self._pictures: Pictures | None = None
        self._frames = recipe.images.video_frames
        self.blind = self._why_blind(model)
        self._context = context_of(self.model.config.get_text_config())

    @torch.no_grad()
    def reply(
        self,
        questions: Sequence[list[Message]],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """See `Chat.reply`."""
        with self._reading():
            return self._replies(questions, samples, temperature, max_new_tokens, seed)

    def _replies(
        self,
        questions: Sequence[list[Message]],
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[list[Reply]]:
        asked = [self._ids(question) for question in questions]
        ready = {i: ids for i, ids in enumerate(asked) if not isinstance(ids, str)}
        engine = LocalEngine(
            self._policy, self.tokenizer, batch_size=self.batch_size, ends=self._ends()
        )
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            samples_per_prompt=samples,
            temperature=temperature,
            seed=seed,
        )
        replies: dict[int, list[Reply]] = {i: [] for i in ready}
        places = list(ready)
        for written in engine.write(list(ready.values()), sampling):
            reply = Reply(text=written.text, finished=written.finished)
            replies[places[written.prompt]].append(reply)
        return [
            [Reply(text="", finished=True, refused=ids)] * samples
            if isinstance(ids, str)
            else replies[i]
            for i, ids in enumerate(asked)
        ]

    @torch.no_grad()
    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """See `Chat.choose`: exact, of all the tokens of an option as they follow the begun answer.

        Raises:
            ModelError: the tokenizer joins an option with what stands before it.
        """
        with self._reading():
            return self._choices(questions, options)

    def _choices(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        heads: list[Row | None] = []
        tails: list[list[TokenIds]] = []
        for question in questions:
            head, of_question = self._with_options(question, options)
            heads.append(head)
            tails.append(of_question)
        # Options that differ in their last token alone are read off one row.
        wanted = {
            (i, tail[:-1]): None
            for i, head in enumerate(heads)
            if head is not None
            for tail in tails[i]
        }
        rows = {(i, stem): _with(heads[i], stem) for i, stem in wanted}
        jobs = sorted(wanted, key=lambda job: (-len(rows[job][0]) - len(rows[job][1]), job))
        logps_by_option: list[dict[str, float]] = [{} for _ in heads]
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            inputs = self._padded([rows[job] for job in part])
            keep = 1 + max(len(stem) for _, stem in part)
            read = [
                (row, i, option, tail)
                for row, (i, stem) in enumerate(part)
                for option, tail in zip(options, tails[i], strict=True)
                if tail[:-1] == stem
            ]
            places = [
                (row, t - len(tail), token)
                for row, _, _, tail in read
                for t, token in enumerate(tail)
            ]
            out = self.model(**inputs, logits_to_keep=keep)
            read_logps = iter(_at(out.logits, places))
            del out  # rows over the whole vocabulary live for one batch
            for _, i, option, tail in read:
                logps_by_option[i][option] = sum(next(read_logps) for _ in tail)
        return [
            None if head is None else {option: logps[option] for option in options}
            for head, logps in zip(heads, logps_by_option, strict=True)
        ]

    def _padded(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the model takes of rows that end together, features of their images among it."""
        inputs, _ = left_padded(rows, self._pad, self._vision)
        device = self.model.device
        given: dict[str, Any] = {name: value.to(device) for name, value in inputs.items()}
        return given | features_of(self._policy, [question for question, _ in rows])

    def _why_blind(self, recipe: ModelRecipe) -> str | None:
        """Opens what reads images, or says why there is nothing that does.

        Raises:
            ModelError: settings of images, and a model of text alone.
        """
        if self._vision is None:
            pictures_of(recipe, self.tokenizer, config=self.model.config)
            return BLIND.format(self.name)
        if self._encoder is None:
            return NO_PLACES.format(self.name)
        try:
            self._pictures = pictures_of(recipe, self.tokenizer, config=self.model.config)
        except ModelError as error:
            return NO_PROCESSOR.format(error)
        assert self._pictures is not None
        self._pictures.features = RecentFeatures(self._policy, self._pictures)
        self._policy.pictures = self._pictures
        self._encoder.images = self._pictures
        return None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A context after which the images of its questions are forgotten."""
        try:
            yield
        finally:
            if self._pictures is not None:
                self._pictures.forget()

    def _ids(self, question: list[Message]) -> Tokens | str:
        """Tokens of a question, the assistant's turn opened; or why it is not to be asked."""
        if self.blind is not None and images_in(question):
            return self.blind
        try:
            if self._encoder is None:
                ids = Tokens(self._tokenised([self._rendered(question)])[0])
            else:
                seen = as_frames(question, self._frames)
                ids = self._encoder.encode_prompt(seen)
        except (DataError, Refused, ImageError) as error:
            return error.reason
        return ids if len(ids) < self._context else self._too_long

    def _with_options(
        self, question: list[Message], options: Sequence[str]
    ) -> tuple[Row | None, list[TokenIds]]:
        """A question with its answer begun, None where it is not to be asked; and the ids of each
        option behind it."""
        asked, start = question[:-1], text_in(question[-1]["content"])
        texts = [start, *(start + option for option in options)]
        if self.blind is not None and images_in(asked):
            return None, []
        try:
            shown = self._rendered(asked) if self._encoder is None else self._lead(asked, start)
        except Refused:
            return None, []
        if self._encoder is None:
            begun, *whole = self._tokenised([shown + text for text in texts])
            before = Tokens(())
        else:
            tokens = self._ids(asked)
            if isinstance(tokens, str):
                return None, []
            before = tokens
            table = self._encoder.tokens.continuations([shown + text for text in texts])
            begun, *whole = (table[shown + text] for text in texts)
        tails: list[TokenIds] = []
        for option, ids in zip(options, whole, strict=True):
            if ids[: len(begun)] != begun or len(ids) == len(begun):
                raise ModelError(
                    f"{self.name}: its tokenizer joins {start!r} with {option!r}: use `method: "
                    "sampled`"
                )
            tails.append(ids[len(begun) :])
        n = len(before) + len(begun) + max(map(len, tails), default=1) - 1
        return ((before, begun) if n <= self._context else None), tails

    def _lead(self, asked: list[Message], start: str) -> str:
        """What the template writes before an answer's first words."""
        assert self._encoder is not None
        answer = Message(role="assistant", content=start)
        (text,) = self._encoder.template.render(bare_turns(asked), [[answer]]).responses
        return text[: max(0, text.find(start))]

    def _rendered(self, asked: list[Message]) -> str:
        texts = [Message(role=turn["role"], content=text_in(turn["content"])) for turn in asked]
        return self._template.whole(texts, open_turn=True)

    def _tokenised(self, texts: Sequence[str]) -> list[TokenIds]:
        return [tuple(self.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]

    @property
    def _too_long(self) -> str:
        return f"the question fills the model's context of {self._context} tokens"

    def _ends(self) -> frozenset[int]:
        stops = stop_tokens(self.model) | {int(self.tokenizer.eos_token_id)}
        if self._encoder is not None:
            # Those that training ends an answer with; a custom template may have its own.
            stops |= self._encoder.stop_ids(chats=True)
        return stops


def _trains(encoder: Encoder) -> bool:
    """Whether training takes the template."""
    try:
        encoder.stop_ids(chats=True)
    except ModelError:
        return False
    return True


def _at(logits: Tensor, places: Sequence[tuple[int, int, int]]) -> list[float]:
    """Log-probabilities at (row, position, token) of logits [rows, positions, vocabulary]."""
    logps = logits.float().log_softmax(-1)
    rows, positions, tokens = torch.tensor(places, device=logps.device).unbind(-1)
    values: list[float] = logps[rows, positions, tokens].tolist()
    return values


def _with(head: Row | None, stem: TokenIds) -> Row:
    assert head is not None
    return head[0], (*head[1], *stem)
