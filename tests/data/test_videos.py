"""Videos as frames: which are taken, in what order, and what costs its row."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from build_cases import built, chat_pair, quarantine_of, write_jsonl
from palate.data import videos
from palate.data.content import bare, content_key
from palate.data.images import ADDRESS, MISSING, OUTSIDE, ImageError
from palate.data.readers.base import RowError
from palate.data.schema import ImageRef, VideoRef, images_in, text_in, video_of
from palate.data.videos import chosen_places, framed, with_frames
from palate.errors import DataError
from text_formats import read_one


def png(shade: int, size: tuple[int, int] = (32, 16)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(out, "PNG")
    return out.getvalue()


def folder(root: Path, n: int, name: str = "clip") -> Path:
    (root / name).mkdir(parents=True)
    for i in range(n):
        (root / name / f"frame{i}.png").write_bytes(png(i))
    return root / name


def names(video: VideoRef) -> list[str]:
    return [Path(frame.path or "").name for frame in video.frames]


def test_places_are_those_of_linspace_rounded_down() -> None:
    assert chosen_places(100, 5) == [0, 24, 49, 74, 99]
    assert chosen_places(1000, 32) == np.linspace(0, 999, 32, dtype=int).tolist()
    assert chosen_places(32, 32) == list(range(32)) and chosen_places(3, 32) == [0, 1, 2]
    assert chosen_places(9, 1) == [0] and chosen_places(0, 4) == []


def test_a_folder_of_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    clip = folder(tmp_path, 12)
    (clip / "notes.txt").write_text("no frame")
    (clip / ".hidden.png").write_bytes(png(0))
    video = VideoRef(file=ImageRef(path="clip"))
    assert names(framed(video, tmp_path)) == [f"frame{i}.png" for i in range(12)]
    assert names(framed(video, tmp_path, 3)) == ["frame0.png", "frame5.png", "frame11.png"]
    (frame, *_) = framed(video, tmp_path, 3).frames
    assert (frame.path, frame.root) == ("clip/frame0.png", tmp_path)


def test_a_list_of_frames_and_its_rate(tmp_path: Path) -> None:
    frames = tuple(ImageRef(path=f"{i}.png") for i in range(8))
    made = framed(VideoRef(frames=frames, rate=4.0), tmp_path, 4)
    assert names(made) == ["0.png", "2.png", "4.png", "7.png"] and made.rate == 2.0
    assert all(frame.root == tmp_path for frame in made.frames)
    assert framed(made, Path("elsewhere"), 4) == made


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("empty", videos.NO_FRAMES),
        ("none", MISSING),
        ("../outside", OUTSIDE),
        ("https://example.com/a.mp4", ADDRESS),
        ("words.mp4", videos.UNREADABLE),
        ("cut.mp4", videos.UNREADABLE),
    ],
)
def test_videos_that_cannot_be_used(tmp_path: Path, path: str, reason: str) -> None:
    root = tmp_path / "root"
    (root / "empty").mkdir(parents=True)
    folder(tmp_path, 2, "outside")
    if path.endswith(".mp4"):
        pytest.importorskip("av", reason="PyAV is an extra")
        (root / "words.mp4").write_bytes(b"no video")
        (root / "cut.mp4").write_bytes(movie(6)[:300])
    with pytest.raises(ImageError) as caught:
        framed(VideoRef(file=ImageRef(path=path)), root)
    assert caught.value.reason == reason


def movie(n: int, rate: int = 8) -> bytes:
    """Frames that grow lighter."""
    av = pytest.importorskip("av", reason="PyAV is an extra")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        for i in range(n):
            shade = np.full((48, 64, 3), 20 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def test_a_video_file_is_decoded_to_frames(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(movie(11))
    for file in (ImageRef(path="a.mp4"), ImageRef(data=movie(11))):
        video = framed(VideoRef(file=file), tmp_path, 4)
        shades = [
            float(np.asarray(Image.open(io.BytesIO(frame.data or b""))).mean())
            for frame in video.frames
        ]
        assert np.allclose(shades, [0, 60, 120, 200], atol=8)
        assert video.rate == pytest.approx(4 / (11 / 8))


def test_videos_of_telephones_stand_upright(tmp_path: Path) -> None:
    """The file says: turn by 90 degrees clockwise, so that what is on the left is at the top."""
    av = pytest.importorskip("av", reason="PyAV is an extra")
    band = np.zeros((48, 64, 3), dtype=np.uint8)
    band[:, :32] = 255
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for packet in stream.encode(av.VideoFrame.from_ndarray(band, format="rgb24")):
            container.mux(packet)
        container.mux(stream.encode())
    data = bytearray(out.getvalue())
    # The matrix of the track's header: (x, y) is shown at (48 - y, x).
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[matrix : matrix + 36])[:2] == (65536, 0)
    turned = (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *turned)
    (frame,) = framed(VideoRef(file=ImageRef(data=bytes(data))), tmp_path).frames
    shown = np.asarray(Image.open(io.BytesIO(frame.data or b"")).convert("L"))
    assert shown.shape == (64, 48)
    assert shown[:28].mean() > 230 and shown[36:].mean() < 25


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r"palate\[video\]"):
        framed(VideoRef(file=ImageRef(path="a.mp4")), tmp_path)


def test_frames_in_the_place_of_a_video(tmp_path: Path) -> None:
    folder(tmp_path, 5)
    content: Any = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Before "},
                {"type": "video", "video": VideoRef(file=ImageRef(path="clip"))},
                {"type": "image", "image": ImageRef(path="a.png")},
            ],
        }
    ]
    shown: Any = with_frames(content, tmp_path, 3, as_images=True)
    kinds = [part["type"] for part in shown[0]["content"]]
    assert kinds == ["text", "image", "image", "image", "image"]
    assert [Path(i.path or "").name for i in images_in(shown)] == [
        "frame0.png", "frame2.png", "frame4.png", "a.png",
    ]  # fmt: skip
    kept: Any = with_frames(content, tmp_path, 3, as_images=False)
    assert [part["type"] for part in kept[0]["content"]] == ["text", "video", "image"]
    assert len(video_of(kept[0]["content"][1]).frames) == 3
    other: Any = [dict(content[0], content=[*content[0]["content"][:1]])]
    assert len({content_key(c) for c in (content, shown, kept, other)}) == 4


def read(**changes: Any) -> Any:
    record = {"prompt": "What moves?", "chosen": "A cat.", "rejected": "A dog."} | changes
    return read_one("trl_preference", record)


def places(row: Any) -> list[str]:
    return [p["text"] if p["type"] == "text" else p["type"] for p in row.prompt[0]["content"]]


def test_videos_of_columns() -> None:
    row = read(video="clips/1")
    assert places(row) == ["video", "What moves?"] and row.has_videos
    assert images_in(row.prompt) == [ImageRef(path="clips/1")]
    assert places(read(videos=["a.mp4"], prompt="In <video> what?")) == ["In ", "video", " what?"]
    both = read(videos=[["1.png", "2.png"]], images=["a.png"], prompt="<image> or <video>?")
    assert places(both) == ["image", " or ", "video", "?"]
    assert [ref.path for ref in images_in(both.prompt)] == ["a.png", "1.png", "2.png"]
    frames = read(video=["1.png", "2.png"])
    assert video_of(frames.prompt[0]["content"][0]).frames[1] == ImageRef(path="2.png")
    with pytest.raises(RowError, match="videos: not as many as there are <video>"):
        read(videos=["a"], prompt="<video><video>")
    with pytest.raises(RowError, match="video: beside videos"):
        read(videos=["a"], video="b")


def test_videos_in_typed_parts() -> None:
    def chat(*parts: Any) -> Any:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]

    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    own = read(prompt=chat({"type": "video", "video": ["1.png"]}), **answers)
    assert video_of(own.prompt[0]["content"][0]).frames == (ImageRef(path="1.png"),)
    column = read(prompt=chat({"type": "video"}, {"type": "image"}), videos=["v"], images=["i"],
                  **answers)  # fmt: skip
    assert [ref.path for ref in images_in(column.prompt)] == ["v", "i"]
    assert bare(column.prompt)[0]["content"][0] == {"type": "video"}
    with pytest.raises(RowError, match="videos: not as many"):
        read(prompt=chat({"type": "video"}), **answers)
    with pytest.raises(RowError, match="chosen: a video in an answer"):
        said = [{"role": "assistant", "content": [{"type": "video", "video": "v"}]}]
        read(prompt=chat(), **answers | {"chosen": said})


def test_ms_swift_videos() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "See <video>"},
            {"role": "assistant", "content": "a"},
        ],
        "rejected_response": "b",
        "videos": ["v.mp4"],
    }
    row = read_one("ms_swift", record)
    assert places(row) == ["See ", "video"] and text_in(row.prompt[0]["content"]) == "See "
    with pytest.raises(RowError, match="rejected_videos: not read"):
        read_one("ms_swift", record | {"rejected_videos": ["w.mp4"]})


def test_a_build_counts_rows_with_videos(tmp_path: Path) -> None:
    folder(tmp_path, 3)
    rows = [chat_pair(0), chat_pair(1, videos=["clip"])]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = built(tmp_path / "out", [{"path": file}])
    assert (report["sources"][0]["kept"], report["sources"][0]["read"]) == (1, 2)
    (line,) = quarantine_of(tmp_path / "out")
    assert line["reason"] == "image: a video, which builds do not write"
