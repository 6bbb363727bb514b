"""Libraries kept quiet while the demonstration shows its own progress."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the libraries' bars of loading a few files in a second, which would bury the rest."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT reads a name that transformers has deprecated.
            warnings.filterwarnings(
                "ignore", message=".is_gradient_checkpointing", category=FutureWarning
            )
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
