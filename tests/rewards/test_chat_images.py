"""Judges that are asked about images: behind a server, and on this machine."""

from __future__ import annotations

import base64
import hashlib
import io

import pytest
import torch
from PIL import Image

from fake_chat import Fake, alternatives, completion
from palate.data.schema import ImageRef, VideoRef, images_in, text_in
from palate.data.scorer import HAS_IMAGES, Group, ask
from palate.errors import ModelError
from palate.models.vision import own_inputs
from palate.recipes.scorers import (
    CriticScorer,
    LocalChat,
    ModelScorer,
    PairwiseJudge,
    PointwiseJudge,
    ServerChat,
)
from palate.rewards.chat import Reply, open_chat
from palate.rewards.chat.local import BLIND as TEXT_ALONE
from palate.rewards.chat.server import BLIND, Server
from palate.rewards.critic import Critic
from palate.rewards.judge import Pairwise, Pointwise
from palate.rewards.questions import critique_question, pair_question, rating_question
from palate.train.judge.kept import KeptChat
from tiny_text import save_tiny
from tiny_vision import PROCESSED, save_tiny_vision


def picture(shade, format="PNG", size=(64, 48)):
    """The encoded file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 10, 255 - shade)).save(file, format)
    return file.getvalue()


RED, BLUE = picture(250), picture(5)


def image(data=RED):
    return {"type": "image", "image": ImageRef(data=data)}


def said(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": list(parts)}


LOOK = [user(image(), said("What is it?"))]
TALK = [
    user(said("Before "), image(RED), said(" after")),
    {"role": "assistant", "content": "Red."},
    user(image(BLUE), image(RED), said("And now?")),
]
KINDS = {
    "pair": lambda p: pair_question(p, "AAA", "BBB", ties=True, reasoning=True),
    "rating": lambda p: rating_question(p, "AAA", best=5, reasoning=False),
    "critique": lambda p: critique_question(p, "AAA"),
}


@pytest.fixture
def fake():
    server = Fake()
    yield server
    server.close()


def chat(fake, **more):
    recipe = ServerChat(url=fake.url, model="m", concurrency=1, **{"images": True} | more)
    return Server(recipe, sleep=lambda _: None)


def urls(message):
    return [p["image_url"]["url"] for p in message["content"] if p["type"] == "image_url"]


# Questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [LOOK, TALK])
def test_a_question_has_its_prompts_images_in_their_places_and_the_same_words(kind, prompt):
    (turn,) = KINDS[kind](prompt)
    bare = [{"role": t["role"], "content": text_in(t["content"])} for t in prompt]
    (without,) = KINDS[kind](bare)
    assert text_in(turn["content"]) == without["content"]
    assert images_in([turn]) == images_in(prompt)
    assert [p["type"] for p in turn["content"]][:2] == ["text", "image"]


def test_images_stand_between_the_words_around_them():
    (turn,) = critique_question(TALK, "No.")
    texts = [p["text"] if p["type"] == "text" else "#" for p in turn["content"]]
    assert texts[0].endswith("[Conversation]\nUser: Before ") and texts[1] == "#"
    assert texts[2] == " after\n\nAssistant: Red.\n\nUser: " and texts[3:5] == ["#", "#"]
    assert texts[5].startswith("And now?\n[End of conversation]\n\n[Response]\nNo.\n")
    assert len(texts) == 6


# Behind a server ----------------------------------------------------------------------------------


def test_a_server_gets_data_urls_in_place_with_the_media_type_of_the_content(fake, tmp_path):
    (tmp_path / "b.png").write_bytes(picture(9, "JPEG"))
    parts = [
        said("one "),
        image(),
        said(" two "),
        {"type": "image", "image": ImageRef(path="b.png", root=tmp_path)},
        image(picture(3, "WEBP")),
        image(picture(3, "GIF")),
    ]
    chat(fake).reply([[user(*parts)]])
    (message,) = fake.requests[0][1]["messages"]
    assert [p["type"] for p in message["content"]] == [
        *("text", "image_url", "text", "image_url", "image_url", "image_url")
    ]
    heads, bodies = zip(*(url.split(",") for url in urls(message)), strict=True)
    kinds = ["png", "jpeg", "webp", "gif"]
    assert list(heads) == [f"data:image/{kind};base64" for kind in kinds]
    assert base64.b64decode(bodies[0]) == RED
    assert base64.b64decode(bodies[1]) == (tmp_path / "b.png").read_bytes()
    # What holds no image is one text, as it always was.
    chat(fake).reply([[{"role": "user", "content": "Hi"}]])
    assert fake.requests[1][1]["messages"] == [{"role": "user", "content": "Hi"}]


def test_videos_are_sent_as_their_frames_in_place(fake):
    video = {"type": "video", "video": VideoRef(frames=(ImageRef(data=RED), ImageRef(data=BLUE)))}
    question = critique_question([user(image(BLUE), video, said("Moves?"))], "Yes.")
    chat(fake).reply([question])
    bodies = [url.partition(",")[2] for url in urls(fake.requests[0][1]["messages"][0])]
    assert [base64.b64decode(body) for body in bodies] == [BLUE, RED, BLUE]


def test_a_pairwise_judge_shows_the_same_images_in_both_orders(fake):
    def answer(body):
        text = "".join(p.get("text", "") for p in body["messages"][0]["content"])
        return 200, completion(f"<answer>{1 if text.index('good') < 900 else 2}</answer>"), {}

    fake.default = answer
    judge = Pairwise(
        PairwiseJudge(chat=ServerChat(url=fake.url, model="m", images=True), method="sampled"),
        chat(fake),
    )
    (scores,) = ask(judge, [Group(TALK, ("good", "bad"))])
    assert len(fake.requests) == 2 and judge.counts[judge.AGREE] + judge.counts[judge.DISAGREE] == 1
    shown = [urls(body["messages"][0]) for _, body, _ in fake.requests]
    assert shown[0] == shown[1] and len(shown[0]) == 3
    assert all(score.value is not None for score in scores)


def test_probabilities_are_asked_for_with_images_too(fake):
    fake.default = (200, alternatives(**{"1": -0.1, "2": -3.0}), {})
    judge = Pairwise(PairwiseJudge(chat=ServerChat(url=fake.url, model="m")), chat(fake))
    assert judge.compare([LOOK], ["a"], ["b"])[0] == pytest.approx(0.5)
    messages = fake.requests[0][1]["messages"]
    assert len(urls(messages[0])) == 1 and messages[1]["content"] == "<answer>"


def test_a_server_that_is_not_said_to_see_is_not_shown_anything(fake):
    blind = chat(fake, images=False)
    judge = Pointwise(PointwiseJudge(chat=blind.recipe, method="sampled"), blind)
    assert "image" not in judge.traits.modalities
    (scores,) = ask(judge, [Group(LOOK, ("a",))])
    assert scores[0].reason == BLIND and "`chat.images`" in BLIND
    ((reply,),) = blind.reply([LOOK])
    assert reply.refused == BLIND and fake.requests == []
    seeing = Pointwise(PointwiseJudge(chat=blind.recipe, method="sampled"), chat(fake))
    assert "image" in seeing.traits.modalities


def test_an_image_that_cannot_be_read_costs_its_question(fake):
    broken = [user(image(RED[:60]), said("?"))]
    gone = [user({"type": "image", "image": "../x.png"}, said("?"))]
    replies = chat(fake).reply([broken, gone, LOOK])
    assert [own[0].refused for own in replies] == [
        "has an image that cannot be sent: broken or cut short",
        "has an image that cannot be sent: a path that leads out of the image folder",
        None,
    ]
    assert len(fake.requests) == 1
    fake.default = (200, alternatives(**{"1": -0.1}), {})
    begun = {"role": "assistant", "content": "<answer>"}
    assert chat(fake).choose([[*broken, begun], [*LOOK, begun]], ["1", "2"])[0] is None


def test_a_server_without_eyes_is_an_error_that_names_the_key(fake):
    def refuse(body):
        if any(not isinstance(turn["content"], str) for turn in body["messages"]):
            return 400, "this model takes no images", {}
        return 200, completion("<answer>1</answer>"), {}

    fake.default = refuse
    with pytest.raises(ModelError, match=r"`chat\.images: true` needs a server whose model reads"):
        chat(fake).reply([LOOK])
    # One image too many is that question's own affair.
    fake.default = lambda body: (
        (400, "at most 1 image", {})
        if len(urls(body["messages"][0])) > 1
        else (200, completion("x"), {})
    )
    replies = chat(fake).reply([TALK[-1:], LOOK])
    assert [own[0].refused for own in replies] == ["refused by the server (400)", None]


def test_a_critic_sees_where_its_writer_and_its_reward_model_do(fake):
    class Reads:
        name = "reads"

        def __init__(self, traits):
            self.traits = traits

    recipe = CriticScorer(chat=LocalChat(path="unused"), scorer=ModelScorer(path="unused"))
    seeing = Pointwise(PointwiseJudge(chat=LocalChat(path="unused")), chat(fake)).traits
    text = Pointwise(PointwiseJudge(chat=LocalChat(path="unused")), chat(fake, images=False)).traits
    both = Critic(recipe, Reads(seeing), chat(fake)).traits
    assert "image" in both.modalities
    assert "image" not in Critic(recipe, Reads(text), chat(fake)).traits.modalities
    blind = Critic(recipe, Reads(seeing), chat(fake, images=False)).traits
    assert "image" not in blind.modalities and blind.blind == BLIND


def test_kept_answers_are_those_of_their_images(tmp_path):
    class Counts:
        name = "counts"
        blind = None

        def __init__(self):
            self.asked = 0

        def reply(self, questions, **_):
            self.asked += len(questions)
            return [[Reply(text=str(self.asked), finished=True)] for _ in questions]

    counts = Counts()
    kept = KeptChat(lambda: counts, tmp_path / "kept.jsonl")
    first, second = [user(image(RED), said("?"))], [user(image(BLUE), said("?"))]
    answers = [kept.reply([q])[0][0].text for q in (first, second, first, second)]
    assert answers == ["1", "2", "1", "2"] and kept.blind is None
    # By content: where the same file lies is nothing to an answer.
    (tmp_path / "red.png").write_bytes(RED)
    digest = images_in(first)[0]
    told = ImageRef(path="red.png", root=tmp_path, digest=hashlib.sha256(digest.data).hexdigest())
    assert kept.reply([[user({"type": "image", "image": told}, said("?"))]])[0][0].text == "1"


# On this machine ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PROCESSED)
def local(request, tmp_path_factory):
    folder = save_tiny_vision(tmp_path_factory.mktemp("sees"), request.param)
    return open_chat(LocalChat(path=str(folder), dtype="float32", batch_size=3))


QUESTIONS = [
    [user(image(RED), said("What?"))],
    [{"role": "user", "content": "A question of words alone, and rather long."}],
    [user(said("Look: "), image(BLUE), said(" and "), image(RED), said("?"))],
    [user(image(BLUE), said("What?"))],
]


@torch.no_grad()
def plainly(chat, question, answer):
    """[vocabulary] log-probs of what comes next, by the model's own forward from its own pixels."""
    with chat._reading():
        tokens = chat._ids(question)
        pixels = [chat._pictures.pixels(i.digest) for i in tokens.images] if tokens.images else []
    ids = (*tokens.ids, *answer)
    if pixels:
        inputs = own_inputs(chat.model.model, chat._vision, ids, len(tokens.ids), pixels)
    else:
        inputs = {"input_ids": torch.tensor([ids])}
    return chat.model(**inputs).logits[0, -1].float().log_softmax(-1)


