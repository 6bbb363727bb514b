"""Pitfalls of public implementations that concern the trainer, by their numbers in
docs/online-pitfalls.md; each test fails on a trainer that has the fault."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from palate.data.items import Item
from palate.models.generation.local import LocalEngine
from palate.models.loading import load_model, load_policy
from palate.models.model import Ask
from palate.models.value import VALUE
from palate.recipes.rl import RewardSignalRecipe
from palate.recipes.schema import ModelRecipe
from palate.store.rollouts import RolloutRow, read_rollouts
from palate.train.loop import Loop
from palate.train.objectives.policy import PolicyObjective
from palate.train.rl_run import rl
from palate.train.rollouts.collect import rollout_seed
from palate.train.rollouts.credit import assign_credit
from palate.train.rollouts.responses import Response
from palate.train.rollouts.shape import shape_rewards, whiten_rewards
from tiny_rl import ByText, letters, log_of, merged, rl_recipe, run, save_stopping, started
from tiny_runs import write_rows
from tiny_text import tiny_tokenizer

STOPS = {2, *range(150, 210)}
Rows = list[RolloutRow]


def uneven(folder: Path) -> dict[str, Any]:
    """Prompts of one to forty letters."""
    file = folder / "uneven.jsonl"
    write_rows(file, [{"prompt": "abcdefghij" * k + f"{k}: "} for k in range(4)])
    return {"train": [{"path": str(file)}]}


def ids_of(row: RolloutRow) -> tuple[list[int], int]:
    """The whole sequence, and how much of it is the prompt."""
    prompt = tiny_tokenizer()(row.prompt_text)["input_ids"]
    return [*prompt, *row.response_ids], len(prompt)


def own_logps(model: Any, row: RolloutRow, temperature: float = 1.0) -> np.ndarray:
    """By transformers alone: one sequence, no padding, log-softmax in float64."""
    ids, prompt = ids_of(row)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, prompt - 1 : -1].double() / temperature
    logps = logits.log_softmax(-1)
    return np.array([float(logps[t, token]) for t, token in enumerate(row.response_ids)])


@pytest.fixture(scope="module")
def policy(folder: Path) -> Any:
    if not (folder / "tiny").exists():
        save_stopping(folder / "tiny")
    return AutoModelForCausalLM.from_pretrained(folder / "tiny", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def hot(folder: Path) -> Path:
    """PPO at a temperature of 0.7 on prompts of several lengths, two updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palate.report.write_report", lambda runs, *more: runs[0] / "report.html")
        return run(
            folder,
            prompts=uneven(folder),
            algorithm={"type": "ppo"},
            rollout={"temperature": 0.7},
            reward={"missing_eos": {"value": -10.0}},
            train={"num_mini_batches": 2},
        )


def response(*, reward: float, n: int = 3, prompt: int = 0, **tokens: Any) -> Response:
    logps = np.full(n, -1.0, np.float32)
    given = {"sampled_logps": logps, "old_logps": logps, "ref_logps": logps}
    return Response(
        prompt=prompt,
        sample=0,
        response_ids=tuple(range(n)),
        finished=True,
        text="",
        version=1,
        score=reward,
        reward=reward,
        tokens=given | {k: np.asarray(v, np.float32) for k, v in tokens.items()},
    )


def test_01_old_logps_are_frozen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = PolicyObjective.loss

    def watched(self: Any, outputs: Any, batch: Any, state: Any) -> Any:
        seen.append((batch.rollout["old_logps"].clone(), outputs.tokens.logp.detach().clone()))
        return loss(self, outputs, batch, state)

    monkeypatch.setattr(PolicyObjective, "loss", watched)
    path = run(folder, algorithm={"type": "grpo"}, train={"num_iterations": 3, "max_steps": 3})
    total = sum(
        float(row.tokens["old_logps"].astype(np.float64).sum()) for row in read_rollouts(path)
    )
    for k, (old, logp) in enumerate(seen):
        assert float(old.double().sum()) == pytest.approx(total, rel=1e-9)
        assert torch.equal(old, logp) is (k == 0)


