"""Whether models look at images: scorers that do, that do not, and that cannot."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.data.schema import ImageRef, images_in, text_in
from palate.data.scorer import TEXT_AND_IMAGES, Traits, ask
from palate.evaluate.reward import evaluate_rewards
from palate.evaluate.reward.items import BenchmarkItem, as_groups, compare, values_of
from palate.evaluate.reward.looking import (
    blind_item,
    look,
    looking,
    shortcut_failure,
    with_other_images,
)
from palate.evaluate.statistics import mean_interval
from palate.recipes import load_recipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.rewards.length import Length
from scored import Numbers
from stand_in_images import png

COLOURS = ("red", "blue")


def colour_of(digest: str) -> str:
    return COLOURS[int(digest[-1]) % 2]


def item(n: int, digests: list[str], text: str = "Which colour?") -> BenchmarkItem:
    right = colour_of(digests[0]) if digests else "red"
    images: list[Any] = [{"type": "image", "image": ImageRef(path=d, digest=d)} for d in digests]
    turn: Any = {"role": "user", "content": [*images, {"type": "text", "text": f"{text} {n}"}]}
    wrong = next(colour for colour in COLOURS if colour != right)
    return BenchmarkItem(id=str(n), source="s", prompt=[turn], responses=(right, wrong))


def coloured(n: int) -> list[BenchmarkItem]:
    """Items whose better response names the colour of their image, half of them red."""
    return [item(k, [f"d{k}"]) for k in range(n)]


class Seeing(Numbers):
    """1 for the colour of the image; without one it holds with red."""

    traits = Traits(modalities=TEXT_AND_IMAGES)

    def numbers(self, prompts, responses):
        seen = [images_in(prompt) for prompt in prompts]
        named = [colour_of(images[0].digest) if images else "red" for images in seen]
        return [float(a == b) for a, b in zip(named, responses, strict=True)]


class Reading(Numbers):
    """Looks at texts alone, whatever prompts hold: right in three of four."""

    traits = Traits(modalities=TEXT_AND_IMAGES)

    def numbers(self, prompts, responses):
        numbers = [int(text_in(p[0]["content"]).split()[-1]) for p in prompts]
        right = [colour_of(f"d{n}") if n % 4 else COLOURS[1 - n % 2] for n in numbers]
        return [float(a == b) for a, b in zip(right, responses, strict=True)]


def asking(scorer: Numbers) -> Callable[..., Any]:
    return lambda items, _: values_of(ask(scorer, as_groups(items)))


def looked(scorer: Numbers, items: list[BenchmarkItem], most: int | None = None) -> Any:
    scores = asking(scorer)(items, "")
    return look(items, scores, asking(scorer), most=most, seed="0")


def test_a_scorer_that_sees_is_worse_without_its_images():
    found = looked(Seeing(), coloured(60))
    assert (found["items"], found["n"], found["lost"]) == (60, 60, 0)
    assert found["real"]["accuracy"] == 1.0 and found["blind"]["accuracy"] == 0.5
    # Some images of others have the same colour by chance.
    assert 0.2 < found["others"]["accuracy"] < 0.8 and found["others"]["n"] == 60
    mean, ci = mean_interval([0.0, 1.0] * 30)
    assert found["difference"] == mean == 0.5
    assert found["difference_ci"] == pytest.approx(ci)
    assert found["as_good_without"] is False
    assert found["sentence"].startswith("better with the images: 100.0% with them, 50.0% without")
    assert found["shortcut"]["degradation"] == 0.0


def test_a_scorer_that_reads_alone_is_as_good_without():
    found = looked(Reading(), coloured(60))
    assert found["real"]["accuracy"] == found["blind"]["accuracy"] == 0.75
    assert found["others"]["accuracy"] == 0.75 and found["difference_others"] == 0.0
    assert (found["difference"], found["difference_ci"]) == (0.0, (0.0, 0.0))
    assert found["as_good_without"] is True
    assert found["sentence"].startswith("as good without the images: 75.0% with them")
    # All of what it gets right it gets right by its text.
    assert found["shortcut"]["degradation"] == 1.0
    assert found["shortcut"]["blind_wrong"]["n"] == 15


def test_a_scorer_that_is_better_without_is_as_good_without():
    items = coloured(40)
    real, blind = [[0.0, 1.0]] * 40, [[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10
    found = looking(items, real, blind, real)
    assert found["difference"] == -0.75 and found["difference_ci"][1] < 0
    assert found["as_good_without"] is True


def test_a_scorer_that_reads_no_images_is_not_asked_again():
    class TextOnly(Seeing):
        traits = Traits()

    assert looked(TextOnly(), coloured(4)) is None
    assert looked(Seeing(), [item(0, []), item(1, [])]) is None  # nothing to look at


def test_a_part_is_drawn_and_pairs_without_a_score_are_counted():
    class Fails(Seeing):
        def numbers(self, prompts, responses):
            real = super().numbers(prompts, responses)
            return [
                np.nan if not images_in(p) and text_in(p[0]["content"]).endswith("7") else value
                for p, value in zip(prompts, real, strict=True)
            ]

    found = looked(Fails(), [*coloured(50), item(99, [])])
    assert (found["items"], found["items_with_images"]) == (50, 50)
    assert (found["n"], found["lost"], found["others"]["n"]) == (45, 5, 45)
    part = looked(Seeing(), coloured(50), most=20)
    assert (part["items"], part["items_with_images"], part["n"]) == (20, 50, 20)
    assert part == looked(Seeing(), coloured(50), most=20)


def test_one_image_for_all_has_no_other():
    items = [item(n, ["d1"]) for n in range(6)]
    found = looked(Seeing(), items)
    assert found["others"] == {"n": 0, "accuracy": None, "accuracy_ci": None, "ties": 0}
    assert found["difference_others"] is None and "others" not in found["sentence"]
    assert found["real"]["accuracy"] == 1.0 and found["difference"] == 1.0


def test_one_prompt_alone_says_nothing():
    found = looked(Seeing(), [item(1, ["d1"])] * 3)
    assert found["difference_ci"] is None and found["as_good_without"] is None
    assert found["sentence"].startswith("one prompt alone")


def test_shortcut_failure_by_hand():
    items = coloured(10)
    # Without images 6 are right; with them 5 of these, and 1 of the other 4.
    blind = [[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 3 + [[1.0, 1.0]]
    real = [[1.0, 0.0]] * 5 + [[0.0, 1.0]] + [[1.0, 0.0]] + [[0.0, 1.0]] * 3
    found = shortcut_failure(compare(items, real), compare(items, blind))
    assert (found["blind_right"]["n"], found["blind_wrong"]["n"]) == (6, 4)
    assert found["degradation"] == pytest.approx(5 / 6 - 1 / 4)
    low, high = found["degradation_ci"]
    assert -1 <= low < found["degradation"] < high <= 1
    always = shortcut_failure(compare(items, real), compare(items, [[1.0, 0.0]] * 10))
    assert always["degradation"] is None and always["blind_wrong"]["accuracy"] is None


def test_text_alone_is_left_without_images():
    asked = item(3, ["d1"])
    prompt = asked.prompt[0]["content"]
    prompt[1]["text"] = "\nWhich?\n\nNow."
    prompt += [{"type": "image", "image": ImageRef(digest="x")}, {"type": "text", "text": " End"}]
    assert blind_item(asked).prompt == [{"role": "user", "content": "Which?\n\nNow. End"}]
    assert len(images_in(asked.prompt)) == 2  # the item is as it was


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3), min_size=1, max_size=24))
def test_no_item_gets_an_image_of_its_own(sets):
    items = [item(n, [f"d{k}" for k in own]) for n, own in enumerate(sets)]
    swapped = with_other_images(items, random.Random(0))
    every = {k for own in sets for k in own}
    for own, before, after in zip(sets, items, swapped, strict=True):
        if after is None:
            assert every == set(own)
            continue
        new = [int(image.digest[1:]) for image in images_in(after.prompt)]
        assert len(new) == len(own) and not set(new) & set(own)
        assert text_in(after.prompt[0]["content"]) == text_in(before.prompt[0]["content"])
    assert swapped == with_other_images(items, random.Random(0))


@given(st.integers(2, 30), st.integers(0, 5))
def test_images_change_places_where_they_can(n, seed):
    # Up to half of the items share one image.
    items = [item(k, ["d0" if k < n // 2 else f"d{k}"]) for k in range(n)]
    swapped = with_other_images(items, random.Random(seed))
    before, after = (
        sorted(images_in(one.prompt)[0].digest for one in some) for some in (items, swapped)
    )
    assert before == after


RECIPE = """\
# palate eval reward
output_dir: runs/out
models:
  - {type: length, name: sees}
  - {type: length, prefer: shorter, name: reads}
