"""The Triton kernels: right in Triton's interpreter, and compiled for GPUs without one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from palate.kernels import Head
from palate.kernels.triton import blocks, head

CASES = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@needs_triton
@pytest.mark.parametrize("where", ["interpreter", "device"])
def test_every_case(where: str) -> None:
    """In another process: whether programs are interpreted is decided when Triton is imported."""
    if where == "device" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    root = CASES.parents[2]
    path = [str(root / "src"), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    env["TRITON_INTERPRET"] = str(int(where == "interpreter"))
    env.pop("PALATE_COMPILED", None)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(CASES), "-q", "-p", "no:cacheprovider"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


class Compiled:
    """In place of a program: a launch compiles it for a GPU that need not be there."""

    def __init__(self, program: Any, arch: int) -> None:
        self.program, self.arch = program, arch
        self.kernels: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *, num_warps: int, num_stages: int, **arguments: Any) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        types, constants = {}, {}
        aligned: dict[tuple[int, ...], Any] = {}
        for i, parameter in enumerate(self.program.params):
            value = arguments[parameter.name]
            special = not parameter.do_not_specialize and type(value) is int
            if parameter.is_constexpr or value is None or (special and value == 1):
                constants[parameter.name] = value
                types[parameter.name] = "constexpr"
            elif isinstance(value, torch.Tensor):
                types[parameter.name] = TYPES[value.dtype]
                if not parameter.do_not_specialize_on_alignment:
                    aligned[(i,)] = [["tt.divisibility", 16]]
            else:
                types[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                if special and value % 16 == 0:
                    aligned[(i,)] = [["tt.divisibility", 16]]
        self.kernels.append(
            compile(
                ASTSource(fn=self.program, signature=types, constexprs=constants, attrs=aligned),
                target=GPUTarget("cuda", self.arch, 32),
                options={"num_warps": num_warps, "num_stages": num_stages},
            )
        )


@needs_triton
@pytest.mark.skipif(head.interpreted(), reason="programs are interpreted in this process")
@pytest.mark.parametrize(
    ("arch", "product", "memory"),
    [(80, "mma.sync", 100), (90, "wgmma.mma_async", 228)],
)
def test_programs_compile_and_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arch: int, product: str, memory: int
) -> None:
    """With bfloat16 products on tensor cores, no atomic sums, in the shared memory that there is.

    Args:
        memory: of a processor, KiB; a block has all of it but one.
    """
    from palate.kernels.triton import products, programs

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # Whose default is about to change, which Triton warns of.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    compiled = []
    for module, name in (
        (programs, "statistics"),
        (programs, "slopes"),
        (programs, "probabilities"),
        (products, "times_weight"),
        (products, "times_hidden"),
    ):
        compiled.append(Compiled(getattr(module, name), arch))
        monkeypatch.setattr(module, name, compiled[-1])
    about = SimpleNamespace(shared_memory_per_multiprocessor=memory * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    size = blocks.blocks(200, torch.device("cuda", 0), torch.bfloat16)
    monkeypatch.setattr(blocks, "_HALF", blocks.replace(blocks._HALF, stages=size.stages))
    n, words, width = 200, 1000, 896
    hidden = torch.zeros(n, width, dtype=torch.bfloat16)
    side = Head(weight=torch.zeros(words, width, dtype=torch.bfloat16))
    targets = torch.zeros(n, dtype=torch.int64)
    up = torch.ones(n)
    head.forward(hidden, side, targets, ref_hidden=hidden, ref_head=side, kl=True)
    head.backward(
        hidden, side, targets,
        upstream={"logp": up, "kl": up, "lse": up, "ref_lse": up},
        ref_hidden=hidden, ref_head=side, need=(True, True, False), memory_mb=64,
    )  # fmt: skip
    head.expected(hidden, side, targets, exact=True, memory_mb=64)
    assert all(c.kernels for c in compiled)
    for c in compiled:
        for kernel in c.kernels:
            assert product in kernel.asm["ptx"]
            assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"])
            # Operands are fetched while others are multiplied.
            assert "cp.async" in kernel.asm["ptx"]
            assert kernel.metadata.shared <= (memory - 1) * 1024


@pytest.mark.parametrize("memory_mb", [1, 64, 256])
@pytest.mark.parametrize(("tokens", "words"), [(1, 50), (2048, 152_064), (50_000, 262_144)])
def test_the_buffer_holds_whole_tiles_and_stays_within_its_memory(
    memory_mb: int, tokens: int, words: int
) -> None:
    room = blocks.buffered_words(
        tokens=tokens, words=words, tile=128, bytes_a_word=2, memory_mb=memory_mb
    )
    assert room % 128 == 0 and 128 <= room < words + 128
    assert room == 128 or tokens * room * 2 <= memory_mb * 2**20
    # No smaller than it must be.
    assert room >= words or tokens * (room + 128) * 2 > memory_mb * 2**20


@pytest.mark.parametrize(
    ("tiles", "token_blocks", "expected"),
    # 528 programs are wanted for 132 processors; a program has one tile at least, or all.
    [(1188, 1, 3), (1188, 32, 70), (1188, 1000, 1188), (7, 2, 1)],
)
def test_few_tokens_are_shared_out_among_many_programs(
    monkeypatch: pytest.MonkeyPatch, tiles: int, token_blocks: int, expected: int
) -> None:
    about = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    device = torch.device("cuda", 0)
    assert blocks.tiles_a_program(tiles, token_blocks, device) == expected
