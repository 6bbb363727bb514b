"""The two kinds of models that judge: a tiny local one, and a server on this machine."""

from __future__ import annotations

import gc
import json
import math
import re
import time

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fake_chat import Fake, alternatives, completion
from palate.errors import ModelError
from palate.recipes.scorers import LocalChat, PairwiseJudge, ServerChat
from palate.rewards.chat import open_chat
from palate.rewards.chat.server import Server
from palate.rewards.judge import Pairwise
from tiny import COMMON
from tiny_chat import byte_tokenizer, spacing_tokenizer
from tiny_text import save_tiny

BOS = 1
"""The tokenizer begins texts with it: so does training, and so does a question."""

TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("judge"))
    for name, more in (
        ("tokenizer_config.json", {"chat_template": TEMPLATE}),
        ("config.json", {"max_position_embeddings": 1024}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    return open_chat(LocalChat(path=str(folder), dtype="float32", batch_size=2))


def ask(text):
    return [{"role": "user", "content": text}]


QUESTIONS = [ask("One?"), ask("A much longer question, with more words."), ask("Two?")]


def test_greedy_answers_do_not_depend_on_the_batch(local):
    together = local.reply(QUESTIONS, max_new_tokens=6)
    alone = [local.reply([question], max_new_tokens=6)[0] for question in QUESTIONS]
    assert together == alone
    ids = [BOS, *local.tokenizer("user: One?\nassistant: ", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        first = int(local.model(torch.tensor([ids])).logits[0, -1].argmax())
    text = local.tokenizer.decode([first], skip_special_tokens=True)
    assert together[0][0].text.startswith(text)


def test_samples_follow_the_seed_and_differ(local):
    one = local.reply(QUESTIONS, samples=3, temperature=2.0, max_new_tokens=5, seed=1)
    assert one == local.reply(QUESTIONS, samples=3, temperature=2.0, max_new_tokens=5, seed=1)
    assert one != local.reply(QUESTIONS, samples=3, temperature=2.0, max_new_tokens=5, seed=2)
    assert len({reply.text for reply in one[1]}) > 1
    # A sample is the same whatever is asked beside it.
    assert local.reply(QUESTIONS[1:2], samples=3, temperature=2.0, max_new_tokens=5, seed=1) == [
        one[1]
    ]


def test_choices_are_exact_log_probabilities(local):
    begun = [[*question, {"role": "assistant", "content": "<answer>"}] for question in QUESTIONS]
    found = local.choose(begun, ["1", "2", "tie"])
    for question, own in zip(QUESTIONS, found, strict=True):
        text = f"user: {question[0]['content']}\nassistant: <answer>"
        head = [BOS, *local.tokenizer(text, add_special_tokens=False)["input_ids"]]
        for option, logp in own.items():
            tail = local.tokenizer(option, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = local.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            exact = sum(float(logits[len(head) + t - 1, x]) for t, x in enumerate(tail))
            assert logp == pytest.approx(exact, abs=1e-4)


def test_a_local_judge_gives_probabilities(local):
    judge = Pairwise(PairwiseJudge(chat=LocalChat(path="unused")), local)
    (win,) = judge.compare(["p"], ["yes"], ["no"])
    assert 0 < win < 1
    assert judge.compare(["p"], ["no"], ["yes"]) == pytest.approx([1 - win], abs=1e-5)


def saved(folder, tokenizer):
    """A model of one layer with places for 64 tokens and no more."""
    torch.manual_seed(0)
    more = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "num_hidden_layers": 1}
    model = GPT2LMHeadModel(GPT2Config(**COMMON | more, initializer_range=0.5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_chat(LocalChat(path=str(folder), dtype="float32", chat_template="plain"))


def test_what_leaves_no_room_in_the_context_is_not_asked_and_answers_end_there(tmp_path):
    chat = saved(tmp_path, byte_tokenizer())
    chat._ends = lambda: frozenset()
    asked = [ask("Hi"), ask("x" * 60), ask("Why?")]
    n = len(chat._ids(asked[0]))
    whole, refused, _ = chat.reply(asked, samples=2, max_new_tokens=200)
    assert not whole[0].finished and refused[0].finished
    ids = list(chat._ids(asked[0]).ids)
    with torch.no_grad():
        while len(ids) < 64:
            ids.append(int(chat.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert whole[0].text == chat.tokenizer.decode(ids[n:], skip_special_tokens=True)
    assert {reply.refused for reply in refused} == {
        "the question fills the model's context of 64 tokens"
    }
    begun = [[*question, {"role": "assistant", "content": "<"}] for question in asked]
    some, nothing, _ = chat.choose(begun, ["1", "2"])
    assert set(some) == {"1", "2"} and nothing is None


def test_verdicts_are_read_as_the_tokenizer_writes_them_behind_the_answer(tmp_path):
    """One that puts a space before every text would have another token for a verdict alone."""
    chat = saved(tmp_path, spacing_tokenizer())
    question = ask("Which?")
    (found,) = chat.choose([[*question, {"role": "assistant", "content": "<answer>"}]], ["1", "2"])
    names = chat.tokenizer.get_vocab()
    ids = [*chat._ids(question).ids, *(names[c] for c in ["▁", *"<answer>"])]
    with torch.no_grad():
        logps = chat.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    for option, logp in found.items():
        assert logp == pytest.approx(float(logps[names[option]]), abs=1e-5)


def test_a_tokenizer_that_joins_a_verdict_with_the_answer_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["vocab"][">1"] = len(document["model"]["vocab"])
    document["model"]["merges"] = [[">", "1"]]
    document["pre_tokenizer"]["use_regex"] = False
    tokenizer.backend_tokenizer.from_str(json.dumps(document))
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(document))
    chat = saved(tmp_path, tokenizer)
    question = [*ask("Which?"), {"role": "assistant", "content": "<answer>"}]
    with pytest.raises(ModelError, match="joins '<answer>' with '1': use `method: sampled`"):
        chat.choose([question], ["1", "2"])
    assert chat.choose([question], ["2", "3"])[0] is not None


def test_options_of_one_token_are_read_off_one_row(local, monkeypatch):
    rows = []
    forward = local.model.forward

    def counting(**inputs):
        rows.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(local.model, "forward", counting)
    begun = [[*question, {"role": "assistant", "content": "<answer>"}] for question in QUESTIONS]
    local.choose(begun, list("123456789"))
    assert sum(rows) == 3


def test_of_the_rows_over_the_vocabulary_one_batch_is_held(local, monkeypatch):
    vocabulary = local.model.config.vocab_size
    own = {parameter.data_ptr() for parameter in local.model.parameters()}
    held = []
    forward = local.model.forward

    def counting(**inputs):
        held.append(
            sum(
                thing.numel()
                for thing in gc.get_objects()
                if type(thing) is torch.Tensor
                and thing.shape[-1:] == (vocabulary,)
                and thing.data_ptr() not in own
            )
        )
        return forward(**inputs)

    monkeypatch.setattr(local.model, "forward", counting)
    begun = [[*ask(f"{i}?"), {"role": "assistant", "content": "<answer>"}] for i in range(12)]
    local.choose(begun, ["1", "2", "tie"])
    assert len(held) > 5 and max(held[1:]) <= held[0]


def test_a_model_without_a_template_cannot_judge(tmp_path):
    folder = save_tiny(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        open_chat(LocalChat(path=str(folder)))


def thinking(text, **more):
    return {"choices": [{"message": {"content": text, **more}, "finish_reason": "stop"}]}


@pytest.fixture
def fake():
    server = Fake()
    yield server
    server.close()


def chat(fake, **more):
    return Server(
        ServerChat(url=fake.url, model="m/judge", **{"concurrency": 1, **more}),
        sleep=lambda _: None,
    )


def test_a_server_is_asked_and_read(fake, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server = chat(fake, api_key_env="JUDGE_KEY")
    (replies,) = server.reply([ask("Hi")], samples=2, temperature=0.5, max_new_tokens=7, seed=3)
    assert [reply.text for reply in replies] == ["<answer>1</answer>"] * 2
    path, body, headers = fake.requests[0]
    assert path == "/v1/chat/completions" and server.name == "judge"
    assert body["messages"] == ask("Hi") and body["model"] == "m/judge"
    assert (body["temperature"], body["max_tokens"]) == (0.5, 7)
    assert [request[1]["seed"] for request in fake.requests] == [3, 4]
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer secret"
    fake.default = (200, completion(None, "length"), {})
    (reply,) = server.reply([ask("Hi")])[0]
    assert (reply.text, reply.finished) == ("", False)


def test_answers_come_back_in_order(fake):
    fake.answers = [(200, completion(str(n)), {}) for n in range(5)]
    found = chat(fake).reply([ask(str(n)) for n in range(5)])
    assert [own[0].text for own in found] == list("01234")


def test_busy_and_broken_servers_are_asked_again(fake):
    waits = []
    server = Server(ServerChat(url=fake.url, model="m", retries=2), sleep=waits.append)
    fake.answers = [(429, "busy", {"retry-after": "7"}), (503, "down", {})]
    assert server.reply([ask("Hi")])[0][0].finished
    assert waits == [7.0, 1.0]
    fake.answers = [(500, "broken  badly", {})] * 3
    with pytest.raises(ModelError, match="answers 500: broken badly"):
        server.reply([ask("Hi")])
    assert len(fake.requests) == 6


def test_what_asking_again_cannot_mend_is_one_error(fake):
    fake.answers = [(401, "no such key", {})]
    with pytest.raises(ModelError, match="answers 401: no such key"):
        chat(fake).reply([ask("Hi")])
    assert len(fake.requests) == 1
    fake.answers = [(200, {"choices": []}, {})]
    with pytest.raises(ModelError, match="not a chat completion"):
        chat(fake).reply([ask("Hi")])
    with pytest.raises(ModelError, match="NO_SUCH_KEY holds no key"):
        chat(fake, api_key_env="NO_SUCH_KEY")
    gone = Server(
        ServerChat(url="http://127.0.0.1:9/v1", model="m", retries=1), sleep=lambda _: None
    )
    with pytest.raises(ModelError, match="no answer"):
        gone.reply([ask("Hi")])


def test_log_probabilities_of_a_server(fake):
    top = [
        {"token": " 1", "logprob": -1.0},
        {"token": "1", "logprob": -0.5},
        {"token": "2", "logprob": -2.0},
        {"token": "The", "logprob": -3.0},
    ]
    content = [{"token": "1", "logprob": -0.5, "top_logprobs": top}]
    fake.default = (200, completion("1", logprobs={"content": content}), {})
    judge = Pairwise(
        PairwiseJudge(chat=ServerChat(url=fake.url, model="m"), swap=False), chat(fake)
    )
    (win,) = judge.compare(["p"], ["a"], ["b"])
    first, second = math.exp(-0.5) + math.exp(-1.0), math.exp(-2.0)
    assert win == pytest.approx(first / (first + second))
    body = fake.requests[0][1]
    assert body["messages"][-1] == {"role": "assistant", "content": "<answer>"}
    assert body["top_logprobs"] == 20 and body["continue_final_message"] is True
    fake.default = (200, completion("1"), {})
    with pytest.raises(ModelError, match="gives no log-probabilities"):
        judge.compare(["p"], ["a"], ["b"])


def test_what_a_server_calls_otherwise_or_does_not_know_is_asked_its_way(fake, caplog):
    def strict(body):
        if "max_tokens" in body:
            return 400, {"error": "Use 'max_completion_tokens' instead of 'max_tokens'"}, {}
        if "seed" in body:
            return 422, {"detail": [{"loc": ["body", "seed"], "msg": "extra_forbidden"}]}, {}
        return 200, completion("x"), {}

    fake.default = strict
    server = chat(fake)
    assert server.reply([ask("Hi")], temperature=0.5, max_new_tokens=7)[0][0].text == "x"
    server.reply([ask("Hi")], samples=2, temperature=0.5, max_new_tokens=7)
    bodies = [body for _, body, _ in fake.requests]
    assert len(bodies) == 3 + 2
    assert bodies[-1]["max_completion_tokens"] == 7 and "seed" not in bodies[-1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{fake.url}/chat/completions: takes no `seed`: what it samples cannot be drawn again"
    ]
    # Nothing is drawn at temperature 0.
    fake.default = (200, completion("x"), {})
    chat(fake).reply([ask("Hi")])
    assert "seed" not in fake.requests[-1][1]


def test_a_question_that_the_server_refuses_costs_no_other_its_answer(fake, caplog):
    def picky(body):
        if "bad" in body["messages"][0]["content"]:
            return 400, {"error": "policy: no"}, {}
        return 200, completion("fine"), {}

    fake.default = picky
    server = chat(fake)
    first, second, third = server.reply([ask("a bad one"), ask("Hi"), ask("bad, too")])
    assert (first[0].text, first[0].refused) == ("", "refused by the server (400)")
    assert second[0].text == "fine" and second[0].refused is None and third[0].refused
    # One short question tells whose fault it was.
    assert len(fake.requests) == 4 and len(caplog.records) == 1
    assert "answers 400" in caplog.text and "policy: no" in caplog.text
    # Where nothing asked in this way is answered, the recipe is at fault.
    fake.default = (400, {"error": "temperature must be 1"}, {})
    with pytest.raises(ModelError, match=r"answers 400.*temperature must be 1"):
        chat(fake).reply([ask("a"), ask("b")])
    fake.default = (400, {"error": "unknown field: continue_final_message"}, {})
    judge = Pairwise(PairwiseJudge(chat=ServerChat(url=fake.url, model="m")), chat(fake))
    with pytest.raises(ModelError, match=r"begun answer.*use `method: sampled`") as found:
        judge.compare(["p"], ["a"], ["b"])
    assert len(str(found.value).splitlines()) == 1


def test_reasoning_that_a_server_gives_apart_is_the_thought(fake):
    for key in ("reasoning_content", "reasoning"):
        fake.default = (200, thinking("<answer>1</answer>", **{key: " So. "}), {})
        ((reply,),) = chat(fake).reply([ask("Hi")])
        assert (reply.text, reply.thought) == ("<answer>1</answer>", "So.")
        assert reply.whole == "<think>\nSo.\n</think>\n<answer>1</answer>"
    fake.default = (200, thinking([{"type": "text", "text": "a"}, {"type": "image"}]), {})
    ((reply,),) = chat(fake).reply([ask("Hi")])
    assert reply.whole == reply.text == "a"


@pytest.mark.parametrize(
    ("finish", "text", "finished", "refused"),
    [
        ("length", "half", False, None),
        ("eos_token", "half", True, None),
        (None, "half", True, None),
        ("content_filter", "", True, "withheld by the server's filter"),
    ],
)
def test_how_an_answer_ended(fake, finish, text, finished, refused):
    fake.default = (200, completion("half", finish), {})
    ((reply,),) = chat(fake).reply([ask("Hi")])
    assert (reply.text, reply.finished, reply.refused) == (text, finished, refused)


@pytest.mark.parametrize(
    "answer",
    [
        "{",
        "",
        {"choices": None},
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": 5}}]},
        {"error": {"message": "overloaded"}},
    ],
)
def test_what_is_no_completion_is_one_line(fake, answer):
    fake.default = (200, answer, {})
    with pytest.raises(ModelError, match="not a chat completion") as found:
        chat(fake).reply([ask("Hi")])
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("logprobs", "words"),
    [
        ([1], "gives no log-probabilities: use `method: sampled`"),
        ({"content": None}, "gives no log-probabilities: use `method: sampled`"),
        ({"content": [{"token": "1", "logprob": -0.1}]}, "gives no alternatives"),
        (
            {"content": [{"top_logprobs": [{"token": "1", "logprob": None}]}]},
            "no log-probabilities: ",
        ),
        (
            {"content": [{"top_logprobs": [{"token": "1", "logprob": math.nan}]}]},
            "no log-probabilities: ",
        ),
    ],
)
def test_log_probabilities_that_are_none_are_one_line(fake, logprobs, words):
    fake.default = (200, completion("1", logprobs=logprobs), {})
    with pytest.raises(ModelError, match=words):
        chat(fake).choose([ask("Hi")], ["1", "2"])


def test_options_by_their_first_token_and_answers_begun_anew(fake, caplog):
    fake.default = (200, alternatives(Tie=-0.1, t=-3.0, **{"1": -2.0, "": -1.0}), {})
    (found,) = chat(fake).choose([ask("Hi")], ["1", "2", "tie"])
    assert found == pytest.approx({"tie": math.log(math.exp(-0.1) + math.exp(-3.0)), "1": -2.0})
    # Where two options begin alike, neither is meant.
    assert chat(fake).choose([ask("Hi")], ["to", "tie", "1"]) == [{"tie": -0.1, "1": -2.0}]
    fake.default = (200, alternatives(**{"1": -math.inf, "2": -0.5}), {})
    assert chat(fake).choose([ask("Hi")], ["1", "2"]) == [{"2": -0.5}]
    fake.default = (200, alternatives(**{"<": -0.01, "1": -9.0, "2": -9.5}), {})
    assert chat(fake).choose([ask("Hi")] * 2, ["1", "2"]) == [None, None]
    assert "begins its answer anew" in caplog.text and len(caplog.records) == 1
    fake.default = (200, completion("", logprobs={"content": []}), {})
    assert chat(fake).choose([ask("Hi")], ["1", "2"]) == [None]


def test_a_verdict_is_as_likely_as_all_its_spellings_together(fake):
    fake.default = (200, alternatives(**{"1": -1.2, " 1": -1.2, "2": -1.1}), {})
    (found,) = chat(fake).choose([ask("Hi")], ["1", "2"])
    assert found == pytest.approx({"1": math.log(2) - 1.2, "2": -1.1})
    judge = Pairwise(
        PairwiseJudge(chat=ServerChat(url=fake.url, model="m"), swap=False), chat(fake)
    )
    assert judge.compare(["p"], ["a"], ["b"])[0] == pytest.approx(
        2 * math.exp(-1.2) / (2 * math.exp(-1.2) + math.exp(-1.1))
    )


def test_waiting_as_long_as_the_server_says(fake):
    waits = []
    server = Server(ServerChat(url=fake.url, model="m", retries=3), sleep=waits.append)
    fake.answers = [
        (429, "", {"retry-after": "120"}),
        (429, "", {"retry-after": "soon"}),
        (503, "", {"retry-after": "100"}),
    ]
    server.reply([ask("Hi")])
    assert waits == [120.0, 1.0, 100.0]


@pytest.mark.parametrize("asked", ["200", "Wed, 21 Oct 2099 07:28:00 GMT", "inf"])
def test_a_question_waits_no_longer_than_its_retries_allow(fake, asked):
    waits = []
    server = Server(
        ServerChat(url=fake.url, model="m", timeout_seconds=60, retries=3), sleep=waits.append
    )
    fake.answers = [(429, "busy", {"retry-after": "100"}), (429, "busy", {"retry-after": asked})]
    with pytest.raises(ModelError) as found:
        server.reply([ask("Hi")])
    # 4 x 60 s less the first wait, and the short time that two answers took.
    assert re.search(
        r"answers 429: busy; it asks for a wait of (200|\d{9,}|inf) s \(Retry-After\), and "
        r"1[34]\d s are left of `timeout_seconds` x \(`retries` \+ 1\)$",
        str(found.value),
    )
    assert waits == [100.0] and len(fake.requests) == 2


def test_the_time_of_a_question_is_that_of_all_its_attempts(fake):
    def slow(_):
        time.sleep(0.3)
        return 200, completion("x"), {}

    fake.default = slow
    server = Server(ServerChat(url=fake.url, model="m", timeout_seconds=0.1, retries=3))
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"no answer within|no time is left"):
        server.reply([ask("Hi")])
    # Its own pauses alone, of 0.5, 1 and 2 s, would be longer.
    assert time.monotonic() - began < 2.0
    assert 2 <= len(fake.requests) <= 4


def test_an_answer_that_comes_in_drops_has_no_more_time_than_another(fake):
    fake.drops = 0.05
    with pytest.raises(ModelError, match=r"no answer within 0.3 s \(`timeout_seconds`\)"):
        chat(fake, timeout_seconds=0.3, retries=0).reply([ask("Hi")])
    fake.drops = 0.0
    assert chat(fake, timeout_seconds=5, retries=0).reply([ask("Hi")])[0][0].finished


def test_no_answer_in_time_and_no_address_name_the_key(fake):
    def slow(_):
        time.sleep(0.5)
        return 200, completion("x"), {}

    fake.default = slow
    with pytest.raises(ModelError, match=r"no answer within 0.05 s \(`timeout_seconds`\)"):
        chat(fake, timeout_seconds=0.05, retries=0).reply([ask("Hi")])
    for url in ("127.0.0.1:8000/v1", "not a url", "http://", "http://[::1"):
        with pytest.raises(ModelError, match=r"`chat\.url`"):
            Server(ServerChat(url=url, model="m"))


def test_halves_of_surrogate_pairs_are_sent_and_leave_no_trace(fake):
    fake.default = (200, completion("a\ud83d"), {})
    ((reply,),) = chat(fake).reply([ask("\ud83d\u2028")])
    assert reply.text == "a?" and fake.requests[0][1]["messages"] == ask("\ud83d\u2028")
