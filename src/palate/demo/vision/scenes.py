"""Pictures drawn here, each with a caption that is true of it and one that is true of its twin.

Two scenes of a kind differ in what their captions say (how many, which colour, where, which word,
which bar), and each one's hallucinated caption is the other's true one. So captions are as often
true as not, lengths included, and only the picture tells which. Whatever the captions leave open
(places, sizes, shade of the ground) is drawn for each scene by itself.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 128
"""Pixels of a scene's side."""
PROMPT = "Describe the picture."
KINDS = ("count", "colour", "position", "text", "chart")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 150, 60),
    "blue": (40, 80, 200),
    "yellow": (240, 200, 40),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("one", "two", "three", "four")
WORDS = ("STOP", "OPEN", "EXIT", "TAXI", "CAFE", "SALE")


@dataclass(frozen=True)
class Scene:
    """A picture.

    Attributes:
        kind: what its caption is about. caption: true of it. png: the file.
    """

    kind: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class _Figure:
    shape: str
    colour: str
    x: int
    y: int
    radius: int


def scene_twins(count: int, *, split: str, seed: int) -> Iterator[tuple[Scene, Scene]]:
    """Pairs of scenes of every kind in turn; the same arguments give the same bytes.

    Args:
        split: scenes of two splits have nothing to do with each other.
    """
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        rng = random.Random(f"{seed}|{split}|{kind}|{number}")
        yield _MAKERS[kind](rng)


def scene_rows(
    twins: Sequence[tuple[Scene, Scene]], images: Sequence[tuple[str, str]], split: str
) -> list[dict[str, object]]:
    """Preference rows: the true caption against the twin's.

    Args:
        images: paths of the twins' pictures, relative to the folder of the rows' file.
    """
    rows: list[dict[str, object]] = []
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    for number, (scenes, paths) in enumerate(zip(twins, images, strict=True)):
        for scene, twin, path in zip(scenes, reversed(scenes), paths, strict=True):
            row: dict[str, object] = {
                "id": f"{split}-{scene.kind}-{number}-{len(rows) % 2}",
                "prompt": [{"role": "user", "content": content}],
                "chosen": [{"role": "assistant", "content": scene.caption}],
                "rejected": [{"role": "assistant", "content": twin.caption}],
                "images": [path],
            }
            rows.append(row)
    return rows


def _count(rng: random.Random) -> tuple[Scene, Scene]:
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    numbers = rng.sample(range(1, len(NUMBERS) + 1), 2)

    def scene(number: int) -> Scene:
        figures = [
            _Figure(shape, colour, x, y, rng.randint(9, 13)) for x, y in _places(rng, number)
        ]
        are, plural = ("is", "") if number == 1 else ("are", "s")
        caption = f"There {are} {NUMBERS[number - 1]} {colour} {shape}{plural}."
        return _scene("count", caption, rng, _figures(figures))

    return scene(numbers[0]), scene(numbers[1])


def _colour(rng: random.Random) -> tuple[Scene, Scene]:
    shape = rng.choice(SHAPES)

    def scene(colour: str) -> Scene:
        (place,) = _places(rng, 1)
        figure = _Figure(shape, colour, *place, rng.randint(14, 26))
        return _scene("colour", f"There is a {colour} {shape}.", rng, _figures([figure]))

    a, b = rng.sample(list(COLOURS), 2)
    return scene(a), scene(b)


def _position(rng: random.Random) -> tuple[Scene, Scene]:
    shapes = rng.sample(SHAPES, 2)
    where, axis = rng.choice((("to the left of", 0), ("above", 1)))

    def scene(first: int) -> Scene:
        ends = (rng.randint(24, 44), rng.randint(84, 104))
        figures = []
        for rank, number in enumerate((first, 1 - first)):
            place = [rng.randint(44, 84), rng.randint(44, 84)]
            place[axis] = ends[rank]
            colour = rng.choice(list(COLOURS))
            x, y = place
            figures.append(_Figure(shapes[number], colour, x, y, rng.randint(15, 19)))
        names = shapes[first], shapes[1 - first]
        caption = f"The {names[0]} is {where} the {names[1]}."
        return _scene("position", caption, rng, _figures(figures))

    return scene(0), scene(1)


def _text(rng: random.Random) -> tuple[Scene, Scene]:
    def scene(word: str) -> Scene:
        size, place = rng.randint(34, 42), (rng.randint(58, 70), rng.randint(48, 80))
        colour = COLOURS[rng.choice(("red", "blue", "black"))]

        def draw(canvas: ImageDraw.ImageDraw) -> None:
            font = ImageFont.load_default(size)
            canvas.text(place, word, fill=colour, font=font, anchor="mm", stroke_width=1)

        return _scene("text", f"The sign says {word}.", rng, draw)

    a, b = rng.sample(WORDS, 2)
    return scene(a), scene(b)


def _chart(rng: random.Random) -> tuple[Scene, Scene]:
    colours = rng.sample(list(COLOURS), 3)

    def scene(tallest: str) -> Scene:
        order = rng.sample(colours, 3)
        heights = {c: rng.randint(80, 100) if c == tallest else rng.randint(15, 50) for c in order}

        def draw(canvas: ImageDraw.ImageDraw) -> None:
            canvas.line([(14, 10), (14, 116), (120, 116)], fill=(60, 60, 60), width=2)
            for place, colour in enumerate(order):
                left = 22 + 33 * place
                box = [left, 115 - heights[colour], left + 24, 115]
                canvas.rectangle(box, fill=COLOURS[colour])

        return _scene("chart", f"The tallest bar is {tallest}.", rng, draw)

    a, b = rng.sample(colours, 2)
    return scene(a), scene(b)


_MAKERS: dict[str, Callable[[random.Random], tuple[Scene, Scene]]] = {
    "count": _count,
    "colour": _colour,
    "position": _position,
    "text": _text,
    "chart": _chart,
}


def _places(rng: random.Random, number: int) -> list[tuple[int, int]]:
    """Centres at least 30 pixels apart: places of a grid of nine, each moved a little."""
    cells = rng.sample([(x, y) for x in (26, 64, 102) for y in (26, 64, 102)], number)
    return [(x + rng.randint(-4, 4), y + rng.randint(-4, 4)) for x, y in cells]


def _figures(figures: Sequence[_Figure]) -> Callable[[ImageDraw.ImageDraw], None]:
    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for figure in figures:
            x, y, r = figure.x, figure.y, figure.radius
            fill = COLOURS[figure.colour]
            if figure.shape == "circle":
                canvas.ellipse([x - r, y - r, x + r, y + r], fill=fill)
            elif figure.shape == "square":
                canvas.rectangle([x - r, y - r, x + r, y + r], fill=fill)
            else:
                canvas.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)

    return draw


def _scene(
    kind: str, caption: str, rng: random.Random, draw: Callable[[ImageDraw.ImageDraw], None]
) -> Scene:
    shade = rng.randint(225, 255)
    picture = Image.new("RGB", (SIDE, SIDE), (shade, shade, shade))
    draw(ImageDraw.Draw(picture))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Scene(kind, caption, file.getvalue())
