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

from palate.errors import RecipeError, RunError
from palate.evaluate.progress import task
from palate.memory import kept_memory
from palate.recipes import scorers
from palate.recipes.judge import ChatTexts, CriticKind, JudgeRecipe, PointwiseKind
from palate.recipes.schema import ModelRecipe
from palate.rewards.chat import Chat, open_chat
from palate.store.files import read_json, write_json, write_text
from palate.store.folder import RunFolder
from palate.store.folders import lock_folder
from palate.store.records import Conclusion, Data, JudgeEvaluation
from palate.train.judge.kept import KeptChat
from palate.train.judge.measure import (
    line_of,
    measure_critic,
    measure_pairwise,
    measure_pointwise,
)
from palate.train.judge.prepare import ALL_RIGHT, ALL_WRONG, Desk, Prepared
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

QUESTIONS, ASKED, PARTS, SCORER = "questions", "asked", "parts", "judge.yaml"
BASE = "base"


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
                _Run(recipe, folder, console, quiet, writer).do()
    file = folder.path / "evaluation.json"
    entries = read_json(file)["stages"] if file.exists() else []
    return JudgeResult(path=folder.path, scorer=folder.path / SCORER, evaluation=entries)


class _Run:
    """One run, from data to judge.yaml."""

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
        self.base = recipe.model
        self.entries: list[dict[str, Any]] = []
        self.stages: list[Path] = []
        self.notes: list[str] = []
        self.account: dict[str, Any] = {}
        self.rows: Rows
        self.desk: Desk

    def do(self) -> None:
        check_template(self.base)
        self.rows = read_rows(self.recipe)
        self._check_data()
        self.desk = Desk(self.recipe, self.rows, self.path / QUESTIONS)
        self.account = {**self.rows.account, "digest": self.rows.digest, "stages": {}}
        if self.desk.scale is not None:
            self.account["scale"] = self.desk.scale
        self.folder.write(Data.of(self.account))
        self.folder.write_quarantine(self.rows.quarantine)
        critic = isinstance(self.recipe.judge, CriticKind)
        model, reward_model = self._critic() if critic else (self._judge(), None)
        scorer = scorer_recipe(self.recipe, model, reward_model)
        if critic or self.recipe.evaluate_after == "last":
            self._measure(self.stages[-1].name if self.stages else BASE, scorer)
        write_text(self.path / SCORER, judge_yaml(scorer))
        self._close()

    # Stages -----------------------------------------------------------------------------------

    def _judge(self) -> ModelRecipe:
        model = self.base
        self._after(BASE, model)
        if self.recipe.sft is not None:
            model = self._train("sft", "sft", model, self._sft_files)
            self._after(self.stages[-1].name, model)
        rounds = 0 if self.recipe.preference is None else self.recipe.preference.rounds
        for number in range(1, rounds + 1):
            before = len(self.stages)
            prepare = partial(self._preference_files, number, model)
            model = self._train(f"preference-{number}", "tune", model, prepare)
            if len(self.stages) == before:
                break
            self._after(self.stages[-1].name, model)
        return model

    def _critic(self) -> tuple[ModelRecipe, Path]:
        model, own = self.base, self.recipe.reward
        assert own is not None
        if self.recipe.sft is not None:
            model = self._train("sft", "sft", model, self._sft_files)
        start = model if own.start == "critic" else self.base
        self._train("reward", "reward", start, partial(self._reward_files, model))
        return model, self.stages[-1] / "model"

    def _train(
        self,
        name: str,
        verb: str,
        model: ModelRecipe,
        prepare: Callable[[str], Prepared],
    ) -> ModelRecipe:
        """Runs one stage; returns the language model after it."""
        name = f"{len(self.stages) + 1}-{name}"
        self.console.print(f"{name}: questions", highlight=False)
        files = prepare(name)
        self.account["stages"][name] = files.account
        self.folder.write(Data.of(self.account))
        dropped = files.account["train"]["dropped"]
        if not files.train and ALL_RIGHT in dropped and set(dropped) <= {ALL_RIGHT, ALL_WRONG}:
            # It says the same of a question every time: preference has nothing to tell apart, and
            # neither have further rounds. The judge stays as it is.
            reasons = "; ".join(f"{reason} ({n})" for reason, n in dropped.items())
            self.notes.append(f"{name}: left out: {reasons}")
            return model
        self.stages.append(self.path / name)
        stage = stage_recipe(self.recipe, self.path / name, files, model, verb)
        self.console.print(f"{name}: training", highlight=False)
        run_stage(stage, quiet=self.quiet)
        return model if verb == "reward" else trained_model(self.path / name, model)

    def _sft_files(self, name: str) -> Prepared:
        with self._texts(name) as writer:
            return self.desk.sft(name, writer)

    def _preference_files(self, number: int, model: ModelRecipe, name: str) -> Prepared:
        with self._asking(f"{name}.replies", self._local(model)) as judge:
            return self.desk.preference(name, number, judge)

    def _reward_files(self, model: ModelRecipe, name: str) -> Prepared:
        # Critiques of the first stage are found again under its name.
        first = self.stages[0].name if self.stages else name
        with (
            self._texts(first) as writer,
            self._asking(f"{name}.critiques", self._local(model)) as critic,
        ):
            return self.desk.reward(name, writer, critic)

    # Models that are asked ----------------------------------------------------------------------

    @contextmanager
    def _texts(self, name: str) -> Iterator[Callable[[], Chat]]:
        texts = self.recipe.texts
        writer = self.writer
        own: scorers.LocalChat | scorers.ServerChat = self._local(self.base)
        if writer is None and isinstance(texts, ChatTexts) and texts.chat is not None:
            own = texts.chat
        with self._asking(f"{name}.texts", own, writer) as chat:
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

    def _after(self, name: str, model: ModelRecipe) -> None:
        if self.recipe.evaluate_after == "each":
            self._measure(name, scorer_recipe(self.recipe, model))

    def _measure(self, name: str, scorer: Any) -> None:
        """Puts the held-out questions to the judge; what was measured before is kept."""
        if not self.rows.eval:
            return
        file = self.path / PARTS / f"{name}.json"
        if not file.exists():
            self.console.print(f"{name}: held-out questions", highlight=False)
            with self._asking(f"{name}.held_out", scorer.chat) as chat:
                found = self._measured(scorer, chat())
            model = scorer.chat.path
            write_json(file, {"stage": name, "type": scorer.type, "model": model} | found)
        self.entries.append(read_json(file))
        self.console.print(line_of(self.entries[-1]), highlight=False, soft_wrap=True)

    def _measured(self, scorer: Any, chat: Chat) -> dict[str, Any]:
        rows = self.rows.eval
        if isinstance(scorer, scorers.PairwiseJudge):
            return measure_pairwise(scorer, chat, rows)
        if isinstance(scorer, scorers.PointwiseJudge):
            assert isinstance(self.recipe.judge, PointwiseKind)
            return measure_pointwise(scorer, chat, rows, self.recipe.judge, self.desk.cuts)
        from palate.rewards.model import ModelScorer

        own = scorer.scorer
        return measure_critic(scorer, ModelScorer(own.path), chat, rows)

    # Beginning and end --------------------------------------------------------------------------

    def _check_data(self) -> None:
        file = self.path / "data.json"
        if not self.folder.holds_work or not file.exists():
            return
        if read_json(file).get("digest") != self.rows.digest:
            raise RunError(f"{self.path}: cannot go on: the data changed since the run began")

    def _close(self) -> None:
        told = [*self.notes, f"scorer recipe: {self.path / SCORER}"]
        if not self.entries:
            told.insert(0, "nothing was held out: the judge is not measured")
        lines = [*(line_of(entry) for entry in self.entries), *told]
        if self.entries:
            stages = tuple(self.entries)
            self.folder.write(JudgeEvaluation(kind="judge", confidence=0.95, stages=stages))
        self.folder.write(Conclusion(lines=tuple(lines)))
        from palate.report import write_report

        title = f"Judge: {self.recipe.judge.type}"
        write_report([self.path, *self.stages], self.path / "report.html", title)
        for line in told:
            self.console.print(line, highlight=False, soft_wrap=True)
