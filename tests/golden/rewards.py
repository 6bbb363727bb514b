"""Golden cases of reward models: heads, pooling, losses, regularisers, layouts; their scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import palate
from golden import toys
from golden.preference import LORA
from golden.running import Case, Values, evaluation_of, metrics_of, scores_of

TRAIN = {
    "batch_size_pairs": 6,
    "micro_batch_size_pairs": 3,
    "max_steps": 2,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "scheduler": "constant",
}
ASKED: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    ("ten ", ("an", "u", "see us", "i")),
    ("is it ", ("sea", "a nest in a tree", "e")),
)
LISTED: tuple[tuple[Any, tuple[Any, ...]], ...] = tuple(
    (prompt, tuple(reversed(responses))) for prompt, responses in reversed(ASKED)
)
"""The same the other way round."""

CHAT_ASKED = ((toys.turns("user", "sit"), ("tea", toys.turns("assistant", "at"))),)
CHAT: dict[str, Any] = {"template": toys.CHATML, "asked": CHAT_ASKED}
RANKED: dict[str, Any] = {"loss": {"type": "plackett_luce"}, "rows": "lists", **CHAT}

LAYOUTS = ("plain", "shared")
ALL_TERMS = {"centring": 0.1, "magnitude": 0.2, "likelihood": {"weight": 0.5, "beta": 0.3}}


def train(
    folder: Path,
    *,
    family: str = "gemma3",
    rows: str = "pairs",
    n: int = 5,
    ties: bool = False,
    lora: dict[str, Any] | None = None,
    layout: str | None = None,
    template: str | None = None,
    settings: dict[str, Any] | None = None,
    asked: Any = ASKED[:1],
    scorers: dict[str, dict[str, Any]] | None = None,
    **more: Any,
) -> Values:
    """Trains for two steps, and scores with what was saved.

    Args:
        settings: of the training loop. more: of the recipe.
        asked: prompts and responses that are scored.
        scorers: further scorers on the saved model, by name: keys besides its path.
    """
    chat = "-chat" if template else ""
    path = toys.save_model(folder.parent / f"{family}{chat}", family, template=template)
    own = toys.data(folder.parent, rows, train=n)
    loop = TRAIN | ({"layout": layout} if layout else {}) | (settings or {})
    document: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(path), "dtype": "float32", "lora": lora},
        "data": own | ({"pairing": {"ties": "as_ties"}} if ties else {}),
        "train": loop,
        **more,
    }
    recipe = palate.RewardRecipe.model_validate(document)
    run = palate.train_reward(recipe, quiet=True).path
    values = metrics_of(run) | evaluation_of(run) | scores_of(run / "model", asked)
    for name, keys in (scorers or {}).items():
        scorer = {"type": "model", "path": str(run / "model")} | keys
        values |= scores_of(scorer, asked, f"scores.{name}")
    return values


HEADS: dict[str, dict[str, Any]] = {
    "two_layers": {"layers": 2},
    "three_layers": {"layers": 3, "activation": "tanh", "width": 6, "bias": False},
    "gelu": {"layers": 2, "activation": "gelu", "init_deviation": 0.3},
    "relu": {"layers": 2, "activation": "relu"},
    "no_activation": {"layers": 2, "activation": "none"},
    "bias": {"layers": 1, "bias": True, "init_deviation": 0.2},
}

LOSSES: dict[str, dict[str, Any]] = {
    "smoothed": {"loss": {"type": "bradley_terry", "label_smoothing": 0.2}},
    "margin": {"loss": {"type": "bradley_terry", "margin": True}, "rows": "decided"},
    "soft_labels": {"loss": {"type": "bradley_terry", "soft_labels": True}, "rows": "decided"},
    "margin_and_votes": {
        "loss": {"type": "bradley_terry", "soft_labels": True, "margin": True},
        "rows": "labelled",
        "ties": True,
    },
    "rao_kupper": {"loss": {"type": "rao_kupper"}, "rows": "labelled", "ties": True},
    "rao_kupper_margin": {
        "loss": {"type": "rao_kupper", "threshold": 0.2, "margin": True},
        "rows": "labelled",
        "ties": True,
    },
    "davidson": {"loss": {"type": "davidson"}, "rows": "labelled", "ties": True},
    "davidson_margin": {
        "loss": {"type": "davidson", "tie_strength": 0.4, "margin": True},
        "rows": "labelled",
        "ties": True,
    },
}

REGULARISERS: dict[str, dict[str, Any]] = {
    "centring": {"centring": 0.3},
    "magnitude": {"magnitude": 0.3},
    "length_scaled": {"length_scaled": True},
    "length_penalty": {"length_penalty": 0.7},
    "likelihood": {"likelihood": {"weight": 0.5, "beta": 0.3}},
}

RULES: dict[str, dict[str, Any]] = {
    "mean": {"type": "heads"},
    "zscore": {"type": "heads", "combine": "zscore"},
    "median": {"type": "heads", "combine": "median"},
    "min": {"type": "heads", "combine": "min", "standardise": True},
    "uncertainty": {"type": "heads", "combine": "uncertainty", "penalty": 0.5},
    "first": {"head": 0},
    "normalised": {"normalised": True},
    "small_batches": {"batch_tokens": 12},
}
"""Scorers on a model with several heads."""


def cases() -> dict[str, Case]:
    own: dict[str, Case] = {}
    for layout in LAYOUTS:
        run = partial(train, layout=layout)
        own[f"{layout}/full"] = run
        own[f"{layout}/lora"] = partial(run, lora=LORA)
        own[f"{layout}/mean"] = partial(run, pooling="mean")
        own[f"{layout}/attention"] = partial(run, pooling="attention")
        own[f"{layout}/terms"] = partial(run, regularise=ALL_TERMS)
        own[f"{layout}/plackett_luce"] = partial(run, **RANKED)
    own |= {f"head/{name}": partial(train, head=head) for name, head in HEADS.items()}
    own |= {f"loss/{name}": partial(train, **keys) for name, keys in LOSSES.items()}
    own |= {
        f"regularise/{name}": partial(train, regularise=keys) for name, keys in REGULARISERS.items()
    }
    own |= _several() | _frozen() | _others()
    return {f"reward/{name}": case for name, case in own.items()}


def _several() -> dict[str, Case]:
    """Several heads."""
    bootstrap = {"heads": 3, "bootstrap": True}
    three = partial(train, ensemble={"heads": 3})
    return {
        "heads/three": partial(three, scorers=RULES, asked=ASKED, family="llama", pooling="mean"),
        "heads/three/shared/lora": partial(
            three, layout="shared", lora=LORA, settings={"learning_rate": 0.5}
        ),
        "heads/bootstrap": partial(train, ensemble=bootstrap, head={"layers": 2}, pooling="mean"),
        "heads/bootstrap/lists": partial(train, ensemble=bootstrap, **RANKED),
        "heads/bootstrap/ties": partial(
            train, ensemble=bootstrap, loss={"type": "davidson"}, rows="labelled", ties=True
        ),
        "heads/terms": partial(three, regularise=ALL_TERMS, layout="plain"),
    }


def _frozen() -> dict[str, Case]:
    """The backbone's states are computed once, and the head alone is trained."""
    run = partial(train, backbone="frozen", settings={"learning_rate": 0.5})
    return {
        "frozen/linear": run,
        "frozen/two_layers": partial(run, head={"layers": 2}),
        "frozen/mean": partial(run, pooling="mean"),
        "frozen/llama": partial(run, family="llama"),
        "frozen/heads": partial(run, ensemble={"heads": 2, "bootstrap": True}),
        "frozen/lists": partial(run, **RANKED),
        "frozen/ties": partial(run, loss={"type": "rao_kupper"}, rows="labelled", ties=True),
    }


