"""How a prompt is put to the policy: texts around it, as the user's turn, after a system turn."""

from __future__ import annotations

from palate.data.schema import Content, Message
from palate.errors import RecipeError
from palate.recipes.prompts import GeneratedSource, PromptSource

OWN_SYSTEM = "has a system turn of its own, beside `system`"


def presented(content: Content, source: PromptSource | GeneratedSource, name: str) -> Content:
    """The prompt as the policy gets it.

    Args:
        name: of the source, for messages.

    Raises:
        RecipeError: texts around a chat, or a system turn before a text.
    """
    if isinstance(content, str):
        content = (source.prefix or "") + content + (source.suffix or "")
        if source.as_chat:
            content = [{"role": "user", "content": content}]
    elif source.prefix is not None or source.suffix is not None:
        key = "suffix" if source.prefix is None else "prefix"
        raise RecipeError(f"`{key}`: goes around texts, and '{name}' holds chats: delete it")
    if source.system is None:
        return content
    if isinstance(content, str):
        raise RecipeError(
            f"`system`: goes before chats, and '{name}' holds texts: say `as_chat: true`"
        )
    return [Message(role="system", content=source.system), *content]


def has_system(content: Content) -> bool:
    """Whether a chat begins with a system turn."""
    return not isinstance(content, str) and content[0]["role"] in ("system", "developer")
