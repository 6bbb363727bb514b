"""Golden cases of policies: every loss, layout, kind of reference, full weights and adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import palate
from golden import toys
from golden.running import Case, Values, evaluation_of, metrics_of

LORA = {"r": 2, "alpha": 4.0}
LENGTH = {"max_tokens": 17}
"""Responses to the longest prompts are cut to one token."""

TRAIN = {
    "batch_size_pairs": 6,
    "micro_batch_size_pairs": 3,
    "max_steps": 2,
    "optimizer": "sgd",
    "learning_rate": 0.6,
    "scheduler": "constant",
}
"""All five rows are one step, of micro-batches of 3 and 2. Plain gradient descent: the second
step shows the gradient of the first, and enlarges no rounding."""


SIGNS = tuple(
    f"train 1.{name}" for name in ("rewards/accuracies", "accuracies/", "displacement/fraction")
)


def train(
    folder: Path,
    *,
    loss: dict[str, Any] | None = None,
    family: str = "gemma3",
    rows: str = "pairs",
    n: int = 5,
    lora: dict[str, Any] | None = None,
    layout: str | None = None,
    reference: str | None = None,
    reference_family: str | None = None,
    template: str | None = None,
    settings: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    length: dict[str, Any] | None = LENGTH,
    **more: Any,
) -> Values:
    """Trains for two steps.

    Args:
        loss: None is supervised fine-tuning.
        reference_family: model of the reference where it is not the starting policy.
        settings: of the training loop. model: further keys of the model. more: of the recipe.
    """
    kinds = {"train": TRAIN | ({"layout": layout} if layout else {}) | (settings or {})}
    chat = "-chat" if template else ""
    path = toys.save_model(folder.parent / f"{family}{chat}", family, template=template)
    data = toys.data(folder.parent, rows, train=n)
    document: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(path), "dtype": "float32", "lora": lora} | (model or {}),
        "data": data if length is None else data | {"length": length},
        **kinds,
        **more,
    }
    if loss is None:
        run = palate.sft(palate.SftRecipe.model_validate(document), quiet=True).path
        return metrics_of(run)
    document["loss"] = loss
    if reference is not None:
        document["reference"] = {"kind": reference}
    if reference_family is not None:
        other = toys.save_model(folder.parent / f"{family}-reference", family, seed=1)
        document["reference"] = (document.get("reference") or {}) | {"path": str(other)}
    run = palate.tune(palate.TuneRecipe.model_validate(document), quiet=True).path
    values = metrics_of(run) | evaluation_of(run)
    if reference_family is None:
        # The policy is its own reference still, and what a sign counts there is rounding.
        values = {k: v for k, v in values.items() if not k.startswith(SIGNS)}
    return values


def _member(name: str, **options: Any) -> dict[str, Any]:
    return {"type": name, **options}


LOSSES: dict[str, dict[str, Any]] = {
    "dpo": _member("dpo"),
    "rdpo": _member("rdpo", label_smoothing=0.2),
    "ipo_mean": _member("ipo_mean"),
    "ipo_sum": _member("ipo_sum"),
    "hinge": _member("hinge"),
    "simpo": _member("simpo", beta=0.8),
    "dpo_norm": _member("dpo_norm", beta=0.8),
    "orpo": _member("orpo"),
    "cpo": _member("cpo"),
    "fdpo_forward_kl": _member("fdpo", divergence="forward_kl"),
    "fdpo_js": _member("fdpo", divergence="js", beta=0.3),
    "tdpo1": _member("tdpo1"),
    "tdpo2": _member("tdpo2"),
    "sft": _member("sft"),
    "anchored": _member(
        "mixture", losses=[_member("tdpo2"), _member("anchor", weight=0.5, delta=0.2)]
    ),
    "mpo": _member(
        "mixture",
        losses=[
            _member("dpo", weight=0.8),
            _member("tdpo2", weight=0.3, alpha=0.7),
            _member("sft", weight=0.5),
        ],
    ),
}
"""Run in both layouts, with full weights and with adapters."""

VARIANTS: dict[str, dict[str, Any]] = {
    "cdpo": _member("dpo", beta=0.5, label_smoothing=0.2),
    "simpo_gamma": _member("simpo", beta=0.5, gamma=0.3),
    "dpo_norm_smoothed": _member("dpo_norm", beta=0.4, label_smoothing=0.1),
    "orpo_beta": _member("orpo", beta=0.7),
    "cpo_smoothed": _member("cpo", label_smoothing=0.2, nll_weight=0.4),
    "fdpo_reverse_kl": _member("fdpo", divergence="reverse_kl", beta=0.3),
    "fdpo_alpha": _member("fdpo", divergence="alpha"),
    "fdpo_alpha_0.3": _member("fdpo", divergence="alpha", alpha=0.3, beta=0.2),
    "hinge_beta": _member("hinge", beta=0.5),
    "tdpo1_beta": _member("tdpo1", beta=0.4),
    "tdpo2_alpha_0": _member("tdpo2", beta=0.3, alpha=0.0),
    "tdpo2_alpha_1": _member("tdpo2", beta=0.3, alpha=1.0),
    "tdpo2_released": _member("tdpo2", beta=0.3, reward="released"),
    "dpo_hinge": _member("mixture", losses=[_member("dpo"), _member("hinge", weight=0.3)]),
    "simpo_sft": _member("mixture", losses=[_member("simpo", weight=0.5), _member("sft")]),
}
"""Run in the shared layout with full weights."""

WEIGHTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ld": (_member("dpo"), {"type": "ld", "alpha": 0.3}),
    "ld_policy": (_member("dpo"), {"type": "ld", "alpha": 0.3, "reference": "policy"}),
    "d2po": (_member("dpo", beta=0.3), {"type": "d2po", "gamma": 0.8}),
    "ipo_mean_d2po": (_member("ipo_mean"), {"type": "d2po"}),
    "dpo_norm_ld": (_member("dpo_norm", beta=0.8), {"type": "ld"}),
    "fdpo_ld": (_member("fdpo", divergence="forward_kl"), {"type": "ld", "alpha": 0.6}),
    "dpo_sft_d2po": (
        _member("mixture", losses=[_member("dpo"), _member("sft", weight=0.2)]),
        {"type": "d2po", "gamma": 0.9},
    ),
}
"""Losses with weights of tokens."""

FASTER = {"learning_rate": 3.0}

KTO: dict[str, dict[str, Any]] = {
    "kto": _member("kto"),
    "kto_weights": _member("kto", beta=0.4, desirable_weight=1.5, undesirable_weight=0.7),
}

OTHER_FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "granite", "cohere")


def cases() -> dict[str, Case]:
    return {
        **_by_loss(),
        **_by_reference(),
        **_kto(),
        **_by_family(),
        **_of_the_loop(),
        **_sft(),
    }


def _by_loss() -> dict[str, Case]:
    own: dict[str, Case] = {}
    for name, loss in LOSSES.items():
        for layout in ("plain", "shared"):
            own[f"{name}/{layout}/full"] = partial(train, loss=loss, layout=layout)
            own[f"{name}/{layout}/lora"] = partial(train, loss=loss, layout=layout, lora=LORA)
    for name, loss in VARIANTS.items():
        own[f"{name}/shared/full"] = partial(train, loss=loss, layout="shared")
    # Its gradient is steep.
    own["ipo_sum_beta/shared/full"] = partial(
        train, loss=_member("ipo_sum", beta=0.2), settings={"learning_rate": 0.1}
    )
    for name, (loss, weights) in WEIGHTED.items():
        weighted = partial(train, loss=loss, token_weights=weights)
        own[f"{name}/shared/full"] = partial(weighted, layout="shared")
        own[f"{name}/plain/full"] = partial(weighted, layout="plain")
    return own


def _by_reference() -> dict[str, Case]:
    """What the reference is, where it is not the default: a frozen copy of full weights, adapters
    turned off. Full weights train the vocabulary head that it shares, adapters do not, and another
    model has a head of its own."""
    own: dict[str, Case] = {}
    for name in ("dpo", "tdpo2"):
        for layout in ("plain", "shared"):
            run = partial(train, loss=LOSSES[name], layout=layout)
            own[f"{name}/{layout}/full/cache"] = partial(run, reference="cache")
            for kind in ("frozen_copy", "cache"):
                own[f"{name}/{layout}/lora/{kind}"] = partial(run, reference=kind, lora=LORA)
        for kind in ("frozen_copy", "cache"):
            run = partial(train, loss=LOSSES[name], reference=kind, reference_family="gemma3")
            own[f"{name}/full/{kind}/other_model"] = run
            own[f"{name}/lora/{kind}/other_model"] = partial(run, lora=LORA)
    return own


def _kto() -> dict[str, Case]:
    own: dict[str, Case] = {}
    for name, loss in KTO.items():
        run = partial(train, loss=loss, rows="unpaired", settings=FASTER)
        own[f"{name}/full"] = run
        own[f"{name}/full/cache"] = partial(run, reference="cache")
        for kind in ("frozen_copy", "adapter_off", "cache"):
            own[f"{name}/lora/{kind}"] = partial(run, reference=kind, lora=LORA)
    own["kto/pairs"] = partial(train, loss=KTO["kto"], settings=FASTER)
    own["kto/llama"] = partial(train, loss=KTO["kto"], rows="unpaired", family="llama")
    own["kto/metrics"] = partial(
        train,
        loss=KTO["kto"],
        rows="unpaired",
        settings={"extra_metrics": ["kl", "reverse_kl", "entropy"]},
    )
    return own


def _by_family() -> dict[str, Case]:
    """Heads that scale and cap, norms, windows, tied weights."""
    own: dict[str, Case] = {}
    for family in OTHER_FAMILIES:
        run = partial(train, loss=LOSSES["tdpo2"], family=family)
        own[f"tdpo2/{family}/plain/full"] = partial(run, layout="plain")
        own[f"tdpo2/{family}/shared/lora"] = partial(run, layout="shared", lora=LORA)
        own[f"dpo/{family}/shared/full"] = partial(run, loss=LOSSES["dpo"], layout="shared")
    return own


def _of_the_loop() -> dict[str, Case]:
    """Order, accumulation, optimizers, schedules, statistics and lengths."""
    dpo, tdpo2 = LOSSES["dpo"], LOSSES["tdpo2"]
    statistics = ["kl", "reverse_kl", "entropy"]

    def loop(**settings: Any) -> Case:
        return partial(train, loss=dpo, settings=settings)

    small = {"batch_size_pairs": 2, "micro_batch_size_pairs": 1, "learning_rate": 0.7}
    return {
        "loop/order": loop(**small, max_steps=6),
        "loop/epochs": partial(
            train,
            loss=_member("mixture", losses=[dpo, _member("sft", weight=0.3)]),
            settings={**small, "max_steps": None, "epochs": 1.5, "log_every_steps": 2},
        ),
        "loop/whole_batch": loop(micro_batch_size_pairs=6),
        "loop/clipped": loop(max_grad_norm=0.1, learning_rate=2.0),
        "loop/decay": loop(weight_decay=0.3),
        "loop/adamw": loop(optimizer="adamw", learning_rate=3e-3, weight_decay=0.1),
        "loop/rmsprop": loop(optimizer="rmsprop", learning_rate=1e-3),
        "loop/warmup_cosine": loop(max_steps=5, warmup_steps=2, scheduler="cosine"),
        "loop/linear": loop(max_steps=4, warmup_fraction=0.25, scheduler="linear"),
        "loop/evaluations": loop(
            learning_rate=0.3, max_steps=4, eval_every_steps=2, eval_batch_size_pairs=2
        ),
        "loop/checkpointing": loop(gradient_checkpointing=True),
        "loop/early_stop": loop(
            max_steps=6, eval_every_steps=1, early_stop_patience=1, learning_rate=3.0
        ),
        "loop/eager": partial(train, loss=tdpo2, model={"attn_implementation": "eager"}),
        "metrics/dpo/full": loop(extra_metrics=statistics),
        "metrics/dpo/lora": partial(
            train, loss=dpo, lora=LORA, settings={"extra_metrics": statistics}
        ),
        "metrics/tdpo2/cache": partial(
            train, loss=tdpo2, reference="cache", settings={"extra_metrics": ["kl", "entropy"]}
        ),
        "metrics/simpo": partial(
            train, loss=LOSSES["simpo"], settings={"extra_metrics": ["entropy"]}
        ),
        "lengths/one_token": partial(train, loss=tdpo2, length={"max_response_tokens": 1}),
        "lengths/one_token/dpo_norm": partial(
            train, loss=LOSSES["dpo_norm"], length={"max_response_tokens": 1}, layout="plain"
        ),
        "lengths/prompt_end": partial(
            train,
            loss=tdpo2,
            length={"max_prompt_tokens": 6, "prompt": "keep_end", "max_response_tokens": 3},
        ),
        "lengths/whole": partial(train, loss=tdpo2, length=None),
        "chat/dpo": partial(train, loss=dpo, rows="chats", template=toys.CHATML, length=None),
        "chat/tdpo2/plain": partial(
            train, loss=tdpo2, rows="chats", template=toys.CHATML, length=None, layout="plain"
        ),
        "chat/no_template": partial(
            train, loss=tdpo2, rows="chats", model={"chat_template": "plain"}, length=None
        ),
        "lora/targets": partial(
            train, loss=tdpo2, lora={"r": 3, "alpha": 3.0, "target_modules": ["q_proj", "o_proj"]}
        ),
    }


def _sft() -> dict[str, Case]:
    run = partial(train, rows="pairs")
    return {
        "sft_verb/full": run,
        "sft_verb/lora": partial(run, lora=LORA),
        "sft_verb/llama": partial(run, family="llama"),
        "sft_verb/chats": partial(run, rows="chats", template=toys.CHATML, length=None),
        "sft_verb/order": partial(
            run, settings={"batch_size_pairs": 2, "micro_batch_size_pairs": 1, "max_steps": 5}
        ),
        "sft_verb/entropy": partial(run, settings={"extra_metrics": ["entropy"]}),
    }
