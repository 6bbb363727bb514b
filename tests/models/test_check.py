"""Start-of-run checks: what must not share a row does not, and what may is not refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from model_families import family_model
from palate.data.layouts import collate
from palate.errors import ModelError
from palate.models import check
from palate.models.attention import use_rows
from palate.models.backbone import Backbone
from palate.models.check import check_pairs, check_tokens, layout_check, start_check
from palate.models.model import Model
from palate.models.reward_config import RewardSpec
from palate.models.rounding import rounded_otherwise
from palate.models.structure import backbone_of, sharing_obstacle
from palate.recipes.schema import ModelRecipe


def policy(family: str, **options: Any) -> Model:
    model = family_model(family, **options)
    use_rows(model)
    return Model.policy(model)


@pytest.fixture
def parts_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers alone decide."""
    monkeypatch.setattr(check, "sharing_obstacle", lambda backbone: None)


REFUSED = [
    ("lfm2", "conv"),
    ("jamba", "linear_attention"),
    ("falcon_h1", "hybrid"),
    ("gpt_neo", "local"),
    ("llama4_text", "chunked_attention"),
    ("recurrent_gemma", "recurrent"),
    ("mpt", "alibi"),
    ("bloom", "position ids"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "word"), REFUSED)
def test_parts_that_masks_do_not_rule_are_refused(
    family: str, word: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a forward pass: no tolerance decides."""
    model = policy(family, dtype=dtype)
    monkeypatch.setattr(nn.Module, "__call__", None)
    verdict = layout_check(model)
    assert not verdict.ok and verdict.reason is not None and word in verdict.reason
    assert verdict.words.startswith("the shared layout is not exact for this model: ")


class Nameless(nn.Module):
    """A layer of somebody's own: neighbours mix, and no configuration says so."""

    def __init__(self, layer: nn.Module, share: float) -> None:
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        before = torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        out: torch.Tensor = self.layer(hidden + self.share * before, **options)
        return out


@pytest.mark.parametrize("kind", ["policy", "reward model"])
def test_a_leak_below_the_rounding_of_bfloat16_is_seen(kind: str) -> None:
    model = policy("llama", dtype=torch.bfloat16)
    if kind == "reward model":
        spec = RewardSpec(model=ModelRecipe(path="tiny"))
        model = Model.reward(model.base, spec)
    assert layout_check(model).ok
    model.base.model.layers[1] = Nameless(model.base.model.layers[1], 0.02)
    assert sharing_obstacle(backbone_of(model.base)) is None
    verdict = layout_check(model)
    assert not verdict.ok and verdict.reason is not None and "see one another" in verdict.reason
    assert verdict.max_abs_difference < 0.75


@pytest.mark.usefixtures("parts_unseen")
@pytest.mark.parametrize("family", ["lfm2", "jamba", "falcon_h1", "recurrent_gemma", "rwkv"])
def test_numbers_alone_tell_what_has_a_state(family: str) -> None:
    model = policy(family, dtype=torch.bfloat16)
    if family == "jamba":
        # Experts round with what others are given, so that a leak of their size would not show:
        # the state lasts longer than a random model's.
        with torch.no_grad():
            for name, parameter in model.base.named_parameters():
                if "A_log" in name:
                    parameter.sub_(3.0)
    verdict = layout_check(model)
    assert not verdict.ok and verdict.reason is not None and "see one another" in verdict.reason


@pytest.mark.usefixtures("parts_unseen")
@pytest.mark.parametrize("family", ["gpt_neo", "mpt", "llama4_text"])
def test_numbers_alone_tell_a_window_that_no_mask_has(family: str) -> None:
    model = policy(family)
    verdict = layout_check(model)
    assert not verdict.ok and verdict.reason is not None and "off the plain ones" in verdict.reason
    if family == "gpt_neo":
        # Rows within its local layers' reach show nothing, and a run of such rows is exact.
        assert layout_check(model, longest=128).ok


@pytest.mark.usefixtures("parts_unseen")
def test_a_window_that_the_masks_have_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy("mistral", dtype=torch.bfloat16)
    monkeypatch.setattr(Backbone, "windows", {"": 48})
    verdict = layout_check(model)
    assert not verdict.ok and verdict.reason is not None and "off the plain ones" in verdict.reason


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [1.0, 4.0, 9.0])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "qwen3_moe"])
def test_what_is_exact_is_not_refused(family: str, spread: float, seed: int) -> None:
    model = policy(family, dtype=torch.bfloat16, seed=seed, spread=spread)
    start_check(model)
    verdict = layout_check(model, longest=120)
    assert verdict.ok, verdict.reason
    reward = Model.reward(model.base.base_model, RewardSpec(model=ModelRecipe(path="tiny")))
    verdict = layout_check(reward, longest=120)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_kernels_are_not_refused_either(attention: str) -> None:
    model = Model.policy(family_model("gemma3_text", dtype=torch.bfloat16, attention=attention))
    start_check(model)
    assert layout_check(model).ok


@pytest.mark.parametrize(
    ("windows", "longest", "positions", "tokens"),
    [
        ({"": None}, None, None, 320),
        ({"": None}, 50, None, 64),
        ({"a": 512, "b": None}, 4000, None, 576),
        ({"a": 512, "b": None}, 130, None, 192),
        ({"a": 4096, "b": None}, 130, 150, 150),
    ],
)
def test_how_far_the_check_looks(
    windows: Any, longest: int | None, positions: int | None, tokens: int
) -> None:
    assert check_tokens(windows, longest, positions) == tokens


def test_its_pairs_reach_as_far_and_differ() -> None:
    pairs = check_pairs(211, 320)
    assert max(len(p) + len(r) for pair in pairs for p, r in pair.sequences) == 320
    assert all(pair.responses[0].ids[0] != pair.responses[1].ids[0] for pair in pairs)
    assert check_pairs(211, 320, seed=1)[0].responses != pairs[0].responses
    rows = collate(check_pairs(211, 32), layout="shared", pad_id=0).inputs["visible_until"]
    trees = [len({int(n) for n in row if n > 0 and row[n - 1] == n}) for row in rows]
    assert max(trees) > 1, "trees share a row"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_moves_a_layer_by_half_a_unit_at_most(dtype: torch.dtype) -> None:
    layer = nn.Linear(16, 400).to(dtype)
    x = torch.randn(3, 16).to(dtype)
    calm = layer(x)
    with rounded_otherwise(layer, seed=0):
        moved = layer(x)
    share = ((moved.double() - calm.double()) / calm.double()).abs()
    assert 0 < share.max() <= torch.finfo(dtype).eps
    assert 0.1 < (share > 0).double().mean() < 1
    assert torch.equal(layer(x), calm)


@pytest.mark.parametrize("family", ["llama4_text", "lfm2", "bloom", "gemma2"])
def test_every_family_starts_plain(family: str) -> None:
    start_check(policy(family))


def test_a_model_whose_batches_differ_from_its_sequences_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = policy("llama")
    backbone = model.base.model
    forward: Callable[..., Any] = backbone.forward

    def shifted(position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None:
            position_ids = 2 * position_ids
        return forward(position_ids=position_ids, **options)

    monkeypatch.setattr(backbone, "forward", shifted)
    with pytest.raises(ModelError, match="other log-probs in a padded batch than alone"):
        start_check(model)


def test_a_model_that_cannot_be_run_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy("llama")
    monkeypatch.setattr(model.base.model, "forward", lambda **options: object())
    with pytest.raises(ModelError, match="does not run as a causal language model") as error:
        start_check(model)
    assert "\n" not in str(error.value)
