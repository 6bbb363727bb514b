"""The engine in this process: true to the model, whatever the batch and what its layers keep."""

from __future__ import annotations

import pytest
import torch

from model_families import VOCABULARY, family_model
from palate.data.items import Tokens
from palate.errors import ModelError
from palate.models.adapters import add_lora
from palate.models.generation.choice import way_of
from palate.models.generation.draws import differing, draw, uniforms
from palate.models.generation.engine import Completion, Prompt, Sampling
from palate.models.generation.general import GeneralDecoder
from palate.models.generation.local import LocalEngine
from palate.models.model import Model
from palate.models.structure import backbone_of
from palate.recipes.schema import LoraRecipe
from tiny import tiny_model

LENGTHS = (50, 7, 23, 7)


class Words:
    """A tokenizer whose texts are the ids themselves."""

    pad_token_id = 0
    eos_token_id = 2

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def prompts_of(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return [
        Tokens((1, *torch.randint(3, VOCABULARY, (n - 1,), generator=generator).tolist()))
        for n in lengths
    ]


def engine_of(hf, **options):
    return LocalEngine(Model.policy(hf).eval(), Words(), **options)


def written(completions):
    return [(c.prompt, c.index, c.response_ids, c.finished, c.text) for c in completions]


def next_logits(hf, ids):
    with torch.no_grad():
        return hf(torch.tensor([ids]), use_cache=False).logits[0].float()


@pytest.fixture
def llama():
    return tiny_model("llama")


# gemma3: rows of 60 tokens past a window of 40; lfm2: convolutions; qwen3_5: a recurrent state;
# mamba: nothing but a state, which padding would enter; minimax: a cache of its own; openai_gpt:
# none; granite, gemma2: scaled and capped logits.
FAMILIES = ["gemma3_text", "qwen2", "llama", "lfm2", "qwen3_5_text", "mamba", "minimax"]
MORE = ["openai_gpt", "granite", "gemma2", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_equal_samples_whatever_the_batch_and_the_models_own_distribution(family):
    hf = family_model(family)
    prompts = prompts_of()
    sampling = Sampling(max_new_tokens=10, samples_per_prompt=3, seed=1)
    together = engine_of(hf, batch_size=12).write(prompts, sampling)
    alone = engine_of(hf, batch_size=1).write(prompts, sampling)
    assert written(together) == written(alone)
    assert differing(together, alone) == 0.0
    # By the inverse of the distribution, on the uncached model without padding.
    for c in together[::3]:
        logits = next_logits(hf, c.prompt_ids + c.response_ids)[len(c.prompt_ids) - 1 : -1]
        numbers = torch.from_numpy(uniforms(1, prompts[c.prompt], 0, len(c.response_ids)))
        token, _ = draw(logits, numbers)
        assert tuple(token.tolist()) == c.response_ids
        logps = logits.double().log_softmax(-1)
        exact = logps.gather(1, token[:, None])[:, 0].tolist()
        assert c.logps == pytest.approx(exact, abs=2e-3)


def test_log_probs_are_of_the_distribution_that_was_drawn_from(llama):
    sampling = Sampling(
        max_new_tokens=8,
        min_new_tokens=5,
        samples_per_prompt=2,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
    )
    for c in engine_of(llama).write(prompts_of(), sampling):
        logits = next_logits(llama, c.prompt_ids + c.response_ids)[len(c.prompt_ids) - 1 : -1]
        for t, (token, logp) in enumerate(zip(c.response_ids, c.logps, strict=True)):
            shares = (logits[t].double() / 0.7).softmax(-1)
            if t < 5:
                shares[2] = 0.0
            order = shares.argsort(descending=True)
            shares[order[20:]] = 0.0
            shares /= shares.sum()
            mass = shares[order].cumsum(-1)
            kept = order[: int((mass - shares[order] < 0.8).sum())]
            assert token in kept
            assert logp == pytest.approx(
                float((shares[token] / shares[kept].sum()).log()), abs=1e-4
            )
        assert len(c.response_ids) >= 5


def test_a_prompt_is_run_once_and_finished_rows_leave(llama):
    policy = Model.policy(llama).eval()
    shapes = []
    backbone_of(llama).register_forward_pre_hook(
        lambda _, given, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    ends = range(2, VOCABULARY, 9)
    engine = LocalEngine(policy, Words(), batch_size=16, ends=ends)
    way_of(policy, 0)
    shapes.clear()
    batches = []
    completions = engine.generate(
        [Prompt(tokens=p, content="") for p in prompts_of((30, 28))],
        Sampling(max_new_tokens=40, samples_per_prompt=8),
        on_batch=batches.append,
    )
    assert shapes[0] == (2, 30)
    assert shapes.count((2, 30)) == 1
    lengths = [len(c.response_ids) for c in completions]
    # A row that has its last token is not run again.
    steps = [sum(n > t for n in lengths) for t in range(1, max(lengths))]
    assert shapes[1:] == [(n, 1) for n in steps] and len(set(steps)) > 3
    assert all(c.finished == (c.response_ids[-1] in ends) for c in completions)
    told = [c for batch in batches for c in batch]
    assert len(told) == 16 and len(batches) > 3
    assert sorted(written(told)) == sorted(written(completions))


def test_no_more_rows_than_a_batch_and_every_sample_of_a_large_group(llama):
    sampling = Sampling(max_new_tokens=4, samples_per_prompt=7)
    few = engine_of(llama, batch_size=3).write(prompts_of(), sampling)
    assert [(c.prompt, c.index) for c in few] == [(i, k) for i in range(4) for k in range(7)]
    assert written(few) == written(engine_of(llama, batch_size=64).write(prompts_of(), sampling))
    assert engine_of(llama).write([], sampling) == []


def test_later_samples_go_on_and_longer_responses_begin_alike(llama):
    prompts = prompts_of()
    five = engine_of(llama).write(prompts, Sampling(max_new_tokens=6, samples_per_prompt=5))
    last = engine_of(llama).write(
        prompts, Sampling(max_new_tokens=9, samples_per_prompt=2, first_sample=3)
    )
    for c in last:
        assert c.index in (3, 4)
        same = five[5 * c.prompt + c.index].response_ids
        assert c.response_ids[:6] == same
        assert same != five[5 * c.prompt + c.index - 3].response_ids


def test_what_is_there_is_skipped(llama):
    prompts = prompts_of()
    sampling = Sampling(max_new_tokens=6, samples_per_prompt=3)
    every = engine_of(llama).write(prompts, sampling)
    skip = {(0, 1), (1, 0), (1, 1), (1, 2)}
    rest = engine_of(llama).write(prompts, sampling, skip=skip)
    # In another batch log-probs round otherwise.
    asked = [(c.prompt, c.index, c.response_ids) for c in every if (c.prompt, c.index) not in skip]
    assert [(c.prompt, c.index, c.response_ids) for c in rest] == asked


def test_greedy_takes_the_likeliest_and_says_that_nothing_was_drawn(llama):
    (c,) = engine_of(llama).write(prompts_of((9,)), Sampling(max_new_tokens=5, temperature=0.0))
    logits = next_logits(llama, c.prompt_ids + c.response_ids)
    assert c.response_ids == tuple(logits[8:-1].argmax(-1).tolist())
    assert c.logps == (0.0,) * len(c.response_ids)


def test_the_context_ends_a_response_and_refuses_a_prompt_that_fills_it(llama):
    prompts = prompts_of((250, 20))
    long, short = engine_of(llama, ends=()).write(prompts, Sampling(max_new_tokens=20))
    assert (len(long.response_ids), len(short.response_ids)) == (6, 20)
    assert not long.finished
    with pytest.raises(ModelError, match=r"prompt 1 has 256 tokens, and leaves no room .* of 256"):
        engine_of(llama).write(prompts_of((20, 256)), Sampling(max_new_tokens=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_training_changed_writes(dtype):
    """Also where torch does not count the change: nothing that is kept of weights goes stale."""
    sampling = Sampling(max_new_tokens=8, seed=3)
    hf = tiny_model("llama", dtype=dtype)
    engine = engine_of(hf)
    before = engine.write(prompts_of(), sampling)
    hf.model.layers[1].mlp.down_proj.weight.data.mul_(-1.0)
    after = engine.write(prompts_of(), sampling)
    other = tiny_model("llama", dtype=dtype)
    other.model.layers[1].mlp.down_proj.weight.data.mul_(-1.0)
    assert written(after) == written(engine_of(other).write(prompts_of(), sampling))
    assert written(after) != written(before)


def test_another_model_writes_after_sync_and_versions_are_counted(llama):
    engine = engine_of(llama)
    sampling = Sampling(max_new_tokens=8)
    (first,) = engine.write(prompts_of((5,)), sampling)
    other = Model.policy(tiny_model("llama", seed=1)).eval()
    engine.sync(other)
    (second,) = engine.write(prompts_of((5,)), sampling)
    assert (first.version, second.version, engine.version) == (0, 1, 1)
    fresh = LocalEngine(other, Words()).write(prompts_of((5,)), sampling)
    assert written([second]) == written(fresh) != written([first])


def test_a_model_in_training_writes_with_its_adapters_and_without_dropout():
    hf = add_lora(tiny_model("llama"), LoraRecipe(r=2, dropout=0.5))
    policy = Model.policy(hf)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    policy.train()
    engine = LocalEngine(policy, Words())
    sampling = Sampling(max_new_tokens=8)
    tuned = engine.write(prompts_of(), sampling)
    assert policy.training and all(
        m.training for m in policy.modules() if m.__class__.__name__ == "Dropout"
    )
    policy.eval()
    assert written(engine.write(prompts_of(), sampling)) == written(tuned)
    merged = engine_of(hf.merge_and_unload()).write(prompts_of(), sampling)
    assert written(merged) == written(tuned)


def test_a_model_that_cannot_be_decoded_is_refused(monkeypatch):
    hf = family_model("modernbert_decoder")
    with pytest.raises(ModelError, match="ModernBertDecoderForCausalLM: its vocabulary head"):
        engine_of(hf).write(prompts_of(), Sampling(max_new_tokens=4))
    right = GeneralDecoder.step
    monkeypatch.setattr(GeneralDecoder, "step", lambda self, tokens: 1.5 * right(self, tokens))
    with pytest.raises(ModelError, match="token by token it gives other states"):
        engine_of(family_model("lfm2")).write(prompts_of(), Sampling(max_new_tokens=4))


def test_the_rate_of_differing_tokens_counts_where_samples_part():
    def completion(*ids, prompt=(5,)):
        return Completion(
            prompt=0, index=0, prompt_ids=prompt, response_ids=ids, logps=(), finished=True, text=""
        )

    a = [completion(1, 2, 3, 4), completion(1, 2, 3)]
    b = [completion(1, 9, 9, 9), completion(1, 2, 3)]
    # One draw of the first's two that were made alike, none of the second's three.
    assert differing(a, b) == 1 / 5
    assert differing(a, a) == 0.0
    with pytest.raises(ValueError, match="prompts"):
        differing(a, [completion(1, prompt=(6,)), b[1]])