def test_what_is_written_is_what_the_model_itself_says_next(local):
    local._ends = lambda: frozenset()
    replies = local.reply(QUESTIONS, max_new_tokens=3)
    written = []
    for question, (reply,) in zip(QUESTIONS, replies, strict=True):
        ids = []
        for _ in range(3):
            ids.append(int(plainly(local, question, ids).argmax()))
        assert reply.text == local.tokenizer.decode(ids, skip_special_tokens=True)
        written.append(ids)
    assert local.blind is None
    # The same, alone: nothing hangs on what is asked beside it, or before.
    assert local.reply(QUESTIONS[2:3], max_new_tokens=3)[0] == replies[2]


def test_choices_are_those_of_the_model_itself(local):
    begun = {"role": "assistant", "content": "<answer>"}
    found = local.choose([[*question, begun] for question in QUESTIONS], ["1", "no"])
    text = {
        option: local.tokenizer(option, add_special_tokens=False)["input_ids"]
        for option in found[0]
    }
    head = local.tokenizer("<answer>", add_special_tokens=False)["input_ids"]
    for place in (0, 2):
        question, own = QUESTIONS[place], found[place]
        for option, ids in text.items():
            logp = sum(
                float(plainly(local, question, [*head, *ids[:t]])[token])
                for t, token in enumerate(ids)
            )
            assert own[option] == pytest.approx(logp, abs=2e-4)
    assert found[0] != pytest.approx(found[3], abs=1e-4)  # the picture decides


def test_images_that_cannot_be_read_and_samples_of_two_pictures(local):
    replies = local.reply([[user(image(RED[:60]), said("?"))], QUESTIONS[0]], max_new_tokens=2)
    assert replies[0][0].refused == "broken or cut short" and replies[1][0].refused is None
    drawn = [
        local.reply([[user(image(data), said("?"))]], temperature=50.0, max_new_tokens=8, seed=1)
        for data in (RED, BLUE, RED)
    ]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_model_of_text_alone_says_so(tmp_path):
    folder = save_tiny(tmp_path)
    chat = open_chat(LocalChat(path=str(folder), chat_template="plain", dtype="float32"))
    judge = Pointwise(PointwiseJudge(chat=LocalChat(path="unused")), chat)
    (scores,) = ask(judge, [Group(LOOK, ("a",))])
    assert scores[0].reason == chat.blind == TEXT_ALONE.format(chat.name) != HAS_IMAGES
    assert chat.reply([LOOK])[0][0].refused == chat.blind
    assert chat.choose([[*LOOK, {"role": "assistant", "content": "<"}]], ["1"]) == [None]
