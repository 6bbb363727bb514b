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
YES, NO = "yes", "no"

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


def rank_question(
    prompt: Content,
    responses: Sequence[Content],
    *,
    ties: bool,
    reasoning: bool,
    instructions: str | None = None,
) -> list[Message]:
    """Asks for a ranking of several responses."""
    ask = (
        f"The {len(responses)} responses to the conversation below are to be ranked. The order in "
        f"which they stand means nothing.\n\n{instructions or CRITERIA}"
    )
    answers = "the numbers of all responses, best first, with commas between them"
    answers += ", or = where neither is better" if ties else ""
    sides = [(f"Response {k}", side) for k, side in enumerate(responses, 1)]
    return _question(ask, prompt, sides, reasoning, answers)


def criterion_question(
    prompt: Content,
    response: Content,
    criterion: str,
    *,
    reasoning: bool,
    instructions: str | None = None,
) -> list[Message]:
    """Asks whether one criterion is true of a response."""
    ask = (
        "Say whether the statement below is true of the response to the conversation. Nothing else "
        f"counts.\n\n[Statement]\n{criterion}\n[End of statement]"
    )
    ask += f"\n\n{instructions}" if instructions else ""
    return _question(ask, prompt, [("Response", response)], reasoning, f"{YES} or {NO}")


def consistency_question(thought: str, verdict: str) -> list[Message]:
    """Asks whether a judge's thought bears its verdict out."""
    ask = (
        "A judge of responses thought aloud and then gave a verdict. Say whether the verdict is "
        "the one that the thought comes to. Whether it is right does not matter."
    )
    parts = [_text(f"{ask}\n\n"), *_block("Thought", [_text(thought)])]
    parts += [_text("\n\n"), *_block("Verdict", [_text(verdict)])]
    how = f"Reply with the answer alone: <answer>{YES} or {NO}</answer>"
    return [Message(role="user", content=joined([*parts, _text(f"\n\n{how}")]))]


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
    verdict = _verdict(text)
    return verdict if verdict in allowed else None


def read_ranking(text: str, n: int, *, ties: bool) -> list[int] | None:
    """The rank of each of n responses in a judge's words, 0 the best, equal ones being ties; None
    where not each stands in it once.

    >>> read_ranking("<answer>2, 1 = 3</answer>", 3, ties=True)
    [1, 0, 1]
    >>> read_ranking("<answer>2, 1 = 3</answer>", 3, ties=False)
    >>> read_ranking("<answer>2, 1</answer>", 3, ties=True)
    """
    verdict = _verdict(text)
    if verdict is None or ("=" in verdict and not ties):
        return None
    ranks: list[int | None] = [None] * n
    for rank, alike in enumerate(verdict.split(",")):
        for number in alike.split("="):
            word = number.strip()
            place = int(word) - 1 if word.isascii() and word.isdigit() else -1
            if not 0 <= place < n or ranks[place] is not None:
                return None
            ranks[place] = rank
    return None if None in ranks else [rank for rank in ranks if rank is not None]


def _verdict(text: str) -> str | None:
    """What stands between the marks of an answer at the very end, after the thought; None where
    that is not exactly one thing."""
    text = text.rpartition(_THOUGHT)[2]
    verdicts: list[str] = _ANSWER.findall(text)
    if len(verdicts) != 1 or text.count(_OPEN) != 1:
        return None
    if not text.rstrip().endswith("</answer>"):
        return None
    return verdicts[0].strip().lower()


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
