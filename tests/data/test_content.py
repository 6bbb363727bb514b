"""Images inside content: same text and another picture is another content, wherever it is keyed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curating import pair, pictured
from palate.data.audit.repeats import keys
from palate.data.build import _distinct
from palate.data.content import bare, content_key, image_key, prompt_key, with_images
from palate.data.curation.text import prompt_digest, response_digest
from palate.data.pairing import to_unpaired
from palate.data.schema import Content, ImageRef, Message, images_in
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits
from palate.data.stream.grouping import Row, groups
from palate.evaluate.reward.items import BenchmarkItem, as_groups, compare, digest_items
from palate.evaluate.reward.score_cache import CachedScorer
from palate.rewards.chat import Reply
from palate.train.judge.kept import KeptChat
from palate.train.judge.rows import Comparison, _digest

CAT, DOG = ImageRef(digest="c" * 64), ImageRef(digest="d" * 64)
SAID: list[Message] = [{"role": "assistant", "content": "It sleeps."}]


def asked(image: ImageRef) -> Content:
    return pictured("What does it do?", [image])


@pytest.mark.parametrize(
    "key",
    [
        content_key,
        lambda prompt: prompt_key(prompt, 0),
        lambda prompt: prompt_digest(pair(prompt, SAID, SAID), "words"),
        lambda prompt: keys([pair(prompt, SAID, SAID)], np.zeros(1, dtype=bool)).prompts.tolist(),
        lambda prompt: keys([pair(prompt, "a", "b")], np.zeros(1, dtype=bool)).pairs.tolist(),
        lambda prompt: digest_items(
            [BenchmarkItem(id="1", source="s", prompt=prompt, responses=("a",))]
        ),
        lambda prompt: _digest(
            [Comparison(id="1", source="s", prompt=prompt, better=SAID, worse=SAID)]
        ),
    ],
)
def test_another_picture_is_another_key(key: Any) -> None:
    assert key(asked(CAT)) == key(asked(CAT)) != key(asked(DOG))
    # Two pictures in another order, and a text that stands where the picture does.
    two, turned = (pictured("Compare.", images) for images in ([CAT, DOG], [DOG, CAT]))
    assert key(two) != key(turned)
    assert key(pictured("", [CAT])) != key([{"role": "user", "content": "\x00"}])


def test_an_image_is_told_by_its_file_however_it_is_given() -> None:
    data = b"a picture"
    digest = hashlib.sha256(data).hexdigest()
    inside, read = ImageRef(data=data, path="a.png"), ImageRef(digest=digest, path="b.png")
    assert image_key(inside) == image_key(read) == digest
    assert content_key(asked(inside)) == content_key(asked(read))
    # Until it is read, a path is one of its data set.
    path = asked(ImageRef(path="a.png"))
    assert content_key(path, "one") != content_key(path, "two")
    assert prompt_key(path, 0, "one") != prompt_key(path, 0, "two")
    assert content_key("a text", "one") == content_key("a text", "two")
    assert content_key(asked(read), "one") == content_key(asked(read), "two")


IMAGES = st.builds(ImageRef, digest=st.text("0123456789abcdef", min_size=64, max_size=64))
PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}) | st.fixed_dictionaries(
    {"type": st.just("image"), "image": IMAGES}
)
CHATS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant"]),
            "content": st.text() | st.lists(PARTS, max_size=3),
        }
    ),
    max_size=3,
)


@given(content=st.text() | CHATS, other=st.text() | CHATS)
@settings(max_examples=50, deadline=None)
def test_content_comes_apart_and_together_again(content: Any, other: Any) -> None:
    plain = bare(content)
    assert json.loads(json.dumps(plain)) == plain
    assert with_images(plain, images_in(content)) == content
    assert (content_key(content) == content_key(other)) is (content == other)


def test_callers_may_give_images_in_other_ways() -> None:
    given = [None, "a.png", b"a", ImageRef(path="a.png")]
    prompts: list[Any] = [
        [{"role": "user", "content": [{"type": "image", "image": image}]}] for image in given
    ]
    unnamed: Any = [{"role": "user", "content": [{"type": "image"}]}]
    assert len({content_key(prompt) for prompt in [*prompts, unnamed]}) == 3
    assert content_key(prompts[1]) == content_key(prompts[3])


def test_answers_about_another_picture_are_another_group() -> None:
    rows = [Row(pair(asked(image), SAID, SAID), i) for i, image in enumerate([CAT, CAT, DOG])]
    assert [len(group.rows) for group in groups(rows, "file")] == [2, 1]


def test_responses_that_saw_another_picture_are_others() -> None:
    row = pair(asked(CAT), SAID, SAID)
    seen = replace(row.responses[1], prompt=asked(DOG))
    row = replace(row, responses=(row.responses[0], seen))
    assert response_digest(row, 0, "words") != response_digest(row, 1, "words")
    assert row.images == (CAT,) and row.all_images == (CAT, DOG) and row.has_own_prompts
    sides = [replace(side.responses[0], label=None) for side in to_unpaired(row)]
    unpaired = [
        replace(made, responses=(side,)) for made, side in zip(to_unpaired(row), sides, strict=True)
    ]
    assert len(_distinct(unpaired)) == 2 and len(_distinct(unpaired[:1] * 2)) == 1


class Looks:
    """Scores by the picture, and counts what it is asked."""

    name = "looks"
    traits = Traits(modalities=TEXT_AND_IMAGES)
    counts: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        self.calls.append(len(groups))
        return [
            [Score(1.0 if CAT in images_in(group.prompt) else 0.0)] * len(group.responses)
            for group in groups
        ]


@pytest.mark.parametrize("relative", [False, True])
def test_scores_are_kept_by_picture(tmp_path: Path, relative: bool) -> None:
    items = [
        BenchmarkItem(id=name, source="s", prompt=asked(image), responses=(SAID,))
        for name, image in (("cat", CAT), ("dog", DOG))
    ]
    scorer = Looks()
    for _ in range(2):
        kept = CachedScorer(lambda: scorer, tmp_path / "scores.jsonl", relative=relative)
        assert kept.score(as_groups(items)) == [[Score(1.0)], [Score(0.0)]]
    assert sum(scorer.calls) == 2


def test_pictures_of_two_sources_under_one_path_are_two(tmp_path: Path) -> None:
    there = asked(ImageRef(path="1.png"))
    items = [BenchmarkItem(id=s, source=s, prompt=there, responses=(SAID,)) for s in ("a", "b")]
    scorer = Looks()
    CachedScorer(lambda: scorer, tmp_path / "scores.jsonl").score(as_groups(items))
    assert sum(scorer.calls) == 2


def test_prompts_with_other_pictures_are_other_groups() -> None:
    prompts = [asked(CAT), asked(DOG), asked(CAT)]
    items = [
        BenchmarkItem(id="", source="s", prompt=prompt, responses=("a", "b")) for prompt in prompts
    ]
    pairs = compare(items, [[1.0, 0.0]] * 3)
    assert pairs.group.tolist() == [0, 1, 0]


def test_answers_of_a_chat_are_kept_by_picture(tmp_path: Path) -> None:
    class Chat:
        asked = 0

        def reply(self, questions: Any, **_: Any) -> list[list[Reply]]:
            Chat.asked += len(questions)
            seen = [str(images_in(question)[0].digest) for question in questions]
            return [[Reply(text=digest[:1], finished=True)] for digest in seen]

    kept = KeptChat(Chat, tmp_path / "kept.jsonl")
    for image in (CAT, DOG, CAT):
        (replies,) = kept.reply([asked(image)], samples=1)
        assert replies[0].text == str(image.digest)[:1]
    assert Chat.asked == 2
