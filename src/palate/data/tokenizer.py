"""A tokenizer as encoding uses it: starts, continuations and ends of sequences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from palate.errors import ModelError

_BATCH = 1000
# Letters and line breaks tell how a tokenizer begins a text.
_LETTER, _BREAK = "a", "\n"


class SequenceTokenizer:
    """A tokenizer, its special tokens, and how its texts begin and end; found out by asking it.

    Attributes:
        bos, eos: ids; bos is None where there is none.
        adds_bos: whether the tokenizer itself begins texts with BOS.
        special: id -> text of every special token.

    Raises:
        ModelError: no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token")
        self._tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        first = list(tokenizer(_LETTER, verbose=False)["input_ids"])[:1]
        self.adds_bos = self.bos is not None and first == [self.bos]
        self.special: dict[int, str] = {
            i: str(token)
            for i, token in tokenizer.added_tokens_decoder.items()
            if getattr(token, "special", False)
        }
        self.special[self.eos] = tokenizer.eos_token
        if self.bos is not None:
            self.special[self.bos] = tokenizer.bos_token
        self._texts = {text for text in self.special.values() if text}
        self._lengths = sorted({len(text) for text in self._texts})
        heads = "".join(sorted({re.escape(text[0]) for text in self._texts}))
        self._heads = re.compile(f"[{heads}]")
        self._blank: dict[int, bool] = {}
        self._anchor: tuple[int, ...] = ()
        lone, anchor, joined = self._ids([_LETTER, _BREAK, _BREAK + _LETTER])
        if joined[: len(anchor)] == anchor and joined[len(anchor) :] != lone:
            self._anchor = anchor

    def starts(self, texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Ids of texts that begin a sequence, without BOS."""
        return self._table(list(dict.fromkeys(texts)), ())

    def continuations(self, texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Ids of texts that go on from others, tokenised by themselves, as a model writes them.

        A tokenizer of the Llama 2 kind puts a space before every text it is given; there the text
        is tokenised after a line break, whose ids are taken off again.
        """
        return self._table(list(dict.fromkeys(texts)), self._anchor)

    def special_in(self, text: str) -> str | None:
        """The first special token that is written out in `text`."""
        for match in self._heads.finditer(text):
            at = match.start()
            for length in self._lengths:
                if (piece := text[at : at + length]) in self._texts:
                    return piece
        return None

    def ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """A response that ends exactly once.

        Where the template closes the turn with a special token, what it puts after that (a line
        break, often) is taken off: sampling stops there. Where it does not, EOS is added.
        """
        start = len(ids)
        while start and (ids[start - 1] in self.special or self._is_blank(ids[start - 1])):
            start -= 1
        for at in range(start, len(ids)):
            if ids[at] in self.special:
                return ids[: at + 1]
        return (*ids, self.eos)

    def says_something(self, ids: Sequence[int]) -> bool:
        """Whether any token is neither special nor blank."""
        return not all(i in self.special or self._is_blank(i) for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text as people read it, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not str(self._tokenizer.decode([token])).strip()
        return self._blank[token]

    def _table(self, texts: list[str], anchor: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        tokenised = self._ids([_BREAK + text for text in texts] if anchor else texts)
        table: dict[str, tuple[int, ...]] = {}
        for text, ids in zip(texts, tokenised, strict=True):
            if anchor and ids[: len(anchor)] != anchor:
                # The text begins with something that joins the line break.
                ids = self._ids([text])[0]
                anchored = ids
            else:
                anchored = ids[len(anchor) :]
            table[text] = anchored
        return table

    def _ids(self, texts: list[str]) -> list[tuple[int, ...]]:
        tokenised: list[tuple[int, ...]] = []
        for start in range(0, len(texts), _BATCH):
            encoded = self._tokenizer(
                texts[start : start + _BATCH],
                add_special_tokens=False,
                padding=False,
                truncation=False,
                verbose=False,
            )
            tokenised += [tuple(ids) for ids in encoded["input_ids"]]
        return tokenised
