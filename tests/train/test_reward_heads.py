"""Several heads on one backbone: trained as each would be alone, scored as an ensemble."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from palate.data.items import Item, PairLabel
from palate.errors import ModelError, RecipeError
from palate.evaluate.reward import evaluate_rewards
from palate.models.model import Model
from palate.models.reward_files import load_reward_model
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.scorers import EnsembleScorer, HeadsScorer, ModelScorer
from palate.rewards.build import make_scorer
from palate.rewards.ensemble import Ensemble
from palate.rewards.model import ModelScorer as Scorer
from palate.train import reward, reward_run
from palate.train.loop import Loop
from palate.train.objectives.reward import RewardObjective, bootstrap_weights
from scored import flat_values, values
from tiny_rewards import assert_close, log_of, recipe
from tiny_runs import WORDS

THREE = {"heads": 3}
PROMPTS = [" ".join(WORDS[:3]), " ".join(WORDS[3:5])]
ANSWERS = [" ".join(WORDS[k : k + 4]) for k in range(5)]


def heads_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/reward_head.safetensors")


def test_heads_train_as_each_would_alone(tmp_path: Path, monkeypatch: Any) -> None:
    """On a frozen backbone they share nothing but the data."""
    kept = {"backbone": "frozen", "train": {"epochs": 2.0, "max_grad_norm": 1e9}}
    run = reward(recipe(tmp_path, out="three", ensemble=THREE, **kept), quiet=True).path
    together, build = heads_of(run), reward_run.build_reward_model
    torch.manual_seed(recipe(tmp_path).seed)
    starts = load_starts(recipe(tmp_path, ensemble=THREE, **kept))
    for k in range(3):

        def start(own: Any, k: int = k) -> Model:
            model = build(own)
            model.reward_head.head.load_state_dict(starts[k])
            return model

        monkeypatch.setattr(reward_run, "build_reward_model", start)
        # Its share of the mean loss is a third; Adam does not see such a factor, but for epsilon.
        alone = reward(recipe(tmp_path, out=f"alone{k}", **kept), quiet=True).path
        model = load_reward_model(alone / "model")
        own = together[f"head.members.{k}.layers.0.weight"]
        torch.testing.assert_close(
            model.reward_head.head.layers[0].weight, own, atol=1e-5, rtol=1e-4
        )


def load_starts(own: Any) -> list[dict[str, torch.Tensor]]:
    from transformers import set_seed

    set_seed(own.seed)
    model = reward_run.build_reward_model(own)
    return [member.state_dict() for member in model.reward_head.head.members]


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_neither_layout_nor_accumulation_changes_bootstrapped_heads(
    loss: str, tmp_path: Path
) -> None:
    own: dict[str, Any] = {
        "ensemble": {"heads": 3, "bootstrap": True},
        "loss": {"type": loss},
        "pooling": "mean",
        # A last bias cancels out of every difference: its gradient is noise, which Adam enlarges.
        "head": {"layers": 2, "bias": False},
    }
    whole = reward(recipe(tmp_path, out="whole", **own), quiet=True).path
    train = {"layout": "plain", "micro_batch_size_pairs": 2}
    cut = reward(recipe(tmp_path, out="cut", train=train, **own), quiet=True).path
    assert_close(whole, cut)
    assert log_of(whole)[0]["spread"] > 0


def test_bootstrap_weights_are_poisson_and_of_the_item_alone() -> None:
    ids = [f"row {n}" for n in range(4000)]
    weights = bootstrap_weights(ids, 3, seed=5)
    assert torch.equal(weights[7:9], bootstrap_weights(ids[7:9], 3, seed=5))
    assert not torch.equal(weights, bootstrap_weights(ids, 3, seed=6))
    assert weights.mean().item() == pytest.approx(1.0, abs=0.03)
    assert weights.var().item() == pytest.approx(1.0, abs=0.06)
    assert (weights == 0).double().mean().item() == pytest.approx(np.exp(-1), abs=0.02)
    correlation = torch.corrcoef(weights.T)[0, 1].item()
    assert abs(correlation) < 0.05


def test_held_out_items_count_once_for_every_head(tmp_path: Path) -> None:
    own = recipe(tmp_path, ensemble={"heads": 2, "bootstrap": True}, train={"epochs": 1.0})
    objective = RewardObjective(own.loss, own.regularise, ensemble=own.ensemble, seed=0)
    pair = Item.of((3, 4), (5, 2), (6, 2), label=PairLabel(), id="one")
    from palate.data.layouts import collate

    model = reward_run.build_reward_model(own)
    batch = collate([pair], layout="plain", pad_id=0, keep_last=True)
    model.eval()
    outputs = model(batch, objective.ask())
    # In evaluation mode the draws do not apply.
    state = objective.prepare([], model, None, lambda values: values)
    found = objective.loss(outputs, batch, state)
    heads = outputs.by_head
    wanted = torch.nn.functional.softplus(heads[1] - heads[0]).mean()
    assert found.terms[0].losses.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: Any) -> None:
    own: dict[str, Any] = {
        "ensemble": {"heads": 2, "bootstrap": True},
        "train": {"epochs": 2.0, "save_every_steps": 3},
    }
    whole = reward(recipe(tmp_path, out="whole", **own), quiet=True).path
    step, seen = Loop.train_step, 0

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        reward(recipe(tmp_path, out="cut", **own), quiet=True)
    monkeypatch.setattr(Loop, "train_step", step)
    cut = reward(recipe(tmp_path, out="cut", resume=True, **own), quiet=True).path
    for name, tensor in heads_of(whole).items():
        assert torch.equal(tensor, heads_of(cut)[name])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    return reward(recipe(folder, ensemble=THREE, lora={"r": 2}), quiet=True).path


def test_the_folder_tells_of_every_head(trained: Path) -> None:
    (entry,) = json.loads((trained / "evaluation.json").read_text())["policies"]
    assert len(entry["heads"]) == 3
    assert all(0 <= head["accuracy"] <= 1 and head["off_mean"] > 0 for head in entry["heads"])
    spec = load_reward_model(trained / "model").spec
    assert spec.heads == 3 and len(spec.scales) == 3 and spec.scale is not None
    mean = sum(scale.mean for scale in spec.scales) / 3
    assert spec.scale.mean == pytest.approx(mean, abs=1e-6)


def test_scores_are_those_of_an_ensemble_and_the_backbone_is_run_once(
    trained: Path, monkeypatch: Any
) -> None:
    path = str(trained / "model")
    groups = [ANSWERS[:3], ANSWERS[2:]]
    each = np.asarray(
        [np.concatenate(values(Scorer(path, head=k), PROMPTS, groups)) for k in range(3)]
    )
    mean = np.concatenate(values(Scorer(path), PROMPTS, groups))
    np.testing.assert_allclose(mean, each.mean(0), atol=1e-6)
    spec = load_reward_model(path).spec
    z = (each - [[s.mean] for s in spec.scales]) / [[s.deviation] for s in spec.scales]
    wanted = {
        "mean": mean,
        "zscore": z.mean(0),
        "median": np.median(each, 0),
        "min": each.min(0),
        "uncertainty": each.mean(0) - each.std(0),
    }
    passes = 0
    forward = Model.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(self, *args, **kwargs)

    for rule, right in wanted.items():
        recipe = HeadsScorer.model_validate({"path": path, "combine": rule})
        scorer = make_scorer(recipe)
        assert isinstance(scorer, Ensemble)
        monkeypatch.setattr(Model, "forward", counted)
        passes = 0
        found = np.concatenate(values(scorer, PROMPTS, groups))
        once = passes
        monkeypatch.setattr(Model, "forward", forward)
        np.testing.assert_allclose(found, right, atol=1e-5)
        # A pass a batch, and the check of the layout; not one for each head.
        assert 0 < once <= 4
        # What it remembers goes with the model.
        del scorer
        gc.collect()


def test_a_head_is_a_member_beside_any_other(trained: Path) -> None:
    path = str(trained / "model")
    members = [
        {"scorer": {"type": "model", "path": path, "head": 1}},
        {"scorer": {"type": "model", "path": path}},
        {"scorer": {"type": "length"}},
    ]
    scorer = make_scorer(EnsembleScorer.model_validate({"members": members, "combine": "median"}))
    assert None not in flat_values(scorer, [PROMPTS[0]], [ANSWERS[0]])


def test_an_evaluation_shows_the_spread_of_the_heads(trained: Path, tmp_path: Path) -> None:
    held = trained.parent / "held.jsonl"
    document = {
        "output_dir": str(tmp_path / "evaluation"),
        "models": [{"type": "heads", "path": str(trained / "model"), "combine": "uncertainty"}],
        "benchmarks": [{"type": "pairs", "data": [{"path": str(held)}]}],
    }
    run = evaluate_rewards(RewardEvalRecipe.model_validate(document))
    text = (run.path / "evaluation.json").read_text()
    assert all(f"head {k}" in text for k in range(3)) and '"within"' in text


def test_refusals(trained: Path, tmp_path: Path) -> None:
    single = reward(recipe(tmp_path, train={"epochs": 0.5}), quiet=True).path / "model"
    with pytest.raises(ModelError, match="has one head"):
        make_scorer(HeadsScorer(path=str(single)))
    with pytest.raises(ModelError, match="no head 0: it has 1"):
        make_scorer(ModelScorer(path=str(single), head=0))
    with pytest.raises(ModelError, match="no head 3: it has 3"):
        make_scorer(ModelScorer(path=str(trained / "model"), head=3))
    with pytest.raises(ModelError, match=r"reward_config\.json is missing"):
        make_scorer(HeadsScorer(path=str(tmp_path)))
    with pytest.raises((RecipeError, ValueError), match="penalty"):
        HeadsScorer(path="x", penalty=2.0)
    with pytest.raises((RecipeError, ValueError), match="greater than or equal to 2"):
        recipe(tmp_path, ensemble={"heads": 1})
