"""The parts of `palate judge`: questions and their labels, scales, texts, kept answers, layouts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.data.encode import Encoder
from palate.data.items import Item, PairLabel, Tokens, items_digest
from palate.data.layouts import collate
from palate.data.schema import Preference, Response
from palate.data.stream import read_source
from palate.errors import DataError, RecipeError
from palate.models.model import Model
from palate.recipes.judge import ChatTexts, PairwiseKind, PointwiseKind
from palate.recipes.schema import DataSource
from palate.recipes.scorers import LocalChat, PairwiseJudge
from palate.rewards.chat import Reply
from palate.rewards.questions import critique_question, pair_question, read_verdict
from palate.train.judge.ask import (
    Question,
    critique_questions,
    pair_questions,
    rating_questions,
)
from palate.train.judge.kept import CHUNK, KeptChat
from palate.train.judge.measure import line_of, measure_pairwise
from palate.train.judge.prepare import derived
from palate.train.judge.rows import Comparison, Rating, mapped, on_scale
from palate.train.judge.texts import (
    CUT,
    UNREADABLE,
    WRONG,
    from_column,
    written_critiques,
    written_reasoning,
)
from tiny import FAMILIES, tiny_model, tiny_pairs, token_stats_of
from tiny_chat import CHATML, byte_tokenizer
from tiny_judge import FakeWriter
from tiny_runs import write_rows


def comparisons(n: int, **more: Any) -> list[Comparison]:
    return [
        Comparison(id=f"r{i}", source="s", prompt=f"q{i}", better="BETTER", worse="WORSE", **more)
        for i in range(n)
    ]


def question(right: str, text: str | None = None) -> Question:
    return Question(
        id="q",
        source="s",
        asked=[{"role": "user", "content": "?"}],
        options=("1", "2"),
        right=right,
        text=text,
    )


@pytest.mark.parametrize("n", [1, 8, 31, 200])
def test_one_half_has_the_better_response_first_whatever_the_order_of_the_rows(n: int) -> None:
    rows = comparisons(n)
    found = pair_questions(rows, PairwiseKind(), seed=3)
    assert sum(q.right == "1" for q in found) in (n // 2, (n + 1) // 2)
    for row, asked in zip(rows, found, strict=True):
        text = asked.asked[0]["content"]
        assert isinstance(text, str)
        first = text.index("BETTER") < text.index("WORSE")
        assert asked.right == ("1" if first else "2")
        sides = ("BETTER", "WORSE") if first else ("WORSE", "BETTER")
        assert asked.asked == pair_question(row.prompt, *sides, ties=False, reasoning=False)
    turned = pair_questions(rows[::-1], PairwiseKind(), seed=3)
    assert {q.id: q.right for q in turned} == {q.id: q.right for q in found}
    if n > 30:
        other = pair_questions(rows, PairwiseKind(), seed=4)
        assert [q.right for q in other] != [q.right for q in found]


def test_both_orders_and_ties() -> None:
    found = pair_questions(comparisons(3), PairwiseKind(orders="both"), seed=0)
    assert [q.right for q in found] == ["1", "2"] * 3
    assert len({q.id for q in found}) == 6
    (tied,) = pair_questions(comparisons(1, tie=True), PairwiseKind(ties=True), seed=0)
    assert (tied.right, tied.options) == ("tie", ("1", "2", "tie"))
    assert tied.wrong(0) in ("1", "2")


def test_a_text_with_a_verdict_sets_the_order_in_which_it_is_right() -> None:
    for verdict in ("1", "2"):
        text = f"<think>So.</think><answer>{verdict}</answer>"
        found = pair_questions(comparisons(6, text=text), PairwiseKind(reasoning=True), seed=0)
        assert {q.right for q in found} == {verdict}
        assert from_column(found[0]) == text


def test_texts_of_the_data_end_with_the_right_verdict() -> None:
    assert from_column(question("2", "So.")) == "<think>\nSo.\n</think>\n<answer>2</answer>"
    own = "<think>a</think> b"
    assert from_column(question("1", own)) == f"{own}\n<answer>1</answer>"
    assert from_column(question("1", "So. <answer>2</answer>")) is None
    assert from_column(question("1", "<answer>1</answer> I think")) is None


ratings = st.lists(st.floats(-100, 100, allow_nan=False, width=16), min_size=2, max_size=40)


@given(ratings, st.integers(2, 9), st.sampled_from(["linear", "quantile"]))
def test_scales_keep_the_order_and_stay_within(values: list[float], best: int, scale: Any) -> None:
    kind = PointwiseKind(best=best, scale=scale)
    if min(values) == max(values):
        with pytest.raises(DataError, match="ratings are"):
            mapped(values, kind)
        return
    cuts, low, high = mapped(values, kind)
    found = {value: on_scale(value, cuts, kind) for value in values}
    assert all(1 <= rating <= best for rating in found.values())
    order = sorted(found)
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(order))
    if scale == "linear":
        assert (found[low], found[high]) == (1, best)
    assert (on_scale(-1e9, cuts, kind), on_scale(1e9, cuts, kind)) == (1, best)


def test_scales_by_hand() -> None:
    kind = PointwiseKind(best=5)
    cuts, _, _ = mapped([1.0, 10.0], kind)
    # Steps of 2.25: 3.25 is 2, and half way above it, 4.375, is rounded up.
    assert [on_scale(x, cuts, kind) for x in (1.0, 3.25, 4.374, 4.375, 10.0)] == [1, 2, 2, 3, 5]
    given_ = PointwiseKind(best=5, lowest=0.0, highest=4.0)
    cuts, _, _ = mapped([1.0, 2.0], given_)
    assert [on_scale(float(x), cuts, given_) for x in range(-1, 6)] == [1, 1, 2, 3, 4, 5, 5]
    quantile = PointwiseKind(best=4, scale="quantile")
    cuts, _, _ = mapped([1, 2, 3, 4, 5, 6, 7, 8], quantile)
    assert [on_scale(x, cuts, quantile) for x in range(1, 9)] == [1, 1, 2, 2, 3, 3, 4, 4]
    rows = [
        Rating(id=str(r), row="r", source="s", prompt="q", response="a", rating=float(r))
        for r in (1, 10)
    ]
    found = rating_questions(rows, kind, mapped([1.0, 10.0], kind)[0])
    assert [q.right for q in found] == ["1", "5"]
    assert "1, worst, to 5, best" in str(found[0].asked)


def test_scales_without_steps_are_one_line() -> None:
    for values, kind, words in (
        ([3.0, 5.0], PointwiseKind(highest=0.0), r"from 3 to 0.*training ratings are 3 to 5"),
        ([3.0, 5.0], PointwiseKind(lowest=9.0), "from 9 to 5"),
        ([-1e308, 1e308], PointwiseKind(), "from -1e[+]308 to 1e[+]308"),
        ([4.0, 4.0], PointwiseKind(), "all ratings are 4: give"),
        ([4.0, 4.0], PointwiseKind(lowest=1.0, highest=5.0), "nothing to tell apart"),
    ):
        with pytest.raises(DataError, match=words):
            mapped(values, kind)


def test_critiques_that_were_cut_are_said() -> None:
    entry = {"stage": "2-reward", "critiques": {"n": 8, "cut": 3, "empty": 0}}
    assert line_of(entry) == "2-reward: 3 of 8 critiques cut"


def test_questions_without_an_answer_are_measured_as_such() -> None:
    class Refusing(FakeWriter):
        def reply(self, questions: Any, **options: Any) -> Any:
            return [[Reply(text="", finished=True, refused="too long")] for _ in questions]

    chat: Any = LocalChat(path="unused")
    recipe = PairwiseJudge(chat=chat, method="sampled")
    found = measure_pairwise(recipe, Refusing(lambda *_: ""), comparisons(2))
    verdicts = found["verdicts"]
    assert (verdicts["n"], verdicts["unasked"], verdicts["unreadable"]) == (4, 4, 0)
    assert found["pairs"]["unscored"] == 2
    assert "4 questions not asked" in line_of({"stage": "base"} | found)


def test_only_right_verdicts_are_kept_and_the_others_counted() -> None:
    answers = {
        "a": ["<answer>1</answer>"],
        "b": ["<answer>2</answer>", " so <answer>1</answer> "],
        "c": ["one", "<answer>2</answer>", Reply(text="<answer>1</answer>", finished=False)],
    }
    writer = FakeWriter(lambda text, number: answers[text][number])
    asked = [
        dataclasses.replace(question("1"), id=name, asked=[{"role": "user", "content": name}])
        for name in answers
    ]
    recipe = ChatTexts(attempts=3, temperature=0.7)
    found, refused = written_reasoning(asked, recipe, writer, seed=5)
    assert found == ["<answer>1</answer>", "so <answer>1</answer>", None]
    assert refused == {WRONG: 2, UNREADABLE: 1, CUT: 1}
    assert [(call["n"], call["seed"]) for call in writer.calls] == [(3, 5), (2, 6), (1, 7)]


def test_a_writer_may_hear_the_label_and_the_judge_never_does() -> None:
    seen: list[str] = []

    def say(text: str, number: int) -> str:
        seen.append(text)
        return "<answer>1</answer>"

    written_reasoning([question("1")], ChatTexts(told_label=True), FakeWriter(say), 0)
    assert "The right verdict is 1." in seen[-1]
    questions = critique_questions(comparisons(1))
    options: Any = {
        "temperature": 0.0,
        "max_new_tokens": 9,
        "seed": 0,
        "cut": False,
        "expands": False,
    }
    written_critiques(questions, FakeWriter(say), told=True, **options)
    assert "found it better" in seen[-2] and "found it worse" in seen[-1]
    written_critiques(questions, FakeWriter(say), told=False, **options)
    assert seen[-1] == critique_question("q0", "WORSE")[0]["content"]
    tied = critique_questions(comparisons(1, tie=True))
    written_critiques(tied, FakeWriter(say), told=True, **options)
    assert "as good as another" in seen[-1]


def test_answers_are_kept_and_a_half_line_is_asked_again(tmp_path: Path) -> None:
    questions = [[{"role": "user", "content": str(i)}] for i in range(CHUNK + 3)]
    file = tmp_path / "asked.jsonl"
    writer = FakeWriter(lambda text, number: f"<{text}>")
    first = KeptChat(lambda: writer, file).reply(questions, seed=1)  # type: ignore[arg-type]
    assert [call["n"] for call in writer.calls] == [CHUNK, 3]
    assert first[5][0] == Reply(text="<5>", finished=True)
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0]}\n{lines[1][:40]}")
    again = FakeWriter(lambda text, number: f"<{text}>")
    kept = KeptChat(lambda: again, file)  # type: ignore[arg-type]
    assert kept.reply(questions, seed=1) == first
    assert [call["n"] for call in again.calls] == [3]
    never = KeptChat(lambda: pytest.fail("asked again"), file)
    assert never.reply(questions, seed=1) == first
    # Other options are other answers.
    kept.reply(questions[:1], seed=2)
    assert len(again.calls) == 2


def test_seeds_have_a_purpose_each() -> None:
    found = {derived(seed, name, n) for seed in range(5) for name in "ab" for n in range(5)}
    assert len(found) == 50 and all(0 <= seed < 2**31 for seed in found)


# Pairs whose sides have prompts of their own ----------------------------------------------------


def two_prompts() -> list[Item]:
    """Prompts that differ at the end, in length, not at all, and from the second token on."""
    pairs = tiny_pairs(4, longest=9)
    others = [
        (*pairs[0].prompts[0].ids, 7, 8),
        (*pairs[1].prompts[0].ids[:-1], 9, 9, 9),
        None,
        (1, 200, 201),
    ]
    return [
        pair if other is None else with_rejected_prompt(pair, other)
        for pair, other in zip(pairs, others, strict=True)
    ]


def with_rejected_prompt(pair: Item, ids: tuple[int, ...]) -> Item:
    return dataclasses.replace(pair, prompts=(pair.prompts[0], Tokens(ids)))


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_reads_each_side_behind_its_own_prompt(family: str, keep_last: bool) -> None:
    policy = Model.policy(tiny_model(family))
    pairs = two_prompts()
    batch = collate(pairs, layout="shared", pad_id=0, keep_last=keep_last)
    plain = collate(pairs, layout="plain", pad_id=0, keep_last=keep_last)
    assert batch.targets.tolist() == plain.targets.tolist() and batch.keys == plain.keys
    ids = [(*prompt.ids, *response.ids) for p in pairs for prompt, response in p.sequences]
    rows = plain.inputs["input_ids"].tolist()
    for row, sequence in zip(rows, ids, strict=True):
        n = len(sequence) - (not keep_last)
        assert tuple(row[:n]) == sequence[:n]
    with torch.no_grad():
        one, other = token_stats_of(policy, plain).logp, token_stats_of(policy, batch).logp
    torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
    if keep_last:
        flat = batch.inputs["input_ids"].flatten()
        assert flat[batch.target_positions].tolist() == batch.targets.tolist()


def test_a_shared_beginning_is_run_once() -> None:
    same = Item.of((1, 5, 6, 7, 8), (9, 2), (10, 2), label=PairLabel())
    pair = with_rejected_prompt(same, (1, 5, 6, 11))
    batch = collate([pair], layout="shared", pad_id=0, keep_last=True)
    assert batch.inputs["input_ids"].tolist() == [[1, 5, 6, 7, 8, 9, 2, 11, 10, 2]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5]]
    assert batch.predict.tolist() == [4, 5, 7, 8]
    assert pair.n_tokens == 5 + 4 + 2 + 2
    assert items_digest([pair]) != items_digest([same])


@pytest.mark.parametrize(
    "change", [{"margin": 2.0}, {"tie": True}, {"probability": 0.7}, {"id": "q"}, {"weight": 2.0}]
)
def test_other_labels_are_other_data(change: dict[str, Any]) -> None:
    label = PairLabel(margin=1.0)
    pair = Item.of((1,), (2,), (3,), label=label, id="p", source="s")
    if change.keys() <= {"margin", "tie", "probability"}:
        change = {"label": dataclasses.replace(label, **change)}
    assert items_digest([pair]) != items_digest([dataclasses.replace(pair, **change)])


def test_sides_are_encoded_as_each_by_itself() -> None:
    def turns(text: str, role: str = "user") -> Any:
        return [{"role": role, "content": text}]

    encoder = Encoder(byte_tokenizer(template=CHATML))
    row = Preference(
        id="r",
        source="s",
        kind="pair",
        prompt=turns("About A."),
        responses=(
            Response(content=turns("Fine.", "assistant")),
            Response(content=turns("Fine.", "assistant"), prompt=turns("About B.")),
        ),
    )
    pair = encoder.encode_row(row)
    assert isinstance(pair, Item)
    for prompt, own in zip(("About A.", "About B."), pair.sequences, strict=True):
        alone = dataclasses.replace(
            row, kind="demonstration", prompt=turns(prompt), responses=row.responses[:1]
        )
        item: Any = encoder.encode_row(alone)
        assert own == item.sequences[0]


SIDES = {
    "chosen_prompt": "About A.", "chosen": "Fine.", "rejected_prompt": "About B.",
    "rejected": "Fine.", "tie": False, "source": "critics", "id": "critics:1",
}  # fmt: skip


def test_sides_are_read_back(tmp_path: Path) -> None:
    other = SIDES | {"rejected_prompt": "About A."}
    bad = SIDES | {"rejected": [{"role": "assistant", "content": "Fine."}]}
    path = write_rows(tmp_path / "sides.jsonl", [SIDES, other, bad])
    result = read_source(DataSource(path=str(path)), seed=0)
    assert result.format == "palate_sides"
    (row,) = result.rows
    assert (row.id, row.source, row.prompt) == ("critics:1", "critics", "About A.")
    assert row.has_own_prompts and row.responses[1].prompt == "About B."
    reasons = Counter(item.reason for item in result.rejected)
    assert reasons == {"identical to chosen": 1, "text beside chat turns": 1}


def test_columns_are_kept_on_demand(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": " So.", "rejected": " No.", "why": "It is."}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    source = DataSource(path=str(path))
    assert read_source(source, seed=0).rows[0].extra is None
    assert read_source(source, seed=0, keep=("why", "who")).rows[0].extra == {
        "why": "It is.",
        "who": None,
    }
    answer = {"prompt": "Why?", "response": "So."}
    answer |= dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity"), 1)
    rows = [answer | {"verbosity": 2}, answer | {"response": "No.", "verbosity": 1}]
    path = write_rows(tmp_path / "grouped.jsonl", json.loads(json.dumps(rows)))
    with pytest.raises(RecipeError, match="several records"):
        read_source(DataSource(path=str(path)), seed=0, keep=("why",))


# Thoughts, and questions without an answer -------------------------------------------------------


def test_a_verdict_in_the_thought_is_none_yet() -> None:
    said = "<think>Perhaps <answer>1</answer>. No.</think>\n<answer>2</answer>"
    assert read_verdict(said, ("1", "2")) == "2"
    # Templates that open the thought themselves leave its end alone in the reply.
    assert read_verdict("So <answer>1</answer>?</think><answer>2</answer>", ("1", "2")) == "2"
    assert read_verdict("<think><answer>1</answer></think>", ("1", "2")) is None
    assert from_column(question("2", said)) == said


def test_a_thought_given_apart_is_part_of_the_text_and_refusals_are_counted() -> None:
    replies = {
        "a": Reply(text="<answer>1</answer>", finished=True, thought="So."),
        "b": Reply(text="", finished=True, refused="too long"),
    }
    writer = FakeWriter(lambda text, number: replies[text])
    asked = [
        dataclasses.replace(question("1"), id=name, asked=[{"role": "user", "content": name}])
        for name in replies
    ]
    found, refused = written_reasoning(asked, ChatTexts(), writer, seed=0)
    assert found == ["<think>\nSo.\n</think>\n<answer>1</answer>", None]
    assert refused == {"too long": 1}
    options: Any = {
        "temperature": 0.0,
        "max_new_tokens": 9,
        "seed": 0,
        "told": False,
        "expands": False,
    }
    questions = critique_questions(comparisons(1))
    writer = FakeWriter(lambda text, number: replies["b"])
    for cut in (True, False):
        found, refused = written_critiques(questions, writer, cut=cut, **options)
        assert found == [None, None] and refused == {"too long": 2}


def test_kept_answers_hold_whatever_a_model_writes(tmp_path: Path) -> None:
    """Line ends that are none in JSON, thoughts, refusals."""
    replies = [
        Reply(text="a\u2028b\u0085c\u2029\x0b\x1c", finished=True, thought="So\u2028."),
        Reply(text="", finished=True, refused="too long"),
    ]
    asked = [[{"role": "user", "content": str(i)}] for i in range(2)]
    file = tmp_path / "asked.jsonl"
    writer = FakeWriter(lambda text, number: replies[int(text)])
    first = KeptChat(lambda: writer, file).reply(asked)  # type: ignore[arg-type]
    assert [own[0] for own in first] == replies
    never = KeptChat(lambda: pytest.fail("asked again"), file)
    assert never.reply(asked) == first  # type: ignore[arg-type]
