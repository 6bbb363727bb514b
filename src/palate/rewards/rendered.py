"""Scores of texts that went through a chat template already, as a policy's samples do.

Servers of rewards get whole conversations as a policy read and wrote them: the prompt as its
template made it, the response, end tokens, padding. Made a user's turn, such a text would go
through the template a second time and score as something else; here it is read as it is, and begun,
ended and cut as training and evaluation do it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import dropwhile

from palate.data.fit import TooLong, fit
from palate.data.schema import Message
from palate.rewards.base import NOT_FINITE
from palate.rewards.model import Encoded, ModelScorer
from palate.rewards.rows import Outcome

NO_RESPONSE = "no response after the prompt"
NOT_ITS_PROMPT = "the text does not begin with its prompt"
TOO_LONG = "longer than the model's context"
_ASKED = Message(role="user", content="Which?")
_SAID = "\u2e28said\u2e29"
"""Found in no template."""


def reads_rendered(scorer: object) -> bool:
    """Whether a scorer reads conversations token by token, as they are."""
    return isinstance(scorer, ModelScorer)


def score_rendered(
    scorer: ModelScorer,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    exact: bool = False,
) -> list[Outcome]:
    """Scores whole conversations, one a text.

    Args:
        texts: prompt and response, in the words of the model's template, or as plain text for a
            model of plain text. Padding at either end is taken off, the end of the response is made
            the one of the training, and BOS is put where training had it.
        prompts: the part of each text before the response, likewise rendered; empty where it is not
            known. With it the border between the two is a border between tokens, as it was in
            training.
        exact: every text by itself.
    """
    reading = _Reading(scorer)
    encoded = [
        reading.encoded(text, "" if prompts is None else prompts[i]) for i, text in enumerate(texts)
    ]
    calls = [[item] for item in encoded] if exact else [encoded]
    scores = [own for call in calls for own in scorer.score_encoded([[item] for item in call])]
    return [
        Outcome(score)
        if math.isfinite(score)
        else Outcome(None, item if isinstance(item, str) else NOT_FINITE)
        for item, (score,) in zip(encoded, scores, strict=True)
    ]


class _Reading:
    """How a scorer's model reads what has been rendered."""

    def __init__(self, scorer: ModelScorer) -> None:
        self.tokenizer = scorer.tokenizer
        self.tokens = scorer.encoder.tokens
        self.length = scorer.encoder.length
        self.whole = scorer.model.spec.whole_rendering
        self.classifier_pad = scorer.model.config.get_text_config().pad_token_id
        self.ends = tuple(text for text in self.tokens.special.values() if text)
        forms = scorer.model.spec.forms
        self.chat = "chat" in forms if forms else bool(scorer.tokenizer.chat_template)
        self.opening = self.closing = ""
        if self.chat:
            shown = scorer.encoder.template.render(
                [_ASKED], [[Message(role="assistant", content=_SAID)]]
            )
            self.opening = shown.tail
            self.closing = shown.responses[0].rpartition(_SAID)[2]

    def encoded(self, text: str, prompt: str) -> Encoded:
        text, prompt, bos = self._begun(text), self._begun(prompt), self.tokenizer.bos_token
        if prompt and bos and text.startswith(bos) and not prompt.startswith(bos):
            prompt = bos + prompt
        if not text.startswith(prompt):
            return NOT_ITS_PROMPT
        said = self._said(text[len(prompt) :])
        if not self.tokens.says_something(self._continued(said)):
            return NO_RESPONSE
        if self.whole:
            return self._as_classifier(prompt + said + self.closing)
        asked = self._started(prompt) if prompt else ()
        if not asked:
            # The first token stands for the prompt: the reward is read at the end.
            ids = self._ended(self._started(said + self.closing))
            asked, answer = ids[:1], ids[1:]
        else:
            answer = self._ended(self._continued(said + self.closing))
        tail = self._continued(self.opening) if prompt.endswith(self.opening) else ()
        try:
            fitted = fit(asked, tail, [answer], self.length, bos=self.tokens.bos)
        except TooLong as error:
            return error.reason
        return fitted.prompt, fitted.responses[0]

    def _begun(self, text: str) -> str:
        """Without padding before it."""
        pad = self.tokenizer.pad_token
        # Where padding is what begins a text, nobody can tell how much of it is padding.
        if not isinstance(pad, str) or not pad or pad == self.tokenizer.bos_token:
            return text
        while text.startswith(pad):
            text = text[len(pad) :]
        return text

    def _said(self, text: str) -> str:
        """A response without what ends it: end tokens, padding, and the blanks between them."""
        while True:
            bare = text.rstrip()
            if not bare.endswith(self.ends):
                # A template may close a turn without any special token.
                return text.removesuffix(self.closing)
            text = bare.removesuffix(next(end for end in self.ends if bare.endswith(end)))

    def _started(self, text: str) -> tuple[int, ...]:
        """Ids of what begins a sequence, with BOS where training had it, once."""
        ids, bos = self.tokens.starts([text])[text], self.tokens.bos
        if bos is None:
            return ids
        rest = tuple(dropwhile(bos.__eq__, ids))
        return (bos, *rest) if self.tokens.adds_bos or len(rest) < len(ids) else ids

    def _continued(self, text: str) -> tuple[int, ...]:
        return self.tokens.continuations([text])[text] if text else ()

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self.tokens.ended(ids) if self.chat else (*ids, self.tokens.eos)

    def _as_classifier(self, text: str) -> Encoded:
        """The whole text at once, less padding behind it, as other people's models are fed."""
        begins = self.tokenizer.bos_token
        special = not self.chat and not (begins and text.startswith(begins))
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        while len(ids) > 2 and ids[-1] == self.classifier_pad:
            ids.pop()
        if len(ids) > (self.length.max_tokens or len(ids)):
            return TOO_LONG
        return (ids[0],), tuple(ids[1:])
