"""A scorer behind a server: the same scores as the scorer itself, and one line where it fails."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from palate.data.images import NOT_AN_IMAGE
from palate.data.schema import ImageRef, images_in
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Scorer, Traits, ask, part_values
from palate.errors import ModelError, RecipeError
from palate.recipes import scorers as recipes
from palate.recipes.load import check_recipe
from palate.recipes.serving import ServeRecipe
from palate.rewards import make_scorer, score_groups
from palate.rewards.identity import key_of
from palate.rewards.remote import BLIND, NOT_ASKED, UNSENT, Remote, _Part
from palate.serve.app import make_app
from palate.store.http import ServerError
from tiny_serve import Slow
from tiny_text import tiny_tokenizer

URL = "http://there:8000"
CHAT: Any = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
ANSWER: Any = [{"role": "assistant", "content": "So."}]


@contextmanager
def served(spec: dict[str, Any], scorer: Scorer | None = None, **keys: Any) -> Iterator[Remote]:
    """A client of what `palate serve` serves; `keys` are of the remote scorer's recipe."""
    recipe = check_recipe(ServeRecipe, {"scorer": spec}, "test")
    app: Any = make_app(scorer or make_scorer(recipe.scorer), recipe)
    with TestClient(app, raise_server_exceptions=False) as client:

        def answer(request: httpx.Request) -> httpx.Response:
            method, path = request.method, request.url.path
            headers = dict(request.headers)
            given = client.request(method, path, content=request.content, headers=headers)
            return httpx.Response(given.status_code, content=given.content)

        yield answering(answer, **keys)


def recipe_of(**keys: Any) -> recipes.RemoteScorer:
    return recipes.RemoteScorer.model_validate({"url": URL} | keys)


def answering(answer: Callable[[httpx.Request], httpx.Response], **keys: Any) -> Remote:
    transport = httpx.MockTransport(answer)
    return Remote(recipe_of(**keys), transport=transport, sleep=lambda _: None)


def _shown(score: Score) -> Any:
    return score.value, score.reason, score.text, score.spans, part_values(score)


def bodies_of(requests: list[httpx.Request]) -> list[Any]:
    return [json.loads(request.content) for request in requests if request.method == "POST"]


RULE = {"type": "rule", "pattern": "[0-9]+"}
SCORERS: list[dict[str, Any]] = [
    {"type": "length"},
    RULE,
    {
        "type": "mixture",
        "members": [{"scorer": RULE, "weight": 2.0}, {"scorer": {"type": "length"}}],
    },
]


@pytest.mark.parametrize("spec", SCORERS, ids=["length", "spans", "members"])
@pytest.mark.parametrize("request_responses", [1, 3, 64])
def test_a_scorer_behind_a_server_gives_what_it_gives_here(
    spec: dict[str, Any], request_responses: int
) -> None:
    groups = [
        Group("How many?", ("12", "two", "12 or 3 of them")),
        Group(CHAT, (ANSWER, "7")),
        Group("Nothing?", ()),
    ]
    here = make_scorer(check_recipe(ServeRecipe, {"scorer": spec}, "test").scorer)
    with served(spec, request_responses=request_responses) as remote:
        scored, expected = remote.score(groups), here.score(groups)
        assert [[_shown(s) for s in scores] for scores in scored] == [
            [_shown(s) for s in scores] for scores in expected
        ]
        assert remote.traits.independent and not remote.traits.relative


def test_one_member_of_a_mixture_may_be_elsewhere() -> None:
    member = {"type": "remote", "url": URL}
    spec = {"type": "mixture", "members": [{"scorer": RULE}, {"scorer": member}]}
    recipe = check_recipe(ServeRecipe, {"scorer": spec}, "test").scorer
    with served({"type": "length"}) as remote:

        def made(wanted: recipes.Scorer) -> Scorer:
            return remote if isinstance(wanted, recipes.RemoteScorer) else make_scorer(wanted)

        (scores,) = score_groups(make_scorer(recipe, make=made), [Group("p", ("4 of", "two"))])
    assert [score.value for score in scores] == [5.0, 3.0]
    assert make_scorer(check_recipe(ServeRecipe, {"scorer": member}, "t").scorer).name == (
        "there:8000"
    )
    assert len({key_of(recipe_of()), key_of(recipe_of(url="http://else"))}) == 2


