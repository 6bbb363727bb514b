"""Prefix trees: what shares a row, what sees what, what is trained on."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from palate.data.items import Desirable, Item, PairLabel, PlacedImage, Ranks, Tokens, sequence_key
from palate.data.layouts import collate
from palate.models.model import Model
from tiny import FAMILIES, tiny_model, token_stats_of

CLOSE = {"atol": 3e-5, "rtol": 1e-4}


def shared(*items: Item, keep_last: bool = False):
    return collate(items, layout="shared", pad_id=0, keep_last=keep_last)


def seen(until: list[int]) -> list[set[int]]:
    """The places that each place sees."""
    return [{j for j in range(i + 1) if i < until[j]} for i in range(len(until))]


def test_what_responses_begin_with_is_run_once() -> None:
    """prompt 1 5 6; common beginning 7 8; of the first two also 9; then branches."""
    item = Item.of((1, 5, 6), (7, 8, 9, 2), (7, 8, 9, 4, 2), (7, 8, 3, 2))
    batch = shared(item, keep_last=True)
    (ids,), (positions,) = (batch.inputs[k].tolist() for k in ("input_ids", "position_ids"))
    assert ids == [1, 5, 6, 7, 8, 9, 2, 4, 2, 3, 2]
    assert positions == [0, 1, 2, 3, 4, 5, 6, 6, 7, 5, 6]
    (until,) = batch.inputs["visible_until"].tolist()
    sees = seen(until)
    stem = set(range(5))
    assert sees[6] == stem | {5, 6}
    assert sees[8] == stem | {5, 7, 8}
    assert sees[10] == stem | {9, 10}
    assert batch.predict.tolist() == [2, 3, 4, 5, 2, 3, 4, 5, 7, 2, 3, 4, 9]
    assert batch.ends is not None and batch.ends.tolist() == [6, 8, 10]


def test_a_response_that_another_begins_with_has_no_branch() -> None:
    batch = shared(Item.of((1, 5), (7, 8, 2), (7, 8)), keep_last=True)
    assert batch.inputs["input_ids"].tolist() == [[1, 5, 7, 8, 2]]
    assert batch.ends is not None and batch.ends.tolist() == [4, 3]


def test_trees_fill_rows_and_padding_is_seen_by_none() -> None:
    items = [Item.of((1, 5, 6, 7), (8, 2)), Item.of((1, 5), (8, 9)), Item.of((1,), (2, 2))]
    batch = shared(*items)
    assert batch.inputs["input_ids"].tolist() == [[1, 5, 6, 7, 8], [1, 5, 8, 1, 2]]
    assert batch.inputs["visible_until"].tolist() == [[5] * 5, [3, 3, 3, 5, 5]]
    ragged = shared(items[0], items[1])
    assert ragged.inputs["visible_until"].tolist() == [[5] * 5, [3, 3, 3, 0, 0]]


def random_item(rng: random.Random) -> Item:
    """Up to five responses that begin alike for a while; prompts, too, now and then differ."""

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 211) for _ in range(rng.randint(low, high)))

    prompts, stems = [(1, *ids(0, 6)), (1, *ids(0, 6))], [ids(0, 5), ids(0, 5), ()]
    n = rng.randint(1, 5)
    return Item(
        prompts=tuple(Tokens(prompts[rng.random() < 0.2]) for _ in range(n)),
        responses=tuple(Tokens((*rng.choice(stems), *ids(0, 12), 2)) for _ in range(n)),
    )


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_trees_of_any_depth_are_the_sequences_alone(family: str, keep_last: bool) -> None:
    model = tiny_model(family)
    rng = random.Random(0)
    items = [random_item(rng) for _ in range(7)]
    batch = shared(*items, keep_last=keep_last)
    tokens = sum(sum(map(len, both)) for item in items for both in item.sequences)
    assert int((batch.inputs["visible_until"] > 0).sum()) < 0.9 * tokens
    with torch.no_grad():
        logps = token_stats_of(Model.policy(model), batch).logp
        for s, (prompt, response) in enumerate(b for item in items for b in item.sequences):
            ids = torch.tensor([[*prompt.ids, *response.ids]])
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            want = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(logps[batch.segment == s], want, **CLOSE)


def test_a_token_alone_is_run() -> None:
    """Prompts of one token that share nothing: each is a tree of its own, and a lone one."""
    policy = Model.policy(tiny_model("llama"))
    items = [Item.of((p,), (7,)) for p in (3, 4)]
    with torch.no_grad():
        together = token_stats_of(policy, shared(*items, Item.of((1, 5, 6), (8, 2)))).logp
        alone = torch.cat([token_stats_of(policy, shared(item)).logp for item in items])
        logits = policy.base(torch.tensor([[3], [4]]), use_cache=False).logits[:, 0]
    torch.testing.assert_close(alone, logits.log_softmax(-1)[:, 7], **CLOSE)
    torch.testing.assert_close(together[:2], alone, **CLOSE)
    assert abs(float(alone[0] - alone[1])) > 0.1


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_only_what_is_trained_on_is_a_target(layout: str) -> None:
    policy = Model.policy(tiny_model("llama"))
    whole = Item.of((1, 5), (6, 7, 8, 9, 2))
    flags = (True, False, False, True, True)
    some = Item.of((1, 5), Tokens((6, 7, 8, 9, 2), trained=flags))
    a = collate([whole], layout=layout, pad_id=0, keep_last=True)
    b = collate([some], layout=layout, pad_id=0, keep_last=True)
    kept = torch.tensor(flags)
    assert b.targets.tolist() == [6, 9, 2] and b.position.tolist() == [0, 1, 2]
    assert b.lengths.tolist() == [3] and a.keys != b.keys
    assert torch.equal(b.ends, a.ends) and torch.equal(b.target_positions, a.target_positions[kept])
    with torch.no_grad():
        torch.testing.assert_close(
            token_stats_of(policy, b).logp, token_stats_of(policy, a).logp[kept]
        )


def test_items_are_refused_where_their_parts_do_not_fit() -> None:
    for responses, label in (
        ([(2,)], PairLabel()),
        ([(2,), (3,)], Desirable(desirable=True)),
        ([()], None),
    ):
        with pytest.raises(ValueError):
            Item.of((1,), *responses, label=label)
    with pytest.raises(ValueError, match="no token"):
        Tokens((1, 2), trained=(False, False))
    with pytest.raises(ValueError, match="several kinds"):
        shared(Item.of((1,), (2,)), Item.of((1,), (2,), (3,), label=PairLabel()))


def test_a_key_covers_pictures_and_what_is_trained_on() -> None:
    prompt, response = Tokens((1, 5, 5, 6)), Tokens((7, 2))
    picture = PlacedImage(start=1, length=2, digest="aa")
    prompts = [
        prompt,
        dataclasses.replace(prompt, images=(picture,)),
        dataclasses.replace(prompt, images=(dataclasses.replace(picture, digest="bb"),)),
        dataclasses.replace(prompt, images=(dataclasses.replace(picture, start=2),)),
    ]
    assert len({sequence_key(p, response) for p in prompts}) == 4
    with pytest.raises(ValueError, match="images"):
        shared(Item.of(prompts[1], response))


def test_labels_say_what_is_compared() -> None:
    """Two lists of unequal length, one without an order; pairs of which one is a tie."""
    lists = [
        Item.of((1,), *[(5, i + 6) for i in range(len(ranks))], label=Ranks(ranks))
        for ranks in ((2, 1, 2, 3), (1, 1))
    ]
    batch = collate(lists, layout="plain", pad_id=0)
    assert batch.lists is not None
    assert batch.lists.tolist() == [[0, 1, 2, 3], [4, 5, -1, -1]]
    compared = {name: value.tolist() for name, value in batch.comparisons.items()}
    assert compared == {"better": [0, 1, 1, 1, 2], "worse": [3, 0, 2, 3, 3], "item": [0] * 5}
    assert {name: side.tolist() for name, side in batch.sides.items()} == {
        "chosen": [1, 4, 5],
        "rejected": [0, 2, 3],
    }
    ties = [Item.of((1,), (2, 3), (4,), label=PairLabel(tie=tie)) for tie in (False, True, False)]
    pairs = collate(ties, layout="plain", pad_id=0)
    compared = {name: value.tolist() for name, value in pairs.comparisons.items()}
    assert compared == {"better": [0, 4], "worse": [1, 5], "item": [0, 2]}
    assert pairs.chosen_tokens is not None and pairs.chosen_tokens.tolist() == [0, 1, 3, 4, 6, 7]
