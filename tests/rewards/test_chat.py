"""The two kinds of models that judge: a tiny local one, and a server on this machine."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from palate.errors import ModelError
from palate.recipes.scorers import LocalChat, PairwiseJudge, ServerChat
from palate.rewards.chat import open_chat
from palate.rewards.chat_server import Server
from palate.rewards.judge import Pairwise
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
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
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


def test_a_model_without_a_template_cannot_judge(tmp_path):
    folder = save_tiny(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        open_chat(LocalChat(path=str(folder)))


class Fake:
    """A server that answers from a list, then by its default."""

    def __init__(self):
        self.requests = []
        self.answers = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fake.requests.append((self.path, body, dict(self.headers)))
                status, answer, headers = fake.answers.pop(0) if fake.answers else fake.default
                payload = (
                    answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                )
                self.send_response(status)
                for key, value in {**headers, "content-length": str(len(payload))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.default = (200, completion("<answer>1</answer>"), {})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def completion(text, finish="stop", **more):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    return {"choices": [choice]}


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
    assert win == pytest.approx(1 / (1 + math.exp(-1.5)))
    body = fake.requests[0][1]
    assert body["messages"][-1] == {"role": "assistant", "content": "<answer>"}
    assert body["top_logprobs"] == 20 and body["continue_final_message"] is True
    fake.default = (200, completion("1"), {})
    with pytest.raises(ModelError, match="gives no log-probabilities"):
        judge.compare(["p"], ["a"], ["b"])
