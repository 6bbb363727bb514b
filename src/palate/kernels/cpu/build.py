"""Compiles this folder when it is first needed, keeps it, and checks it before it is trusted."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from palate.caches import cache_folder
from palate.errors import ModelError

SWITCH = "PALATE_COMPILED"
"""Environment variable: 0 keeps to torch's operators, 1 makes it an error to have no others."""
SOURCES = ("attention.cpp", "decode.cpp", "head.cpp", "layers.cpp", "products.h", "vectors.h")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fopenmp",
    # Without them no comparison of floats becomes a vector instruction.
    "-fno-math-errno",
    "-fno-trapping-math",
)


class Unavailable(Exception):
    """Why the compiled library cannot be used."""


def switch() -> str:
    """What the environment says: 0, 1 or nothing.

    Raises:
        ModelError: anything else.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise ModelError(f"{SWITCH} is 0 or 1, not {wanted!r}")
    return wanted


def available() -> bool:
    """Whether the compiled library can be used; the first call compiles, loads and checks it."""
    return why_not() is None


@cache
def why_not() -> str | None:
    """Why the compiled library is not used, in words; None where it is.

    Raises:
        ModelError: it cannot be used and `PALATE_COMPILED=1` wants it.
    """
    wanted = switch()
    if wanted == "0":
        return f"{SWITCH}=0"
    try:
        library()
        from palate.kernels.cpu.check import check

        # The first call comes from inside a pass that has no gradients, or no versions.
        with torch.inference_mode(False), torch.enable_grad():
            check()
    except Unavailable as error:
        if wanted == "1":
            raise ModelError(f"{SWITCH}=1, but {error}") from error.__cause__
        note = "torch's own operators are used, which take up to twice as long as compiled ones: "
        logging.getLogger("palate").warning("%s%s", note, error)
        return str(error)
    return None


@cache
def library() -> ctypes.CDLL:
    """The compiled library; whoever calls it asks `available` first, which checks its results.

    Raises:
        Unavailable: this machine cannot compile or run it.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        raise Unavailable("no bfloat16 products on this CPU")
    # What it depends on: instructions of this machine, symbols of this torch.
    texts = sources()
    about = (texts, FLAGS, torch.__version__, _processor())
    name = "palate_" + hashlib.sha256(repr(about).encode()).hexdigest()[:24]
    file = cache_folder("kernels") / f"{name}.so"
    if not file.exists():
        _compile(texts, name, file)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise Unavailable(f"{file} cannot be loaded: {error}") from error


def sources() -> dict[str, str]:
    """Text of each file."""
    folder = resources.files("palate.kernels.cpu")
    return {name: folder.joinpath(name).read_text("utf-8") for name in SOURCES}


def _compile(texts: dict[str, str], name: str, file: Path) -> None:
    # In a folder of its own, put in its place in one step: the loader's lock outlives a killed
    # process, and whoever comes next would wait for it for ever.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=file.parent))
    except OSError as error:
        raise Unavailable(f"{file.parent} cannot be written: {error.strerror}") from error
    try:
        for part, text in texts.items():
            (folder / part).write_text(text, encoding="utf-8")
        logging.getLogger("palate").info("compiling kernels for this CPU (once)")
        from torch.utils.cpp_extension import load

        load(
            name,
            [str(folder / part) for part in texts if part.endswith(".cpp")],
            extra_cflags=list(FLAGS),
            build_directory=str(folder),
            with_cuda=False,
            is_python_module=False,
        )
        os.replace(folder / f"{name}.so", file)
    # The compiler's own words are long; its first error says most.
    except (RuntimeError, ImportError, OSError) as error:
        lines = str(error).splitlines()
        first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
        raise Unavailable(f"kernels cannot be compiled: {first.strip()}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _processor() -> str:
    """The instructions that the compiler may use here, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())