def test_02_one_temperature_in_all_log_probs(hot: Path, policy: Any, folder: Path) -> None:
    for row in [row for row in read_rollouts(hot) if row.rollout == 0][::3]:
        expected = own_logps(policy, row, 0.7)
        for name in ("sampled_logps", "old_logps", "ref_logps"):
            np.testing.assert_allclose(row.tokens[name], expected, atol=1e-4, err_msg=name)
        assert np.abs(own_logps(policy, row) - expected).max() > 0.01
    # Of pairs too: the best response of each group is the chosen one.
    path = run(
        folder,
        algorithm={"type": "online_dpo"},
        rollout={"temperature": 0.7},
        train={"max_steps": 1},
    )
    groups: dict[str, Rows] = {}
    for row in read_rollouts(path):
        groups.setdefault(row.prompt, []).append(row)
    best = [max(rows, key=lambda row: row.score or 0.0) for rows in groups.values()]
    chosen = np.mean([own_logps(policy, row, 0.7).sum() for row in best])
    assert log_of(path)[0]["logps/chosen"] == pytest.approx(chosen, rel=1e-5)
    # What the model's own settings say of sampling is not read.
    save_stopping(folder / "greedy")
    file = folder / "greedy/generation_config.json"
    settings = json.loads(file.read_text()) | {"top_k": 1, "temperature": 0.1, "do_sample": True}
    file.write_text(json.dumps(settings))
    path = run(folder, model={"path": str(folder / "greedy")}, algorithm={"type": "grpo"})
    firsts: dict[str, set[int]] = {}
    for row in read_rollouts(path):
        firsts.setdefault(row.prompt, set()).add(row.response_ids[0])
    assert max(map(len, firsts.values())) > 1


def test_04_lengths_of_a_batch_do_not_shift_positions(hot: Path, policy: Any) -> None:
    rows = [row for row in read_rollouts(hot) if row.rollout == 0]
    lengths = {ids_of(row)[1] for row in rows}
    assert len(lengths) == 4
    for row in rows:
        expected = own_logps(policy, row, 0.7)
        np.testing.assert_allclose(row.tokens["old_logps"], expected, atol=1e-4)


def test_05_the_score_is_at_the_last_token_the_end_itself(folder: Path) -> None:
    settings: dict[str, Any] = {
        "algorithm": {"type": "ppo", "lam": 0.0, "whiten_advantages": False},
        "kl": {"coefficient": 0.0},
        "train": {"max_steps": 1},
    }
    rows = list(read_rollouts(run(folder, scorer=ByText(lambda text: 3.0), **settings)))
    assert {row.finished for row in rows} == {True, False}
    for row in rows:
        # Values begin at 0 and nothing is passed on: what is left is the reward itself.
        expected = [0.0] * (len(row.response_ids) - 1) + [3.0]
        assert row.tokens["advantages"].tolist() == expected
        assert (row.response_ids[-1] in STOPS) is row.finished


def saved_reward(folder: Path) -> str:
    from palate.models.model import Model
    from palate.models.reward_config import RewardSpec
    from palate.models.reward_files import save_reward_model
    from palate.models.structure import backbone_of
    from tiny_text import tiny_text_model

    path = folder / "random reward"
    if not path.exists():
        torch.manual_seed(0)
        spec = RewardSpec(
            model=ModelRecipe(path=str(folder / "tiny"), dtype="float32"),
            forms=("text",),
            end_tokens={2: "<eos>"},
        )
        save_reward_model(Model.reward(backbone_of(tiny_text_model(seed=3)), spec), path)
    return str(path)


@pytest.fixture(scope="module")
def scored(folder: Path, policy: Any) -> Rows:
    """PPO with a reward model, on prompts of several lengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palate.report.write_report", lambda runs, *more: runs[0] / "report.html")
        recipe = rl_recipe(
            folder,
            prompts=uneven(folder),
            algorithm={"type": "ppo"},
            reward={"scorer": {"type": "model", "path": saved_reward(folder)}},
            train={"max_steps": 1},
        )
        rows = [r for r in read_rollouts(rl(recipe, quiet=True).path) if r.score is not None]
    assert len(rows) > 8
    return rows[::2]


def own_score(folder: Path) -> Any:
    """By transformers' classifier alone, of one sequence without padding."""
    classifier = AutoModelForSequenceClassification.from_pretrained(saved_reward(folder)).eval()

    def score(ids: list[int]) -> float:
        with torch.no_grad():
            return float(classifier(torch.tensor([ids])).logits)

    return score


def test_06_values_are_of_the_state_before_each_token(folder: Path, scored: Rows) -> None:
    score = own_score(folder)
    for row in scored:
        ids, prompt = ids_of(row)
        expected = np.array([score(ids[: prompt + t]) for t in range(len(ids) - prompt)])
        np.testing.assert_allclose(row.tokens["values"], expected, atol=1e-4)
        if len(expected) > 1:
            assert np.abs(row.tokens["values"][:-1] - expected[1:]).max() > 1e-3


