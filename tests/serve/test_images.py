"""Images of requests: the forms in which they come, their limits, and where they are not taken."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from palate.data.images import TOO_MANY_BYTES, TOO_MANY_PIXELS, ImageError
from palate.data.schema import images_in
from palate.data.scorer import HAS_IMAGES, TEXT_AND_IMAGES, Group, Score, Traits
from palate.errors import RecipeError
from palate.recipes.serving import ServeImages, ServeRecipe
from palate.serve.fetch import LATE, NO_ADDRESS, NOT_LISTED, NOT_PUBLIC, fetch, is_public
from palate.serve.images import NO_FOLDER
from palate.serve.run import serve
from tiny_serve import Slow, client, run


def picture(shade: int = 250, size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 10, 20)).save(file, "PNG")
    return file.getvalue()


RED, BLUE = picture(250), picture(5)


def url(data: bytes = RED) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def digest(data: bytes = RED) -> str:
    return hashlib.sha256(data).hexdigest()


def openai(where: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": where}}


def ours(where: str) -> dict[str, Any]:
    return {"type": "image", "image": where}


def asked(*parts: Any, **more: Any) -> dict[str, Any]:
    text = {"type": "text", "text": "what?"}
    turn = {"role": "user", "content": [*parts, text]}
    return {"prompt": [turn], "responses": ["a", "b"]} | more


class Sees:
    """Counts a prompt's images, and keeps what it was given."""

    name = "sees"
    traits = Traits(modalities=TEXT_AND_IMAGES, independent=True)

    def __init__(self) -> None:
        self.counts: Any = {}
        self.groups: list[Group] = []

    def score(self, groups: Any) -> list[list[Score]]:
        self.groups += groups
        return [[Score(float(len(images_in(g.prompt)))) for _ in g.responses] for g in groups]

    @property
    def images(self) -> list[tuple[bytes | None, str | None]]:
        return [(i.data, i.digest) for g in self.groups for i in images_in(g.prompt)]


async def answers(c: Any, body: Any, path: str = "/score") -> tuple[int, Any]:
    found = await c.post(path, json=body)
    document = found.json()
    if found.status_code != 200:
        document = document["error"]["message"]
        assert len(document.splitlines()) == 1
    return found.status_code, document


def test_images_come_in_the_request_in_both_forms_and_in_their_places() -> None:
    async def test() -> None:
        scorer = Sees()
        async with client(scorer) as c:
            status, found = await answers(c, asked(openai(url()), ours(url(BLUE))))
            assert (status, found["scores"]) == (200, [2.0, 2.0])
            assert scorer.images == [(RED, digest()), (BLUE, digest(BLUE))]
            parts = scorer.groups[0].prompt[0]["content"]  # type: ignore[index]
            assert [part["type"] for part in parts] == ["image", "image", "text"]  # type: ignore[index]
            turns = [{"role": "user", "content": [openai(url())]}, {"role": "assistant"}]
            turns[1]["content"] = "x"
            chat = {"model": "longer wins", "messages": turns}
            _, found = await answers(c, chat, "/v1/chat/completions")
            assert found["choices"][0]["message"]["content"] == "reward:1.0"
            assert (await c.get("/info")).json()["scorer"]["reads_images"] is True

    run(test)


def test_an_image_is_sent_once_and_named_by_its_digest() -> None:
    name = f"sha256:{digest()}"

    async def test() -> None:
        scorer = Sees()
        async with client(scorer) as c:
            items = [asked(ours(name)), asked(openai(name), ours(url(BLUE)))]
            for key in (digest(), name):
                status, found = await answers(c, {"items": items, "images": {key: url()}})
                assert status == 200 and [i["scores"][0] for i in found["items"]] == [1.0, 2.0]
            assert scorer.images[:2] == [(RED, digest())] * 2
            for body, text in (
                (asked(ours(name)), "prompt.0.content.0: no image of this digest in `images`"),
                ({"items": items}, "items.0.prompt.0.content.0: no image of this digest"),
                (asked(images={digest(): url()}), f"images.{name}: no part names it"),
                (asked(ours(name), images={digest(): url(BLUE)}), "the digest of another image"),
                (asked(ours(name), images={"red": url()}), "images.red: no SHA-256"),
                (asked(ours(name), images={name: url(), digest(): url()}), "there twice"),
                (asked(ours(name), images={name: "red.png"}), "no image in base64"),
                (asked(ours(name), images={}), "images: Dictionary should have at least 1"),
                ({"items": [asked(ours(name), images={name: url()})]}, "images: Extra"),
            ):
                status, found = await answers(c, body)
                assert status == 422 and text in found, found

    run(test)


