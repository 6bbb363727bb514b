"""The pitfalls of docs/online-pitfalls.md that recipes, rewards, credit and engines could have."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from online.mutants import mutated
from palate.data.items import Item, Rollout, Tokens
from palate.errors import ModelError
from palate.models.generation.engine import Completion, Prompt, Sampling
from palate.models.generation.local import LocalEngine
from palate.models.model import Model
from palate.models.reference import FrozenCopy
from palate.models.reward_files import load_reward_model
from palate.models.value import add_value, check_begins_value
from palate.recipes.rl import RlRecipe, ValueRecipe
from palate.recipes.schema import ModelRecipe
from palate.train.objectives import policy as policy_objective
from palate.train.rollouts import credit, measure
from palate.train.rollouts.collect import Collector, rollout_seed
from palate.train.rollouts.responses import Group, Response
from palate.train.rollouts.responses import Rollout as Collected
from palate.train.rollouts.shape import shape_rewards, whiten_rewards
from palate.train.rollouts.updates import Cutter
from palate.train.sources.base import MicroBatch
from palate.train.sources.offline import micro_batch
from tiny import tiny_model
from tiny_text import save_classifier, tiny_text_model, tiny_tokenizer


def recipe(**parts: Any) -> RlRecipe:
    reward = {"scorer": {"type": "length"}, **parts.pop("reward", {})}
    return RlRecipe.model_validate(
        {
            "output_dir": "run",
            "model": {"path": "model"},
            "prompts": {"train": [{"path": "prompts.jsonl"}]},
            "reward": reward,
            **parts,
        }
    )


def response(n: int, reward: float = 0.0, *, seed: int = 0, **attributes: Any) -> Response:
    """Of n tokens, with all that an update of PPO asks for."""
    random = np.random.default_rng(seed)

    def numbers() -> np.ndarray:
        return random.normal(size=n).astype(np.float32)

    old = numbers()
    tokens = {"old_logps": old, "sampled_logps": old, "ref_logps": numbers(), "values": numbers()}
    about = {"prompt": 0, "sample": seed, "finished": True, "text": "", "version": 0}
    about |= {"score": reward, "reward": reward, "tokens": tokens}
    return Response(response_ids=tuple(range(n)), **about | attributes)


PPO = {"type": "ppo", "whiten_advantages": False, "lam": 1.0}


# --- 2: the temperature in all log-probs -------------------------------------------------------

TEMPERATURE = 0.6
TEXTS = ("A film", "The hotel was")


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    return tuple(Model.policy(tiny_text_model("llama", seed=i)) for i in range(2))


def prompt_of(text: str) -> Prompt:
    ids = tuple(tiny_tokenizer()(text)["input_ids"])
    return Prompt(tokens=Tokens(ids), content=text)


@pytest.fixture(scope="module")
def completions(models) -> list[Completion]:
    tokenizer = tiny_tokenizer()
    prompts = [prompt_of(text) for text in TEXTS]
    sampling = Sampling(max_new_tokens=6, samples_per_prompt=2, temperature=TEMPERATURE, seed=1)
    return LocalEngine(models[0], tokenizer).generate(prompts, sampling)


def by_full_logits(model: Model, completion: Completion, temperature: float) -> list[float]:
    ids = [*completion.prompt_ids, *completion.response_ids]
    with torch.no_grad():
        logits = model.base(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    logps = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])
    return logps[len(completion.prompt_ids) - 1 :, 0].tolist()


def batch_of(model: Model, completions: list[Completion], **layout: Any) -> MicroBatch:
    items = [
        Item(
            prompts=(Tokens(c.prompt_ids),),
            responses=(Tokens(c.response_ids),),
            label=Rollout({"sampled_logps": (np.float32(c.logps),)}),
            id=str(n),
            source="",
        )
        for n, c in enumerate(completions)
    ]
    return micro_batch(items, model.collator("plain", pad_id=0, **layout))


def same_everywhere(models, completions, measuring: ModuleType, objectives: ModuleType) -> None:
    """Engine, measure of the rollout, its reference, and the update: one temperature."""
    policy, other = models
    sampled = [x for c in completions for x in c.logps]
    of = recipe(algorithm={"type": "grpo"}, rollout={"temperature": TEMPERATURE})
    batch = batch_of(policy, completions)
    (measured,) = measuring.measure(
        policy,
        [batch],
        reference=FrozenCopy(other, digest="other"),
        temperature=objectives.scored_temperature(of),
    )
    ask = objectives.PolicyObjective(of, objectives.Control()).ask()
    with torch.no_grad():
        updated = policy(batch.batch, ask).token_stats.logp.tolist()
    for values, model in (
        (sampled, policy),
        (np.concatenate(measured["old_logps"]).tolist(), policy),
        (np.concatenate(measured["ref_logps"]).tolist(), other),
        (updated, policy),
    ):
        expected = [x for c in completions for x in by_full_logits(model, c, TEMPERATURE)]
        assert values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("where", ["measure", "update"])
def test_02_a_temperature_that_is_missing_in_one_log_prob_is_seen(models, completions, where):
    same_everywhere(models, completions, measure, policy_objective)
    broken = {
        "measure": (
            mutated(measure, "temperature=temperature", "temperature=1.0"),
            policy_objective,
        ),
        "update": (
            measure,
            mutated(policy_objective, "temperature=scored_temperature(recipe)", "temperature=1.0"),
        ),
    }[where]
    with pytest.raises(AssertionError):
        same_everywhere(models, completions, *broken)


def test_02_nothing_but_the_temperature_shapes_the_samples(completions, models):
    """Neither top-k nor the settings of the model's files, unless the paper's code is asked for."""
    models[0].base.generation_config.top_k = 3
    sampling = Sampling(max_new_tokens=6, samples_per_prompt=2, temperature=TEMPERATURE, seed=1)
    prompts = [prompt_of(text) for text in TEXTS]
    again = LocalEngine(models[0], tiny_tokenizer()).generate(prompts, sampling)
    assert again == completions
    drawn = {}
    for fidelity in ("corrected", "paper"):
        of = recipe(algorithm={"type": "ppo"}, fidelity=fidelity)
        collector = Collector(of, [], None, None, None)
        drawn[fidelity] = (collector._sampling(0).top_k, collector._sampling(0).top_p)
    assert drawn == {"corrected": (0, 1.0), "paper": (50, 1.0)}


# --- 5: where the score is ---------------------------------------------------------------------


def scores_the_last_token(module: ModuleType) -> None:
    """With lambda 1 the return of a token is the sum of rewards from it on: the score is in all,
    and in a wrong place it is missing at the end, or in the next response."""
    responses = [response(3, 5.0, seed=1), response(2, -1.0, seed=2), response(1, 2.0, seed=3)]
    module.assign_credit(responses, recipe(algorithm=PPO), kl_coefficient=0.0)
    for r in responses:
        assert r.tokens["returns"].tolist() == pytest.approx([r.reward] * len(r))
        # The last advantage is the score less the value of the state in which the token was drawn.
        assert r.tokens["advantages"][-1] == pytest.approx(r.reward - r.tokens["values"][-1])


def test_05_a_score_at_the_wrong_token_is_seen():
    scores_the_last_token(credit)
    for wrong in ("rewards[flat.last - 1]", "rewards[(flat.last + 1) % len(rewards)]"):
        broken = mutated(credit, "rewards[flat.last]", wrong)
        with pytest.raises(AssertionError):
            scores_the_last_token(broken)


# --- 8: the missing end ------------------------------------------------------------------------


def shaped(responses: list[Response], **reward: Any) -> list[float]:
    settings = recipe(reward=reward).reward
    shape_rewards(responses, settings)
    whiten_rewards(responses, settings)
    return [r.reward for r in responses]


def test_08_a_missing_end_costs_what_is_named():
    both = [response(2, 3.0), response(2, 3.0, finished=False)]
    assert shaped(both, missing_eos={"value": -10.0}) == [3.0, -10.0]
    assert shaped(both, missing_eos={"penalty": 1.5}) == [3.0, 1.5]
    # In place of the score as it counts: after the scale, so that -10 is -10.
    scaled = shaped(both, missing_eos={"value": -10.0}, mean=1.0, deviation=4.0)
    assert scaled == [0.5, -10.0]


# --- 9, 12: least lengths, dropout -------------------------------------------------------------


def test_09_no_response_ends_before_its_least_length(models):
    """Where a missing end costs, one at once would pay."""
    tokenizer = tiny_tokenizer()
    prompt = prompt_of("A film")
    sampling = Sampling(max_new_tokens=5, min_new_tokens=5, samples_per_prompt=40, temperature=9.0)
    ends = range(0, models[0].vocabulary, 2)
    engine = LocalEngine(models[0], tokenizer, ends=ends)
    assert {len(c.response_ids) for c in engine.generate([prompt], sampling)} == {5}
    free = engine.generate([prompt], replace(sampling, min_new_tokens=0))
    assert min(len(c.response_ids) for c in free) == 1


def test_12_dropout_is_refused_where_it_would_move_the_first_ratio():
    model = {"path": "model", "lora": {"r": 4, "dropout": 0.1}}
    with pytest.raises(ValueError, match="the ratio of the first update would not be 1"):
        recipe(model=model)


# --- 13, 14: the KL ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "message"),
    [
        ({"form": "k3", "place": "reward"}, "k3 in the reward has another gradient"),
        ({"form": "exact", "place": "reward"}, "exact in the reward has another gradient"),
        ({"form": "k1", "place": "loss"}, "k1 in the loss has no gradient in the mean"),
    ],
)
def test_13_a_kl_where_its_gradient_is_wrong_is_refused(kl, message):
    with pytest.raises(ValueError, match=message):
        recipe(algorithm={"type": "ppo"}, kl=kl)


def test_13_the_kl_in_the_reward_is_k1_clamped_where_asked():
    r = response(3, 0.0)
    gap = (r.tokens["old_logps"] - r.tokens["ref_logps"]).astype(np.float64)
    for clamp, limit in ((None, math.inf), (0.1, 0.1)):
        kl = {"form": "k1", "place": "reward", "coefficient": 0.5, "clamp": clamp}
        credit.assign_credit([r], recipe(algorithm=PPO, kl=kl), kl_coefficient=0.5)
        rewards = -0.5 * np.clip(gap, -limit, limit)
        expected = rewards[::-1].cumsum()[::-1]
        assert r.tokens["returns"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


# --- 15, 18, 19, 21: what is recorded, how rewards are scaled ----------------------------------


def test_15_gamma_and_lambda_are_in_every_recipe_that_is_written():
    written = recipe(algorithm={"type": "ppo"}).model_dump()["algorithm"]
    assert (written["gamma"], written["lam"]) == (1.0, 0.95)


def test_18_scores_are_scaled_by_what_the_recipe_says():
    both = [response(2, 3.0), response(2, 7.0)]
    assert shaped(both, mean=5.0, deviation=2.0, clip=0.8) == [-0.8, 0.8]
    assert shaped(both) == [3.0, 7.0]


def test_19_rewards_are_not_whitened_unless_asked_and_keep_their_mean():
    three = [response(2, x) for x in (3.0, 7.0, 11.0)]
    assert shaped(three) == [3.0, 7.0, 11.0]
    assert shaped(three, whiten=True) == pytest.approx([6.0, 7.0, 8.0])


def test_21_a_missing_end_does_not_move_the_rewards_of_others():
    finished = [response(2, x) for x in (3.0, 7.0, 11.0)]
    rows = [*finished, response(2, 5.0, finished=False)]
    rewards = shaped(rows, whiten=True, missing_eos={"value": -10.0})
    assert rewards == pytest.approx([6.0, 7.0, 8.0, 7.0 - 17.0 / 4.0])
    # Rewards that are all equal have no deviation to divide by.
    rows = [*(response(2, 1.0) for _ in range(3)), response(2, 1.0, finished=False)]
    assert shaped(rows, whiten=True, missing_eos={"value": -10.0}) == [1.0, 1.0, 1.0, -10.0]


# --- 22, 26: orders and seeds ------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["corrected", "paper"])
def test_22_each_pass_has_all_groups_in_another_order(fidelity):
    of = recipe(
        algorithm={"type": "ppo"},
        fidelity=fidelity,
        rollout={"batch_size_prompts": 8, "num_generations": 1},
        train={"num_mini_batches": 2, "num_iterations": 3},
    )
    prompt = SimpleNamespace(tokens=Tokens((1, 2)), id="", source="")
    groups = [Group(prompt=i, responses=[response(2, seed=i, prompt=i)]) for i in range(8)]
    cutter = Cutter(of, [prompt] * 8, rank=0, world_size=1)
    updates = cutter.updates(Collected(number=0, groups=groups))
    parts = [[int(item.id.partition(":")[0]) for item in update.items] for update in updates]
    assert [len(part) for part in parts] == [4] * 6
    passes = [parts[i] + parts[i + 1] for i in (0, 2, 4)]
    assert all(sorted(each) == list(range(8)) for each in passes)
    # The paper's code keeps the order of the prompts.
    assert len({tuple(each) for each in passes}) == (3 if fidelity == "corrected" else 1)


def test_26_a_prompt_that_comes_again_is_given_other_draws():
    seeds = {rollout_seed(seed, number) for seed in range(5) for number in (-1, 0, 1, 2, 3)}
    assert len(seeds) == 25


# --- 16, 31: the value model -------------------------------------------------------------------


def test_16_a_value_begins_as_the_reward_of_the_text_so_far(tmp_path, completions):
    """Of the state before each token, and after the last one."""
    path = save_classifier(tmp_path / "reward", ["reward"])
    policy = Model.policy(tiny_text_model("llama"))
    reward_model = load_reward_model(Path(path))
    add_value(policy, ValueRecipe(), ModelRecipe(path="unused"), reward_model=reward_model)
    judge = AutoModelForSequenceClassification.from_pretrained(path)
    batch = batch_of(policy, completions, keep_last=True)
    (measured,) = measure.measure(policy, [batch], reference=None, temperature=1.0)
    for c, values, end in zip(completions, measured["values"], measured["end_value"], strict=True):
        ids = [*c.prompt_ids, *c.response_ids]
        with torch.no_grad():
            hidden = judge.model(torch.tensor([ids])).last_hidden_state[0]
            scores = judge.score(hidden)[:, 0].tolist()
        states = scores[len(c.prompt_ids) - 1 :]
        assert values.tolist() == pytest.approx(states[:-1], abs=1e-5)
        assert end.tolist() == pytest.approx(states[-1:], abs=1e-5)


def test_31_a_value_model_reads_the_policys_tokens(tmp_path):
    """One of another vocabulary would read other words. Scorers read texts, by their own tokens."""
    path = save_classifier(tmp_path / "reward", ["reward"])
    policy = Model.policy(tiny_model())
    with pytest.raises(ModelError, match="a value model reads the policy's tokens"):
        check_begins_value(load_reward_model(Path(path)), policy, path)


# --- 20: whose statistics ----------------------------------------------------------------------


def rollout_of_eight() -> list[Response]:
    return [response(2 + i % 3, float(i * i), seed=i, prompt=i // 4) for i in range(8)]


def credited(assign: Any, order: list[int], **algorithm: Any) -> list[np.ndarray]:
    rows = rollout_of_eight()
    assign([rows[i] for i in order], recipe(algorithm=algorithm))
    return [r.tokens["advantages"] for r in rows]


def whole(rows: list[Response], of: RlRecipe) -> None:
    credit.assign_credit(rows, of, kl_coefficient=0.05)


def per_rank(rows: list[Response], of: RlRecipe) -> None:
    for rank in range(2):
        credit.assign_credit(rows[rank::2], of, kl_coefficient=0.05)


WHITENED = [
    {"type": "ppo"},
    {"type": "reinforce++"},
    {"type": "rloo", "whiten_advantages": True},
    {"type": "grpo", "scale_rewards": "batch"},
]


@pytest.mark.parametrize("algorithm", WHITENED, ids=lambda a: a["type"])
def test_20_statistics_are_of_the_whole_rollout_and_per_rank_ones_are_seen(algorithm):
    """A rollout is whole on every process, so that rows may come in any order, from anywhere."""
    expected = credited(whole, list(range(8)), **algorithm)
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 4, 0, 5, 2, 6, 7]):
        for a, b in zip(credited(whole, order, **algorithm), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    apart = credited(per_rank, list(range(8)), **algorithm)
    assert max(np.abs(a - b).max() for a, b in zip(apart, expected, strict=True)) > 0.05


def test_20_advantages_are_whitened_over_trained_tokens_not_rows():
    rows = rollout_of_eight()
    whole(rows, recipe(algorithm={"type": "ppo"}))
    tokens = np.concatenate([r.tokens["advantages"] for r in rows]).astype(np.float64)
    assert tokens.mean() == pytest.approx(0.0, abs=1e-6)
    assert tokens.std(ddof=1) == pytest.approx(1.0, rel=1e-5)


# --- 27: truncated rows ------------------------------------------------------------------------


def test_27_a_cut_response_ends_or_goes_on_by_name():
    def first_return(truncated: str, *, finished: bool) -> float:
        r = response(3, 1.0, finished=finished, end_value=4.0)
        of = recipe(algorithm={**PPO, "gamma": 0.5, "truncated": truncated})
        credit.assign_credit([r], of, kl_coefficient=0.0)
        return float(r.tokens["returns"][0])

    assert first_return("terminal", finished=False) == pytest.approx(0.25)
    assert first_return("bootstrap", finished=False) == pytest.approx(0.25 + 0.125 * 4.0)
    assert first_return("bootstrap", finished=True) == pytest.approx(0.25)


# --- 34: a part of the distribution ------------------------------------------------------------


def test_34_samples_of_a_part_of_the_distribution_need_a_correction():
    with pytest.raises(ValueError, match="samples from another policy than the one trained"):
        recipe(rollout={"top_p": 0.8})
    local = {"type": "local", "correction": {}}
    assert recipe(rollout={"top_p": 0.8, "engine": local}).rollout.top_p == 0.8
