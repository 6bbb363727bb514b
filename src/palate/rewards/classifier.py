"""A sequence-classification model as the reward: a label's probability, or the raw logit."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from palate.errors import ModelError
from palate.rewards.base import check_lengths


class Classifier:
    """Scores `prompt + response`, joined as they are, with a local or hub classifier.

    Args:
        path: local folder or hub name; weights are read from safetensors only.
        label: the reward is this label's probability (softmax over the labels); None: the reward is
            the one logit of a model with a single output.
        batch_size: texts of one forward pass.

    Raises:
        ModelError: unreadable, an unknown label, or no label for a model with several outputs.
    """

    def __init__(self, path: str, *, label: str | None = None, batch_size: int = 32) -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModelForSequenceClassification.from_pretrained(
                path, use_safetensors=True
            ).eval()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: no readable classifier: {reason}") from error
        labels = {str(name): int(index) for index, name in self.model.config.id2label.items()}
        if label is None and len(labels) > 1:
            raise ModelError(f"{path}: has several outputs; choose `label` of {', '.join(labels)}")
        if label is not None and label not in labels:
            raise ModelError(f"{path}: no label '{label}'; it has {', '.join(labels)}")
        if label is not None and len(labels) == 1:
            raise ModelError(
                f"{path}: has one output, whose probability is always 1: leave out `label`"
            )
        if self.tokenizer.pad_token_id is None:
            # Padding is masked; classifiers on decoders find the last token by this id.
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if getattr(self.model.config, "pad_token_id", None) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.name = path.rstrip("/").rsplit("/", 1)[-1] + ("" if label is None else f" P({label})")
        self.batch_size = batch_size
        self._index = None if label is None else labels[label]

    @torch.no_grad()
    def score(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Scores each text; longer ones than the model takes keep their beginning."""
        check_lengths(prompts, responses)
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        scores = [0.0] * len(texts)
        # Alike lengths together: less padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        longest = min(
            self.tokenizer.model_max_length,
            getattr(self.model.config, "max_position_embeddings", None) or 1_000_000,
        )
        for start in range(0, len(order), self.batch_size):
            chunk = order[start : start + self.batch_size]
            inputs = self.tokenizer(
                [texts[i] for i in chunk],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=longest,
            ).to(self.model.device)
            logits = self.model(**inputs).logits.float()
            values = logits[:, 0] if self._index is None else logits.softmax(-1)[:, self._index]
            for i, value in zip(chunk, values.tolist(), strict=True):
                scores[i] = value
        return scores
