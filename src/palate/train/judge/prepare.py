"""The question files that stages train on, each with an account of what went into it.

    questions/1-sft/train.jsonl, eval.jsonl, images/, account.json

The account is written last: where it is, the files are whole, and a resumed run takes them as they
are. In each split, questions (of a reward model: comparisons) = written + dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palate.data.schema import ImageRef, Message, Part, image_of
from palate.models.pictures import IMAGES
from palate.recipes.judge import (
    ChatTexts,
    ColumnTexts,
    CriticKind,
    JudgeRecipe,
    PairwiseKind,
    PointwiseKind,
)
from palate.recipes.schema import DataSource
from palate.rewards.chat import Chat
from palate.store.files import read_json, write_bytes, write_json, write_text
from palate.train.judge.ask import (
    CritiqueQuestion,
    Question,
    critique_questions,
    pair_questions,
    rating_questions,
    verdict_text,
)
from palate.train.judge.rows import Comparison, Rows, mapped
from palate.train.judge.texts import (
    NONE_RIGHT,
    WRONG,
    from_column,
    why_not,
    written_critiques,
    written_reasoning,
)

ACCOUNT = "account.json"
PROMPTS = {"prompt", "chosen_prompt", "rejected_prompt"}
ALL_RIGHT = "every readable verdict is right: nothing to reject"
ALL_WRONG = "every readable verdict is wrong: nothing to choose"
NONE_READ = "no verdict that could be read"
NO_CRITIQUE = "a response without a critique"

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The files of a stage.

    Attributes:
        train, eval: sources for the stage's recipe; `eval` is empty where there is nothing in it.
        account: what went into them, for data.json.
    """

    train: tuple[DataSource, ...]
    eval: tuple[DataSource, ...]
    account: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Written:
    rows: list[dict[str, Any]]
    account: dict[str, Any]


