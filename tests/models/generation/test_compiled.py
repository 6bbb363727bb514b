"""Compiled decoding: the model's own states, batches that change, adapters, weights in training."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from palate.data.items import Tokens
from palate.kernels import Head, cpu
from palate.kernels.cpu import decode
from palate.kernels.cpu import head as compiled_head
from palate.models.adapters import add_lora
from palate.models.attention import use_rows
from palate.models.compiled import use_compiled
from palate.models.generation import choice
from palate.models.generation.check import agrees
from palate.models.generation.choice import Way, way_of
from palate.models.generation.compiled import CompiledDecoder, Unread
from palate.models.generation.draws import differing, draw
from palate.models.generation.engine import Sampling
from palate.models.generation.general import GeneralDecoder
from palate.models.generation.local import LocalEngine
from palate.models.generation.next_token import NextToken
from palate.models.model import Model
from palate.recipes.schema import LoraRecipe

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no compiled library: {cpu.why_not()}")
WORDS = 600
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 9
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=32),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=64),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=32, sliding_window=WINDOW),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, head_dim=32, sliding_window=WINDOW, layer_types=MIXED, query_pre_attn_scalar=32
    ),
    "granite": lambda: GraniteConfig(**SIZES, residual_multiplier=0.5, logits_scaling=8.0),
}


class Words:
    pad_token_id = 0
    eos_token_id = 2

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def made(family, *, seed=0):
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                parameter.normal_()
    hf = hf.to(torch.bfloat16).eval()
    use_rows(hf)
    use_compiled(hf)
    return hf


def policy_of(family, **options):
    return Model.policy(made(family, **options)).eval()


def prompts_of(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [
        Tokens((1, *torch.randint(3, WORDS, (n - 1,), generator=generator).tolist()))
        for n in lengths
    ]


def decoders(policy, *, rows=9):
    return (
        CompiledDecoder(policy, 0, longest=60, room=100, rows=rows),
        GeneralDecoder(policy, 0),
    )


def off(a, b):
    a, b = a.double(), b.double()
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "granite"])
@torch.no_grad()
def test_states_are_the_models_own_while_rows_join_and_leave(family):
    """Past the window, past the first room of a row's own tokens, over more rows than one chunk."""
    policy = policy_of(family)
    assert way_of(policy, 0) == Way(True, True)
    ours, own = decoders(policy, rows=80)
    prompts, counts = prompts_of(40, 5, 12), [30, 1, 42]
    assert off(ours.start(prompts, counts), own.start(prompts, counts)) < 0.03
    generator = torch.Generator().manual_seed(1)
    rows = 73
    for step in range(70):
        if step in (3, 20, 60):
            stay = [i for i in range(rows) if i % 3 != 1]
            ours.keep(stay)
            own.keep(stay)
            rows = len(stay)
        tokens = torch.randint(3, WORDS, (rows,), generator=generator).tolist()
        assert off(ours.step(tokens), own.step(tokens)) < 0.05, step
    # New rows take the places of those that left, and disturb nobody.
    (joined,) = prompts_of(33)
    _, alone = decoders(policy)
    assert off(ours.start([joined], [3]), alone.start([joined], [3])) < 0.03
    tokens = [7, 8, 9]
    states = ours.step([5] * rows + tokens)
    assert off(states[:rows], own.step([5] * rows)) < 0.05
    assert off(states[rows:], alone.step(tokens)) < 0.05


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_draws_are_equal_whatever_the_batch(family):
    policy = policy_of(family)
    sampling = Sampling(max_new_tokens=24, samples_per_prompt=4, seed=2)
    prompts = prompts_of(40, 5, 12, 5)
    together = LocalEngine(policy, Words(), batch_size=16).write(prompts, sampling)
    mixed = LocalEngine(policy, Words(), batch_size=5).write(prompts, sampling)
    # The same numbers are drawn with; what differs is a few boundaries that rounding moved.
    assert differing(together, mixed) < 0.01
    own = own_way(policy, lambda: LocalEngine(policy, Words()).write(prompts, sampling))
    # Two ways to round, of a random model whose next words hang on every bit.
    assert differing(together, own) < 0.25
    for a, b in zip(together, own, strict=True):
        assert a.logps[0] == pytest.approx(b.logps[0], abs=0.2)


def own_way(policy, run):
    """What a call gives by the model's own layers."""
    way = choice._WAYS[policy.base]
    choice._WAYS[policy.base] = Way(False, True)
    try:
        return run()
    finally:
        choice._WAYS[policy.base] = way


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_adapters_write_unless_they_are_switched_off(family):
    hf = add_lora(made(family), LoraRecipe(r=4))
    policy = Model.policy(hf).eval()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    (prompt,) = prompts_of(20)

    def states(decoder):
        decoder.start([prompt], [2])
        return torch.stack([decoder.step([3, 4]), decoder.step([5, 6])])

    tuned = states(decoders(policy)[0])
    assert off(tuned, states(decoders(policy)[1])) < 0.05
    with hf.disable_adapter():
        plain = states(decoders(policy)[0])
        assert off(plain, states(decoders(policy)[1])) < 0.05
    assert off(tuned, plain) > 0.3


