"""Responses from a server in a process of its own: what is sent, taken, dropped and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palate.data.items import PlacedImage, Tokens
from palate.data.schema import ImageRef
from palate.errors import ModelError
from palate.models.generation.engine import Completion, Prompt, Sampling
from palate.models.generation.server import ServerEngine, drifts, sample_seed
from palate.models.model import Model
from palate.recipes.rl_engines import ServerEngine as Recipe
from policy_server import NAME, Served, serving
from server_cases import PROMPTS, STOP, Make, policy, prompt, true_logps
from stand_in_images import png
from tiny_text import tiny_tokenizer

SAMPLINGS = [
    Sampling(max_new_tokens=12, samples_per_prompt=3, temperature=0.7, seed=3),
    Sampling(max_new_tokens=6, samples_per_prompt=2, top_k=4, min_new_tokens=3),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_log_probs_are_those_of_the_policy_at_the_ids_as_sampled(
    folder: Path, server: Served, engine: Make, sampling: Sampling
) -> None:
    own = engine(server)
    found = own.generate(PROMPTS, sampling)
    each = sampling.samples_per_prompt
    assert [(c.prompt, c.index) for c in found] == [(i, k) for i in range(3) for k in range(each)]
    for one in found:
        assert one.prompt_ids == PROMPTS[one.prompt].tokens.ids
        assert one.finished is (one.response_ids[-1] == STOP)
        assert (
            STOP not in one.response_ids[: max(len(one.response_ids) - 1, sampling.min_new_tokens)]
        )
        assert one.logps == pytest.approx(true_logps(policy(folder), one, sampling), abs=1e-4)
        assert one.version == 0
    counts = own.take_counts()
    assert counts["completions"] == len(found)
    assert counts["tokens"] == sum(len(one.response_ids) for one in found)
    assert counts["drifted"] == sum(drifts(own.tokenizer, one.response_ids) for one in found) > 0
    assert own.take_counts() == {}


def test_a_sample_depends_on_seed_prompt_and_number_alone(
    folder: Path, server: Served, engine: Make
) -> None:
    own = engine(server, concurrency=2)
    sampling = Sampling(max_new_tokens=8, samples_per_prompt=3, seed=5)
    together = own.generate(PROMPTS, sampling)
    later = own.generate(
        PROMPTS[1:], Sampling(max_new_tokens=8, samples_per_prompt=1, seed=5, first_sample=2)
    )
    assert [c.response_ids for c in later] == [
        c.response_ids for c in together if c.prompt > 0 and c.index == 2
    ]
    some = own.generate(PROMPTS, sampling, skip=[(0, 0), (2, 1)])
    kept = [c for c in together if (c.prompt, c.index) not in ((0, 0), (2, 1))]
    assert some == kept
    others = own.generate(PROMPTS, Sampling(max_new_tokens=8, samples_per_prompt=3, seed=6))
    assert [c.response_ids for c in others] != [c.response_ids for c in together]


def test_seeds_differ_by_every_part_of_their_key() -> None:
    plain = Tokens((1, 2, 3))
    shown = [Tokens((1, 2, 3), images=(PlacedImage(0, 1, name),)) for name in ("a", "b")]
    seeds = {sample_seed(s, t, k) for s in (0, 1) for t in (plain, *shown) for k in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_completions_are_handed_on_as_they_come_each_once(
    folder: Path, server: Served, engine: Make
) -> None:
    handed: list[Completion] = []
    sampling = Sampling(max_new_tokens=6, samples_per_prompt=4)
    found = engine(server).generate(PROMPTS, sampling, on_batch=handed.extend)
    assert sorted(handed, key=lambda c: (c.prompt, c.index)) == found


def test_sglang_is_asked_by_its_own_route(folder: Path, engine: Make) -> None:
    with serving(folder, kind="sglang") as server:
        own = engine(server)
        sampling = SAMPLINGS[0]
        for one in own.generate(PROMPTS, sampling):
            expected = true_logps(policy(folder), one, sampling)
            assert one.logps == pytest.approx(expected, abs=1e-4)
        with pytest.raises(ModelError, match=r"SGLang .* from before top-p and top-k"):
            own.generate(PROMPTS, Sampling(max_new_tokens=2, top_k=3))
        with pytest.raises(ModelError, match=r"prompt 0 has images, .* use vLLM"):
            own.generate([shown((1, 9, 9))], Sampling(max_new_tokens=2))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"raw": True}, r"before the temperature: start vLLM with --logprobs-mode processed_logprobs"),
    ({"logits": True}, r"other numbers than log-probs: start vLLM with --logprobs-mode proc"),
    ({"unfiltered": True}, r"before top-k .*: start vLLM with --logprobs-mode processed_logprobs"),
    ({"top_k": 2}, "draws from a part of the distribution although none is asked for"),
    ({"text_only": True}, "gives text alone, no token ids"),
    ({"text_only": True, "kind": "sglang"}, "gives text alone, no token ids"),
    ({"raw": True, "kind": "sglang"}, "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"),
    ({"kind": "other"}, r"is neither vLLM \(/version\) nor SGLang \(/server_info\)"),
]


@pytest.mark.parametrize(("manner", "words"), REFUSED)
def test_a_server_that_cannot_be_trained_with_is_refused_in_one_line(
    folder: Path, engine: Make, manner: dict[str, Any], words: str
) -> None:
    with serving(folder, **manner) as server, pytest.raises(ModelError, match=words) as error:
        engine(server)
    assert "\n" not in str(error.value)
    assert server.url.removesuffix("/v1") in str(error.value)


def test_names_and_keys_that_are_not_there_are_named(
    folder: Path, server: Served, engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"has no model 'large' \(it has: tiny\)"):
        engine(server, model="large")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ModelError, match="the environment variable NO_SUCH_KEY holds no key"):
        engine(server, api_key_env="NO_SUCH_KEY")
    with pytest.raises(ModelError, match=r"lora needs `model\.lora`"):
        engine(server, sync="lora")


def test_a_prompt_beyond_the_context_is_refused_before_it_is_sent(
    folder: Path, server: Served, engine: Make
) -> None:
    own = engine(server)
    before = len(server.asked("/v1/completions"))
    with pytest.raises(ModelError, match=r"prompt 1 has 2 tokens and 199 .*context of 200"):
        own.generate([prompt(""), prompt("a")], Sampling(max_new_tokens=199))
    assert len(server.asked("/v1/completions")) == before


def test_log_probs_that_are_no_numbers_are_dropped_and_counted(folder: Path, engine: Make) -> None:
    with serving(folder, nan_share=0.5) as server:
        own = engine(server)
        found = own.generate(PROMPTS, Sampling(max_new_tokens=4, samples_per_prompt=8))
    counts = own.take_counts()
    seeds = [sample_seed(0, p.tokens, k) for p in PROMPTS for k in range(8)]
    expected = sum(seed % 1000 < 500 for seed in seeds)
    assert counts["no_log_prob"] == expected > 0
    assert counts["completions"] == len(found) == 24 - expected > 0


def test_the_servers_own_stop_tokens_end_nothing_unseen(folder: Path, engine: Make) -> None:
    """vLLM is told to ignore them; SGLang has no such option: refused."""
    sampling = Sampling(max_new_tokens=12, samples_per_prompt=4)
    written = [70, 71, STOP]
    with serving(folder, own_stop=70, writes=(*written, *[99] * 9)) as server:
        found = engine(server).generate(PROMPTS[:1], sampling)
        assert {c.response_ids for c in found} == {tuple(written)}
    with serving(folder, own_stop=70, kind="sglang", writes=(*written, *[99] * 9)) as server:
        own = engine(server)
        with pytest.raises(ModelError, match=r"at token 70, which is no stop token .*\(2\)"):
            own.generate(PROMPTS[:1], sampling)


def test_a_prompt_that_the_server_alters_is_refused(folder: Path, engine: Make) -> None:
    with serving(folder, bos=True) as server:
        own = engine(server)
        words = r"makes 6 tokens of prompt 0, of which training makes 5 \(they differ from token 1 "
        with pytest.raises(ModelError, match=words):
            own.generate([prompt("abcd")], Sampling(max_new_tokens=2))


def shown(ids: tuple[int, ...]) -> Prompt:
    image = ImageRef(data=png(0))
    part = [{"type": "text", "text": "look"}, {"type": "image", "image": image}]
    placed = PlacedImage(1, len(ids) - 1, "0" * 64)
    return Prompt(
        tokens=Tokens(ids, images=(placed,)),
        content=[{"role": "user", "content": part}],  # type: ignore[list-item,typeddict-item]
    )


def test_a_prompt_with_images_goes_as_turns_and_must_become_our_tokens(
    folder: Path, engine: Make
) -> None:
    with serving(folder, expanded=(1, 9, 9)) as server:
        own = engine(server)
        found = own.generate([shown((1, 9, 9))], Sampling(max_new_tokens=3))
        assert found[0].prompt_ids == (1, 9, 9)
        (body,) = server.asked("/v1/chat/completions")
        text, image = body["messages"][0]["content"]
        assert text == {"type": "text", "text": "look"}
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        words = r"makes 3 tokens of prompt 0, of which training makes 4 \(they differ from token 3"
        with pytest.raises(ModelError, match=words + r" on\): give it the policy's chat template"):
            own.generate([shown((1, 9, 9, 9))], Sampling(max_new_tokens=3))
        with pytest.raises(ModelError, match="differ from token 2"):
            own.generate([shown((1, 9, 8))], Sampling(max_new_tokens=3))


def test_tokens_of_images_are_never_wanted_and_dropped_where_they_come(
    folder: Path, engine: Make
) -> None:
    class Pictures:
        reserved = frozenset({9})
        limits = None

    with serving(folder, writes=(70, 9, STOP)) as server:
        model = policy(folder)
        model.pictures = Pictures()  # type: ignore[assignment]
        own = engine(server, policy_model=model)
        assert own.generate(PROMPTS, Sampling(max_new_tokens=3)) == []
        assert own.take_counts() == {"reserved_token": 3}
        assert server.asked("/v1/completions")[-1]["logit_bias"] == {"9": -100.0}


def test_a_model_of_experts_is_refused(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from tiny import COMMON

    config = Qwen3MoeConfig(**COMMON, num_experts=4, num_experts_per_tok=2)
    recipe = Recipe.model_validate({"urls": ["http://127.0.0.1:9/v1"], "model": NAME})
    with pytest.raises(ModelError, match="sends tokens to experts"):
        ServerEngine(
            recipe, tiny_tokenizer(), Model.policy(Qwen3MoeForCausalLM(config)), folder=tmp_path
        )


def test_ids_are_sent_as_they_are_whatever_their_text_is(
    folder: Path, server: Served, engine: Make
) -> None:
    """Half a character, and a special token in a text: no text could stand for them."""
    ids = (1, 130, STOP, 1, 77)
    own = engine(server)
    found = own.generate([Prompt(tokens=Tokens(ids), content="?")], Sampling(max_new_tokens=2))
    assert server.asked("/v1/completions")[-1]["prompt"] == list(ids)
    expected = true_logps(policy(folder), found[0], Sampling(max_new_tokens=2))
    assert np.allclose(found[0].logps, expected, atol=1e-4)