def test_what_is_refused_is_so_alone() -> None:
    groups = [Group("p", ("ab", "axb", "c")), Group("q", ("dd", "huh?"))]
    with served({"type": "length"}, Slow()) as remote:
        first, second = remote.score(groups)
        with pytest.raises(ServerError, match="answers 500"):
            remote.score([Group("p", ("y",))])
    assert [score.value for score in (*first, *second)] == [2.0, None, 1.0, 2.0, None]
    assert first[1].reason == f"{NOT_ASKED} (422): slow: knows no x"
    assert second[1].reason == "the score is no finite number"
    with served({"type": "length"}, Slow()) as remote, pytest.raises(ServerError) as caught:
        remote.score([Group("p", ("x",))])
    assert str(caught.value) == f"{URL}/score: {NOT_ASKED} (422): slow: knows no x"


def test_a_server_that_fails_for_a_while_is_asked_again() -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.url.path == "/info":
            return httpx.Response(404)
        if len(requests) < 4:
            return httpx.Response(503, text="not yet")
        return httpx.Response(200, json={"items": [{"scores": [0.5]}]})

    assert answering(answer).score([Group("p", ("a",))]) == [[Score(0.5)]]
    with pytest.raises(ServerError) as caught:
        answering(lambda _: httpx.Response(503, text="not\nyet"), retries=1).score(
            [Group("p", ("a",))]
        )
    assert str(caught.value) == f"{URL}/info: answers 503: not yet"


@pytest.mark.parametrize(
    "document",
    [
        {"scores": [1.0]},
        {"items": [{"scores": [1.0, 2.0]}]},
        {"items": [{"scores": ["high"]}]},
        {"items": [{"scores": [1.0], "texts": []}]},
        {"items": [{"scores": [1.0], "spans": [[{"start": 3, "stop": 1, "value": 1.0}]]}]},
        [],
    ],
)
def test_what_is_no_score_is_one_line(document: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        status = 404 if request.url.path == "/info" else 200
        return httpx.Response(status, json=document)

    with pytest.raises(ServerError, match="not scores of what was asked") as caught:
        answering(answer).score([Group("p", ("a",))])
    assert "\n" not in str(caught.value)


def test_a_server_that_compares_is_told_by_the_recipe() -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.url.path == "/info":
            return httpx.Response(200, json={"scorer": {"relative": True}})
        items = json.loads(request.content)["items"]
        scores = [{"scores": [float(k) for k in range(len(i["responses"]))]} for i in items]
        return httpx.Response(200, json={"items": scores})

    groups = [Group("p", ("a", "b", "c")), Group("q", ("d",))]
    remote = answering(answer, relative=True, request_responses=2)
    assert remote.traits.relative
    assert [[s.value for s in scores] for scores in remote.score(groups)] == [
        [0.0, 1.0, 2.0],
        [0.0],
    ]
    sent = [[len(i["responses"]) for i in body["items"]] for body in bodies_of(requests)]
    assert sorted(sent) == [[1], [3]]
    with pytest.raises(ServerError, match="set `relative: true`"):
        answering(answer).score(groups)


def test_whole_conversations_are_sent_as_openrlhf_sends_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        queries = json.loads(request.content)["query"]
        return httpx.Response(200, json={"rewards": [[float(len(q))] for q in queries]})

    remote = answering(answer, route="get_reward", tokenizer=str(tmp_path))
    ((first, second),) = remote.score([Group(CHAT, (ANSWER, "<eos>"))])
    (body,) = bodies_of(requests)
    assert body["query"] == ["<user>Why?<eos><assistant>So.<eos>", *body["query"][1:]]
    assert body["prompts"] == ["<user>Why?<eos><assistant>"] * len(body["query"])
    assert len(body["labels"]) == len(body["query"])
    assert first.value == float(len(body["query"][0]))
    assert second.value is not None or second.reason is not None
    assert requests[0].url.path == "/get_reward"
    plain = answering(answer, route="get_reward")
    plain.score([Group(CHAT, (ANSWER,))])
    assert bodies_of(requests)[-1]["query"] == ["Why?So."]


def test_no_key_and_no_address_are_said_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ModelError, match="NO_SUCH_KEY holds no key"):
        make_scorer(recipe_of(api_key_env="NO_SUCH_KEY"))
    with pytest.raises(ModelError, match=r"`url`: localhost is no address"):
        make_scorer(recipe_of(url="localhost"))
    spec = {"scorer": {"type": "remote", "url": URL, "tokenizer": "x"}}
    with pytest.raises(RecipeError, match="only with `route: get_reward`"):
        check_recipe(ServeRecipe, spec, "test")


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_KEY", "secret")
    headers: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        headers.append(request.headers["authorization"])
        return httpx.Response(404 if request.url.path == "/info" else 200, json={"items": []})

    with pytest.raises(ServerError):
        answering(answer, api_key_env="REMOTE_KEY").score([Group("p", ("a",))])
    assert set(headers) == {"Bearer secret"}


