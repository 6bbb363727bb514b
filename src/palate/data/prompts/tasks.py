"""Small tasks with one right answer, made by a program.

Each function draws a question and its answer. Its other arguments are the `parameters` of a recipe.
Letters stand apart, so that each is a token to nearly every tokenizer: how hard a task is depends
on its length alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"

Task = tuple[str, str]
"""Question and answer."""


def sort_letters(draw: random.Random, *, min_letters: int = 3, max_letters: int = 5) -> Task:
    """Different letters into alphabetical order."""
    n = _length(draw, "letters", min_letters, max_letters, most=len(_ALPHABET))
    letters = draw.sample(_ALPHABET, n)
    question = f"Sort these letters alphabetically and write nothing else: {' '.join(letters)}"
    return question, " ".join(sorted(letters))


def reverse_letters(draw: random.Random, *, min_letters: int = 3, max_letters: int = 5) -> Task:
    """Letters from the last to the first."""
    letters = draw.choices(_ALPHABET, k=_length(draw, "letters", min_letters, max_letters))
    question = f"Write these letters in reverse order and nothing else: {' '.join(letters)}"
    return question, " ".join(reversed(letters))


def count_letters(draw: random.Random, *, min_letters: int = 4, max_letters: int = 8) -> Task:
    """How often one of a few letters is among others."""
    few = draw.sample(_ALPHABET, 3)
    letters = draw.choices(few, k=_length(draw, "letters", min_letters, max_letters))
    letter = draw.choice(few)
    question = (
        f"Count how often {letter} is among these letters and write the number alone: "
        f"{' '.join(letters)}"
    )
    return question, str(letters.count(letter))


def replace_letters(draw: random.Random, *, min_letters: int = 3, max_letters: int = 5) -> Task:
    """Letters copied with another one in place of each that is named."""
    n = _length(draw, "letters", min_letters, max_letters)
    *few, new = draw.sample(_ALPHABET, 5)
    letters = draw.choices(few, k=n)
    old = draw.choice(letters)
    question = (
        f"Copy these letters with {new} in place of every {old} and write nothing else: "
        f"{' '.join(letters)}"
    )
    return question, " ".join(new if letter == old else letter for letter in letters)


def add_numbers(
    draw: random.Random, *, min_terms: int = 2, max_terms: int = 3, max_number: int = 20
) -> Task:
    """A sum of numbers from 1 to `max_number`."""
    n = _length(draw, "terms", min_terms, max_terms)
    if max_number < 1:
        raise ValueError("max_number is below 1")
    numbers = [draw.randint(1, max_number) for _ in range(n)]
    question = f"Add these numbers and write the sum alone: {' + '.join(map(str, numbers))}"
    return question, str(sum(numbers))


TASKS: dict[str, Callable[..., Task]] = {
    task.__name__: task
    for task in (sort_letters, reverse_letters, count_letters, replace_letters, add_numbers)
}


def _length(
    draw: random.Random, what: str, least: int, greatest: int, *, most: int | None = None
) -> int:
    """A number between two parameters.

    Raises:
        ValueError: they leave none.
    """
    if least < 1:
        raise ValueError(f"min_{what} is below 1")
    if least > greatest:
        raise ValueError(f"min_{what} is above max_{what}")
    if most is not None and greatest > most:
        raise ValueError(f"max_{what} is above {most}")
    return draw.randint(least, greatest)