def _others() -> dict[str, Case]:
    """Families, lists, chats, the loop, and scores in another order."""
    lists = partial(train, **RANKED)
    breslow = {"type": "plackett_luce", "ties": "breslow"}
    small = {"batch_size_pairs": 2, "micro_batch_size_pairs": 1, "learning_rate": 0.05}
    return {
        **{f"{family}/shared": partial(train, family=family) for family in ("llama", "gemma2")},
        "mistral/shared/likelihood": partial(
            train,
            family="mistral",
            layout="shared",
            regularise={"likelihood": {"weight": 0.5, "beta": 0.3}},
        ),
        "qwen3/plain/lora": partial(train, family="qwen3", layout="plain", lora=LORA),
        "attention/lora": partial(train, pooling="attention", lora=LORA),
        "lists/breslow": partial(lists, loss=breslow),
        "lists/lora": partial(lists, lora=LORA),
        "lists/length_scaled": partial(lists, regularise={"length_scaled": True}),
        "lists/length_penalty": partial(lists, regularise={"length_penalty": 0.7}),
        "ties/likelihood": partial(
            train,
            loss={"type": "rao_kupper"},
            rows="labelled",
            ties=True,
            regularise=ALL_TERMS,
            layout="plain",
        ),
        "chat": partial(train, rows="chats", **CHAT),
        "order": partial(train, settings=small | {"max_steps": 5}),
        "epochs": partial(
            train, settings=small | {"max_steps": None, "epochs": 1.5, "log_every_steps": 2}
        ),
        "whole_batch": partial(train, settings={"micro_batch_size_pairs": 6}),
        "adamw": partial(train, settings={"optimizer": "adamw", "learning_rate": 3e-3}),
        "checkpointing": partial(train, settings={"gradient_checkpointing": True}),
        "normalise_on_items": partial(
            train,
            normalise_on_items=4,
            family="llama",
            pooling="mean",
            asked=ASKED,
            scorers={
                "normalised": {"normalised": True},
                "small_batches": {"batch_tokens": 12},
            },
        ),
        "scores/reversed": partial(train, asked=LISTED),
    }