# Images -------------------------------------------------------------------------------------------


class Sees:
    """Scores by what a prompt shows."""

    name = "sees"
    traits = Traits(modalities=TEXT_AND_IMAGES, independent=True)
    counts: ClassVar[Counter[str]] = Counter()

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        shown = [[image.digest for image in images_in(group.prompt)] for group in groups]
        return [
            [Score(float(int(d[0][:6], 16) if d else 0)) for _ in group.responses]
            for d, group in zip(shown, groups, strict=True)
        ]


def looking(*images: ImageRef) -> Any:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]


def test_prompts_are_sent_with_their_images_each_once_a_request(tmp_path: Path) -> None:
    files = []
    for shade in (9, 200):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / f"{shade}.png")
        files.append((tmp_path / f"{shade}.png").read_bytes())
    first = ImageRef(path="9.png", root=tmp_path)
    second, broken = ImageRef(data=files[1]), ImageRef(data=files[0][:40])
    groups = [
        Group(looking(first, second, first), ("a", "b")),
        Group(looking(broken), ("a",)),
        Group("text", ("a",)),
        Group(looking(second), ("a",)),
    ]
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    wanted = [float(int(digest[:6], 16)) for digest in digests]
    with served({"type": "length"}, Sees(), images=True) as remote:
        found = ask(remote, groups)
        assert [[score.value for score in scores] for scores in found] == [
            *([wanted[0]] * 2, [None], [0.0], [wanted[1]])
        ]
        assert found[1][0].reason == UNSENT.format(NOT_AN_IMAGE)
        body, _ = remote._body([_Part(0, [0, 1], groups[0])])
    assert sorted(body["images"]) == sorted(digests)
    named = [part.get("image") for part in body["items"][0]["prompt"][0]["content"]]
    assert named == [*(f"sha256:{digests[i]}" for i in (0, 1, 0)), None]


def test_images_go_where_the_recipe_says_so() -> None:
    with served({"type": "length"}, Sees()) as remote:
        (scores,) = ask(remote, [Group(looking(ImageRef(data=b"")), ("a",))])
        assert scores[0].reason == BLIND and "`images`" in BLIND
    with pytest.raises(RecipeError, match="only with `route: score`"):
        document = {"scorer": {"type": "remote", "url": URL, "route": "get_reward", "images": True}}
        check_recipe(ServeRecipe, document, "test")
