"""Small tasks with one right answer, made by a program, that a small model solves in part.

Each function draws a question and its answer. Its other arguments are the `parameters` of a recipe.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvz", "aeiou"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"

Task = tuple[str, str]
"""Question and answer."""


def sort_letters(draw: random.Random, *, min_letters: int = 3, max_letters: int = 5) -> Task:
    """Different letters into alphabetical order."""
    n = _length(draw, "letters", min_letters, max_letters, most=len(_ALPHABET))
    letters = draw.sample(_ALPHABET, n)
    question = (
        f"Sort these letters alphabetically: {' '.join(letters)}\n"
        "Answer with the sorted letters alone, with a space between them."
    )
    return question, " ".join(sorted(letters))


def reverse_word(draw: random.Random, *, min_letters: int = 3, max_letters: int = 5) -> Task:
    """A made-up word backwards."""
    word = _word(draw, _length(draw, "letters", min_letters, max_letters))
    question = f"Write this word backwards: {word}\nAnswer with the reversed word alone."
    return question, word[::-1]


def count_letters(draw: random.Random, *, min_letters: int = 4, max_letters: int = 8) -> Task:
    """How often a letter stands in a made-up word that has it."""
    word = _word(draw, _length(draw, "letters", min_letters, max_letters))
    letter = draw.choice(sorted(set(word)))
    question = (
        f"How many times does the letter {letter} occur in {word}?\nAnswer with the number alone."
    )
    return question, str(word.count(letter))


def replace_letter(draw: random.Random, *, min_words: int = 2, max_words: int = 3) -> Task:
    """Made-up words copied with one letter in place of another."""
    n = _length(draw, "words", min_words, max_words)
    words = " ".join(_word(draw, draw.randint(3, 5)) for _ in range(n))
    old = draw.choice(sorted(set(words) - {" "}))
    new = draw.choice(sorted(set(_ALPHABET) - set(words)))
    question = (
        f"Copy this text and replace every {old} with {new}: {words}\n"
        "Answer with the changed text alone."
    )
    return question, words.replace(old, new)


def add_numbers(
    draw: random.Random, *, min_terms: int = 2, max_terms: int = 3, max_number: int = 20
) -> Task:
    """A sum of numbers from 1 to `max_number`."""
    n = _length(draw, "terms", min_terms, max_terms)
    if max_number < 1:
        raise ValueError("max_number is below 1")
    numbers = [draw.randint(1, max_number) for _ in range(n)]
    question = f"What is {' + '.join(map(str, numbers))}?\nAnswer with the number alone."
    return question, str(sum(numbers))


TASKS: dict[str, Callable[..., Task]] = {
    task.__name__: task
    for task in (sort_letters, reverse_word, count_letters, replace_letter, add_numbers)
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


def _word(draw: random.Random, letters: int) -> str:
    """Consonants and vowels by turns."""
    first = draw.randrange(2)
    return "".join(draw.choice(_VOWELS if (first + i) % 2 else _CONSONANTS) for i in range(letters))
