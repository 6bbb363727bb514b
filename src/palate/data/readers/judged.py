"""What a judge of two answers was shown, taken apart: the question, both answers, the verdict.

Data for training judges holds whole prompts. The layouts are those of their published templates; a
prompt in which a border stands more or less than once is not understood, rather than guessed at.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from palate.data.readers.compared import Verdict

_BRACKETS = [
    ("The first response", "The second response"),
    ("Response 1", "Response 2"),
    ("Response A", "Response B"),
    ("Answer 1", "Answer 2"),
]
_BETTER = re.compile(r"[Tt]he better response: \[(\w+)\]")
_ASKED_FOR = "better response: ["
_EQUAL = re.compile(r"\b(?:two|both) (?:responses|answers) are equally good\b", re.IGNORECASE)
_TAGGED = re.compile(
    r"<answer>\s*(?:(?:Answer|Response)\s+)?([12])(?:\s+is better)?\.?\s*</answer>"
)
_PLAIN = re.compile(r"(?:Answer|Response) ([12]) is better\.?")
_ARENA_VERDICT = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")
_SCORES = re.compile(r"(\d+(?:\.\d+)?) (\d+(?:\.\d+)?)(?=\s|\Z)")
_SIDES: dict[str, Verdict] = {
    "first": "first",
    "1": "first",
    "a": "first",
    "second": "second",
    "2": "second",
    "b": "second",
}
# Between two borders of these templates; a text may have several lines, not a border.
_ARENA = (
    "<|User Prompt|>\n",
    "\n\n<|The Start of Assistant A's Answer|>\n",
    "\n<|The End of Assistant A's Answer|>\n\n<|The Start of Assistant B's Answer|>\n",
    "\n<|The End of Assistant B's Answer|>",
)
_BENCH = (
    "[Question]\n",
    "\n\n[Assistant 1]\n",
    "\n\n[End of Assistant 1]\n\n[Assistant 2]\n",
    "\n\n[End of Assistant 2]",
)
_R1 = re.compile(
    r"#+ \[Question\]: *\n(.*?) {0,2}\n\n"
    r"#+ \[Response 1\]: *\n(.*?) {0,2}\n\n"
    r"#+ \[Response 2\]: *\n(.*?)(?: {0,2}\n\n#+ \*\*Output Format[^\n]*\n.*)?\Z",
    re.DOTALL,
)
_R1_BORDERS = ("[Question]:", "[Response 1]:", "[Response 2]:")


class Shown(NamedTuple):
    """Texts as they were shown."""

    question: str
    first: str
    second: str


def compared_by(prompt: str, reply: str) -> tuple[Shown, Verdict | None] | None:
    """A comparison of two answers and its verdict (None where the reply is not understood).

    None where the prompt is not a known layout of two answers.
    """
    shown = _bracketed(prompt)
    if shown is not None:
        return shown, _verdict_in(reply)
    shown = _between(prompt, _ARENA)
    if shown is not None:
        verdicts = _ARENA_VERDICT.findall(reply)
        return shown, _arena(verdicts[-1]) if verdicts else None
    shown = _between(prompt, _BENCH)
    if shown is not None:
        scores = _SCORES.match(reply.lstrip())
        return shown, None if scores is None else _higher(*map(float, scores.groups()))
    return None


def r1_prompt(prompt: str) -> Shown | None:
    """What R1-Reward's template shows; None where it is not that template, or ambiguous."""
    if any(prompt.count(border) != 1 for border in _R1_BORDERS):
        return None
    match = _R1.search(prompt)
    return None if match is None else Shown(*match.groups())


def tagged(reply: str) -> Verdict | None:
    """The verdict in `<answer>` tags, if there is one and no other."""
    verdicts = set(_TAGGED.findall(reply))
    return _SIDES[verdicts.pop()] if len(verdicts) == 1 else None


def _verdict_in(reply: str) -> Verdict | None:
    better = {word.lower() for word in _BETTER.findall(reply)}
    if better:
        sides = {_SIDES.get(word) for word in better}
        return sides.pop() if len(sides) == 1 else None
    if "<answer>" in reply:
        return tagged(reply)
    if plain := _PLAIN.fullmatch(reply.strip()):
        return _SIDES[plain.group(1)]
    return "tie" if _EQUAL.search(reply) else None


def _bracketed(prompt: str) -> Shown | None:
    """Question: [...], and each answer under its name, in brackets too."""
    for first, second in _BRACKETS:
        borders = ("Question: [", f"{first}: [", f"{second}: [")
        if any(prompt.count(border) != 1 for border in borders):
            continue
        match = re.search(
            rf"Question: \[(.*)\]\s*\n\s*{first}: \[(.*)\]\s*\n\s*{second}: \[(.*)\][^\[\]]*\Z",
            prompt,
            re.DOTALL,
        )
        # What the judge is to reply may be said after the answers, in brackets as well.
        if match is None or _ASKED_FOR in match.group(3):
            return None
        return Shown(*match.groups())
    return None


def _between(prompt: str, borders: tuple[str, ...]) -> Shown | None:
    if any(prompt.count(border) != 1 for border in borders):
        return None
    at = [prompt.index(border) for border in borders]
    ends = [start + len(border) for start, border in zip(at, borders, strict=True)]
    if any(end > start for end, start in zip(ends[:-1], at[1:], strict=True)):
        return None
    return Shown(*(prompt[end:start] for end, start in zip(ends[:-1], at[1:], strict=True)))


def _arena(verdict: str) -> Verdict:
    return "tie" if "=" in verdict else "first" if verdict.startswith("A") else "second"


def _higher(first: float, second: float) -> Verdict:
    return "tie" if first == second else "first" if first > second else "second"
