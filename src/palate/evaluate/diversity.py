"""How varied a policy's samples are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU

SELF_BLEU_TEXTS = 200
"""Self-BLEU without groups compares every text with every other: at most this many, the first."""

_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the texts together (Li et al., arXiv:1510.03055).

    Words and punctuation marks, lower-cased; n-grams do not cross texts. Falls as texts are added:
    compare only equal numbers of equally long texts. 0 when there is no n-gram.
    """
    grams = []
    for text in texts:
        words = _WORD.findall(text.lower())
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(groups: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 of each text against the others of its group, 0..1; high means alike.

    Zhu et al., arXiv:1802.01886, with sacrebleu's sentence BLEU (13a tokens, exponential
    smoothing). Texts without a word are left out; None where no group has two texts left.
    """
    bleu = BLEU(effective_order=True)
    scores = []
    for group in groups:
        texts = [t for t in group if t.strip()]
        if len(texts) < 2:
            continue
        for i, text in enumerate(texts):
            others = texts[:i] + texts[i + 1 :]
            scores.append(bleu.sentence_score(text, others).score / 100)
    return sum(scores) / len(scores) if scores else None


def diversity(
    prompts: Sequence[int], texts: Sequence[str], entropies: Sequence[float], tokens: Sequence[int]
) -> dict[str, Any]:
    """Diversity of one policy's samples.

    Args:
        prompts: the prompt of each text. entropies: mean token entropy of each, nats.
        tokens: length of each.

    Returns:
        entropy: mean over all sampled tokens of the next-token entropy, nats (the predictive
            entropy of arXiv:2404.11999); distinct_1, distinct_2: of all texts together; self_bleu
            and self_bleu_of: within the samples of each prompt ("prompt") where prompts have
            several, else among the texts of different prompts ("all").
    """
    by_prompt: dict[int, list[str]] = defaultdict(list)
    for prompt, text in zip(prompts, texts, strict=True):
        by_prompt[prompt].append(text)
    several = any(len(group) > 1 for group in by_prompt.values())
    groups = list(by_prompt.values()) if several else [list(texts[:SELF_BLEU_TEXTS])]
    weighted = sum(e * n for e, n in zip(entropies, tokens, strict=True))
    return {
        "entropy": weighted / max(1, sum(tokens)),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "self_bleu": self_bleu(groups),
        "self_bleu_of": "prompt" if several else "all",
    }
