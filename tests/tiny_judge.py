"""A word-level tokenizer for judges' questions, tiny models with it, and preference data by a rule.

One token a word, so that questions are short and a verdict is one token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from palate.rewards.chat import Reply
from palate.rewards.questions import critique_question, pair_question, rating_question
from tiny import COMMON
from tiny_runs import write_rows

PIECES = r"</?(?:answer|think)>| ?[A-Za-z]+|\d| ?[^\w\s<]|\s|<"
GOOD, BAD = "good", "vile"
WORDS = (GOOD, BAD, "sun", "sea", "sky", "tie", "because", "right", "wrong", "praise", "blame")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Knows the words of all questions, `WORDS` and digits."""
    asked = [
        pair_question("q", "a", "b", ties=True, reasoning=True),
        pair_question("q", "a", "b", ties=False, reasoning=False),
        rating_question("q", "a", best=9, reasoning=True),
        critique_question("q", "a"),
        rating_question("q", "a", best=2, reasoning=False),
    ]
    texts = [turn["content"] for question in asked for turn in question]
    texts += [f"{word} {word} " for word in WORDS]
    texts += [
        "\n\nHuman: \n\nAssistant: 0 1 2 3 4 5 6 7 8 9 ? ! <answer> </answer> <think> </think>"
    ]
    # A word after a line break has no space before it.
    found = {piece for text in texts for piece in re.findall(PIECES, text)}
    found |= {piece.lstrip(" ") for piece in found} - {""}
    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(found | {" "})])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )
    return wrapped


def save_judge(folder: Path, *, seed: int = 0) -> Path:
    """A tiny language model of these words, without a chat template."""
    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    wider = {"hidden_size": 48, "intermediate_size": 96, "num_key_value_heads": 4, "head_dim": 12}
    more = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 1024}
    # Wide enough that attention is not flat at first: rules are learnt in tens of steps.
    spread = {"tie_word_embeddings": True, "initializer_range": 0.25}
    config = LlamaConfig(**COMMON | wider | more | spread)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


FAST = {
    "batch_size_pairs": 16,
    "micro_batch_size_pairs": 16,
    "scheduler": "constant",
    "learning_rate": 3e-3,
    "log_every_steps": 10,
}
"""A training loop for toys."""


def judge_document(
    folder: Path,
    *,
    out: str,
    n: int,
    answer_tokens: int,
    columns: dict[str, Any],
    held_columns: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The beginning of a recipe over the tiny model and n toy pairs, made in `folder` on first use.

    Args:
        columns: of the rows, besides the pair: functions of a row's number.
    """
    model, rows, held = folder / "tiny", folder / f"rows{n}.jsonl", folder / "held.jsonl"
    if not model.exists():
        save_judge(model)
    if not rows.exists():
        write_toy(rows, n, **columns)
        write_toy(held, 6, start=200, **held_columns or columns)
    return {
        "output_dir": folder / out,
        "model": {"path": str(model), "dtype": "float32", "chat_template": "plain"},
        "data": {
            "train": [{"path": str(rows)}],
            "eval": [{"path": str(held)}],
            "length": {"max_answer_tokens": answer_tokens},
        },
    }


def write_toy(path: Path, n: int, *, start: int = 0, **more: Any) -> Path:
    """Pairs by a rule: the good response is better."""
    rows = [
        {
            "id": str(i),
            "prompt": [{"role": "user", "content": f"{i}?"}],
            "chosen": [{"role": "assistant", "content": f"{GOOD} {WORDS[2 + i % 3]}"}],
            "rejected": [{"role": "assistant", "content": f"{BAD} {WORDS[2 + i % 3]}"}],
        }
        | {key: value(i) for key, value in more.items()}
        for i in range(start, start + n)
    ]
    return write_rows(path, rows)


class FakeWriter:
    """A writer of texts: `say(question, number of the attempt)`."""

    name = "writer"
    blind = None

    def __init__(self, say: Any) -> None:
        self.say = say
        self.calls: list[dict[str, Any]] = []
        self.attempt: dict[str, int] = {}

    def reply(self, questions: Any, *, samples: int = 1, **options: Any) -> Any:
        self.calls.append({"n": len(questions), "samples": samples, **options})
        found = []
        for question in questions:
            text = question[-1]["content"]
            number = self.attempt[text] = self.attempt.get(text, -1) + 1
            said = self.say(text, number)
            found.append([said if isinstance(said, Reply) else Reply(text=said, finished=True)])
        return found

    def choose(self, questions: Any, options: Any) -> Any:
        raise AssertionError("nobody asks a writer to choose")
