"""Rewards: the lexicon and classifiers, and what they say when something is missing."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from palate.errors import ModelError, PalateError
from palate.recipes.schema import ClassifierReward, LexiconReward
from palate.rewards import Reward, build_reward
from tiny import COMMON
from tiny_text import tiny_tokenizer


def classifier(folder, labels):
    torch.manual_seed(0)
    config = LlamaConfig(**COMMON | {"vocab_size": len(tiny_tokenizer())})
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


TEXTS = (
    ["I went in. ", "I went in. ", "So. "],
    ["It was great!", "It was awful, boring.", "Chairs"],
)


def test_lexicon_ranks_and_ignores_the_prompt():
    pytest.importorskip("vaderSentiment")
    reward = build_reward(LexiconReward())
    good, bad, neutral = reward.score(*TEXTS)
    assert isinstance(reward, Reward)
    assert 0.5 < good <= 1 and -1 <= bad < -0.4 and neutral == 0
    assert reward.score(["wonderful"] * 3, TEXTS[1]) == [good, bad, neutral]


def test_lexicon_names_the_extra_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(PalateError, match=r"pip install 'palate\[demo\]'"):
        build_reward(LexiconReward())


def test_classifier_gives_the_labels_probability_whatever_the_batch(tmp_path):
    path = classifier(tmp_path, ["bad", "good"])
    reward = build_reward(ClassifierReward(path=path, label="good"))
    scores = reward.score(*TEXTS)
    reward.batch_size = 1
    assert reward.score(*TEXTS) == pytest.approx(scores, abs=1e-5)
    ids = torch.tensor([tiny_tokenizer()(TEXTS[0][1] + TEXTS[1][1])["input_ids"]])
    with torch.no_grad():
        expected = reward.model(ids).logits.softmax(-1)[0, 1]
    assert scores[1] == pytest.approx(float(expected), abs=1e-5)


def test_classifier_without_label_gives_the_logit(tmp_path):
    reward = build_reward(ClassifierReward(path=classifier(tmp_path, ["LABEL_0"])))
    ids = torch.tensor([tiny_tokenizer()(TEXTS[0][0] + TEXTS[1][0])["input_ids"]])
    with torch.no_grad():
        expected = reward.model(ids).logits[0, 0]
    assert reward.score(*TEXTS)[0] == pytest.approx(float(expected), abs=1e-5)


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
        build_reward(ClassifierReward(path=classifier(tmp_path, labels), label=label))


def test_an_unreadable_classifier_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no readable classifier") as caught:
        build_reward(ClassifierReward(path=str(tmp_path / "nothing")))
    assert "\n" not in str(caught.value)