class QuestionWriter:
    """Writes the question files of a run.

    Args:
        folder: below which they go.
    """

    def __init__(self, recipe: JudgeRecipe, rows: Rows, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.rows: dict[Split, list[Any]] = {"train": rows.train, "eval": rows.eval}
        self.kind = recipe.judge
        self.scale: dict[str, Any] | None = None
        self.cuts: list[float] = []
        if isinstance(self.kind, PointwiseKind):
            self.cuts, low, high = mapped([row.rating for row in rows.train], self.kind)
            self.scale = {"cut_points": self.cuts, "lowest": low, "highest": high}

    def questions(self, split: Split) -> list[Question]:
        """The questions of a split."""
        rows = self.rows[split]
        if isinstance(self.kind, PairwiseKind):
            return pair_questions(rows, self.kind, self.recipe.seed)
        assert isinstance(self.kind, PointwiseKind)
        return rating_questions(rows, self.kind, self.cuts)

    # Stages -----------------------------------------------------------------------------------

    def sft(self, name: str, writer: Callable[[], Chat]) -> Prepared:
        """Questions with right verdicts, or with critiques.

        Args:
            writer: opens the model that writes texts.
        """
        kind = "demonstrations"
        if isinstance(self.kind, CriticKind):
            return self._stage(name, kind, lambda split: self._critiques(split, writer))
        return self._stage(name, kind, lambda split: self._verdicts(split, writer))

    def preference(self, name: str, number: int, judge: Callable[[], Chat]) -> Prepared:
        """Pairs of a right and a wrong verdict of round `number`, from 1.

        Args:
            judge: opens the judge as it is now.
        """
        if self.recipe.reasoning:
            return self._stage(name, "palate_pairs", lambda s: self._replies(s, number, judge))
        return self._stage(name, "palate_pairs", self._bare)

    def reward(self, name: str, writer: Callable[[], Chat], critic: Callable[[], Chat]) -> Prepared:
        """Comparisons with a critique on each side."""
        return self._stage(name, "palate_sides", lambda split: self._sides(split, writer, critic))

    def _stage(self, name: str, form: str, write: Callable[[Split], _Written]) -> Prepared:
        folder = self.folder / name
        file = folder / ACCOUNT
        if not file.exists():
            account: dict[str, Any] = {}
            for split in SPLITS:
                written = write(split)
                rows = [_with_image_files(row, folder) for row in written.rows]
                lines = [json.dumps(row, ensure_ascii=False) for row in rows]
                write_text(folder / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))
                account[split] = written.account
            write_json(file, account)
        account = read_json(file)
        sources = {
            split: (DataSource(path=str(folder / f"{split}.jsonl"), format=form, name=name),)
            if account[split]["written"]
            else ()
            for split in SPLITS
        }
        return Prepared(train=sources["train"], eval=sources["eval"], account=account)

    # What goes into them ----------------------------------------------------------------------

    def _verdicts(self, split: Split, writer: Callable[[], Chat]) -> _Written:
        questions = self.questions(split)
        refused: Counter[str] = Counter()
        reason = NONE_RIGHT
        texts: list[str | None]
        if not self.recipe.reasoning:
            texts = [verdict_text(question.right) for question in questions]
        elif isinstance(self.recipe.texts, ColumnTexts):
            texts = [from_column(question) for question in questions]
            reason = WRONG
        else:
            assert isinstance(self.recipe.texts, ChatTexts)
            seed = derived(self.recipe.seed, "texts", split)
            texts, refused = written_reasoning(questions, self.recipe.texts, writer(), seed)
        return _demonstrations(questions, texts, reason, refused)

    def _critiques(self, split: Split, writer: Callable[[], Chat]) -> _Written:
        questions, texts, refused = self._gold(split, writer)
        return _demonstrations(questions, texts, NO_CRITIQUE, refused)

    def _gold(
        self, split: Split, writer: Callable[[], Chat]
    ) -> tuple[list[CritiqueQuestion], list[str | None], Counter[str]]:
        questions = critique_questions(self.rows[split])
        texts = self.recipe.texts
        if isinstance(texts, ColumnTexts):
            return questions, [question.text for question in questions], Counter()
        assert isinstance(texts, ChatTexts)
        critiques, refused = written_critiques(
            questions,
            writer(),
            temperature=texts.temperature,
            max_new_tokens=texts.max_new_tokens,
            seed=derived(self.recipe.seed, "texts", split),
            told=texts.told_label,
            expands=texts.expands is not None,
            cut=False,
        )
        return questions, critiques, refused

    def _sides(
        self, split: Split, writer: Callable[[], Chat], critic: Callable[[], Chat]
    ) -> _Written:
        assert self.recipe.reward is not None
        if self.recipe.reward.critiques == "gold":
            questions, texts, refused = self._gold(split, writer)
        else:
            questions = critique_questions(self.rows[split])
            texts, refused = written_critiques(
                questions,
                critic(),
                temperature=0.0,
                max_new_tokens=self.recipe.data.length.max_answer_tokens,
                seed=0,
                told=False,
                expands=False,
                cut=True,
            )
        pairs: list[Comparison] = self.rows[split]
        rows = []
        for i, pair in enumerate(pairs):
            (better, worse), critiques = questions[2 * i : 2 * i + 2], texts[2 * i : 2 * i + 2]
            if critiques[0] is None or critiques[1] is None:
                continue
            rows.append(
                {
                    "chosen_prompt": better.asked,
                    "chosen": _assistant_turn(critiques[0]),
                    "rejected_prompt": worse.asked,
                    "rejected": _assistant_turn(critiques[1]),
                    "tie": pair.tie,
                    "source": pair.source,
                    "id": pair.id,
                }
            )
        dropped = {NO_CRITIQUE: len(pairs) - len(rows)}
        return _Written(rows=rows, account=_account(len(pairs), len(rows), dropped, refused))

    def _bare(self, split: Split) -> _Written:
        questions = self.questions(split)
        given = len(questions)
        questions = self._drawn(questions, split, 1)
        seed = self.recipe.seed
        rows = [
            _preference(q, verdict_text(q.right), verdict_text(q.wrong(seed))) for q in questions
        ]
        account = _account(len(questions), len(rows), {}, Counter())
        account |= _verdicts(questions) | {"not_selected": given - len(questions)}
        return _Written(rows=rows, account=account)

    def _replies(self, split: Split, number: int, judge: Callable[[], Chat]) -> _Written:
        preference = self.recipe.preference
        assert preference is not None
        if split == "eval":
            # The judge itself is asked about these.
            return _Written(rows=[], account=_account(0, 0, {}, Counter()))
        questions = self.questions(split)
        given = len(questions)
        questions = self._drawn(questions, split, number)
        replies = judge().reply(
            [question.asked for question in questions],
            samples=preference.samples,
            temperature=preference.temperature,
            max_new_tokens=self.recipe.data.length.max_answer_tokens,
            seed=derived(self.recipe.seed, "replies", number),
        )
        rows = []
        dropped: Counter[str] = Counter()
        verdicts: Counter[str] = Counter()
        for question, sampled in zip(questions, replies, strict=True):
            sides: dict[bool, list[str]] = {True: [], False: []}
            for reply in sampled:
                reason = why_not(reply, question)
                verdicts[reason or "right verdict"] += 1
                if reason is None or reason == WRONG:
                    sides[reason is None].append(reply.whole.strip())
            if not sides[True] or not sides[False]:
                dropped[ALL_RIGHT if sides[True] else ALL_WRONG if sides[False] else NONE_READ] += 1
                continue
            draw = random.Random(f"{self.recipe.seed}|replies|{number}|{question.id}")
            rows.append(_preference(question, draw.choice(sides[True]), draw.choice(sides[False])))
        account = _account(len(questions), len(rows), dropped, Counter())
        account |= {"replies": dict(verdicts), "not_selected": given - len(questions)}
        return _Written(rows=rows, account=account)

    def _drawn(self, questions: list[Question], split: Split, number: int) -> list[Question]:
        assert self.recipe.preference is not None
        limit = self.recipe.preference.questions
        if split == "eval" or limit is None or limit >= len(questions):
            return questions
        draw = random.Random(f"{self.recipe.seed}|questions|{number}")
        return [questions[i] for i in sorted(draw.sample(range(len(questions)), limit))]