def test_what_is_no_image_or_breaks_a_limit_is_one_line() -> None:
    long = picture(1, (300, 300))
    wide = picture(1, (41, 40))

    async def test() -> None:
        limits = {"max_bytes": len(long) - 1, "max_pixels": 1600, "max_images": 3}
        async with client(Sees(), images=limits | {"formats": ["PNG", "JPEG"]}) as c:
            gif = io.BytesIO()
            Image.new("P", (4, 4)).save(gif, "GIF")
            for part, text in (
                (ours(url(wide)), TOO_MANY_PIXELS),
                (ours(url(long)), TOO_MANY_BYTES),
                (ours(url(RED[:50])), "broken or cut short"),
                (ours(url(b"hello")), "not an image of a known format"),
                (ours(url(gif.getvalue())), "of a format that images.formats leaves out"),
                (ours("data:image/png,abc"), "no image in base64"),
                (ours("data:image/png;base64,a*b"), "no image in base64"),
                (ours("a.png"), NO_FOLDER),
                (ours(""), NO_FOLDER),
                (openai("http://example.org/a.png"), NOT_LISTED),
                (ours("file:///etc/passwd"), NO_ADDRESS),
                (openai(url()) | {"image": url()}, "has `image_url`, and nothing else"),
                ({"type": "image"}, "has `image`, and nothing else"),
                ({"type": "image_url", "image_url": {"url": url(), "detail": "low"}}, "detail"),
            ):
                status, found = await answers(c, asked(part))
                assert status == 422 and text in found and found.startswith("prompt.0.con"), found
            assert (await answers(c, asked(*[ours(url())] * 3)))[0] == 200
            status, found = await answers(c, asked(*[ours(url())] * 4))
            assert (status, found) == (413, "4 images in one request, and 3 are allowed")

    run(test)


def test_what_is_scored_holds_no_images_and_who_sees_none_says_so() -> None:
    async def test() -> None:
        async with client(Sees()) as c:
            side = [{"role": "assistant", "content": [ours(url())]}]
            status, found = await answers(c, {"prompt": "p", "responses": ["a", side]})
            assert status == 422 and found.startswith("responses.1.0.content.0: images are read in")
        async with client(Slow()) as c:
            status, found = await answers(c, asked(ours(url())))
            assert (status, found) == (422, f"prompt.0.content.0: {HAS_IMAGES}")
            info = (await c.get("/info")).json()
            assert info["scorer"]["reads_images"] is False and "max_images" not in info["limits"]

    run(test)


def test_files_below_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.png").write_bytes(RED)
    (tmp_path / "secret.png").write_bytes(BLUE)
    (root / "link.png").symlink_to(tmp_path / "secret.png")

    async def test() -> None:
        scorer = Sees()
        async with client(scorer, images={"root": str(root)}) as c:
            assert (await answers(c, asked(ours("in/a.png"), openai("in/a.png"))))[0] == 200
            assert scorer.images == [(RED, digest())] * 2
            out = "a path that leads out of the image folder"
            for path, text in (
                ("../secret.png", out),
                (str(tmp_path / "secret.png"), out),
                ("link.png", out),
                ("C:\\a.png", out),
                ("in", "no such file"),
                ("in/b.png", "no such file"),
                ("in/a.png\0", "no such file"),
            ):
                status, found = await answers(c, asked(ours(path)))
                assert status == 422 and text in found, (path, found)

    run(test)
    with pytest.raises(RecipeError, match=r"`images\.root`: .* is no folder"):
        serve(
            ServeRecipe.model_validate(
                {"scorer": {"type": "length"}, "images": {"root": str(tmp_path / "none")}}
            )
        )


