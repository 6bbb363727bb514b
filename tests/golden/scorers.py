"""Golden cases of scorers that are not trained here: baselines, classifiers, judges, ensembles."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import palate
from golden import toys
from golden.rewards import ASKED, LISTED
from golden.running import Case, Values, scores_of

JUDGED = (
    ("1?", ("good sun", "vile sea", "sky")),
    (toys.turns("user", "2?"), ("long long sun", toys.turns("assistant", "good"))),
)
SAID = (("who", ("a good dog, the best!", "no, that is horrible", "it is what it is")),)


def baseline(folder: Path, *, asked: Any = SAID, **scorer: Any) -> Values:
    return scores_of(scorer, asked)


def classifier(
    folder: Path,
    *,
    family: str,
    labels: int = 1,
    template: str | None = None,
    asked: Any = ASKED,
    **keys: Any,
) -> Values:
    name = f"classifier-{family}-{labels}-{bool(template)}"
    path = toys.save_classifier(folder.parent / name, family, labels=labels, template=template)
    return scores_of({"type": "classifier", "path": str(path)} | keys, asked)


def chat(folder: Path, family: str = "llama", **keys: Any) -> dict[str, Any]:
    """A language model of judges' words, as recipes describe it.

    Args:
        family: `judge` is one that writes verdicts.
    """
    path = folder / f"words-{family}"
    path = toys.save_judge(path) if family == "judge" else toys.save_model(path, family, words=True)
    return {
        "type": "local",
        "path": str(path),
        "dtype": "float32",
        "chat_template": "plain",
    } | keys


def judge(folder: Path, *, family: str = "llama", batch_size: int = 8, **scorer: Any) -> Values:
    talks = chat(folder.parent, family, batch_size=batch_size)
    return scores_of({"chat": talks} | scorer, JUDGED)


def reward_model(folder: Path) -> Path:
    """Any decoder with one linear score is a reward model."""
    return toys.save_classifier(folder / "classifier-llama-1-False", "llama", labels=1)


def ensemble(folder: Path, *, validated: bool = False, **scorer: Any) -> Values:
    members: list[dict[str, Any]] = [
        {"scorer": {"type": "model", "path": str(reward_model(folder.parent)), "dtype": "float32"}},
        {"scorer": {"type": "length", "prefer": "shorter"}},
        {"scorer": {"type": "length"}},
    ]
    if validated:
        scorer["validation"] = toys.data(folder.parent, "pairs")["train"]
    elif scorer.get("combine") == "weighted":
        weights = (1.0, 0.2, 0.1)
        members = [m | {"weight": w} for m, w in zip(members, weights, strict=True)]
    if scorer.get("combine") == "zscore" and not validated:
        moments = ((0.1, 0.4), (-4.0, 2.0), (3.0, 1.5))
        members = [
            m | {"mean": mean, "deviation": deviation}
            for m, (mean, deviation) in zip(members, moments, strict=True)
        ]
    return scores_of({"type": "ensemble", "members": members} | scorer, ASKED)


def log_ratio(folder: Path, **keys: Any) -> Values:
    """beta times the log-ratio of two models, as narrow buckets of its differences show it."""
    policy = toys.save_model(folder.parent / "llama", "llama")
    reference = toys.save_model(folder.parent / "llama-reference", "llama", seed=1)
    scores = {"type": "log_ratio", "policy": str(policy), "dtype": "float32"} | keys
    if "reference" in keys:
        scores["reference"] = str(reference)
    edges = [k / 50 for k in range(-1000, 1001)]
    document = {
        "output_dir": str(folder / "built"),
        "sources": toys.data(folder.parent, "pairs")["train"],
        "curate": [{"step": "difficulty", "scores": scores, "edges": edges}],
        "workers": 1,
    }
    palate.build_data(palate.DataBuildRecipe.model_validate(document))
    (file,) = (folder / "built").rglob("*.parquet")
    return {f"{row['id']}.bucket": row["difficulty"] for row in pq.read_table(file).to_pylist()}


SAMPLED = {
    "family": "judge",
    "method": "sampled",
    "max_new_tokens": 12,
    "temperature": 1.0,
    "votes": 2,
    "seed": 3,
}


def cases() -> dict[str, Case]:
    two = partial(classifier, family="bert", labels=2)
    pairwise = partial(judge, type="pairwise")
    pointwise = partial(judge, type="pointwise")
    return {
        "scorer/length": partial(baseline, type="length"),
        "scorer/shorter": partial(baseline, type="length", prefer="shorter"),
        "scorer/lexicon": partial(baseline, type="lexicon"),
        "classifier/label": partial(two, label="LABEL_1"),
        "classifier/label/reversed": partial(two, label="LABEL_1", asked=LISTED),
        "classifier/pair": partial(classifier, family="bert"),
        "classifier/joined": partial(classifier, family="bert", input="joined"),
        "classifier/chat": partial(classifier, family="llama", template=toys.CHATML),
        "classifier/decoder": partial(classifier, family="llama", input="joined"),
        "judge/pairwise": pairwise,
        "judge/pairwise/one_by_one": partial(pairwise, batch_size=1),
        "judge/pairwise/one_order": partial(pairwise, swap=False),
        "judge/pairwise/ties": partial(pairwise, ties=True, instructions="good is long"),
        "judge/pairwise/gemma3": partial(pairwise, family="gemma3"),
        "judge/pairwise/sampled": partial(pairwise, **SAMPLED),
        "judge/pairwise/reasoning": partial(pairwise, **SAMPLED, reasoning=True),
        "judge/pointwise": pointwise,
        "judge/pointwise/best": partial(pointwise, best=3, instructions="good is long"),
        "judge/pointwise/sampled": partial(pointwise, **SAMPLED),
        "judge/pointwise/reasoning": partial(pointwise, **SAMPLED, reasoning=True),
        "critic/scores": critic,
        "ensemble/mean": ensemble,
        "ensemble/median": partial(ensemble, combine="median"),
        "ensemble/min": partial(ensemble, combine="min"),
        "ensemble/uncertainty": partial(ensemble, combine="uncertainty", penalty=0.7),
        "ensemble/zscore": partial(ensemble, combine="zscore"),
        "ensemble/weighted": partial(ensemble, combine="weighted"),
        "ensemble/zscore/validated": partial(ensemble, combine="zscore", validated=True),
        "ensemble/weighted/validated": partial(
            ensemble, combine="weighted", weigh_by="margin", standardise=True, validated=True
        ),
        "log_ratio/reference": partial(log_ratio, reference=True, beta=0.5),
        "log_ratio/average": partial(log_ratio, average=True),
    }


def critic(folder: Path) -> Values:
    path = toys.save_classifier(
        folder.parent / "words-scorer", "llama", labels=1, words=True, template=toys.CHATML
    )
    scorer = {"type": "model", "path": str(path), "dtype": "float32"}
    talks = chat(folder.parent)
    asked = {"type": "critic", "chat": talks, "scorer": scorer, "max_new_tokens": 6}
    return scores_of(asked, JUDGED)
