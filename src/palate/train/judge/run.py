"""`palate judge`: stage by stage from preference data to a judge that scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from palate.data.images import ImageStore
from palate.errors import RecipeError, RunError
from palate.evaluate.progress import task
from palate.memory import kept_memory
from palate.models.loading import load_config
from palate.models.pictures import IMAGES
from palate.models.vision import vision_layout
from palate.recipes import scorers
from palate.recipes.judge import ChatTexts, CriticKind, JudgeRecipe, PointwiseKind
from palate.recipes.schema import ModelRecipe
from palate.rewards.chat import Chat, open_chat
from palate.store.files import read_json, write_text
from palate.store.folder import RunFolder, comparable
from palate.store.folders import lock_folder
from palate.store.records import Conclusion, Data, JudgeEvaluation
from palate.store.stages import Result, Results, Stage, run_stages
from palate.train.judge.kept import KeptChat
from palate.train.judge.measure import (
    line_of,
    measure_critic,
    measure_pairwise,
    measure_pointwise,
)
from palate.train.judge.prepare import ALL_RIGHT, ALL_WRONG, Prepared, QuestionWriter
from palate.train.judge.rows import Rows, read_rows
from palate.train.judge.stages import (
    check_template,
    judge_yaml,
    local_chat,
    run_stage,
    scorer_recipe,
    stage_recipe,
    trained_model,
)

QUESTIONS, ASKED, SCORER = "questions", "asked", "judge.yaml"
BASE, LEFT_OUT = "base", "left_out"


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """A finished judge.

    Attributes:
        path: run folder. scorer: judge.yaml, the judge as a scorer recipe.
        evaluation: the entries of evaluation.json, one a stage; empty where nothing was held out.
    """

    path: Path
    scorer: Path
    evaluation: list[dict[str, Any]]


def train_judge(
    recipe: JudgeRecipe, *, quiet: bool = False, writer: Chat | None = None
) -> JudgeResult:
    """Trains a judge or a critic and fills `recipe.output_dir`.

    Each stage is a run folder of `palate.sft`, `palate.tune` or `palate.train_reward` in it, over
    question files that are written first. With `resume` nothing that is done is done again, and the
    end is the same wherever the run was stopped.

    Args:
        quiet: no progress and no closing lines.
        writer: writes the texts; default: the model that `texts.chat` describes.

    Raises:
        RecipeError: options that do not fit the data; several processes.
        RunError: a folder in use, by another process too, or a resume that does not fit.
        DataError, ModelError: unreadable input.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "palate judge is one process: launch it alone; its stages' recipes can be launched on "
            "many by `palate sft`, `palate tune` and `palate reward`"
        )
    console = Console(stderr=True, quiet=quiet)
    with lock_folder(recipe.output_dir):
        folder = RunFolder(recipe)
        if folder.finished:
            console.print(f"{folder.path}: this run is finished already", highlight=False)
        else:
            with folder.running(), kept_memory():
                lines = _Run(recipe, folder, console, quiet, writer).execute()
            _report(recipe)
            for line in lines:
                console.print(line, highlight=False, soft_wrap=True)
    file = folder.path / "evaluation.json"
    entries = read_json(file)["stages"] if file.exists() else []
    return JudgeResult(path=folder.path, scorer=folder.path / SCORER, evaluation=entries)


def _report(recipe: JudgeRecipe) -> None:
    from palate.report import write_report

    path = recipe.output_dir
    trained = sorted(file.parent for file in path.glob("*/recipe.yaml"))
    write_report([path, *trained], path / "report.html", f"Judge: {recipe.judge.type}")


