"""Sampling: seeded, independent of the batch, and true to the distribution."""

from __future__ import annotations

import pytest
import torch

from palate.data.items import Tokens
from palate.evaluate.sample import sample
from palate.models.adapters import add_lora
from palate.models.generation.draws import draw, uniforms
from palate.models.model import Model
from palate.models.stop_tokens import stop_tokens
from palate.recipes.schema import LoraRecipe
from tiny_text import tiny_text_model, tiny_tokenizer

TEXTS = ["A film", "The hotel was", "I", "We came late and the kitchen"]


def written(samples):
    return [(s.prompt, s.index, s.response_ids, s.finished, s.text) for s in samples]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def policy(request):
    return Model.policy(tiny_text_model(request.param))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]


def test_same_seed_same_samples_whatever_the_batch(policy, tokenizer, prompts):
    options = {"samples_per_prompt": 3, "max_new_tokens": 12, "seed": 5}
    torch.manual_seed(0)
    together = sample(policy, tokenizer, prompts, batch_size=12, **options)
    torch.manual_seed(99)
    alone = sample(policy, tokenizer, prompts, batch_size=1, **options)
    assert written(together) == written(alone)
    for a, b in zip(together, alone, strict=True):
        assert a.logps == pytest.approx(b.logps, abs=1e-4)
    assert [(s.prompt, s.index) for s in together] == [(i, k) for i in range(4) for k in range(3)]
    # A prompt's samples depend on its tokens, not on its place in the call.
    moved = sample(policy, tokenizer, prompts[::-1], batch_size=5, **options)
    assert [s.response_ids for s in moved[-3:]] == [s.response_ids for s in together[:3]]
    assert len({s.response_ids for s in together[:3]}) == 3


def test_another_seed_gives_other_samples_and_the_global_generator_is_left_alone(
    policy, tokenizer, prompts
):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a = sample(policy, tokenizer, prompts, max_new_tokens=8, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    b = sample(policy, tokenizer, prompts, max_new_tokens=8, seed=2)
    assert [s.response_ids for s in a] != [s.response_ids for s in b]


def test_ids_are_the_models_own_distribution(policy, tokenizer, prompts):
    """Each id is what the inverse distribution gives on the unpadded, uncached model."""
    ends = stop_tokens(policy.base) | {tokenizer.eos_token_id}
    for s in sample(policy, tokenizer, prompts, max_new_tokens=10, seed=4):
        numbers = uniforms(4, Tokens(s.prompt_ids), 0, 10)
        ids = list(s.prompt_ids)
        for step, token in enumerate(s.response_ids):
            with torch.no_grad():
                logits = policy.base(torch.tensor([ids]), use_cache=False).logits[0, -1]
            mass = logits.double().softmax(-1).cumsum(-1)
            assert int(torch.searchsorted(mass, float(numbers[step]), right=True)) == token
            ids.append(token)
        assert (s.response_ids[-1] in ends) == s.finished
        assert not set(s.response_ids[:-1]) & ends


def test_a_response_keeps_its_end_token_and_the_text_leaves_it_out(tokenizer, prompts):
    # Nearly uniform over 259 tokens: one in five of the samples meets the end token.
    policy = Model.policy(tiny_text_model("llama", spread=1.0))
    found = sample(policy, tokenizer, prompts, samples_per_prompt=16, max_new_tokens=64, seed=0)
    ended = [s for s in found if s.finished]
    assert ended, "some of 64 long samples meet the end token"
    for s in ended:
        assert s.response_ids[-1] == tokenizer.eos_token_id
        assert "<eos>" not in s.text
        assert tokenizer.decode(s.response_ids[:-1], skip_special_tokens=True) == s.text
    assert all(len(s.response_ids) == 64 for s in found if not s.finished)


def test_the_models_own_generation_settings_are_not_used_and_come_back(tokenizer, prompts):
    model = tiny_text_model("llama")
    plain = sample(Model.policy(model), tokenizer, prompts, max_new_tokens=12, seed=0)
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 12
    own = model.generation_config
    model.train()
    assert sample(Model.policy(model), tokenizer, prompts, max_new_tokens=12, seed=0) == plain
    assert model.generation_config is own and own.top_k == 1
    assert model.training


def test_adapters_are_sampled_and_can_be_switched_off(tokenizer, prompts):
    plain = sample(
        Model.policy(tiny_text_model("llama")), tokenizer, prompts, max_new_tokens=12, seed=0
    )
    policy = Model.policy(add_lora(tiny_text_model("llama"), LoraRecipe(r=2)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    tuned = sample(policy, tokenizer, prompts, max_new_tokens=12, seed=0)
    assert [s.response_ids for s in tuned] != [s.response_ids for s in plain]
    with policy.hf.disable_adapter():
        assert sample(policy, tokenizer, prompts, max_new_tokens=12, seed=0) == plain


def test_draw_follows_the_distribution():
    n, vocabulary = 40_000, 1200  # several blocks, the last one not full
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(vocabulary, generator=generator)
    logits[:7] = -torch.inf
    logits[-5:] = -torch.inf
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    token, logp = draw(logits.expand(n, -1), uniform)
    share = torch.bincount(token, minlength=vocabulary) / n
    # An even grid of numbers meets each probability to 1 / n.
    assert float((share - logits.softmax(-1)).abs().max()) <= 2 / n
    assert torch.allclose(logp, logits.log_softmax(-1)[token], atol=1e-5)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    first, last = draw(logits.expand(2, -1), edges)[0].tolist()
    assert (first, last) == (7, vocabulary - 6)


def test_draw_with_top_p_keeps_the_nucleus():
    logits = torch.log(torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05]))
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    token, _ = draw(logits.expand(1000, -1), uniform, top_p=0.7)
    share = torch.bincount(token, minlength=5) / 1000
    assert share.tolist() == pytest.approx([0, 0.625, 0, 0.375, 0], abs=2e-3)


def test_temperature_sharpens(policy, tokenizer, prompts):
    cold = sample(policy, tokenizer, prompts, max_new_tokens=6, temperature=1e-4, seed=0)
    for s in cold:
        ids = list(s.prompt_ids)
        for token in s.response_ids:
            with torch.no_grad():
                logits = policy.base(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)
