"""What the benchmarks' figures rest on: fair sides, equal results, baselines, real answers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tiny_text import save_tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder as a module; it may import its neighbours while the test runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_scripts_import_of_palate_is_there(script: Path) -> None:
    """Also inside of functions, which no test calls."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "palate":
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                if not hasattr(module, name):
                    importlib.import_module(f"{node.module}.{name}")


def test_sides_take_turns_and_ratios_are_of_medians(monkeypatch):
    sides = load("sides", monkeypatch)
    order = []
    # The first step of a turn is never counted; one turn of theirs met something else.
    theirs = iter([[9.0, 2.0], [9.0, 2.2], [9.0, 30.0]])
    ours = iter([[9.0, 1.0], [9.0, 1.1], [9.0, 1.2]])

    def run(side):
        order.append(side)
        return {"seconds": next(ours if side == "palate" else theirs), "peak": 2e9, "losses": [1.0]}

    results = sides.take_turns(["plain loop", "palate"], run, 3)
    assert order == ["plain loop", "palate"] * 3
    assert results["plain loop"].seconds == (2.0, 2.2, 30.0)
    assert results["palate"].spread() == "1.10 [1.00, 1.20]"
    line = sides.against("plain loop", results["plain loop"], results["palate"])
    assert line == "against plain loop: 2.00x pairs/s [2.00, 25.00], 1.00x less memory"
    heavier = sides.Measured((2.0,), 1e9, {})
    line = sides.against("it", heavier, sides.Measured((4.0,), 2e9, {}))
    assert line == "against it: 0.50x pairs/s [0.50, 0.50], 2.00x more memory"


def test_sides_that_compute_something_else_are_refused(monkeypatch):
    sides = load("sides", monkeypatch)
    losses = {"plain loop": [0.6931, 0.5], "palate": [0.6931, 0.50001]}
    sides.must_agree(losses, "palate", 1e-4)
    with pytest.raises(SystemExit, match="plain loop and palate do not compute the same"):
        sides.must_agree(losses, "palate", 1e-6)
    with pytest.raises(SystemExit, match="do not compute the same"):
        sides.must_agree({"a": [math.nan], "palate": [0.5]}, "palate", 1.0)


def test_every_ratio_can_name_its_processor(monkeypatch, tmp_path):
    processor = load("processor", monkeypatch).processor
    file = tmp_path / "cpuinfo"
    core = "processor : 0\nmodel name : Some CPU 9\ncpu family : 25\nmodel : 17\nflags : {}\n\n"
    file.write_text(core.format("fpu avx2 avx512f avx512_bf16") * 2)
    line = processor(file)
    assert "Some CPU 9 (family 25, model 17)" in line
    assert "AVX-512 bfloat16, AVX-512, AVX2, no AMX bfloat16" in line
    file.write_text(core.format("fpu avx2"))
    assert ": AVX2, no AMX bfloat16, no AVX-512 bfloat16" in processor(file)
    assert "features not known" in processor(tmp_path / "none")


def test_pairs_leave_attacks_out_and_balance_length_as_written(monkeypatch, tmp_path):
    real_pairs = load("real_pairs", monkeypatch)
    # By generator: rating and length. Of the four real ones two pairs have the longer one chosen,
    # and two the shorter one; the attacks would be in six more.
    answers = {"a": (2.0, 60), "b": (1.7, 30), "c": (1.4, 45), "d": (1.1, 40)}
    answers |= dict.fromkeys(real_pairs.ATTACKS, (1.99, 90))
    rows = [
        {
            "instruction": f"question {k}",
            "completions": [
                {"generator": g, "output": f"{g}{k} ".ljust(size, "w"), "preference": rating}
                for g, (rating, size) in answers.items()
            ],
        }
        for k in range(3)
    ]
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def pairs(**limits):
        options = {"per_prompt": 8, "max_prompt": 99, "max_response": None, "seed": 0} | limits
        return real_pairs.text_pairs(file, lambda text: {"input_ids": list(text)}, **options)

    found, out = pairs()
    assert len(found) == 12 and out["pairs with an attack on the judge"] == 3 * 6
    assert not {row[side][0] for row in found for side in ("chosen", "rejected")} & {"e", "g"}
    assert real_pairs.length_baseline(found).mean() == 0.5
    assert {row["group"] for row in found} == {0, 1, 2}
    # With a limit no response is longer, and what is left is balanced anew.
    limited, out = pairs(max_response=50)
    assert out["pairs with a response too long"] == 9
    assert max(len(row["chosen"]) for row in limited) <= 50
    assert real_pairs.length_baseline(limited).mean() == 0.5


