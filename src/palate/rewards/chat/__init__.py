"""Language models that are asked questions: on this machine, or behind a server."""

from __future__ import annotations

from palate.recipes.scorers import LocalChat, ServerChat
from palate.rewards.chat.base import Chat, Reply

__all__ = ["Chat", "Reply", "open_chat"]


def open_chat(recipe: LocalChat | ServerChat) -> Chat:
    """The model that a recipe describes.

    Raises:
        ModelError: it cannot be read, or its key is missing.
    """
    # Torch is imported for a model on this machine alone, and httpx for a server alone.
    if isinstance(recipe, LocalChat):
        from palate.rewards.chat.local import LocalModel

        return LocalModel(recipe)
    from palate.rewards.chat.server import Server

    return Server(recipe)
