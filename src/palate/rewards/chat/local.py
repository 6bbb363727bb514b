"""A causal language model on this machine as a judge."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palate.data.encode import Encoder
from palate.data.schema import Message, text_in
from palate.data.templates import Refused
from palate.errors import DataError, ModelError
from palate.models.compiled import use_packed
from palate.models.limits import NO_LIMIT, context_of, padding_id
from palate.models.loading import load_model, load_tokenizer
from palate.models.stop_tokens import stop_tokens
from palate.recipes.schema import LengthRecipe, ModelRecipe
from palate.recipes.scorers import LocalChat
from palate.rewards.chat.base import Reply


class LocalModel:
    """Answers by transformers; a sample depends on the seed, its question and its number.

    Questions become the tokens that training on them would use, and an answer is begun as training
    writes it. A question with a special token written out in it (an end of turn, say), which no
    training takes, is not asked, and neither is one that leaves no room in the model's context: the
    answer says so. An answer that comes to the end of the context is cut there. A template that
    training refuses is asked as it renders.

    Raises:
        ModelError: unreadable, or without a chat template.
    """

    def __init__(self, recipe: LocalChat) -> None:
        model = ModelRecipe(path=recipe.path, revision=recipe.revision, dtype=recipe.dtype)
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
        use_packed(self.model)
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.batch_size = recipe.batch_size
        self.name = recipe.path.rstrip("/").rpartition("/")[2]
        self._pad = padding_id(self.tokenizer, self.model)
        self._context = context_of(self.model.config.get_text_config())
        # Releases of transformers call it either.
        takes = inspect.signature(self.model.forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"

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
        asked = [self._ids(question) for question in questions]
        ready = {i: ids for i, ids in enumerate(asked) if not isinstance(ids, str)}
        # Alike lengths together: less padding.
        jobs = sorted(
            ((i, k) for i in ready for k in range(samples)),
            key=lambda job: (-len(ready[job[0]]), job),
        )
        replies: dict[tuple[int, int], Reply] = {}
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            generators = [_generator(seed, ready[i], k) for i, k in part]
            rows = [ready[i] for i, _ in part]
            texts = self._write(rows, generators, temperature, max_new_tokens)
            replies.update(zip(part, texts, strict=True))
        return [
            [Reply(text="", finished=True, refused=ids)] * samples
            if isinstance(ids, str)
            else [replies[i, k] for k in range(samples)]
            for i, ids in enumerate(asked)
        ]

    def _write(
        self,
        asked: Sequence[list[int]],
        generators: Sequence[torch.Generator],
        temperature: float,
        max_new_tokens: int,
    ) -> list[Reply]:
        inputs, mask, positions = self._padded(asked)
        ends, device = self._ends(), self.model.device
        rooms = [min(max_new_tokens, self._context - len(ids)) for ids in asked]
        written: list[list[int]] = [[] for _ in asked]
        ended = [False] * len(asked)
        cache = None
        for step in range(max(rooms)):
            out = self.model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache: cache},
            )
            cache = getattr(out, self._cache)
            tokens = _pick(out.logits[:, -1].float(), temperature, generators)
            for row, token in enumerate(tokens):
                if not ended[row] and step < rooms[row]:
                    ended[row] = token in ends
                    if not ended[row]:
                        written[row].append(token)
            if all(end or step + 1 >= room for end, room in zip(ended, rooms, strict=True)):
                break
            inputs = torch.tensor(tokens, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(asked), 1)], dim=1)
            # Rows that are done are run along with the others, and have no place beyond the last.
            positions = (positions[:, -1:] + 1).clamp_max(self._context - 1)
        return [
            Reply(text=str(self.tokenizer.decode(ids, skip_special_tokens=True)), finished=end)
            for ids, end in zip(written, ended, strict=True)
        ]

    @torch.no_grad()
    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """See `Chat.choose`: exact, of all the tokens of an option as they follow the begun answer.

        Raises:
            ModelError: the tokenizer joins an option with what stands before it.
        """
        heads: list[list[int] | None] = []
        tails: list[list[list[int]]] = []
        for question in questions:
            head, by_optionion_ids = self._with_options(question, options)
            heads.append(head)
            tails.append(by_optionion_ids)
        # Options that differ in their last token alone are read off one row.
        wanted = {
            (i, tuple(tail[:-1])): None
            for i, head in enumerate(heads)
            if head is not None
            for tail in tails[i]
        }
        jobs = sorted(wanted, key=lambda job: (-len(heads[job[0]] or ()) - len(job[1]), job))
        logps_by_option: list[dict[str, float]] = [{} for _ in heads]
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            inputs, mask, positions = self._padded([[*(heads[i] or ()), *stem] for i, stem in part])
            keep = 1 + max(len(stem) for _, stem in part)
            read = [
                (row, i, option, tail)
                for row, (i, stem) in enumerate(part)
                for option, tail in zip(options, tails[i], strict=True)
                if tuple(tail[:-1]) == stem
            ]
            places = [
                (row, t - len(tail), token)
                for row, _, _, tail in read
                for t, token in enumerate(tail)
            ]
            out = self.model(
                input_ids=inputs, attention_mask=mask, position_ids=positions, logits_to_keep=keep
            )
            logps = iter(_at(out.logits, places))
            del out  # rows over the whole vocabulary live for one batch
            for _, i, option, tail in read:
                logps_by_option[i][option] = sum(next(logps) for _ in tail)
        return [
            None if head is None else {option: by_optionion_ids[option] for option in options}
            for head, by_optionion_ids in zip(heads, logps_by_option, strict=True)
        ]

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and positions of rows that end together: [rows, longest] each."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for row, row_ids in enumerate(rows):
            ids[row, width - len(row_ids) :] = torch.tensor(row_ids)
            mask[row, width - len(row_ids) :] = 1
        device = self.model.device
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        return ids.to(device), mask.to(device), positions.to(device)

    def _ids(self, question: list[Message]) -> list[int] | str:
        """Ids of a question, the assistant's turn opened; or why it is not to be asked."""
        try:
            if self._encoder is None:
                ids = self._tokenised([self._rendered(question)])[0]
            else:
                ids = list(self._encoder.encode_prompt(question).ids)
        except (DataError, Refused) as error:
            return error.reason
        return ids if len(ids) < self._context else self._too_long

    def _with_options(
        self, question: list[Message], options: Sequence[str]
    ) -> tuple[list[int] | None, list[list[int]]]:
        """Ids of a question with its answer begun, None where it is not to be asked; and those of
        each option behind it."""
        asked, start = question[:-1], text_in(question[-1]["content"])
        texts = [start, *(start + option for option in options)]
        try:
            shown = self._rendered(asked) if self._encoder is None else self._lead(asked, start)
        except Refused:
            return None, []
        if self._encoder is None:
            begun, *whole = self._tokenised([shown + text for text in texts])
            before: list[int] = []
        else:
            ids = self._ids(asked)
            if isinstance(ids, str):
                return None, []
            before = ids
            table = self._encoder.tokens.continuations([shown + text for text in texts])
            begun, *whole = (list(table[shown + text]) for text in texts)
        head = [*before, *begun]
        tails = []
        for option, ids in zip(options, whole, strict=True):
            if ids[: len(begun)] != begun or len(ids) == len(begun):
                raise ModelError(
                    f"{self.name}: its tokenizer joins {start!r} with {option!r}: use `method: "
                    "sampled`"
                )
            tails.append(ids[len(begun) :])
        room = len(head) + max(map(len, tails), default=1) - 1 <= self._context
        return (head if room else None), tails

    def _lead(self, asked: list[Message], start: str) -> str:
        """What the template writes before an answer's first words."""
        assert self._encoder is not None
        answer = Message(role="assistant", content=start)
        (text,) = self._encoder.template.render(asked, [[answer]]).responses
        return text[: max(0, text.find(start))]

    def _rendered(self, asked: list[Message]) -> str:
        texts = [Message(role=turn["role"], content=text_in(turn["content"])) for turn in asked]
        return self._template.whole(texts, open_turn=True)

    def _tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(self.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]

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


def _pick(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> list[int]:
    """A token for each row of logits [rows, vocabulary], by its own generator."""
    if temperature == 0.0:
        return [int(token) for token in logits.argmax(-1)]
    # The largest is taken off first: a very low temperature would make infinities of them.
    shares = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1).cpu()
    return [
        int(torch.multinomial(probabilities, 1, generator=generator))
        for probabilities, generator in zip(shares, generators, strict=True)
    ]


def _generator(seed: int, ids: Sequence[int], sample: int) -> torch.Generator:
    digest = hashlib.sha256(repr((seed, sample, list(ids))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