# Addresses ----------------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server of images on loopback, and (path, host that it was told) of what it was asked."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["host"]))
            status, body = 200, RED
            if self.path == "/moved":
                status = 302
            elif self.path == "/gone":
                status = 404
            self.send_response(status)
            if status == 302:
                self.send_header("location", "/a.png")
            self.end_headers()
            try:
                if self.path == "/endless":
                    for _ in range(10_000):
                        self.wfile.write(bytes(1000))
                elif self.path == "/drops":
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                else:
                    self.wfile.write(body)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_a_listed_host_is_asked_and_no_other(host: tuple[str, list[tuple[str, str]]]) -> None:
    at, seen = host

    async def test() -> None:
        scorer = Sees()
        limits = {"allow_hosts": [at], "max_bytes": 5000, "fetch_seconds": 0.5}
        async with client(scorer, images=limits) as c:
            body = asked(openai(f"http://{at}/a.png?b=c"))
            assert (await answers(c, body))[0] == 200
            assert scorer.images == [(RED, digest())] and seen == [("/a.png?b=c", at)]
            port = at.partition(":")[2]
            for address, text in (
                (f"http://{at}/moved", "an address that answers 302"),
                (f"http://{at}/gone", "an address that answers 404"),
                (f"http://{at}/endless", TOO_MANY_BYTES),
                (f"http://{at}/drops", LATE),
                (f"http://localhost:{port}/a.png", NOT_LISTED),
                (f"http://{at}@evil.example/a.png", NO_ADDRESS),
                (f"http://me@{at}/a.png", NO_ADDRESS),
                ("http://127.0.0.1/a.png", NOT_LISTED),
                (f"https://{at}/a.png", "cannot be fetched (ConnectError)"),
                (f"ftp://{at}/a.png", NO_ADDRESS),
                ("http:///a.png", NO_ADDRESS),
            ):
                status, found = await answers(c, asked(ours(address)))
                assert status == 422 and text in found, (address, found)
            assert [path for path, _ in seen].count("/a.png") == 0

    run(test)


def test_a_name_is_looked_up_once_and_may_not_lead_to_a_private_address(
    host: tuple[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, seen = host
    address, _, port = at.partition(":")

    def told(*ips: str) -> Any:
        return lambda *_, **__: [(0, 0, 0, "", (ip, int(port))) for ip in ips]

    def get(resolve: Any, name: str = "images.example") -> bytes:
        listed = f"{name}:{port}"
        until = time.monotonic() + 3
        return fetch(
            f"http://{listed}/a.png", [listed], max_bytes=999, deadline=until, resolve=resolve
        )

    for ips in (["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["::ffff:192.168.0.1"]):
        with pytest.raises(ImageError, match="not on the public network"):
            get(told(*ips))
    assert seen == []
    # What was looked up is what is asked, under the host's own name.
    monkeypatch.setattr("palate.serve.fetch.is_public", lambda ip: ip == address)
    assert get(told(address)) == RED and seen == [("/a.png", f"images.example:{port}")]
    with pytest.raises(ImageError, match="host is not known"):
        get(lambda *_, **__: (_ for _ in ()).throw(socket.gaierror()))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public
    assert NOT_PUBLIC


def test_hosts_are_hosts() -> None:
    good = ("example.org", "example.org:8080", "10.0.0.5", "[::1]:80")
    assert ServeImages(allow_hosts=good).allow_hosts == good
    for bad in ("http://example.org", "example.org/a", "*", "a:b", "::1", "me@example.org"):
        with pytest.raises(ValidationError, match=r"is no host: write example\.org"):
            ServeImages(allow_hosts=(bad,))
    with pytest.raises(ValidationError, match="only with `allow_hosts`"):
        ServeImages(fetch_seconds=3.0)