def test_what_an_optimizer_step_changed_writes():
    policy = policy_of("llama")
    engine = LocalEngine(policy, Words())
    sampling = Sampling(max_new_tokens=16, samples_per_prompt=2)
    prompts = prompts_of(9, 20)
    before = engine.write(prompts, sampling)
    optimizer = torch.optim.SGD(policy.parameters(), lr=3.0)
    policy.train()
    logits = policy.base(torch.tensor([prompts[1].ids])).logits
    logits.float().log_softmax(-1)[0, :, 7].sum().backward()
    optimizer.step()
    after = engine.write(prompts, sampling)
    other = Model.policy(made("llama", seed=1)).eval()
    other.load_state_dict(policy.state_dict())
    fresh = LocalEngine(other, Words()).write(prompts, sampling)
    assert [c.response_ids for c in after] == [c.response_ids for c in fresh]
    assert [c.response_ids for c in after] != [c.response_ids for c in before]


def test_another_kind_of_model_is_read_by_its_own_layers(caplog):
    with caplog.at_level("INFO", "palate"):
        policy = policy_of("granite")
        assert not way_of(policy, 0).compiled
        LocalEngine(policy, Words()).write(prompts_of(5), Sampling(max_new_tokens=2))
    assert [r.message for r in caplog.records if "responses" in r.message] == [
        "responses are written by the model's own layers: tried, compiled ones gave other states"
    ]
    wide = Model.policy(made("llama").float()).eval()
    assert way_of(wide, 0).reason == "its weights are not bfloat16 on the CPU"


def test_a_wrong_window_position_or_norm_is_found(monkeypatch):
    policy = policy_of("gemma3")

    def trial():
        return agrees(CompiledDecoder(policy, 0, longest=20, room=16, rows=4), policy)

    assert trial()
    layer = decode._layer
    for name, change in (
        ("window", lambda given: WINDOW + 1 if given else 0),
        ("scale", lambda given: given * 1.3),
        ("cos", lambda given: given + 8),
    ):

        def wrong(one, name=name, change=change):
            given = layer(one)
            setattr(given, name, change(getattr(given, name)))
            return given

        monkeypatch.setattr(decode, "_layer", wrong)
        assert not trial(), name
    monkeypatch.setattr(decode, "_layer", layer)
    assert trial()


def test_what_is_not_read_says_why():
    policy = policy_of("llama")
    policy.base.model.layers[1].mlp.act_fn = torch.nn.ReLU()
    with pytest.raises(Unread, match="another activation"):
        CompiledDecoder(policy, 0, longest=5, room=5, rows=1)
    policy = policy_of("llama")
    policy.base.model.layers[0].self_attn.q_proj.weight.data = torch.zeros(96, 128).bfloat16()
    with pytest.raises(Unread, match="heads have another size"):
        CompiledDecoder(policy, 0, longest=5, room=5, rows=1)


@pytest.mark.parametrize(
    ("n", "words", "width", "softcap", "bias"),
    [(5, 1000, 48, None, True), (70, 333, 65, 20.0, False), (16, 128, 32, None, False)],
)
def test_the_compiled_draw_is_the_draw(n, words, width, softcap, bias):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    states, weight = normal(n, width), normal(words, width)
    head = Head(weight=weight, bias=normal(words) if bias else None, scale=0.9, softcap=softcap)
    exact = states.double() @ weight.double().T + (head.bias.double() if bias else 0.0)
    exact = exact * 0.9
    if softcap is not None:
        exact = softcap * (exact / softcap).tanh()
    assert torch.allclose(compiled_head.logits(states, head).double(), exact, atol=1e-3)
    sampling = Sampling(max_new_tokens=9, min_new_tokens=4, temperature=0.8)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    steps = [i % 9 for i in range(n)]
    tokens, logps = NextToken(head, sampling, never=[3, 7, -1], ends=[2, 100])(
        states, uniform.numpy(), steps
    )
    exact = exact / 0.8
    exact[:, [3, 7]] = -torch.inf
    for row, step in enumerate(steps):
        if step < 4:
            exact[row, [2, 100]] = -torch.inf
    right, right_logps = draw(exact.float(), uniform)
    same = torch.tensor(tokens) == right
    assert same.float().mean() > 0.98
    assert torch.allclose(torch.tensor(logps)[same], right_logps[same], atol=1e-3)


def test_the_compiled_draw_follows_the_distribution():
    n, words = 4096, 300
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 32, generator=generator).bfloat16().expand(n, -1).contiguous()
    head = Head(weight=torch.randn(words, 32, generator=generator).mul(0.3).bfloat16())
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    nothing = torch.empty(0, dtype=torch.int64)
    early = torch.zeros(n, dtype=torch.bool)
    token, _ = compiled_head.draw(states, head, uniform, never=nothing, ends=nothing, early=early)
    share = torch.bincount(token, minlength=words) / n
    exact = (states[0].float() @ head.weight.float().T).softmax(-1)
    # An even grid of numbers meets each probability to 1 / n.
    assert float((share - exact).abs().max()) <= 2 / n
