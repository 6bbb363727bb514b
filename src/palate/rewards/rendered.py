"""Scores of texts that went through a chat template already, as a policy's samples do.

Servers of rewards get whole conversations as a policy read and wrote them: the prompt as its
template made it, the response, end tokens, padding. Made a user's turn, such a text would go
through the template a second time and score as something else; here it is read as it is, and begun,
ended and cut as training and evaluation do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile
from typing import Any

from palate.data.items import Tokens
from palate.data.schema import Message
from palate.data.scorer import Group, Score, Scorer
from palate.data.tokenizer import SequenceTokenizer
from palate.data.truncate import TooLong, truncate
from palate.rewards.classifier import TOO_LONG as TOO_LONG_TO_CLASSIFY
from palate.rewards.classifier import ClassifierScorer
from palate.rewards.combined import Combined
from palate.rewards.model import Encoded, ModelScorer

NO_RESPONSE = "no response after the prompt"
NO_PROMPT = "its prompt is not given beside it (`prompts`), and a rule is about the response alone"
NOT_ITS_PROMPT = "the text does not begin with its prompt"
TOO_LONG = "longer than the model's context"
_ASKED = Message(role="user", content="Which?")
_SAID = "\u2e28said\u2e29"
"""Found in no template."""


def reads_rendered(scorer: Scorer) -> bool:
    """Whether a scorer reads conversations token by token, as they are: a reward model, a
    classifier that has a chat template, or an ensemble or a mixture of such, and of rules and
    others that look at no prompt beside them, unless it compares responses with one another."""
    members = list(_members(scorer))
    return (
        any(map(_reads, members))
        and all(_reads(member) or not member.traits.reads_prompt for member in members)
        and not _compares(scorer)
    )


def why_not_rendered(scorer: Scorer) -> str | None:
    """Why a scorer can be given no conversation as one text: some of its members read rendered ones
    as they are, and it compares responses to one prompt, or others would read a template's marks as
    words. None of other scorers."""
    members = list(_members(scorer))
    reading = [member.name for member in members if _reads(member)]
    if not reading or reads_rendered(scorer):
        return None
    for member in members:
        if not _reads(member) and member.traits.reads_prompt:
            return (
                f"{scorer.name}: of its members {reading[0]} reads conversations that went through "
                f"a chat template, and {member.name}, which looks at prompts, too, does not: use "
                "/score or /rank"
            )
    return f"{scorer.name}: compares the responses to one prompt: use /score or /rank"


def score_rendered(
    scorer: Scorer,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    exact: bool = False,
    wording: _Wording | None = None,
) -> list[Score]:
    """Scores whole conversations, one a text. Who looks at no prompt gets the response alone.

    Args:
        scorer: one that `reads_rendered`.
        texts: prompt and response, in the words of the model's template, or as plain text for a
            model of plain text. Padding at either end is taken off, the end of the response is made
            the one of the training, and BOS is put where training had it.
        prompts: the part of each text before the response, likewise rendered; empty where it is not
            known. With it the border between the two is a border between tokens, as it was in
            training.
        exact: every text by itself.
        wording: how texts begin and end; default: as the scorer's first model writes it.
    """
    given = [""] * len(texts) if prompts is None else prompts
    if isinstance(scorer, Combined):
        # Each member reads the texts in its own way.
        model = next(filter(_reads, _members(scorer)), None)
        if wording is None and model is not None:
            wording = _wording(model)

        def ask_member(member: Scorer, groups: Sequence[Group]) -> list[list[Score]]:
            asked = [(str(group.responses[0]), str(group.prompt)) for group in groups]
            scores = score_rendered(member, *zip(*asked, strict=True), exact=exact, wording=wording)
            return [[score] for score in scores]

        groups = [Group(prompt, (text,)) for text, prompt in zip(texts, given, strict=True)]
        return [score for (score,) in scorer.score_by(ask_member, groups)]
    if isinstance(scorer, ClassifierScorer):
        return _classified(scorer, texts, given, exact=exact)
    if not isinstance(scorer, ModelScorer):
        assert wording is not None
        return _of_responses(scorer, wording, texts, given)
    reading = _Reading(scorer)
    encoded = [reading.encoded(text, prompt) for text, prompt in zip(texts, given, strict=True)]
    calls = [[item] for item in encoded] if exact else [encoded]
    return [score for call in calls for (score,) in scorer.score_encoded([[item] for item in call])]


def _members(scorer: Scorer) -> Iterator[Scorer]:
    """The scorers that score texts, members by themselves."""
    if not isinstance(scorer, Combined):
        yield scorer
        return
    for member in scorer.members:
        if member.fits(False):
            yield from _members(member.scorer)


def _reads(scorer: Scorer) -> bool:
    if isinstance(scorer, ClassifierScorer):
        return scorer.input == "chat"
    return isinstance(scorer, ModelScorer)


def _compares(scorer: Scorer) -> bool:
    """Whether a score of a text depends on the other texts of its group."""
    if not isinstance(scorer, Combined):
        return scorer.traits.relative
    return scorer.by_group or any(_compares(m.scorer) for m in scorer.members if m.fits(False))


def _classified(
    scorer: ClassifierScorer, texts: Sequence[str], prompts: Sequence[str], *, exact: bool
) -> list[Score]:
    """By a classifier, in the words of its own template."""
    wording = _wording(scorer)
    scores: list[Score] = []
    readable: dict[int, str] = {}
    for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        parts = wording.parts(text, prompt)
        if isinstance(parts, str):
            scores.append(Score(None, parts))
            continue
        readable[i] = wording.whole(*parts)
        scores.append(Score(None, TOO_LONG_TO_CLASSIFY))
    lengths = scorer.tokens(list(readable.values()), special=False)
    fits = [i for i, n in zip(readable, lengths, strict=True) if n <= scorer.longest]
    calls = [[i] for i in fits] if exact else [fits]
    for call in calls:
        values = scorer.values([readable[i] for i in call], special=False)
        for i, value in zip(call, values, strict=True):
            scores[i] = Score.of(value)
    return scores


def _of_responses(
    scorer: Scorer, wording: _Wording, texts: Sequence[str], prompts: Sequence[str]
) -> list[Score]:
    """By a scorer that looks at no prompt: the response without what the template put around it."""
    scores: list[Score] = []
    responses: dict[int, str] = {}
    for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        parts = wording.parts(text, prompt) if prompt else NO_PROMPT
        if isinstance(parts, str):
            scores.append(Score(None, parts))
        else:
            responses[i] = parts[1]
            scores.append(Score(None, NO_RESPONSE))
    (scored,) = scorer.score([Group("", tuple(responses.values()))])
    for i, score in zip(responses, scored, strict=True):
        scores[i] = score
    return scores


def _wording(scorer: Scorer) -> _Wording:
    """How the template of a model begins and ends what it renders."""
    if isinstance(scorer, ModelScorer):
        return _Reading(scorer).wording
    assert isinstance(scorer, ClassifierScorer)
    turns: Any = [_ASKED, Message(role="assistant", content=_SAID)]
    shown = scorer.template.whole(turns)
    tokens = SequenceTokenizer(scorer.tokenizer)
    return _Wording(scorer.tokenizer, tokens, *shown.split(_SAID, 1))


class _Wording:
    """How a template begins and ends what it renders, and how that is told in a text.

    Args:
        before, closing: what it puts before a response and behind it; empty of plain text.
    """

    def __init__(
        self, tokenizer: Any, tokens: SequenceTokenizer, before: str = "", closing: str = ""
    ) -> None:
        self.tokens = tokens
        # A policy whose tokenizer has no padding pads with its end token.
        self.pad: str | None = tokenizer.pad_token or tokenizer.eos_token
        self.bos: str | None = tokenizer.bos_token
        self.ends = tuple(text for text in tokens.special.values() if text)
        self.closing = closing
        self.begins = bool(self.bos) and before.startswith(str(self.bos))

    def parts(self, text: str, prompt: str) -> tuple[str, str] | str:
        """Prompt and response without padding and end tokens; or why there are none."""
        text, prompt = self._begun(text), self._begun(prompt)
        bos = self.bos
        if prompt and bos and text.startswith(bos) and not prompt.startswith(bos):
            prompt = bos + prompt
        if not text.startswith(prompt):
            return NOT_ITS_PROMPT
        response = self._without_ends(text[len(prompt) :])
        ids = self.tokens.continuations([response])[response] if response else ()
        return (prompt, response) if self.tokens.says_something(ids) else NO_RESPONSE

    def whole(self, prompt: str, response: str) -> str:
        """The conversation as the template renders it."""
        text = prompt + response + self.closing
        if not self.bos:
            return text
        return self.bos * self.begins + _without(self.bos, text)

    def _begun(self, text: str) -> str:
        """Without padding before it."""
        # Where padding is what begins a text, nobody can tell how much of it is padding.
        if not isinstance(self.pad, str) or not self.pad or self.pad == self.bos:
            return text
        return _without(self.pad, text)

    def _without_ends(self, text: str) -> str:
        """A response without what ends it: end tokens, padding, and the blanks between them."""
        # By places: there may be a million of them, and a copy for each takes minutes.
        end = len(text)
        while True:
            bare = end
            while bare and text[bare - 1].isspace():
                bare -= 1
            if not text.endswith(self.ends, 0, bare):
                # A template may close a turn without any special token.
                return text[:end].removesuffix(self.closing)
            end = bare - len(next(mark for mark in self.ends if text.endswith(mark, 0, bare)))


def _without(token: str, text: str) -> str:
    """A text without a token that it begins with, however often."""
    start = 0
    while text.startswith(token, start):
        start += len(token)
    return text[start:]


class _Reading:
    """How a scorer's model reads what has been rendered."""

    def __init__(self, scorer: ModelScorer) -> None:
        self.tokenizer = scorer.tokenizer
        self.tokens = scorer.encoder.tokens
        self.length = scorer.encoder.length
        self.whole_rendering = scorer.model.spec.whole_rendering
        self.classifier_pad = scorer.model.config.get_text_config().pad_token_id
        forms = scorer.model.spec.forms
        self.chat = "chat" in forms if forms else bool(scorer.tokenizer.chat_template)
        before = self.opening = closing = ""
        if self.chat:
            answer = [Message(role="assistant", content=_SAID)]
            shown = scorer.encoder.template.render([_ASKED], [answer])
            before, self.opening = shown.prompt, shown.tail
            closing = shown.responses[0].rpartition(_SAID)[2]
        self.wording = _Wording(self.tokenizer, self.tokens, before, closing)

    def encoded(self, text: str, prompt: str) -> Encoded:
        parts = self.wording.parts(text, prompt)
        if isinstance(parts, str):
            return parts
        if self.whole_rendering:
            return self._as_classifier(*parts)
        prompt, response = parts
        asked = self._started(prompt) if prompt else ()
        if not asked:
            # The first token stands for the prompt: the reward is read at the end.
            ids = self._ended(self._started(response + self.wording.closing))
            asked, answer = ids[:1], ids[1:]
        else:
            answer = self._ended(self._continued(response + self.wording.closing))
        tail = self._continued(self.opening) if prompt.endswith(self.opening) else ()
        try:
            fitted = truncate(asked, tail, [answer], self.length, bos=self.tokens.bos)
        except TooLong as error:
            return error.reason
        return Tokens(fitted.prompt), Tokens(fitted.responses[0])

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

    def _as_classifier(self, prompt: str, response: str) -> Encoded:
        """The whole text at once, less padding behind it, as other people's models are fed."""
        text = self.wording.whole(prompt, response) if self.chat else prompt + response
        begins = self.wording.bos
        special = not self.chat and not (begins and text.startswith(begins))
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        while len(ids) > 2 and ids[-1] == self.classifier_pad:
            ids.pop()
        if len(ids) > (self.length.max_tokens or len(ids)):
            return TOO_LONG
        return Tokens((ids[0],)), Tokens(tuple(ids[1:]))
