"""One model with several heads and trunks: everything that is asked, in one pass."""

from __future__ import annotations

import pytest
import torch

from palate.data.layouts import collate
from palate.models.backbone import Backbone
from palate.models.heads import RewardHead, ScalarHead, ValueHead, VocabularyHead
from palate.models.model import Ask, Model
from palate.models.reward_config import RewardSpec
from palate.recipes.schema import ModelRecipe
from tiny import tiny_model, tiny_pairs

EVERYTHING = Ask(heads=("lm", "value"), entropy=True)


def count_passes(model: Model) -> dict[str, int]:
    passes = dict.fromkeys(model.trunks, 0)
    for name, trunk in model.trunks.items():

        def counted(*_: object, name: str = name) -> None:
            passes[name] += 1

        trunk.register_forward_hook(counted)
    return passes


def values_alone(trunk: Backbone, head: ValueHead, pairs) -> torch.Tensor:
    """The definition: the head on the state before each response token, row by row."""
    parts = []
    for prompt, response in (both for pair in pairs for both in pair.sequences):
        ids = torch.tensor([[*prompt.ids, *response.ids]])
        states = trunk.base.base_model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        parts.append(head.head(states))
    return torch.cat(parts)


@pytest.mark.parametrize("own_trunk", [False, True])
@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_values_beside_words_in_one_pass(own_trunk: bool, layout: str) -> None:
    torch.manual_seed(0)
    trunks = {"policy": Backbone(tiny_model("llama"))}
    if own_trunk:
        trunks["value"] = Backbone(tiny_model("qwen3", seed=1).base_model)
    where = "value" if own_trunk else "policy"
    value = ValueHead(where, trunks[where].hidden_size)
    model = Model(trunks, {"lm": VocabularyHead("policy"), "value": value})
    pairs = tiny_pairs()
    batch = collate(pairs, layout=layout, pad_id=0)
    passes = count_passes(model)
    outputs = model(batch, EVERYTHING)
    assert passes == dict.fromkeys(trunks, 1)
    assert outputs.rewards is None and outputs.tokens is not None
    alone = Model.policy(trunks["policy"].hf)(batch, Ask(entropy=True)).token_stats
    torch.testing.assert_close(outputs.tokens.logp, alone.logp)
    torch.testing.assert_close(outputs.tokens.entropy, alone.entropy)
    want = values_alone(trunks[where], value, pairs)
    assert want.std() > 0.1
    torch.testing.assert_close(outputs.values, want, atol=3e-5, rtol=1e-4)


def test_a_trunk_gets_gradients_of_its_own_heads_alone() -> None:
    trunks = {"policy": Backbone(tiny_model("llama")), "value": Backbone(tiny_model("llama"))}
    heads = {"lm": VocabularyHead("policy"), "value": ValueHead("value", 32)}
    model = Model(trunks, heads)
    batch = collate(tiny_pairs(2), layout="shared", pad_id=0)
    model(batch, Ask(heads=("lm", "value"))).values.sum().backward()

    def moved(module: torch.nn.Module) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())

    assert moved(trunks["value"]) and moved(heads["value"]) and not moved(trunks["policy"])


def test_only_the_heads_that_are_asked_for_are_run() -> None:
    spec = RewardSpec(model=ModelRecipe(path="x"))
    language = Model.policy(tiny_model("llama")).vocabulary_head()
    model = Model.reward(tiny_model("llama").base_model, spec, language=language)
    batch = collate(tiny_pairs(3), layout="shared", pad_id=0, keep_last=True)
    model.heads["lm"].weights = None  # would be called
    assert model(batch, Ask(heads=("reward",))).tokens is None


def test_words_of_the_chosen_responses_alone() -> None:
    model = Model.policy(tiny_model("gemma3"))
    batch = collate(tiny_pairs(), layout="shared", pad_id=0)
    every = model(batch, Ask()).token_stats.logp
    chosen = model(batch, Ask(tokens="chosen")).token_stats.logp
    side = [k % 2 == 0 for k in range(batch.n_sequences)]
    torch.testing.assert_close(chosen, every[torch.tensor(side)[batch.segment]])


def test_a_head_reads_a_trunk_that_there_is() -> None:
    with pytest.raises(ValueError, match="head value reads trunk value"):
        Model({"policy": Backbone(tiny_model())}, {"value": ValueHead("value", 32)})


def test_names_on_disk_are_those_of_the_head() -> None:
    """Saved models of before load: the names in files have no trunk and no head in front."""
    spec = RewardSpec(model=ModelRecipe(path="x"), pooling="attention")
    head = ScalarHead("reward", 32, spec)
    assert set(head.state_dict()) == {"head.layers.0.weight", "pooling.query"}
    assert isinstance(head.head, RewardHead)
