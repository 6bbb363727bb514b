"""How curation reads texts: one text of a chat, normal forms to compare by, and 128-bit digests."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

from palate.data.content import image_key
from palate.data.schema import Content, Part, Preference, images_in, text_in

Normalise = Literal["none", "whitespace", "words"]

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def turns_of(content: Content) -> list[tuple[str, str]]:
    """(role, text) of each turn; plain text is one turn without a role."""
    if isinstance(content, str):
        return [("", content)]
    return [(turn["role"], text_in(turn["content"])) for turn in content]


def as_text(content: Content) -> str:
    """One text: of a single user or assistant turn its own, of other chats `role: text` a turn."""
    turns = turns_of(content)
    if len(turns) == 1 and turns[0][0] in ("", "user", "assistant"):
        return turns[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in turns)


def normalised(text: str, how: Normalise) -> str:
    """The text in the form it is compared in.

    none: as it is. whitespace: NFC, every run of white space one space, none at the ends.
    words: NFKC, case-folded, words alone (see `words_of`).
    """
    if how == "none":
        return text
    if how == "whitespace":
        return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
    return " ".join(words_of(text))


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, case-folded after NFKC; single characters of unspaced scripts."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def digest(parts: Iterable[str | bytes]) -> bytes:
    """16 bytes that are equal for equal sequences of parts alone."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        made.update(len(data).to_bytes(8, "little"))
        made.update(data)
    return made.digest()


def prompt_digest(row: Preference, how: Normalise) -> bytes:
    """Digest of prompt and images. A text and a chat of one user turn with it are equal."""
    return digest(["prompt", *_parts(row.prompt, how), "images", *map(image_key, row.images)])


def response_digest(row: Preference, side: Literal[0, 1], how: Normalise) -> bytes:
    """Digest of one response, with its images and with its own prompt, where it has one."""
    response = row.responses[side]
    parts = [*_parts(response.content, how), "images"]
    parts += map(image_key, images_in(response.content))
    if response.prompt is not None:
        parts += ["prompt", *_parts(response.prompt, how)]
        parts += ["images", *map(image_key, images_in(response.prompt))]
    return digest(parts)


def _parts(content: Content, how: Normalise) -> list[str]:
    if isinstance(content, str):
        return [normalised(content, how)]
    parts: list[str] = []
    for turn in content:
        body = turn["content"]
        text = body if isinstance(body, str) else _marked(body)
        # A chat of one turn, of the only role it can have, is its text.
        parts += (
            [normalised(text, how)] if _alone(content) else [turn["role"], normalised(text, how)]
        )
    return parts


def _alone(content: Sequence[object]) -> bool:
    return len(content) == 1


def _marked(body: list[Part]) -> str:
    # Where in the text an image stands is part of the question.
    return "".join(part["text"] if part["type"] == "text" else "\x00" for part in body)
