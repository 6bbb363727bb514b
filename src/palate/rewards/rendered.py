"""Scores of texts that went through a chat template already, as a policy's samples do.

Servers of rewards get whole conversations as a policy read and wrote them: the prompt as its
template made it, the response, end tokens, padding. Made a user's turn, such a text would go
through the template a second time and score as something else; here its tokens are read as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palate.rewards.model import Encoded, ModelScorer
from palate.rewards.rows import NOT_FINITE, Outcome

NO_RESPONSE = "no response after the prompt"
NOT_ITS_PROMPT = "the text does not begin with its prompt"
TOO_LONG = "longer than the model's context"


def reads_rendered(scorer: object) -> bool:
    """Whether a scorer takes chats through a template of its own."""
    if not isinstance(scorer, ModelScorer):
        return False
    forms = scorer.model.spec.forms
    return "chat" in forms if forms else bool(scorer.tokenizer.chat_template)


def score_rendered(
    scorer: ModelScorer,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    exact: bool = False,
) -> list[Outcome]:
    """Scores whole conversations, one a text.

    Args:
        texts: prompt and response, in the words of the model's template. Padding at either end
            is taken off; an end token that is missing is added, as training had it.
        prompts: the part of each text before the response, likewise rendered. With them the border
            between the two is a border between tokens, as it was in training.
        exact: every text by itself.
    """
    encoded = [
        _encode(scorer, text, None if prompts is None else prompts[i])
        for i, text in enumerate(texts)
    ]
    calls = [[item] for item in encoded] if exact else [encoded]
    scores = [own for call in calls for own in scorer.score_encoded([[item] for item in call])]
    return [
        Outcome(None, item if isinstance(item, str) else NOT_FINITE)
        if score != score
        else Outcome(score)
        for item, (score,) in zip(encoded, scores, strict=True)
    ]


def _encode(scorer: ModelScorer, text: str, prompt: str | None) -> Encoded:
    tokenizer, spec = scorer.tokenizer, scorer.model.spec
    text = _unpadded(text, tokenizer.pad_token, spec.end_tokens.values())
    if prompt is not None:
        prompt = _unpadded(prompt, tokenizer.pad_token, ())
        if not text.startswith(prompt):
            return NOT_ITS_PROMPT
        if not text[len(prompt) :]:
            return NO_RESPONSE
    ids = [] if not prompt else _ids(scorer, prompt)
    border = len(ids)
    ids += _ids(scorer, text[len(prompt or "") :])
    if spec.end_tokens and not spec.whole_rendering:
        # What follows the end token (a line break, EOS) is no part of what training read.
        last = max((k for k, i in enumerate(ids) if i in spec.end_tokens), default=-1)
        tail = str(tokenizer.decode(ids[last + 1 :], skip_special_tokens=True))
        if last >= border and not tail.strip():
            ids = ids[: last + 1]
        else:
            ids.append(next(iter(spec.end_tokens)))
    if len(ids) < 2:
        return NO_RESPONSE
    if len(ids) > (scorer.encoder.length.max_tokens or len(ids)):
        return TOO_LONG
    border = border or 1
    return tuple(ids[:border]), tuple(ids[border:])


def _ids(scorer: ModelScorer, text: str) -> list[int]:
    return list(scorer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _unpadded(text: str, pad: object, ends: Iterable[str]) -> str:
    if not isinstance(pad, str) or not pad:
        return text
    while text.startswith(pad):
        text = text[len(pad) :]
    # Padding may be the end token itself: then one is left, as training had it.
    once = pad in tuple(ends)
    while text.endswith(pad + pad if once else pad):
        text = text[: -len(pad)]
    return text
