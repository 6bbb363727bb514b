"""Prompts and responses as texts and as chats."""

from __future__ import annotations

from palate.data.schema import Content, Message, text_in


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


def as_chat(prompt: Content) -> list[Message]:
    """A prompt as chat turns: text is one turn of the user."""
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    return prompt
