"""Rewards: the lexicon and classifiers, and what they say when something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

from palate.data.templates import ChatTemplate
from palate.errors import ModelError, PalateError
from palate.recipes import scorers as recipes
from palate.rewards import Scorer, make_scorer
from palate.rewards.classifier import TOO_LONG
from palate.rewards.groups import score_groups
from scored import flat_values, groups_of
from tiny import COMMON
from tiny_text import save_classifier, tiny_tokenizer

TEXTS = (
    ["I went in. ", "I went in. ", "So. "],
    ["It was great!", "It was awful, boring.", "Chairs"],
)


def test_lexicon_ranks_and_ignores_the_prompt():
    pytest.importorskip("vaderSentiment")
    reward = make_scorer(recipes.LexiconScorer())
    good, bad, neutral = flat_values(reward, *TEXTS)
    assert isinstance(reward, Scorer)
    assert 0.5 < good <= 1 and -1 <= bad < -0.4 and neutral == 0
    assert flat_values(reward, ["wonderful"] * 3, TEXTS[1]) == [good, bad, neutral]


def test_lexicon_names_the_extra_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(PalateError, match=r"pip install 'palate\[demo\]'"):
        make_scorer(recipes.LexiconScorer())


def test_classifier_gives_the_labels_probability_whatever_the_batch(tmp_path):
    path = save_classifier(tmp_path, ["bad", "good"])
    reward = make_scorer(recipes.ClassifierScorer(path=path, label="good"))
    scores = flat_values(reward, *TEXTS)
    reward.batch_size = 1
    assert flat_values(reward, *TEXTS) == pytest.approx(scores, abs=1e-5)
    ids = torch.tensor([tiny_tokenizer()(TEXTS[0][1] + TEXTS[1][1])["input_ids"]])
    with torch.no_grad():
        expected = reward.model(ids).logits.softmax(-1)[0, 1]
    assert scores[1] == pytest.approx(float(expected), abs=1e-5)


def test_classifier_without_label_gives_the_logit(tmp_path):
    reward = make_scorer(recipes.ClassifierScorer(path=save_classifier(tmp_path, ["LABEL_0"])))
    ids = torch.tensor([tiny_tokenizer()(TEXTS[0][0] + TEXTS[1][0])["input_ids"]])
    with torch.no_grad():
        expected = reward.model(ids).logits[0, 0]
    assert flat_values(reward, *TEXTS)[0] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (["bad", "good"], None, "choose `label` of bad, good"),
        (["bad", "good"], "fine", "no label 'fine'; it has bad, good"),
        (["LABEL_0"], "LABEL_0", "leave out `label`"),
    ],
)
def test_classifier_refuses_what_it_cannot_mean(tmp_path, labels, label, message):
    with pytest.raises(ModelError, match=message):
        make_scorer(recipes.ClassifierScorer(path=save_classifier(tmp_path, labels), label=label))


def test_a_model_without_a_classifiers_head_is_none(tmp_path):
    folder = Path(save_classifier(tmp_path, ["LABEL_0"]))
    weights = load_file(folder / "model.safetensors")
    kept = {name: own for name, own in weights.items() if not name.startswith("score.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights score\."):
        make_scorer(recipes.ClassifierScorer(path=str(folder)))


def test_an_unreadable_classifier_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no readable classifier") as caught:
        make_scorer(recipes.ClassifierScorer(path=str(tmp_path / "nothing")))
    assert "\n" not in str(caught.value)


def encoder(folder):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <eos> $B:1", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    more = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "num_labels": 1}
    config = BertConfig(**COMMON | more)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_cross_encoder_reads_prompt_and_response_as_a_pair(tmp_path):
    scorer = make_scorer(recipes.ClassifierScorer(path=encoder(tmp_path)))
    prompts, responses = (
        ["Why?", [{"role": "user", "content": "Why?"}], "Q"],
        ["So.", "So.", "A" * 80],
    )
    scores = flat_values(scorer, prompts, responses)
    ids = scorer.tokenizer("Why?", "So.", return_tensors="pt")
    with torch.no_grad():
        expected = float(scorer.model(**ids).logits[0, 0])
    assert scores[:2] == pytest.approx([expected, expected], abs=1e-6)
    assert scores[2] is None
    joined = make_scorer(recipes.ClassifierScorer(path=str(tmp_path), input="joined"))
    assert flat_values(joined, ["Why?"], ["So."])[0] != pytest.approx(expected, abs=1e-6)
    found = score_groups(scorer, groups_of(["Q"], [["A" * 80, "B"]]))[0]
    assert found[0].reason == TOO_LONG and found[1].value is not None


def test_a_classifier_with_a_template_reads_a_chat(tmp_path):
    path = save_classifier(tmp_path, ["LABEL_0"])
    with pytest.raises(ModelError, match="no chat template"):
        make_scorer(recipes.ClassifierScorer(path=path, input="chat"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m.role[0] + m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    scorer = make_scorer(recipes.ClassifierScorer(path=path))
    ids = torch.tensor([tokenizer("<bos>uWhy?<bos>aSo.", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = float(scorer.model(ids).logits[0, 0])
    scores = flat_values(scorer, ["Why?", "Why?"], ["So.", "So, and because of that."])
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    refusing = "{{ raise_exception('no such role') if messages[0].role == 'system' }}"
    scorer.tokenizer.chat_template = refusing + tokenizer.chat_template
    scorer.template = ChatTemplate(scorer.tokenizer, "model")
    odd = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    found = score_groups(scorer, groups_of([odd, "Why?"], [["So."], ["So."]]))
    assert found[0][0].reason == "the chat template refuses it: no such role"
    assert found[0][0].value is None
    assert found[1][0].value == pytest.approx(expected, abs=1e-5)


def test_what_a_reward_of_texts_cuts_is_logged(tmp_path, caplog):
    reward = make_scorer(recipes.ClassifierScorer(path=encoder(tmp_path), truncate=True))
    flat_values(reward, ["", ""], ["A" * 80, "B"])
    assert "of 1 texts longer than 64 tokens only the beginning was scored" in caplog.text


def test_scores_of_a_classifier_are_float32_whatever_it_was_saved_in(tmp_path):
    torch.manual_seed(1)
    encoder(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    answers = [chr(97 + k) * (k + 1) for k in range(20)]

    def distinct(**more):
        scorer = make_scorer(recipes.ClassifierScorer(path=str(tmp_path), **more))
        return len(set(flat_values(scorer, ["p"] * 20, answers)))

    assert distinct() == 20 > distinct(dtype="bfloat16")
