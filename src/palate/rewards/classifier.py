"""A sequence-classification model as a scorer: a label's probability, or the raw logit."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from palate.data.schema import Content, Message
from palate.data.scorer import Group, Score, Traits, regrouped
from palate.data.templates import ChatTemplate, Refused, freeze_clock
from palate.errors import ModelError
from palate.models.limits import context_of
from palate.models.loading import DTYPES, check_weights, check_whole
from palate.recipes.schema import Dtype
from palate.rewards.names import short_name
from palate.rewards.texts import as_chat, prompt_text, response_text

Input = Literal["auto", "chat", "pair", "joined"]
TOO_LONG = "longer than the classifier's context"
_UNUSED = r"pooler\.|position_ids$|^cls\.|^lm_head"
"""Weights of pre-training that published classifiers keep and never use."""
_Text = str | tuple[str, str]
"""One text, or two that the tokenizer joins as the model's own pairs."""
_Row = dict[str, list[int]]
"""Ids, mask and token types of one text, as far as the model takes them."""


class ClassifierScorer:
    """A local or hub classifier, chats and texts put to it as it was trained.

    Args:
        path: local folder or hub name; weights are read from safetensors only.
        label: the score is this label's probability (softmax over the labels); None: the one logit
            of a model with a single output.
        input: chat: prompt and response through the tokenizer's chat template; pair: as the two
            texts of a pair, as cross-encoders are trained (question, answer); joined: one text.
            auto: joined for a label's probability; of a single logit, which is what reward models
            have, chat where there is a template, and pair otherwise.
        truncate: of texts longer than the model takes the beginning is scored, which is logged;
            otherwise they have no score.
        batch_size: texts of one forward pass.
        dtype: of the weights; logits are float32 of whatever it leaves of them.
        revision: of a hub model. trust_remote_code: run code that came with the model.

    Raises:
        ModelError: unreadable, without all its weights, an unknown label, no label for a model with
            several outputs, or `chat` without a chat template.
    """

    traits = Traits()

    def __init__(
        self,
        path: str,
        *,
        label: str | None = None,
        input: Input = "auto",
        truncate: bool = False,
        batch_size: int = 32,
        dtype: Dtype = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        more = {"revision": revision, "trust_remote_code": trust_remote_code}
        check_whole(path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, **more)
            self.model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                use_safetensors=True,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                **more,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: no readable classifier: {reason}") from error
        check_weights(report, path, self.model, surplus=_UNUSED)
        self.model.eval()
        labels = {str(name): int(index) for index, name in self.model.config.id2label.items()}
        _check_label(path, label, labels)
        config = self.model.config.get_text_config()
        self._pad = _padding(config)
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.name = short_name(path) + ("" if label is None else f" P({label})")
        self.counts: Counter[str] = Counter()
        freeze_clock(self.tokenizer)
        self.template = ChatTemplate(self.tokenizer, "model")
        self.input = _input(path, input, label, has_template=bool(self.tokenizer.chat_template))
        self.truncate = truncate
        self.batch_size = 1 if self._pad is None else batch_size
        self._batch_checked = False
        self.longest = min(self.tokenizer.model_max_length, context_of(config))
        self._index = None if label is None else labels[label]

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """No value where a response does not fit the model's context, or its template."""
        scores: list[Score] = []
        texts: dict[int, _Text] = {}
        for group in groups:
            for response in group.responses:
                try:
                    texts[len(scores)] = self._text(group.prompt, response)
                    reason = TOO_LONG
                except Refused as error:
                    reason = error.reason
                scores.append(Score(None, reason))
        special = self.input != "chat"
        lengths = self.tokens([*texts.values()], special=special)
        too_long = [i for i, n in zip(texts, lengths, strict=True) if n > self.longest]
        if too_long and self.truncate:
            logging.getLogger("palate").warning(
                "%s: of %d texts longer than %d tokens only the beginning was scored",
                self.name,
                len(too_long),
                self.longest,
            )
        elif too_long:
            texts = {i: text for i, text in texts.items() if i not in set(too_long)}
        values = self.values([*texts.values()], special=special)
        for i, value in zip(texts, values, strict=True):
            scores[i] = Score.of(value)
        return regrouped(scores, groups)

    def tokens(self, texts: Sequence[_Text], *, special: bool = True) -> list[int]:
        """Length of each text; `special` as of `values`."""
        options = {"add_special_tokens": special, "verbose": False}
        return [len(self.tokenizer(*_parts(text), **options)["input_ids"]) for text in texts]

    @torch.no_grad()
    def values(self, texts: Sequence[_Text], *, special: bool = True) -> list[float]:
        """The score of each text, cut at the model's context.

        Args:
            special: add the tokenizer's own beginning and end; a rendered chat has them already.
        """
        if not texts:
            return []
        encoded = self.tokenizer(
            *map(list, zip(*map(_parts, texts), strict=True)),
            truncation=True,
            max_length=self.longest,
            add_special_tokens=special,
        )
        names = [name for name in encoded if name in self.tokenizer.model_input_names]
        rows = [{name: encoded[name][i] for name in names} for i in range(len(texts))]
        scores = [0.0] * len(texts)
        # Alike lengths together: less padding.
        order = sorted(range(len(texts)), key=lambda i: len(rows[i]["input_ids"]))
        start = 0
        while start < len(order):
            chunk = order[start : start + self.batch_size]
            for i, value in zip(chunk, self._run([rows[i] for i in chunk]), strict=True):
                scores[i] = value
            start += len(chunk)
        return scores

    def _run(self, rows: Sequence[_Row]) -> list[float]:
        """Scores of one pass; rows one by one where the model reads them otherwise in a batch.

        Where a classifier reads its score is its own affair: at the last token that is not padding,
        at the last of all, at an end token that all rows must have as often. So the first batch
        with padding is compared with the model's own reading of its shortest row alone.
        """
        try:
            values = self._forward(rows)
        except ValueError:
            if len(rows) == 1:
                raise
            values = None
        short, long = (len(row["input_ids"]) for row in (rows[0], rows[-1]))
        if values is not None and short < long and not self._batch_checked:
            (alone,) = self._forward(rows[:1])
            tolerance = torch.finfo(self.model.dtype).eps ** 0.5 * max(1.0, abs(alone))
            self._batch_checked = abs(values[0] - alone) <= tolerance
            values = values if self._batch_checked else None
        if values is not None:
            return values
        logging.getLogger("palate").warning(
            "%s: reads rows otherwise in a batch: they are scored one by one", self.name
        )
        self.batch_size = 1
        return [value for row in rows for value in self._forward([row])]

    def _forward(self, rows: Sequence[_Row]) -> list[float]:
        """The score of each row, padded behind with what the model itself takes for padding."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self._pad or 0, "token_type_ids": self.tokenizer.pad_token_type_id}
        inputs = {
            name: torch.tensor(
                [[*row[name], *[fill.get(name, 0)] * (width - len(row[name]))] for row in rows],
                device=self.model.device,
            )
            for name in rows[0]
        }
        logits = self.model(**inputs).logits.float()
        values = logits[:, 0] if self._index is None else logits.softmax(-1)[:, self._index]
        scores: list[float] = values.tolist()
        return scores

    def _text(self, prompt: Content, response: Content) -> _Text:
        if self.input == "joined":
            return prompt_text(prompt) + response_text(response)
        if self.input == "pair":
            return prompt_text(prompt), response_text(response)
        answer: Any = response
        if isinstance(response, str):
            answer = [Message(role="assistant", content=response)]
        turns = [*as_chat(prompt), *answer]
        return self.template.whole(turns)


def _padding(config: Any) -> int | None:
    """The token that the model takes for padding; None where it has none, and reads the score at
    the last token whatever that is.

    A tokenizer's padding is another matter: classifiers on decoders look for the id in their
    configuration, and to name one that a text may end with moves the place of the score.
    """
    pad = getattr(config, "pad_token_id", None)
    known = getattr(config, "vocab_size", None) or math.inf
    return pad if pad is not None and 0 <= pad < known else None


def _check_label(path: str, label: str | None, labels: dict[str, int]) -> None:
    if label is None and len(labels) > 1:
        raise ModelError(f"{path}: has several outputs; choose `label` of {', '.join(labels)}")
    if label is not None and label not in labels:
        raise ModelError(f"{path}: no label '{label}'; it has {', '.join(labels)}")
    if label is not None and len(labels) == 1:
        raise ModelError(
            f"{path}: has one output, whose probability is always 1: leave out `label`"
        )


def _input(path: str, given: Input, label: str | None, *, has_template: bool) -> Input:
    if given == "chat" and not has_template:
        raise ModelError(f"{path}: `input: chat`, and its tokenizer has no chat template")
    if given != "auto":
        return given
    if label is not None:
        return "joined"
    return "chat" if has_template else "pair"


def _parts(text: _Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text