def test_07_scores_are_of_prompt_and_response_read_at_the_end(folder: Path, scored: Rows) -> None:
    """The text that was written, with the end that the reward model was trained on."""
    score, end = own_score(folder), tiny_tokenizer().eos_token_id
    for row in scored:
        written = tiny_tokenizer()(row.prompt_text + row.text)["input_ids"]
        assert row.score == pytest.approx(score([*written, end]), abs=1e-4)


def test_08_a_missing_end_is_of_the_stop_tokens_that_there_are(hot: Path) -> None:
    rows = list(read_rollouts(hot))
    assert {row.finished for row in rows} == {True, False}
    for row in rows:
        assert row.finished is (row.response_ids[-1] in STOPS)
        assert row.reward == (row.score if row.finished else -10.0)
    penalty = RewardSignalRecipe.model_validate(
        {"scorer": {"type": "rule", "pattern": "e"}, "missing_eos": {"penalty": 2.0}}
    )
    cut, whole = response(reward=0.5), response(reward=0.5)
    cut.finished = False
    shape_rewards([cut, whole], penalty)
    assert (cut.reward, whole.reward) == (-1.5, 0.5)


def test_09_no_response_ends_before_its_minimum(folder: Path) -> None:
    more = {"reward": {"missing_eos": {"value": -10.0}}, "rollout": {"min_new_tokens": 3}}
    rows = list(read_rollouts(run(folder, **more)))
    # The end itself comes after them, as with transformers.
    assert min(len(row.response_ids) for row in rows) == 4


def test_10_nothing_behind_the_end_is_scored_or_trained_on(hot: Path) -> None:
    for row in read_rollouts(hot):
        assert not STOPS & set(row.response_ids[:-1])
        assert all(len(values) == len(row.response_ids) for values in row.tokens.values())
        kept = row.response_ids[:-1] if row.finished else row.response_ids
        assert row.text == tiny_tokenizer().decode(kept, skip_special_tokens=True)


def test_12_dropout_is_off_in_all_models(folder: Path) -> None:
    save_stopping(folder / "dropping")
    file = folder / "dropping/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_dropout": 0.5}))
    path = run(
        folder,
        model={"path": str(folder / "dropping")},
        algorithm={"type": "ppo"},
        value={"epsilon": 1e-9},
    )
    for line in log_of(path):
        assert line["ratio/max"] == 1.0 and line["value/clip"] == 0.0
    assert log_of(path)[0]["kl/k3"] == 0.0


def test_15_gamma_and_lambda_are_always_recorded(hot: Path) -> None:
    text = (hot / "recipe.yaml").read_text()
    assert "gamma: 1.0" in text and "lam: 0.95" in text


def test_16_values_begin_from_the_reward_model(folder: Path, policy: Any) -> None:
    path = saved_reward(folder)
    scorer = {"scorer": {"type": "model", "path": path}}
    job, _ = started(folder, algorithm={"type": "ppo"}, reward=scorer)
    whole = AutoModelForSequenceClassification.from_pretrained(path)
    head: Any = job.model.heads[VALUE]
    assert torch.equal(head.head.layers[0].weight, whole.score.weight.float())
    trunk = dict(job.model.trunk(VALUE).base.named_parameters())
    assert trunk and all(torch.equal(p, trunk[n]) for n, p in whole.model.named_parameters())


def test_18_rewards_are_scaled_by_what_is_given() -> None:
    base = {"scorer": {"type": "rule", "pattern": "e"}}
    rows = [response(reward=value) for value in (1.0, 3.0, 8.0)]
    given = RewardSignalRecipe.model_validate(base | {"mean": 2.0, "deviation": 4.0, "clip": 1.0})
    shape_rewards(rows, given)
    assert [row.reward for row in rows] == [-0.25, 0.25, 1.0]


def test_19_whitened_rewards_keep_their_mean() -> None:
    recipe = RewardSignalRecipe.model_validate(
        {"scorer": {"type": "rule", "pattern": "e"}, "whiten": True}
    )
    rows = [response(reward=value) for value in (1.0, 3.0, 8.0)]
    shape_rewards(rows, recipe)
    whiten_rewards(rows, recipe)
    rewards = [row.reward for row in rows]
    assert np.mean(rewards) == pytest.approx(4.0) and np.std(rewards, ddof=1) == pytest.approx(1.0)


