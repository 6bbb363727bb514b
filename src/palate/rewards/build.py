"""From recipes to scorers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from palate.data.images import image_root, rooted
from palate.data.pairing import pairs_of
from palate.data.schema import Content, Preference
from palate.data.scorer import Scorer, has_images
from palate.data.stream import read_source
from palate.errors import DataError, ModelError
from palate.recipes import scorers as recipes
from palate.recipes.curation import LogRatioScores
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource
from palate.rewards.baselines import Baselines
from palate.rewards.combined import Combined, Member
from palate.rewards.ensemble import Ensemble, Validation, validate
from palate.rewards.hybrid import Hybrid
from palate.rewards.length import Length
from palate.rewards.lexicon import Lexicon
from palate.rewards.mixture import Gate, WeightedSum
from palate.rewards.names import name_of, names_of
from palate.rewards.rule import RuleScorer
from palate.rewards.texts import prompt_text, response_text
from palate.store.files import read_json

Make = Callable[[recipes.Scorer], Scorer]
_Triple = tuple[Content, Content, Content]
"""Prompt, chosen, rejected."""


def make_scorer(
    recipe: recipes.Scorer | LogRatioScores, *, seed: int = 0, make: Make | None = None
) -> Scorer:
    """The scorer that a recipe describes, loaded and ready.

    Args:
        seed: of drawing rows: those that an ensemble is validated on, and those with answers.
        make: makes the members of an ensemble or a mixture; default: this function. A caller that
            has scorers already hands them out here.

    Raises:
        PalateError: a model, an extra or data that is missing or unfit.
    """
    if isinstance(recipe, LogRatioScores):
        from palate.rewards.log_ratio import LogRatio

        return LogRatio(recipe)
    make = make or partial(make_scorer, seed=seed)
    scorer: Scorer
    if isinstance(recipe, recipes.HeadsScorer):
        scorer = _ensemble(members_of(recipe), seed, make)
    elif isinstance(recipe, recipes.EnsembleScorer):
        scorer = _ensemble(recipe, seed, make)
    elif isinstance(recipe, recipes.MixtureScorer):
        scorer = _mixture(recipe, make)
    elif isinstance(recipe, recipes.HybridScorer):
        scorer = _hybrid(recipe, make)
    else:
        scorer = _single(recipe, seed)
    scorer.name = name_of(recipe)
    return scorer


def members_of(recipe: recipes.HeadsScorer) -> recipes.EnsembleScorer:
    """The heads of a model as members of an ensemble, with the scales that are saved with it.

    Raises:
        ModelError: it has one head, or a head without the scale that z-scores need.
    """
    from palate.models.reward_files import read_spec

    spec = read_spec(recipe.path)
    if spec.heads < 2:
        raise ModelError(f"{recipe.path}: has one head; use `type: model`")
    scaled = recipe.standardise or recipe.combine == "zscore"
    if scaled and not spec.scales:
        raise ModelError(f"{recipe.path}: no means and deviations of its heads are saved with it")
    members = []
    for head in range(spec.heads):
        scorer = recipes.ModelScorer(
            path=recipe.path,
            dtype=recipe.dtype,
            head=head,
            batch_tokens=recipe.batch_tokens,
            trust_remote_code=recipe.trust_remote_code,
        )
        scale = spec.scales[head] if scaled else None
        if scale is not None and not scale.deviation > 0:
            raise ModelError(
                f"{recipe.path}: head {head} gave equal rewards to all of its training data: "
                "it has no z-scores"
            )
        members.append(
            recipes.MemberRecipe(
                scorer=scorer,
                mean=None if scale is None else scale.mean,
                deviation=None if scale is None else scale.deviation,
            )
        )
    return recipes.EnsembleScorer(
        members=tuple(members),
        combine=recipe.combine,
        penalty=recipe.penalty,
        standardise=recipe.standardise,
    )


def _single(recipe: recipes.Member, seed: int) -> Scorer:
    # Models are imported for recipes that have one, and for no other.
    if isinstance(recipe, recipes.ModelScorer):
        return _model(recipe)
    if isinstance(recipe, recipes.ClassifierScorer):
        from palate.rewards.classifier import ClassifierScorer

        return ClassifierScorer(recipe.path, **_options(recipe))
    if isinstance(recipe, recipes.LexiconScorer):
        return Lexicon()
    if isinstance(recipe, recipes.LengthScorer):
        return Length(recipe.prefer)
    if isinstance(recipe, recipes.RuleScorer):
        return RuleScorer(recipe, _answers(recipe.answers, seed) if recipe.answers else None)
    if isinstance(recipe, recipes.FunctionScorer):
        return _function(recipe)
    if isinstance(recipe, recipes.VerifierScorer):
        from palate.rewards.verifier import Verifier

        return Verifier(recipe)
    if isinstance(recipe, recipes.CriticScorer):
        from palate.rewards.critic import Critic

        return Critic(recipe, _model(recipe.scorer), seed=seed)
    if isinstance(recipe, recipes.RemoteScorer):
        from palate.rewards.remote import Remote

        return Remote(recipe)
    return _judge(recipe)


def _judge(
    recipe: recipes.PointwiseJudge
    | recipes.PairwiseJudge
    | recipes.RubricScorer
    | recipes.JudgeVerdictScorer,
) -> Scorer:
    if isinstance(recipe, recipes.RubricScorer):
        from palate.rewards.rubric import Rubric

        return Rubric(recipe)
    if isinstance(recipe, recipes.JudgeVerdictScorer):
        from palate.rewards.judge_verdict import JudgeVerdict

        return JudgeVerdict(recipe)
    if isinstance(recipe, recipes.PairwiseJudge) and recipe.group == "rank":
        from palate.rewards.ranking import Ranking

        return Ranking(recipe)
    from palate.rewards.judge import Pairwise, Pointwise

    return Pointwise(recipe) if isinstance(recipe, recipes.PointwiseJudge) else Pairwise(recipe)


def _function(recipe: recipes.FunctionScorer) -> Scorer:
    if recipe.isolated:
        from palate.rewards.isolated import IsolatedFunction

        return IsolatedFunction(recipe)
    from palate.rewards.function import FunctionScorer, load_function

    function = load_function(recipe.path)
    return FunctionScorer(function, label=recipe.path, relative=recipe.relative)


def _model(recipe: recipes.ModelScorer) -> Scorer:
    from palate.rewards.model import ModelScorer

    return ModelScorer(recipe.path, **_options(recipe))


def _options(recipe: recipes.ModelScorer | recipes.ClassifierScorer) -> dict[str, Any]:
    """The fields that its scorer takes under the same names."""
    return recipe.model_dump(exclude={"type", "name", "path"})


def _ensemble(recipe: recipes.EnsembleScorer, seed: int, make: Make) -> Ensemble:
    scorers = [make(member.scorer) for member in recipe.members]
    pairs = _validation_pairs(recipe.validation, seed) if recipe.validation else []
    members = []
    for member, scorer in zip(recipe.members, scorers, strict=True):
        mean, deviation, weight = member.mean, member.deviation, member.weight
        wants_scale = recipe.uses_zscores and mean is None
        wants_weight = recipe.combine == "weighted" and weight is None
        if wants_scale or wants_weight:
            measured = validate(scorer, _fitting(pairs, member, scorer))
            if wants_scale:
                mean, deviation = measured.mean, measured.deviation
            if wants_weight:
                weight = _weight(measured, recipe.weigh_by)
        members.append(
            Member(
                scorer=scorer,
                modality=member.modality,
                mean=mean,
                deviation=deviation,
                weight=weight,
            )
        )
    if recipe.combine == "weighted" and not sum(member.weight or 0.0 for member in members) > 0:
        where = f" on {recipe.validation[0].path}" if recipe.validation else ""
        raise ModelError(
            f"combine: weighted: no member has a weight above zero by {recipe.weigh_by}{where}"
        )
    return Ensemble(members, recipe.combine, standardise=recipe.standardise, penalty=recipe.penalty)


def _mixture(recipe: recipes.MixtureScorer, make: Make) -> Combined:
    scorers = [make(member.scorer) for member in recipe.members]
    if recipe.combine == "gate":
        threshold = 0.5 if recipe.threshold is None else recipe.threshold
        return Gate(*scorers, threshold=threshold)
    scales = [(member.mean, member.deviation) for member in recipe.members]
    zscores = recipe.zscores
    if isinstance(zscores, Path):
        names = names_of([member.scorer for member in recipe.members])
        scales, zscores = _scales(zscores, names), "given"
    members = [
        Member(scorer=scorer, weight=member.weight, mean=mean, deviation=deviation)
        for scorer, member, (mean, deviation) in zip(scorers, recipe.members, scales, strict=True)
    ]
    return WeightedSum(members, zscores=zscores)


def _hybrid(recipe: recipes.HybridScorer, make: Make) -> Hybrid:
    baselines: str | Baselines | None = recipe.baseline_column
    if recipe.baselines is not None:
        baselines = Baselines.read(recipe.baselines)
    return Hybrid(
        make(recipe.rule),
        make(recipe.model),
        baselines=baselines,
        cap=recipe.most_for_wrong,
        threshold=recipe.threshold,
    )


def _scales(file: Path, names: Sequence[str]) -> list[tuple[float | None, float | None]]:
    """Mean and deviation of each member, from the summary.json of a `palate score`."""
    try:
        members = read_json(file)["members"]["raw"]
        scales = {member["name"]: (member["mean"], member["deviation"]) for member in members}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{file}: no summary.json of a `palate score` by an ensemble or a mixture"
        ) from None
    for name in names:
        if name not in scales:
            raise DataError(f"{file}: no member {name}; it has {', '.join(scales)}")
        if not scales[name][1]:
            raise DataError(f"{file}: all scores of {name} are equal: it has no z-scores")
    return [scales[name] for name in names]


def _answers(sources: Sequence[DataSource], seed: int) -> dict[str, str]:
    """Prompt, as one text -> its answer: the only response of its row."""
    answers: dict[str, str] = {}
    for source in sources:
        for row in read_source(source, seed=seed).rows:
            prompt, answer = prompt_text(row.prompt), response_text(row.responses[0].content)
            if len(row.responses) != 1:
                raise DataError("several responses: which answer is right?", **_place(source, row))
            if answers.setdefault(prompt, answer) != answer:
                raise DataError("another answer to an earlier prompt", **_place(source, row))
    return answers


def _place(source: DataSource, row: Preference) -> dict[str, Any]:
    return {"file": source.path, "row": row.row}


def _weight(measured: Validation, by: str) -> float:
    # A member that is wrong more than right would count against itself.
    return max(0.0, measured.accuracy if by == "accuracy" else measured.margin)


def _fitting(
    pairs: Sequence[_Triple], member: recipes.MemberRecipe, scorer: Scorer
) -> list[_Triple]:
    """The validation pairs that a member would be asked about."""
    asked = Member(scorer=scorer, modality=member.modality)
    fitting = []
    for pair in pairs:
        image = has_images(pair[0])
        if asked.fits(image) and (not image or "image" in scorer.traits.modalities):
            fitting.append(pair)
    if not fitting:
        what = {"image": "prompts with images", "text": "prompts without images"}
        raise ModelError(
            f"{scorer.name}: the validation data has no pair for it: it scores "
            f"{what.get(member.modality, 'no prompt with images')}"
        )
    return fitting


def _validation_pairs(sources: Sequence[DataSource], seed: int) -> list[_Triple]:
    triples = []
    for source in sources:
        for row in read_source(source, seed=seed).rows:
            if row.kind not in ("pair", "rated") or row.has_own_prompts:
                continue
            made = pairs_of(rooted(row, image_root(source.path)), PairingRecipe(), seed)
            if not isinstance(made, str):
                triples += [(p.prompt, p.chosen.content, p.rejected.content) for p in made]
    if not triples:
        raise DataError(f"{sources[0].path}: no pair to measure an ensemble's members on")
    return triples
