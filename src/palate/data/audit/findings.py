"""What an audit has found, in words: one sentence each, with its numbers and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

LENGTH_EFFECT = 0.05
STYLE_EFFECT = 0.15
"""How far the nearer end of an interval must be from one half before it is worth a sentence."""

_FEWEST = 20
_REPEATED = 0.01
_DUPLICATES = 0.001
_TIES = 0.2
_ONE_IMAGE = 0.1
_SHORT = 100


def warnings(audit: dict[str, Any]) -> list[str]:
    """Sentences on what is wrong with the data, the gravest first.

    Args:
        audit: from `Audit.result`.
    """
    sources: dict[str, dict[str, Any]] = audit["sources"]
    alone = len(sources) == 1
    found: list[str] = []
    for check in _CHECKS:
        for name, one in sources.items():
            for text in check(one):
                found.append(_capital(text) if alone else f"{name}: {text}")
    found += map(_capital, _between(audit))
    return [f"{text}." for text in found]


def _contradictions(one: dict[str, Any]) -> Iterator[str]:
    groups, pairs = one["contradictions"]["groups"], one["contradictions"]["pairs"]
    if groups:
        yield (
            f"{_count(pairs, 'pair')} {_be(pairs)} labelled both ways: the same prompt and the "
            f"same two responses, in {_count(groups, 'case')}; the step `contradictions` drops them"
        )


def _margins(one: dict[str, Any]) -> Iterator[str]:
    margin = one["margin"]
    if n := margin["negative"]:
        yield (
            f"{_of(n, margin['pairs'])} with a margin {_have(n)} a negative one, the lowest "
            f"{margin['min']:g}: the label goes against the scores; see `pairing.flips` and the "
            "step `margin`"
        )


def _identical(one: dict[str, Any]) -> Iterator[str]:
    if n := one["identical"]:
        yield (
            f"in {_of(n, one['pairs'])} both responses are the same text: nothing can be learnt "
            "from them; the step `empty` drops them"
        )


def _duplicates(one: dict[str, Any]) -> Iterator[str]:
    n = one["duplicates"]["pairs"]
    if n > _DUPLICATES * one["pairs"]:
        yield (
            f"{_of(n, one['pairs'])} {_be(n)} a copy of another one with the same label (the most "
            f"frequent is there {_count(one['duplicates']['largest'], 'time')}): it counts that "
            "many times in training; the step `exact_duplicates` leaves one of each"
        )


def _length(one: dict[str, Any]) -> Iterator[str]:
    label = one["length_label"]["characters"]
    if (clear := _clear(label, LENGTH_EFFECT)) is not None:
        which, share, ci = clear
        n = label["longer"] + label["shorter"]
        side = "longer" if which else "shorter"
        yield (
            f"in {_percent(share)} of {_count(n, 'pair')} of unequal length ({_interval(ci)}) the "
            f"chosen response is the {side} one: a model can learn length alone; "
            + ("see the step `length_balance`" if which else "see the step `length`")
        )


def _together(one: dict[str, Any]) -> Iterator[str]:
    together = one["style"]["together"]
    if together is None or together["ci"] is None or together["ci"][0] < 0.5 + STYLE_EFFECT:
        return
    yield (
        f"length and style alone (lists, bold text, punctuation ...) name the chosen response in "
        f"{_percent(together['share'])} of pairs ({_interval(together['ci'])}): a model that "
        "understands nothing gets that far, so compare what you train with this"
    )


def _features(one: dict[str, Any]) -> Iterator[str]:
    telling = []
    for feature in one["style"]["features"]:
        n = feature["more"] + feature["less"]
        clear = _clear(feature, STYLE_EFFECT)
        # What hardly any pair differs in is no short cut, however clear it is.
        if clear is None or n < max(_FEWEST, 0.05 * one["style"]["pairs"]):
            continue
        which, share, ci = clear
        more = "more" if which else "fewer"
        words = f"{more} {feature['name']} ({_percent(share)} of {n:,}, {_interval(ci)})"
        telling.append((-ci[0], words))
    if telling:
        yield (
            "in pairs that differ in it, the chosen response has "
            f"{_listed(words for _, words in sorted(telling)[:4])}: style tells the label; look at "
            "accuracy among pairs of one style before you trust it, or pair other responses"
        )


def _openings(one: dict[str, Any]) -> Iterator[str]:
    found = []
    for entry in one["style"]["openings"]:
        clear = _clear(entry, STYLE_EFFECT)
        n = entry["more"] + entry["less"]
        if clear is not None and n >= max(_FEWEST, 0.02 * one["style"]["pairs"]):
            side = "chosen" if clear[0] else "rejected"
            found.append(f"“{entry['text']}” ({side} in {_percent(clear[1])} of {n:,})")
    if found:
        yield f"first words alone tell the label: {_listed(found[:3])}; look at such responses"


def _same_response(one: dict[str, Any]) -> Iterator[str]:
    for entry in one["style"]["same_response"]:
        if entry["prompts"] < max(_FEWEST, _REPEATED * one["style"]["pairs"]):
            continue
        n = entry["chosen"] + entry["rejected"]
        yield (
            f"one and the same text, which begins “{entry['opening']}”, answers "
            f"{entry['prompts']:,} different prompts and is the chosen response in "
            f"{entry['chosen']:,} of {_count(n, 'pair')}: an answer that suits every prompt is no "
            "answer; the step `templates` drops pairs with a phrase of it"
        )


def _template(one: dict[str, Any]) -> Iterator[str]:
    problems = one["template"]["problems"]
    found = [f"{name} ({n:,})" for name, n in problems.items()]
    if found:
        marks = [f"“{mark}”" for mark in list(one["template"]["found"])[:4]]
        such = f", such as {_listed(marks)}" if marks else ""
        yield (
            f"traces of chat templates, in pairs: {_listed(found)}{such}; see the steps "
            "`templates` and `empty`"
        )


def _characters(one: dict[str, Any]) -> Iterator[str]:
    found = []
    for name, parts in one["characters"].items():
        where = _listed(f"{n:,} {part}" for part, n in parts.items() if n)
        found.append(f"{name}s ({where} texts)")
    if found:
        yield (
            f"characters that do not print: {_listed(found)}; they are kept as they are, and often "
            "say that a file was decoded wrongly"
        )


def _scripts(one: dict[str, Any]) -> Iterator[str]:
    scripts, pairs = one["scripts"], one["pairs"]
    worst = max(scripts["chosen_differs"], scripts["rejected_differs"])
    if worst > max(_FEWEST, _REPEATED * pairs):
        yield (
            f"of {_count(pairs, 'pair')}, {scripts['chosen_differs']:,} chosen and "
            f"{scripts['rejected_differs']:,} rejected responses are in another script than their "
            "prompt; see the step `language`"
        )


def _generators(one: dict[str, Any]) -> Iterator[str]:
    names = one["generators"]["names"]
    total = sum(entry["wins"] for entry in names)
    if not names or total < _FEWEST:
        return
    first = max(names, key=lambda entry: entry["wins"])
    clear = _clear(first, STYLE_EFFECT)
    if clear is not None and clear[0] and first["wins"] >= 0.25 * one["pairs"] and len(names) > 1:
        yield (
            f"the generator {first['name']} wrote {first['wins']:,} of the {total:,} chosen and "
            f"{first['losses']:,} of the rejected responses: the label says who wrote a response "
            "as much as how good it is; cap the pairs of a prompt or choose among the best few "
            "(`pairing.chosen: top_k`)"
        )


def _blind(one: dict[str, Any]) -> Iterator[str]:
    blind = one["images"]["blind"]
    if blind["ci"] is None or blind["decided"] < _FEWEST:
        return
    if blind["ci"][0] >= 0.5 + STYLE_EFFECT:
        yield (
            f"of {_count(blind['pairs_of_questions'], 'pair')} whose question is asked about "
            f"several images, the answers to it about other images name the chosen one in "
            f"{_percent(blind['right_share'])} of {blind['decided']:,} ({_interval(blind['ci'])}): "
            "a model that sees nothing gets that far; compare what you train with and without "
            "images"
        )


def _repeated_image(one: dict[str, Any]) -> Iterator[str]:
    images = one["images"]
    if images["most"] >= max(_FEWEST, _ONE_IMAGE * images["pairs"]):
        yield (
            f"one image is there {_count(images['most'], 'time')} among "
            f"{_count(images['pairs'], 'pair')} with images: look at it, it may be a placeholder"
        )


def _ties(one: dict[str, Any]) -> Iterator[str]:
    if one["ties"] > _TIES * one["pairs"]:
        yield f"{_of(one['ties'], one['pairs'])} are ties; `pairing.ties` says what becomes of them"


def _few(one: dict[str, Any]) -> Iterator[str]:
    if 0 < one["pairs"] < _SHORT:
        yield (
            f"{_count(one['pairs'], 'pair')} {_be(one['pairs'])} few: shares of so few are known "
            "to within ten per cent at best"
        )


def _between(audit: dict[str, Any]) -> Iterator[str]:
    sources = audit["sources"]
    for shared in audit["across"]["shared_prompts"][:5]:
        least = min(sources[n]["prompts"]["distinct"] for n in (shared["a"], shared["b"]))
        if shared["prompts"] > _REPEATED * least:
            yield (
                f"the sources {shared['a']} and {shared['b']} have "
                f"{_count(shared['prompts'], 'prompt')} in common: hold out by prompt over all "
                "sources, not by source"
            )
    for shared in audit["across"]["shared_images"][:5]:
        least = min(sources[n]["images"]["distinct"] for n in (shared["a"], shared["b"]))
        if shared["images"] > _REPEATED * least:
            yield (
                f"the sources {shared['a']} and {shared['b']} have "
                f"{_count(shared['images'], 'image')} in common: if one of them is to evaluate "
                "what is trained on the other, leave these out (the step `decontaminate` with "
                "`images: alone`)"
            )
    overall = audit["overall"]
    for what in ("duplicates", "contradictions"):
        inside = sum(one[what]["pairs"] for one in sources.values())
        if len(sources) > 1 and (more := overall[what]["pairs"] - inside) > 0:
            words = {
                "duplicates": "of one source are also in another; the step `exact_duplicates` "
                "looks at all sources together",
                "contradictions": "have the opposite label in another source; the step "
                "`contradictions` looks at all sources together",
            }
            yield f"{_count(more, 'pair')} {words[what]}"


_CHECKS: tuple[Callable[[dict[str, Any]], Iterator[str]], ...] = (
    _contradictions,
    _margins,
    _identical,
    _same_response,
    _length,
    _together,
    _features,
    _openings,
    _duplicates,
    _template,
    _scripts,
    _characters,
    _generators,
    _blind,
    _repeated_image,
    _ties,
    _few,
)


def _clear(entry: dict[str, Any], effect: float) -> tuple[bool, float, list[float]] | None:
    """(whether more is chosen, the share and interval of that side) where it is clear of chance."""
    ci, share = entry["ci"], entry["share"]
    if ci is None or share is None:
        return None
    if ci[0] >= 0.5 + effect:
        return True, share, ci
    if ci[1] <= 0.5 - effect:
        return False, 1 - share, [1 - ci[1], 1 - ci[0]]
    return None


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _of(n: int, total: int) -> str:
    share = 100 * n / total if total else 0.0
    return f"{n:,} of {_count(total, 'pair')} ({share:.{0 if share >= 10 else 1}f}%)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _interval(ci: list[float]) -> str:
    return f"95% interval {100 * ci[0]:.0f} to {100 * ci[1]:.0f}%"


def _listed(words: Any) -> str:
    items = list(words)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _be(n: int) -> str:
    return "is" if n == 1 else "are"


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
