"""Values of passages as values of tokens."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from palate.data.scorer import Span
from palate.train.rollouts.responses import Response


def spans_in_tokens(response: Response, tokenizer: Any) -> tuple[Span, ...]:
    """The spans of a response, by the tokens that they end in.

    A span of characters ends in the token that its last character comes from; what reaches past the
    text, such as one that counts the end, ends in the last token.
    """
    if all(span.unit == "tokens" for span in response.spans):
        return response.spans
    ends = _ends(response.response_ids, tokenizer)
    spans = []
    for span in response.spans:
        if span.unit == "tokens":
            spans.append(span)
            continue
        start, stop = (
            min(bisect.bisect_left(ends, n), len(ends) - 1) for n in (span.start + 1, span.stop)
        )
        spans.append(Span(start, stop + 1, span.value, "tokens"))
    return tuple(spans)


def _ends(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Of each token how many characters of the text there are up to it."""
    ends: list[int] = []
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n], skip_special_tokens=True)
        # A character of several tokens is there with the last of them.
        ends.append(len(text.rstrip("\ufffd")))
    return ends
