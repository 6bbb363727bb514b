"""What judges and critics are asked, and how their verdicts are read.

A verdict stands between <answer> and </answer> at the very end, once after the thought; anything
else is unreadable and counted as such. Training a judge or a critic on these same words is what
makes one. Images stand where they stand in the prompt, between its words; without any, a question
is one text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from palate.data.schema import Content, Message, Part
from palate.rewards.texts import joined, prompt_parts, response_parts

CRITERIA = (
    "A good response does what was asked, is true, is complete without padding, is safe, and is "
    "as long as the question needs. Style and length alone are worth nothing."
)
FIRST, SECOND, TIE = "1", "2", "tie"

_ANSWER = re.compile(r"<answer>([^<>]*)</answer>")
_OPEN = "<answer>"
_THOUGHT = "</think>"


def rating_question(
    prompt: Content,
    response: Content,
    *,
    best: int,
    reasoning: bool,
    instructions: str | None = None,
) -> list[Message]:
    """Asks for a rating of one response, 1 to `best`."""
    ask = (
        "Rate the response to the conversation below.\n\n"
        f"{instructions or CRITERIA}\n\n"
        f"The rating is a whole number from 1, worst, to {best}, best."
    )
    return _question(ask, prompt, [("Response", response)], reasoning, f"a number from 1 to {best}")


def pair_question(
    prompt: Content,
    first: Content,
    second: Content,
    *,
    ties: bool,
    reasoning: bool,
    instructions: str | None = None,
) -> list[Message]:
    """Asks which of two responses is better."""
    ask = (
        "Two responses to the conversation below are to be compared. Say which is better. The "
        "order in which they stand means nothing.\n\n"
        f"{instructions or CRITERIA}"
    )
    answers = "1 or 2" + (", or tie where neither is better" if ties else "")
    sides = [("Response 1", first), ("Response 2", second)]
    return _question(ask, prompt, sides, reasoning, answers)


def critique_question(prompt: Content, response: Content) -> list[Message]:
    """Asks for a critique of one response; the critic's reward model reads it as its prompt."""
    ask = (
        "Assess the response to the conversation below: what is right in it, what is wrong or "
        f"missing, and how much that matters.\n\n{CRITERIA}"
    )
    parts = [_text(f"{ask}\n\n"), *_block("Conversation", prompt_parts(prompt)), _text("\n\n")]
    parts += [*_block("Response", response_parts(response)), _text("\n\nWrite the critique.")]
    return [Message(role="user", content=joined(parts))]


def read_verdict(text: str, allowed: Sequence[str]) -> str | None:
    """The verdict in a judge's words; None where there is not exactly one, at the end.

    What is thought before the last </think> is no answer, whatever stands in it.

    >>> read_verdict("Both fine. <answer>2</answer>", ("1", "2"))
    '2'
    >>> read_verdict("<answer>1</answer> or <answer>2</answer>", ("1", "2"))
    >>> read_verdict("The answer is 2.", ("1", "2"))
    >>> read_verdict("<think>No <answer>1</answer>.</think><answer>2</answer>", ("1", "2"))
    '2'
    """
    text = text.rpartition(_THOUGHT)[2]
    verdicts = _ANSWER.findall(text)
    if len(verdicts) != 1 or text.count(_OPEN) != 1:
        return None
    if not text.rstrip().endswith("</answer>"):
        return None
    verdict = verdicts[0].strip().lower()
    return verdict if verdict in allowed else None


def opened(question: list[Message]) -> list[Message]:
    """The question with an answer begun, up to the place where only a verdict can stand."""
    return [*question, Message(role="assistant", content=_OPEN)]


def _question(
    ask: str,
    prompt: Content,
    sides: Sequence[tuple[str, Content]],
    reasoning: bool,
    answers: str,
) -> list[Message]:
    parts = [_text(f"{ask}\n\n"), *_block("Conversation", prompt_parts(prompt))]
    for name, side in sides:
        parts += [_text("\n\n"), *_block(name, response_parts(side))]
    form = f"<answer>{answers}</answer>"
    if reasoning:
        how = (
            "First think step by step between <think> and </think>. Then end with the verdict and "
            f"nothing after it: {form}"
        )
    else:
        how = f"Reply with the verdict alone: {form}"
    return [Message(role="user", content=joined([*parts, _text(f"\n\n{how}")]))]


def _block(name: str, parts: Sequence[Part]) -> list[Part]:
    return [_text(f"[{name}]\n"), *parts, _text(f"\n[End of {name.lower()}]")]


def _text(text: str) -> Part:
    return {"type": "text", "text": text}