benchmarks:
  - type: vl_rewardbench
    name: pictures
    data: [{path: vl.jsonl}]
  - type: pairs
    name: texts
    data: [{path: pairs.jsonl}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(24):
        Path(f"{n}.png").write_bytes(png(n, (255, 0, 0) if n % 2 else (0, 0, 255)))
        right = ("red", "blue")[n % 2 == 0]
        wrong = ("blue", "red")[n % 2 == 0]
        row = {"id": f"wildvision-{n // 2}", "query": f"Colour {n}?", "image": f"{n}.png"}
        rows.append(row | {"response": [right, wrong], "human_ranking": [0, 1]})
    pairs = [{"prompt": f"{n}", "chosen": "longer", "rejected": "long"} for n in range(5)]
    for name, lines in (("vl", rows), ("pairs", pairs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def seeing(self, groups):
    """Of the two scorers of the recipe one opens the images that it is given."""
    from PIL import Image

    from palate.data.scorer import Score

    scored = []
    for group in groups:
        images = images_in(group.prompt)
        named = "red"
        if images and self._sign > 0:
            with Image.open(images[0].root / images[0].path) as image:
                named = "red" if image.getpixel((3, 3))[0] else "blue"
        scored.append([Score(float(response == named)) for response in group.responses])
    return scored


def test_the_verb_says_whether_models_look(folder, monkeypatch, capsys):
    monkeypatch.setattr(Length, "score", seeing)
    found = evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml")).evaluation
    pictures, texts = found["benchmarks"]
    sees, reads = (pictures["results"][name]["look"] for name in ("sees", "reads"))
    assert (sees["real"]["accuracy"], sees["blind"]["accuracy"]) == (1.0, 0.5)
    assert sees["as_good_without"] is False and reads["as_good_without"] is True
    assert all(result["look"] is None for result in texts["results"].values())
    # Pairs of one id are one unit.
    assert pictures["results"]["sees"]["accuracy"]["all"]["prompts"] == 12
    printed = capsys.readouterr().err
    assert f"sees on pictures: {sees['sentence']}" in printed
    assert "reads on pictures: as good without the images: 50.0% with them" in printed
    assert "texts:" not in printed
    page = Path("runs/out/report.html").read_text()
    assert page.count("Does it look at the images?") == 1
    table = page[page.index("Does it look at the images?") :]
    assert table.count("<td>as good without the images</td>") == 1
    assert table.count("<td>better with the images</td>") == 1


def test_looking_can_be_switched_off_and_is_kept_with_the_scores(folder, monkeypatch):
    asked = []

    def counted(self, groups):
        asked.extend(groups)
        return seeing(self, groups)

    monkeypatch.setattr(Length, "score", counted)
    recipe = load_recipe(RewardEvalRecipe, "r.yaml", ["look=null", "models=[{type: length}]"])
    found = evaluate_rewards(recipe).evaluation
    assert found["benchmarks"][0]["results"]["longer wins"]["look"] is None
    plain = len(asked)
    asked.clear()
    keys = ["look={items: 6}", "models=[{type: length}]", "output_dir=runs/two"]
    recipe = load_recipe(RewardEvalRecipe, "r.yaml", keys)
    found = evaluate_rewards(recipe).evaluation
    measured = found["benchmarks"][0]["results"]["longer wins"]["look"]
    assert (measured["items"], measured["items_with_images"]) == (6, 24)
    assert len(asked) == plain + 12
    asked.clear()
    again = evaluate_rewards(recipe.model_copy(update={"resume": True})).evaluation
    # The two baselines of length are measured anew.
    assert again == found and not any(not images_in(g.prompt) for g in asked if "Colour" in str(g))
