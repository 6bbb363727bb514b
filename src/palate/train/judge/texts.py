"""Where reasoning and critiques come from: columns of the data, or a model that writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from palate.data.schema import Message
from palate.recipes.judge import ChatTexts
from palate.rewards.chat import Chat, Reply
from palate.rewards.questions import read_verdict
from palate.rewards.texts import joined, prompt_parts
from palate.train.judge.ask import CritiqueQuestion, Question, verdict_text

UNREADABLE = "verdict that could not be read"
CUT = "cut by the limit of tokens"
WRONG = "wrong verdict"
EMPTY = "empty"
NONE_RIGHT = "no reply with the right verdict"


def from_column(question: Question) -> str | None:
    """The data's reasoning, with its verdict; or None where it ends with another one than right.

    A text without a verdict gets the right one, and is put between <think> and </think>.
    """
    text = question.text
    assert text is not None
    if "<answer>" in text:
        return text if read_verdict(text, question.options) == question.right else None
    if "<think>" not in text and "</think>" not in text:
        text = f"<think>\n{text}\n</think>"
    return f"{text}\n{verdict_text(question.right)}"


def why_not(reply: Reply, question: Question) -> str | None:
    """Why a reply is not right; None where it is."""
    if reply.refused is not None:
        return reply.refused
    if not reply.finished:
        return CUT
    verdict = read_verdict(reply.text, question.options)
    if verdict is None:
        return UNREADABLE
    return None if verdict == question.right else WRONG


def written_reasoning(
    questions: Sequence[Question], recipe: ChatTexts, chat: Chat, seed: int
) -> tuple[list[str | None], Counter[str]]:
    """Of each question the first reply whose verdict is right, None where no attempt was.

    Returns:
        the texts, and how many replies were refused, by reason.
    """
    texts: list[str | None] = [None] * len(questions)
    refused: Counter[str] = Counter()
    left = list(range(len(questions)))
    for attempt in range(recipe.attempts):
        if not left:
            break
        replies = chat.reply(
            [_to_writer(questions[i], told=recipe.told_label) for i in left],
            temperature=recipe.temperature,
            max_new_tokens=recipe.max_new_tokens,
            seed=seed + attempt,
        )
        still = []
        for i, (reply,) in zip(left, replies, strict=True):
            reason = why_not(reply, questions[i])
            if reason is None:
                texts[i] = reply.whole.strip()
            else:
                refused[reason] += 1
                still.append(i)
        left = still
    return texts, refused


def written_critiques(
    questions: Sequence[CritiqueQuestion],
    chat: Chat,
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    told: bool,
    expands: bool,
    cut: bool,
) -> tuple[list[str | None], Counter[str]]:
    """A critique for each question, None where there is none.

    Args:
        told: whether the writer hears which response people preferred.
        expands: whether it hears the data's own critique, to be written out.
        cut: whether one that the limit of tokens cut counts (the scorer `critic` takes it).
    """
    replies = chat.reply(
        [_to_critic(question, told=told, expands=expands) for question in questions],
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    texts: list[str | None] = []
    refused: Counter[str] = Counter()
    for (reply,) in replies:
        text = reply.text.strip()
        if reply.refused is not None:
            refused[reply.refused] += 1
            texts.append(None)
        elif not reply.finished and not cut:
            refused[CUT] += 1
            texts.append(None)
        elif not text:
            refused[EMPTY] += 1
            texts.append(None)
        else:
            texts.append(text)
    return texts, refused


def _to_writer(question: Question, *, told: bool) -> list[Message]:
    if not told:
        return question.asked
    hint = f"The right verdict is {question.right}. Reason as if nobody had told you."
    return _with(question.asked, hint)


def _to_critic(question: CritiqueQuestion, *, told: bool, expands: bool) -> list[Message]:
    asked = question.asked
    if expands:
        hint = (
            f"Somebody noted this about the response:\n\n[Notes]\n{question.text}\n[End of notes]"
            "\n\nLet the critique say all of it, explained in full, without mentioning the notes."
        )
        asked = _with(asked, hint)
    if not told:
        return asked
    if question.better is None:
        hint = "People found this response as good as another one"
    else:
        which = "better" if question.better else "worse"
        hint = f"People compared this response with another one and found it {which}"
    return _with(asked, f"{hint}. Let the critique bear that out without saying so.")


def _with(asked: list[Message], hint: str) -> list[Message]:
    last = asked[-1]
    parts = prompt_parts([Message(role="user", content=last["content"])])
    content = joined([*parts, {"type": "text", "text": f"\n\n{hint}"}])
    return [*asked[:-1], Message(role=last["role"], content=content)]