class _Run:
    """One run, from data to judge.yaml: what its stages do.

    A stage of training gives the language model after it, the account of its questions, and why it
    was left out, where it was; a measurement gives its entry of evaluation.json.
    """

    def __init__(
        self,
        recipe: JudgeRecipe,
        folder: RunFolder,
        console: Console,
        quiet: bool,
        writer: Chat | None,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.path = folder.path
        self.console = console
        self.quiet = quiet
        self.writer = writer
        self.account: dict[str, Any] = {}
        self.rows: Rows
        self.question_writer: QuestionWriter

    def execute(self) -> list[str]:
        """Runs all stages; returns what is to be told at the end."""
        check_template(self.recipe.model)
        self.rows = read_rows(self.recipe, self._images())
        self._check_data()
        self.question_writer = QuestionWriter(self.recipe, self.rows, self.path / QUESTIONS)
        self.account = {**self.rows.account, "digest": self.rows.digest}
        if self.question_writer.scale is not None:
            self.account["scale"] = self.question_writer.scale
        self._write_account({})
        self.folder.write_quarantine(self.rows.quarantine)
        records = run_stages(self.stages(), self.path, console=self.console)
        return self._close({name: record.result for name, record in records.items()})

    def _images(self) -> ImageStore | None:
        """Where the images of rows are kept, of a model that sees; its stages keep theirs there."""
        model = self.recipe.model
        sees = vision_layout(load_config(model.path, model)) is not None
        return ImageStore(self.path / IMAGES) if sees else None

    # The list of stages -----------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """Training and measurements in turn, and judge.yaml."""
        recipe = self.recipe
        critic = isinstance(recipe.judge, CriticKind)
        stages: list[Stage] = []
        if not critic:
            stages += self._measurement(BASE, ())
        trained: list[str] = []
        plan: list[tuple[str, int]] = [("sft", 0)] if recipe.sft is not None else []
        if critic:
            plan.append(("reward", 0))
        elif recipe.preference is not None:
            plan += [("preference", number) for number in range(1, recipe.preference.rounds + 1)]
        for place, (kind, number) in enumerate(plan, 1):
            name = f"{place}-{kind}" + (f"-{number}" if number else "")
            stages.append(
                Stage(
                    name=name,
                    title=f"{name}: questions and training",
                    inputs=self._inputs(),
                    needs=tuple(trained[-1:]),
                    run=partial(self._train, name, kind, number, tuple(trained)),
                )
            )
            trained.append(name)
            if not critic:
                stages += self._measurement(name, (name,))
        if self.rows.eval and (critic or recipe.evaluate_after == "last"):
            stages.append(
                Stage(
                    name="held_out",
                    title="held-out questions",
                    inputs=self._inputs(),
                    needs=tuple(trained[-1:]),
                    run=partial(self._measure_last, tuple(trained)),
                )
            )
        write = partial(self._write_scorer, tuple(trained))
        return [*stages, Stage(name=SCORER, needs=tuple(trained[-1:]), always=True, run=write)]

    def _measurement(self, name: str, needs: tuple[str, ...]) -> list[Stage]:
        if self.recipe.evaluate_after != "each" or not self.rows.eval:
            return []

        def run(folder: Path, results: Results) -> Result:
            if results.get(name, {}).get(LEFT_OUT):
                return {}
            model = self._model(results, needs)
            return self._measure(name, scorer_recipe(self.recipe, model))

        title = f"{name}: held-out questions"
        inputs = self._inputs()
        return [Stage(name=f"{name}.held_out", title=title, inputs=inputs, needs=needs, run=run)]

    def _inputs(self) -> dict[str, Any]:
        return {"recipe": comparable(self.recipe), "data": self.rows.digest}

    def _model(self, results: Results, trained: tuple[str, ...]) -> ModelRecipe:
        """The language model as the last of these stages left it."""
        if not trained:
            return self.recipe.model
        return ModelRecipe.model_validate(results[trained[-1]]["model"])

    # Training ---------------------------------------------------------------------------------

    def _train(
        self, name: str, kind: str, number: int, before: tuple[str, ...], _: Path, results: Results
    ) -> Result:
        """Writes the questions of a stage and trains on them, or goes on with that."""
        model = self._model(results, before)
        unchanged = {"model": model.model_dump(mode="json")}
        if before and results[before[-1]].get(LEFT_OUT):
            return unchanged | {LEFT_OUT: True}
        files = self._questions(name, kind, number, before, model)
        unchanged["account"] = files.account
        self._write_account({**results, name: unchanged})
        dropped = files.account["train"]["dropped"]
        if not files.train and ALL_RIGHT in dropped and set(dropped) <= {ALL_RIGHT, ALL_WRONG}:
            # It says the same of a question every time: preference has nothing to tell apart, and
            # neither have further rounds. The judge stays as it is.
            reasons = "; ".join(f"{reason} ({n})" for reason, n in dropped.items())
            return unchanged | {LEFT_OUT: True, "note": f"{name}: left out: {reasons}"}
        start = model
        if kind == "reward" and self.recipe.reward is not None:
            start = model if self.recipe.reward.start == "critic" else self.recipe.model
        verb = "tune" if kind == "preference" else kind
        stage = stage_recipe(self.recipe, self.path / name, files, start, verb)
        run_stage(stage, quiet=self.quiet)
        after = model if kind == "reward" else trained_model(self.path / name, model)
        return {"model": after.model_dump(mode="json"), "account": files.account}

    def _questions(
        self, name: str, kind: str, number: int, before: tuple[str, ...], model: ModelRecipe
    ) -> Prepared:
        if kind == "sft":
            with self._texts(name) as writer:
                return self.question_writer.sft(name, writer)
        if kind == "preference":
            with self._asking(f"{name}.replies", self._local(model)) as judge:
                return self.question_writer.preference(name, number, judge)
        # Critiques of the first stage are found again under its name.
        with (
            self._texts(before[0] if before else name) as writer,
            self._asking(f"{name}.critiques", self._local(model)) as critic,
        ):
            return self.question_writer.reward(name, writer, critic)

    # Models that are asked ----------------------------------------------------------------------

    @contextmanager
    def _texts(self, name: str) -> Iterator[Callable[[], Chat]]:
        texts = self.recipe.texts
        writer = self.writer
        asked: scorers.LocalChat | scorers.ServerChat = self._local(self.recipe.model)
        if writer is None and isinstance(texts, ChatTexts) and texts.chat is not None:
            asked = texts.chat
        with self._asking(f"{name}.texts", asked, writer) as chat:
            yield chat

    @contextmanager
    def _asking(
        self,
        name: str,
        recipe: scorers.LocalChat | scorers.ServerChat,
        given: Chat | None = None,
    ) -> Iterator[Callable[[], Chat]]:
        """Opens a model when it is first asked, keeps its answers, and lets go of it."""
        file = self.path / ASKED / f"{name}.jsonl"
        with task(f"  asking, {name}", 0, self.console) as progress:
            kept = KeptChat(lambda: given or open_chat(recipe), file, name=name, progress=progress)
            try:
                yield lambda: kept
            finally:
                kept.release()

    def _local(self, model: ModelRecipe) -> scorers.LocalChat:
        return local_chat(model, self.recipe.ask_batch_size)

    # Evaluation -------------------------------------------------------------------------------

    def _measure(self, name: str, scorer: Any) -> Result:
        """Puts the held-out questions to the judge."""
        with self._asking(f"{name}.held_out", scorer.chat) as chat:
            measured = self._measured(scorer, chat())
        entry = {"stage": name, "type": scorer.type, "model": scorer.chat.path} | measured
        self.console.print(line_of(entry), highlight=False, soft_wrap=True)
        return entry

    def _measured(self, scorer: Any, chat: Chat) -> dict[str, Any]:
        rows = self.rows.eval
        if isinstance(scorer, scorers.PairwiseJudge):
            return measure_pairwise(scorer, chat, rows)
        if isinstance(scorer, scorers.PointwiseJudge):
            assert isinstance(self.recipe.judge, PointwiseKind)
            return measure_pointwise(
                scorer, chat, rows, self.recipe.judge, self.question_writer.cuts
            )
        from palate.rewards.model import ModelScorer

        model = scorer.scorer
        return measure_critic(scorer, ModelScorer(model.path), chat, rows)

    def _measure_last(self, trained: tuple[str, ...], _: Path, results: Results) -> Result:
        done = [name for name in trained if not results[name].get(LEFT_OUT)]
        return self._measure(done[-1] if done else BASE, self._scorer(trained, results))

    def _write_scorer(self, trained: tuple[str, ...], _: Path, results: Results) -> None:
        write_text(self.path / SCORER, judge_yaml(self._scorer(trained, results)))

    def _scorer(self, trained: tuple[str, ...], results: Results) -> Any:
        critic = isinstance(self.recipe.judge, CriticKind)
        reward_model = self.path / trained[-1] / "model" if critic else None
        return scorer_recipe(self.recipe, self._model(results, trained), reward_model)

    # Beginning and end --------------------------------------------------------------------------

    def _check_data(self) -> None:
        file = self.path / "data.json"
        if not self.folder.holds_work or not file.exists():
            return
        if read_json(file).get("digest") != self.rows.digest:
            raise RunError(f"{self.path}: cannot go on: the data changed since the run began")

    def _write_account(self, results: Results) -> None:
        accounts = {
            name: result["account"] for name, result in results.items() if "account" in result
        }
        self.folder.write(Data.of({**self.account, "stages": accounts}))

    def _close(self, results: Results) -> list[str]:
        self._write_account(results)
        entries = [result for result in results.values() if "stage" in result]
        notes = [result["note"] for result in results.values() if "note" in result]
        told = [*notes, f"scorer recipe: {self.path / SCORER}"]
        if entries:
            record = JudgeEvaluation(kind="judge", confidence=0.95, stages=tuple(entries))
            self.folder.write(record)
        else:
            told.insert(0, "nothing was held out: the judge is not measured")
        self.folder.write(Conclusion(lines=(*map(line_of, entries), *told)))
        return told
