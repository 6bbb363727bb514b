"""The loss of a TRL recipe: `loss_type` and the options that go with it."""

from __future__ import annotations

from typing import Any

from palate.recipes.keys import join
from palate.recipes.trl_keys import TrlKeys

LOSSES = {
    "sigmoid": "dpo",
    "robust": "rdpo",
    "ipo": "ipo_mean",
    "hinge": "hinge",
    "sigmoid_norm": "dpo_norm",
    "sft": "sft",
    "kto": "kto",
    "simpo": "simpo",
}
DIVERGENCES = {
    "reverse_kl": None,
    "forward_kl": "forward_kl",
    "js_divergence": "js",
    "alpha_divergence": "alpha",
}
ORIGINS = {
    "beta": "beta",
    "label_smoothing": "label_smoothing",
    "divergence": "f_divergence_type",
    "alpha": "f_alpha_divergence_coef",
    "gamma": "simpo_gamma",
    "nll_weight": "cpo_alpha",
    "desirable_weight": "desirable_weight",
    "undesirable_weight": "undesirable_weight",
    "weight": "loss_weights",
}
SMOOTHED = ("dpo", "rdpo", "dpo_norm", "cpo")


def put_losses(keys: TrlKeys) -> None:
    keys.put("train.learning_rate", keys.take("learning_rate", 1e-6), "learning_rate")
    if keys.take("precompute_ref_log_probs", False) is True:
        keys.put("reference.kind", "cache", "precompute_ref_log_probs")
    ld_alpha = keys.take("ld_alpha")
    if ld_alpha is not None and ld_alpha != 1:
        keys.put("token_weights", {"type": "ld", "alpha": ld_alpha}, "ld_alpha")
    wanted = keys.take("loss_type", "sigmoid")
    types = wanted if isinstance(wanted, list) else [wanted]
    weights = keys.take("loss_weights", [1.0] * len(types))
    if not isinstance(weights, list) or len(weights) != len(types):
        keys.refuse("loss_weights", f"expected a list of {len(types)}, one for each loss_type")
        return
    if not all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights):
        keys.refuse("loss_weights", f"expected numbers, got {weights!r}")
        return
    losses = [
        loss | {"weight": w}
        for t, w in zip(types, weights, strict=True)
        for loss in _losses(keys, t)
    ]
    for loss in losses:
        # An SFT term of simpo carries cpo_alpha besides the weight of its loss_type.
        loss["weight"] *= loss.pop("times", 1.0)
    _one_use(keys, losses)
    if len(losses) == 1:
        if losses[0].pop("weight") != 1:
            keys.refuse("loss_weights", "a single loss has no weight: use learning_rate")
        keys.put("loss", losses[0], "loss_type")
        _trace(keys, "loss", losses[0])
    elif losses:
        keys.put("loss", {"type": "mixture", "losses": losses}, "loss_type")
        for index, loss in enumerate(losses):
            _trace(keys, f"loss.losses.{index}", loss)


def _trace(keys: TrlKeys, path: str, loss: dict[str, Any]) -> None:
    for name, key in ORIGINS.items():
        if name in loss:
            keys.trace(f"{path}.{name}", key)


def _losses(keys: TrlKeys, trl_type: Any) -> list[dict[str, Any]]:
    """The native losses of one loss_type (simpo may bring an SFT term)."""
    if not isinstance(trl_type, str) or trl_type not in LOSSES:
        keys.refuse("loss_type", f"{trl_type!r} is not offered; {join(list(LOSSES))}")
        return []
    kind = LOSSES[trl_type]
    beta = keys.take("beta", 0.1)
    smoothing = keys.number("label_smoothing", 0.0)
    divergence = keys.choice("f_divergence_type", DIVERGENCES, "reverse_kl")
    alpha = keys.number("f_alpha_divergence_coef", 0.5)
    if kind == "sft":
        return [{"type": "sft"}]
    loss: dict[str, Any] = {"type": kind, "beta": beta}
    if kind == "simpo":
        return _simpo(keys, loss)
    if kind == "dpo" and keys.has("cpo_alpha"):
        loss |= {"type": "cpo", "nll_weight": keys.take("cpo_alpha")}
    elif kind == "kto":
        for key in ("desirable_weight", "undesirable_weight"):
            loss[key] = keys.take(key, 1.0)
        keys.note(
            "loss_type",
            "TRL takes KTO's rows in the order of the file, and its KL from the next row's answer;"
            " here rows are shuffled, and the answer is drawn from all rows",
        )
    elif divergence is not None:
        if kind != "dpo" or smoothing:
            keys.refuse("f_divergence_type", "only with loss_type sigmoid without smoothing")
        loss = {"type": "fdpo", "beta": beta, "divergence": divergence}
        if divergence == "alpha":
            loss["alpha"] = 1.0 - alpha
        return [loss]
    if kind == "rdpo" and not smoothing:
        keys.note("loss_type", "robust without label_smoothing is dpo")
        loss["type"] = "dpo"
    elif smoothing and loss["type"] in SMOOTHED:
        loss["label_smoothing"] = smoothing
        if loss["type"] == "dpo":
            keys.note(
                "label_smoothing",
                "label_smoothing makes this cDPO; TRL ignores it with sigmoid",
            )
    return [loss]


def _simpo(keys: TrlKeys, loss: dict[str, Any]) -> list[dict[str, Any]]:
    loss["gamma"] = keys.take("simpo_gamma", 0.5)
    weight = keys.number("cpo_alpha", 1.0)
    if not weight:
        return [loss]
    if "cpo_alpha" not in keys.source.value:
        keys.note(
            "loss_type",
            "TRL adds an SFT term to simpo (cpo_alpha 1); set `cpo_alpha: 0` for the published"
            " loss",
        )
    return [loss, {"type": "sft", "times": weight}]


def _one_use(keys: TrlKeys, losses: list[dict[str, Any]]) -> None:
    """Refuses loss options that none of the losses has."""
    types = {loss["type"] for loss in losses}
    uses = {
        "beta": types - {"sft"},
        "label_smoothing": types & set(SMOOTHED),
        "f_alpha_divergence_coef": {loss.get("divergence") for loss in losses} & {"alpha"},
        "desirable_weight": types & {"kto"},
        "undesirable_weight": types & {"kto"},
        "simpo_gamma": types & {"simpo"},
        "cpo_alpha": types & {"cpo", "simpo"},
    }
    for key, users in uses.items():
        keys.left.discard(key)
        if losses and keys.source.value.get(key) not in (None, 0) and not users:
            keys.refuse(key, f"has no use with {join(sorted(types), 'and')}")
    divergence = keys.source.value.get("f_divergence_type")
    if losses and divergence not in (None, "reverse_kl") and "fdpo" not in types:
        keys.refuse("f_divergence_type", f"has no use with {join(sorted(types), 'and')}")