def test_21_rows_without_an_end_do_not_move_the_others() -> None:
    recipe = RewardSignalRecipe.model_validate(
        {
            "scorer": {"type": "rule", "pattern": "e"},
            "missing_eos": {"value": -1000.0},
            "whiten": True,
        }
    )
    rows = [response(reward=value) for value in (1.0, 3.0, 8.0)]
    cut = replace(response(reward=1.0), finished=False)
    for given in (rows, [*rows, cut]):
        shape_rewards(given, recipe)
        whiten_rewards(given, recipe)
        assert rows[0].reward == pytest.approx(4 + (1 - 4) / np.std([1, 3, 8], ddof=1))


def orders(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[list[str]]:
    seen: list[list[str]] = []
    step = Loop.train_step

    def watched(self: Any, micro_batches: Any) -> None:
        prompts = [i.partition(":")[0] for micro in micro_batches for i in micro.batch.ids]
        seen.append(sorted(prompts, key=int))
        step(self, micro_batches)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train_step", watched)
        train = {"num_mini_batches": 4, "num_iterations": 3, "max_steps": 12}
        run(folder, algorithm={"type": "ppo"}, train=train, **more)
    return seen


def test_22_each_pass_is_in_another_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = orders(folder, monkeypatch)
    passes = [[p for part in seen[k : k + 4] for p in part] for k in (0, 4, 8)]
    assert all(sorted(order) == sorted(passes[0]) for order in passes)
    assert len({tuple(order) for order in passes}) > 1
    sequential = orders(folder, monkeypatch, fidelity="paper")
    assert sequential[:4] == sequential[4:8] == sequential[8:]


def test_26_draws_differ_by_prompt_sample_and_rollout_not_by_process(folder: Path) -> None:
    job, _ = started(folder, n=4)
    collector: Any = job.source.collector  # type: ignore[attr-defined]
    whole = collector.collect(0, 4)
    texts = [r.response_ids for r in whole.responses]
    assert len(set(texts)) > len(texts) / 2
    one = {(r.prompt, r.sample): r.response_ids for r in whole.responses}
    prompts = [group.prompt for group in whole.groups]
    for rank in (0, 1):
        share = prompts[rank::2]
        sampling = replace(collector._sampling(0), samples_per_prompt=4)
        for completion in collector.engine.generate(
            [collector.prompts[i].to_sample() for i in share], sampling
        ):
            key = share[completion.prompt], completion.index
            assert completion.response_ids == one[key]
    again = collector.collect(1, 4)
    other = {(r.prompt, r.sample): r.response_ids for r in again.responses}
    assert one.keys() == other.keys() and one != other
    assert len({rollout_seed(0, n) for n in (-1, 0, 1, 2)}) == 4


def test_27_a_cut_response_is_terminal_or_bootstrapped(folder: Path) -> None:
    returns = {}
    for kind in ("terminal", "bootstrap"):
        recipe = rl_recipe(
            folder,
            algorithm={"type": "ppo", "truncated": kind, "lam": 1.0},
            kl={"coefficient": 0.0},
        )
        rows = [response(reward=1.0, values=[5.0, 5.0, 5.0]) for _ in range(2)]
        rows[1].finished, rows[0].end_value, rows[1].end_value = False, 7.0, 7.0
        assign_credit(rows, recipe, kl_coefficient=0.0)
        returns[kind] = [row.tokens["returns"].tolist() for row in rows]
    assert returns == {
        "terminal": [[1.0] * 3, [1.0] * 3],
        "bootstrap": [[1.0] * 3, [8.0] * 3],
    }


def test_28_log_probs_are_float32_of_float32_logits(folder: Path, policy: Any) -> None:
    """Of a bfloat16 model: as the products of its states and its head, summed in float64."""
    model = load_policy(ModelRecipe(path=str(folder / "tiny"), dtype="bfloat16")).eval()
    responses = [tuple(range(100 + k, 106 + k)) for k in range(4)]
    batch = model.collator("plain")([Item.of(tuple(range(70, 84)), *responses)])
    with torch.no_grad():
        states = model.hidden(batch)
        tokens = model(batch, Ask(temperature=0.7)).token_stats.logp
        head: Any = model.vocabulary_head()
        exact, low = (
            (logits.double() / 0.7).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            for logits in (states.double() @ head.weight.double().T, states @ head.weight.T)
        )
    assert float((tokens - exact).abs().max()) < 2e-6
    assert float((low - exact).abs().max()) > 1e-3


def perturbed(change: float) -> Any:
    generate = LocalEngine.generate

    def other(self: Any, *args: Any, **more: Any) -> Any:
        return [
            replace(c, logps=(c.logps[0] + change, *c.logps[1:]))
            for c in generate(self, *args, **more)
        ]

    return other


def test_29_the_engine_s_mismatch_is_measured_and_corrected(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "algorithm": {"type": "grpo"},
        "rollout": {"engine": {"type": "local", "correction": {"cap": 1.5}}},
    }
    plain = log_of(run(folder, **settings))
    assert max(line["mismatch/max"] for line in plain) < 1e-4
    assert plain[0]["mismatch/weight"] == pytest.approx(1.0, abs=1e-4)
    for change, expected in ((0.3, math.exp(-0.3)), (-0.8, 1.5)):
        with monkeypatch.context() as patch:
            patch.setattr(LocalEngine, "generate", perturbed(change))
            path = run(folder, **settings)
        for row in read_rollouts(path):
            assert row.tokens["weights"][0] == pytest.approx(expected, rel=1e-4)
            np.testing.assert_allclose(row.tokens["weights"][1:], 1.0, atol=1e-4)
        assert log_of(path)[0]["mismatch/max"] == pytest.approx(abs(change), abs=1e-4)
        # Without a measuring pass the first update measures it.
        with monkeypatch.context() as patch:
            patch.setattr(LocalEngine, "generate", perturbed(change))
            log = log_of(run(folder, algorithm={"type": "grpo"}))
        assert log[0]["mismatch/max"] == pytest.approx(abs(change), abs=1e-4)


def test_30_the_prompt_is_the_encoder_s_with_one_beginning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    generate = LocalEngine.generate

    def watched(self: Any, prompts: Any, *args: Any, **more: Any) -> Any:
        asked.extend(prompts)
        return generate(self, prompts, *args, **more)

    monkeypatch.setattr(LocalEngine, "generate", watched)
    scorer = ByText(letters)
    run(folder, scorer=scorer, train={"max_steps": 1})
    for prompt in asked:
        assert prompt.tokens.ids == tuple(tiny_tokenizer()(prompt.content)["input_ids"])
        assert prompt.tokens.ids.count(1) == 1
    # A reward model renders the content with its own template, so it is handed on as it is.
    assert {group.prompt for group in scorer.asked} == {prompt.content for prompt in asked}


def test_31_a_reward_model_may_have_another_tokenizer_a_value_model_not(folder: Path) -> None:
    """Scorers are handed texts; tests/online/test_value.py has the refusal."""
    scorer = ByText(letters)
    run(folder, scorer=scorer, train={"max_steps": 1})
    assert all(isinstance(text, str) for group in scorer.asked for text in group.responses)


def test_36_tokens_without_a_log_prob_of_the_engine_do_no_harm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: dict[str, Any] = {"algorithm": {"type": "grpo"}, "train": {"max_steps": 2}}
    corrected = merged(plain, {"rollout": {"engine": {"type": "local", "correction": {}}}})
    monkeypatch.setattr(LocalEngine, "generate", perturbed(float("nan")))
    for settings in (plain, corrected, {"algorithm": {"type": "ppo"}}):
        path = run(folder, **settings)
        rows = list(read_rollouts(path))
        log = log_of(path)
        assert sum(line["events/tokens without a log-prob"] for line in log) == len(rows)
        assert all(math.isfinite(v) for line in log for v in line.values() if isinstance(v, float))
        for row in rows:
            assert math.isnan(row.tokens["sampled_logps"][0])
            assert np.isfinite(row.tokens["advantages"]).all()
            assert row.tokens.get("weights", np.ones(1))[0] == 1.0


def test_39_a_collapse_of_entropy_is_in_the_log(folder: Path) -> None:
    path = run(folder, algorithm={"type": "grpo"}, train={"extra_metrics": ["entropy"]})
    for number, line in enumerate(log_of(path)):
        rows = [row for row in read_rollouts(path) if row.rollout == number]
        logps = np.concatenate([row.tokens["sampled_logps"] for row in rows])
        assert line["entropy/sampled"] == pytest.approx(-float(logps.mean()), rel=1e-5)
        ids = [row.response_ids for row in rows]
        assert line["samples/commonest"] == max(map(ids.count, ids)) / len(ids)
        assert 0 < line["entropy"] < math.log(259)
    start = load_model(ModelRecipe(path=str(folder / "tiny"), dtype="float32"))
    first = next(iter(read_rollouts(path)))
    ids_, prompt = ids_of(first)
    with torch.no_grad():
        logits = start(torch.tensor([ids_])).logits[0, prompt - 1 : -1].double()
    assert float((-logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()) > 0