def test_the_format_baseline_learns_what_format_tells_and_nothing_else(monkeypatch):
    real_pairs = load("real_pairs", monkeypatch)
    rng = np.random.default_rng(0)

    def rows(n, mark):
        listed = ["\n- one thing\n- another " + "x" * int(k) for k in rng.integers(5, 50, n)]
        prose = ["one thing and another " + "x" * int(k) for k in rng.integers(5, 50, n)]
        sides = [
            (a, b) if rng.random() < mark else (b, a) for a, b in zip(listed, prose, strict=True)
        ]
        return [{"chosen": a, "rejected": b} for a, b in sides]

    assert real_pairs.format_baseline(rows(100, 1.0), rows(200, 1.0)).mean() == 1.0
    assert 0.4 < real_pairs.format_baseline(rows(100, 0.5), rows(200, 0.5)).mean() < 0.6
    # Learnt from the training pairs, never from those it is judged by.
    assert real_pairs.format_baseline(rows(100, 1.0), rows(200, 0.0)).mean() == 0.0


def test_intervals_are_over_prompts(monkeypatch):
    real_pairs = load("real_pairs", monkeypatch)
    groups = [i // 10 for i in range(100)]
    values = np.asarray([float(g % 2) for g in groups])
    mean, low, high = real_pairs.ByPrompt(groups).interval(values)
    # Ten prompts that are right throughout or never: a binomial of ten, not of a hundred.
    assert mean == 0.5 and (low, high) == pytest.approx((0.2, 0.8), abs=0.051)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("micro", [0, 1])
def test_the_plain_loop_is_dpo(monkeypatch, tmp_path, base, micro):
    """Its losses over two steps against whole logits in float32; pairs of unequal lengths."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain_loop = load("plain_loop", monkeypatch)
    rows = [
        {"prompt": "the film was", "chosen": " good and new", "rejected": " bad"},
        {"prompt": "we", "chosen": " was late", "rejected": " the room was old and bad"},
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = plain_loop.dpo(str(base), data, dtype="float32", steps=2, rate=1e-3, micro=micro)
    policy, reference = (AutoModelForCausalLM.from_pretrained(base) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(base)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)

    def log_prob(model, prompt, response):
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]])
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        return logps[start - 1 :].sum()

    losses = []
    for _ in range(2):
        margins = []
        for row in rows:
            chosen, rejected = (
                log_prob(policy, row["prompt"], row[side])
                - log_prob(reference, row["prompt"], row[side]).detach()
                for side in ("chosen", "rejected")
            )
            margins.append(chosen - rejected)
        loss = -F.logsigmoid(0.1 * torch.stack(margins)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(2)) and losses[1] < losses[0]
    assert found["losses"] == pytest.approx(losses, abs=1e-5)
    assert len(found["seconds"]) == 2
    # The prompt's share of a log-ratio cancels, so that only this tells that it is not computed.
    ((_, scored, sides),) = plain_loop._batches(str(base), data, 0)
    ends = [len(row[side]) + 1 for side in ("chosen", "rejected") for row in rows]
    assert scored.sum(1).tolist() == ends == sides.bincount().tolist()


@pytest.fixture
def seeing(monkeypatch, tmp_path) -> tuple[ModuleType, Path]:
    """The benchmark's model with images, small, beside pairs of unequal lengths."""
    vision_model = load("vision_model", monkeypatch)
    # The count of images is put on the class: taken off again.
    monkeypatch.setattr(vision_model.Tower, "forward", vision_model.Tower.forward)
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    text |= {"rope_parameters": vision_model.TEXT["rope_parameters"] | {"mrope_section": [2, 3, 3]}}
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    for sizes, small in ((vision_model.TEXT, text), (vision_model.VISION, tower)):
        for key, value in small.items():
            monkeypatch.setitem(sizes, key, value)
    vision_model.save_model(tmp_path / "model")
    data = vision_model.make_pairs(tmp_path, "pairs", 2, 9, 5, 12)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["rejected"][0]["content"][0]["text"] = "shorter"
    rows[1]["prompt"][0]["content"][1]["text"] += " and longer"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return vision_model, data


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_the_plain_loops_with_images_compute_what_transformers_does(
    monkeypatch, tmp_path, seeing, kind, kept
):
    """Two steps against a row at a time, each with its own pixels through transformers' forward."""
    vision_model, data = seeing
    vision_plain = load("vision_plain", monkeypatch)
    model = str(tmp_path / "model")
    passes = vision_model.TowerPasses()
    loop = vision_plain.dpo if kind == "dpo" else vision_plain.reward
    found = loop(model, data, dtype="float32", steps=2, rate=1e-4, lora=0, kept=kept)
    assert passes.images == (2 if kept else 4)

    policy, reference = (vision_model.load_model(model, "float32") for _ in range(2))
    head = torch.nn.Parameter(vision_plain.starting_head(64))
    processor = vision_model.load_processor(model)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert not any(p.requires_grad for p in policy.base_model.visual.parameters())
    trained += [head] if kind == "reward" else []
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def score(lm, row, side):
        """The log-prob of a side, or the reward at its last token."""
        chat = processor.apply_chat_template(row["prompt"] + row[side])
        image = Image.open(data.parent / row["images"][0])
        given = processor(images=[image], text=[chat], return_tensors="pt")
        if kind == "reward":
            return head @ lm.base_model(**given).last_hidden_state[0, -1]
        logps = lm(**given).logits[0, :-1].log_softmax(-1)
        logps = logps.gather(-1, given["input_ids"][0, 1:, None])
        return logps[-len(row[side][0]["content"][0]["text"]) - 1 :].sum()

    losses = []
    for _ in range(2):
        margins = []
        for row in vision_model.read_pairs(data):
            chosen, rejected = (score(policy, row, side) for side in ("chosen", "rejected"))
            margin = chosen - rejected
            if kind == "dpo":
                with torch.no_grad():
                    base = score(reference, row, "chosen") - score(reference, row, "rejected")
                margin = 0.1 * (margin - base)
            margins.append(margin)
        loss = -F.logsigmoid(torch.stack(margins)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert abs(losses[0] - losses[1]) > 1e-2
    assert found["losses"] == pytest.approx(losses, abs=1e-5)


def test_the_gpu_benchmark_plans_without_a_gpu_and_its_sides_agree(monkeypatch, capsys):
    import trl.trainer.utils

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.async_grpo import packing

    # What the sides switch on a CPU is put back.
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", trl.trainer.utils._use_triton)
    monkeypatch.setattr(packing, "_flash_attn", packing._flash_attn)
    gpu_sides = load("gpu_sides", monkeypatch)
    gpu = load("gpu", monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run"])
    gpu.main()
    plan = capsys.readouterr().out
    assert "GPU: none here" in plan and all(f"  {side} " in plan for side in gpu.SIDES)
    assert "0.5B, 2048/256, 4 pairs: 494M weights; 10,240 tokens a step" in plan
    assert "1.5B, 8192/512, 1 pairs: 1544M weights; 9,216 tokens a step" in plan
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 2 and "no GPU here" in capsys.readouterr().err
    # What the sides are to be compared in; TRL's tree with its kernel's sums in torch.
    gpu.check(list(gpu_sides.SIDES), torch.device("cpu"))
    assert "plain loop, TRL, TRL tree, palate agree" in capsys.readouterr().out


def test_the_budget_leaves_out_turns_and_no_sides(monkeypatch):
    gpu = load("gpu", monkeypatch)
    now = [0.0]
    order = []

    def turn(side, case, steps):
        order.append(side)
        now[0] += 10.0
        if side == "TRL":
            raise torch.OutOfMemoryError("out of memory")
        return {"seconds": [9.0, 2.0, 2.0], "losses": [0.7, 0.6, 0.5], "peak": 1e9}

    monkeypatch.setattr(gpu, "take_turn", turn)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    args = gpu.argparse.Namespace(turns=5, steps=2)
    shape = gpu.Shape("tiny", 40, 24, 2)
    results, failed = gpu.measure(shape, None, ["plain loop", "TRL", "palate"], args, until=75.0)
    # 30 s, then 20 s a turn without the side that did not fit: a fourth would end at 90 s.
    assert order == ["plain loop", "TRL", "palate", *["plain loop", "palate"] * 2]
    assert list(failed) == ["TRL"] and len(results["palate"].seconds) == 3
    lines = "\n".join(gpu.table(shape, results, 1e12, args))
    assert "median of 3 turns [fastest, slowest]; the budget left out 2 of 5" in lines
    late, _ = gpu.measure(shape, None, ["plain loop", "palate"], args, until=0.0)
    assert all(len(measured.seconds) == 1 for measured in late.values())
