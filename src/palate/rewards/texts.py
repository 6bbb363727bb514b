"""Prompts and responses as texts and as chats."""

from __future__ import annotations

from collections.abc import Iterable

from palate.data.schema import Content, Message, Part, has_parts, text_in


def response_text(response: Content) -> str:
    """The text of a response; of several turns, one after another."""
    if isinstance(response, str):
        return response
    return "\n\n".join(text_in(turn["content"]) for turn in response)


def prompt_text(prompt: Content) -> str:
    """A prompt as one text: its turns under their roles, a single user turn bare."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return text_in(prompt[0]["content"])
    return "\n\n".join(f"{turn['role'].title()}: {text_in(turn['content'])}" for turn in prompt)


def prompt_parts(prompt: Content) -> list[Part]:
    """`prompt_text` in parts, each image where it stands among the texts."""
    if isinstance(prompt, str) or not has_parts(prompt):
        return [{"type": "text", "text": prompt_text(prompt)}]
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return _parts(prompt[0])
    parts: list[Part] = []
    for i, turn in enumerate(prompt):
        head = f"{turn['role'].title()}: "
        parts += [{"type": "text", "text": f"\n\n{head}" if i else head}, *_parts(turn)]
    return parts


def response_parts(response: Content) -> list[Part]:
    """`response_text` in parts, each image where it stands among the texts."""
    if isinstance(response, str) or not has_parts(response):
        return [{"type": "text", "text": response_text(response)}]
    parts: list[Part] = []
    for i, turn in enumerate(response):
        if i:
            parts.append({"type": "text", "text": "\n\n"})
        parts += _parts(turn)
    return parts


def joined(parts: Iterable[Part]) -> str | list[Part]:
    """The content of a turn: one text where there is no image, else texts between images (and
    videos)."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if part["type"] == "text" and last is not None and last["type"] == "text":
            merged[-1] = {"type": "text", "text": last["text"] + part["text"]}
        elif part["type"] != "text" or part["text"]:
            merged.append(part)
    if any(part["type"] != "text" for part in merged):
        return merged
    return text_in(merged)


def _parts(turn: Message) -> list[Part]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_chat(prompt: Content) -> list[Message]:
    """A prompt as chat turns: text is one turn of the user."""
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    return prompt