def derived(seed: int, *purpose: object) -> int:
    """A seed of its own for each purpose, below 2 ** 31, as servers take them."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _demonstrations(
    questions: Sequence[Question | CritiqueQuestion],
    texts: Sequence[str | None],
    reason: str,
    refused: Counter[str],
) -> _Written:
    rows = [
        {"id": question.id, "prompt": question.asked, "completion": _assistant_turn(text)}
        for question, text in zip(questions, texts, strict=True)
        if text is not None
    ]
    dropped = {reason: len(questions) - len(rows)}
    account = _account(len(questions), len(rows), dropped, refused)
    kept = [q for q, text in zip(questions, texts, strict=True) if text is not None]
    account |= _verdicts([question for question in kept if isinstance(question, Question)])
    return _Written(rows=rows, account=account)


def _verdicts(questions: Sequence[Question]) -> dict[str, Any]:
    """How often each verdict is the right one of what was written."""
    counts = Counter(question.right for question in questions)
    return {"verdicts": dict(sorted(counts.items()))} if counts else {}


def _preference(question: Question, right: str, wrong: str) -> dict[str, Any]:
    return {
        "prompt": question.asked,
        "chosen": _assistant_turn(right),
        "rejected": _assistant_turn(wrong),
        "tie": False,
        "source": question.source,
        "id": question.id,
    }


def _with_image_files(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row as JSON: its images are files beside it, and paths in it.

    Pairs have theirs in a column, in the order of their places, other rows in the parts.
    """
    in_column = "chosen" in row and "prompt" in row
    paths: list[str] = []

    def part_of(part: Part) -> dict[str, str]:
        if part["type"] == "text":
            return {"type": "text", "text": part["text"]}
        assert part["type"] == "image", "videos are frames here"
        paths.append(put_beside(image_of(part), folder))
        return {"type": "image"} if in_column else {"type": "image", "image": paths[-1]}

    written = dict(row)
    for name in PROMPTS & row.keys():
        written[name] = [
            turn
            if isinstance(turn["content"], str)
            else {"role": turn["role"], "content": list(map(part_of, turn["content"]))}
            for turn in row[name]
        ]
    return written | ({"images": paths} if in_column and paths else {})


def put_beside(image: ImageRef, folder: Path) -> str:
    """Has the file of a stored image in `images/` of a folder; its path from there."""
    assert image.path is not None and image.root is not None
    path = folder / IMAGES / image.path
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(image.root / image.path, path)
        except OSError:
            # Some file systems have no second name for a file.
            write_bytes(path, (image.root / image.path).read_bytes())
    return f"{IMAGES}/{image.path}"


def _account(
    questions: int, written: int, dropped: dict[str, int] | Counter[str], refused: Counter[str]
) -> dict[str, Any]:
    left = {reason: n for reason, n in dropped.items() if n}
    assert questions == written + sum(left.values()), (questions, written, left)
    return {
        "questions": questions,
        "written": written,
        "dropped": left,
        "replies_refused": dict(refused),
    }


def _assistant_turn(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]
