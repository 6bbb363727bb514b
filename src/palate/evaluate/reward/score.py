"""`palate score`: every response of data files gets its score, in a file of lines.

Scores are appended block by block, and a journal says after each block how far the files of the
folder are good and what had been counted by then. A run that goes on after a kill cuts the files
back to that point, so that nothing is there twice and nothing is missing.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from palate.data.containers import Rejection
from palate.data.containers.open import named
from palate.data.content import without_images
from palate.data.images import ImageError, image_root, rooted
from palate.data.ledger import digest
from palate.data.pairing import OWN_PROMPTS
from palate.data.schema import Preference
from palate.data.scorer import Group, Score, Scorer
from palate.data.stream import NotDrawn, Row, RowStream
from palate.data.videos import located
from palate.errors import DataError, ModelError, RunError
from palate.evaluate.progress import task
from palate.evaluate.reward.benchmark import quarantined
from palate.evaluate.reward.journal import LINES, QUARANTINE, Inputs, Journal, Tally
from palate.evaluate.reward.score_lines import as_table, keep_numbers, line_of, members_in
from palate.memory import kept_memory
from palate.recipes.images import ImagesRecipe
from palate.recipes.serving import ScoreRecipe
from palate.rewards.baselines import FILE as BASELINES
from palate.rewards.baselines import Baseline, baseline_key
from palate.rewards.build import make_scorer
from palate.rewards.columns import columns_read
from palate.rewards.combined import Combined
from palate.rewards.groups import score_groups
from palate.rewards.identity import VERSION, files_of, identities
from palate.rewards.names import name_of
from palate.store.files import write_json
from palate.store.folder import RunFolder
from palate.store.lineage import lineage
from palate.store.records import Data

TABLE = "scores.parquet"


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """A finished run.

    Attributes:
        path: its folder. scores: the file of scores. summary: content of summary.json.
    """

    path: Path
    scores: Path
    summary: dict[str, Any]


def score_files(recipe: ScoreRecipe, *, console: Console | None = None) -> ScoreResult:
    """Scores every response of a recipe's data.

    Writes scores.jsonl (or .parquet): a line a response, with id, source, row, response (its
    number in the row; of a pair 0 is the chosen one), score, reason where there is no score, text
    where the scorer wrote one, and members of an ensemble with their scores. Beside it
    summary.json, data.json, quarantine.jsonl, recipe.yaml, lineage.json, status.json.
    A file is read a block at a time; what is held of it is where its rows are.

    Raises:
        RunError: an output folder in use, or with scores of other data or by other weights.
        RecipeError, DataError, ModelError: what cannot be used.
    """
    console = console or Console(stderr=True)
    sources = named(recipe.data)
    # What is wrong with a source should be said before a model is loaded.
    columns = columns_read(recipe.scorer)
    streams = [
        RowStream(source, seed=recipe.seed, keep=columns, keep_lone=True) for source in sources
    ]
    with RunFolder.open(recipe) as folder, kept_memory():
        state = Journal.of(folder.path, len(streams), _inputs(recipe, streams))
        if not state.done:
            scorer = make_scorer(recipe.scorer, seed=recipe.seed)
            if isinstance(scorer, Combined):
                keep_numbers(folder.path, scorer.numbers)
            _score(recipe, streams, state, scorer, console)
        result = _finish(recipe, streams, state, folder)
    unscored = result.summary["responses"] - result.summary["scored"]
    text = f"{result.summary['responses']} responses: {result.summary['scored']} scored"
    console.print(f"{text}, {unscored} without a score" if unscored else text, highlight=False)
    for line in _told(result.summary["members"]):
        console.print(line, highlight=False, soft_wrap=True)
    return result


def _told(members: dict[str, Any] | None) -> Iterator[str]:
    """What there is to say of an ensemble's members."""
    if members is None:
        return
    for member in members["raw"]:
        if member["deviation"] is not None:
            within = "" if member["within"] is None else f", {member['within']:.3g} within a prompt"
            yield f"  {member['name']}: scores vary by {member['deviation']:.3g}{within}"
    if members["warning"] is not None:
        yield f"  {members['warning']}"


def _score(
    recipe: ScoreRecipe,
    streams: Sequence[RowStream],
    state: Journal,
    scorer: Scorer,
    console: Console,
) -> None:
    columns = columns_read(recipe.scorer)
    for number in range(state.source, len(streams)):
        stream, tally = streams[number], state.tallies[number]
        with task(f"scoring {stream.name}", len(stream), console) as progress:
            for block in _blocks(stream, state.place, recipe.block_rows):
                rows, lost = _count(block, tally)
                before = Counter(scorer.counts)
                try:
                    shown = list(map(_blind, rows)) if recipe.images == "removed" else rows
                    scored = _scored(
                        scorer,
                        shown,
                        image_root(stream.path),
                        exact=recipe.exact,
                        columns=columns,
                    )
                except ModelError as error:
                    where = f"{stream.path}, rows {rows[0].row} to {rows[-1].row}"
                    raise ModelError(f"{where}: {error}") from error
                counted = Counter(scorer.counts)
                counted.subtract(before)
                state.account += +counted
                lines = []
                for row, scores in zip(rows, scored, strict=True):
                    for index, score in enumerate(scores):
                        tally.add(score)
                        lines.append(line_of(row, index, score))
                quarantine = [
                    json.dumps(quarantined(stream.name, item), ensure_ascii=False) + "\n"
                    for item in lost
                ]
                # The last block holds what is lost for good: after it comes the next source.
                state.source = number + block.last
                state.place = 0 if block.last else block.end
                state.done = state.source == len(streams)
                texts = {LINES: "".join(lines), QUARANTINE: "".join(quarantine)}
                if recipe.baselines:
                    texts[BASELINES] = "".join(_baselines(shown, scored, image_root(stream.path)))
                state.append(texts, number)
                progress(min(tally.records, len(stream)))


@dataclass(frozen=True)
class _Block:
    """Entries that are scored and written together.

    Attributes:
        end: how many entries of the source there are up to its end. last: nothing follows.
    """

    entries: list[Row | Rejection | NotDrawn]
    end: int
    last: bool


def _blocks(stream: RowStream, start: int, size: int) -> Iterator[_Block]:
    entries = stream.entries(start)
    end, last = start, False
    while not last:
        block = list(islice(entries, size))
        end += len(block)
        last = len(block) < size
        yield _Block(block, end, last)


def _count(block: _Block, tally: Tally) -> tuple[list[Preference], list[Rejection]]:
    """Rows of a block, and what of it is in no row."""
    rows, lost = [], []
    for entry in block.entries:
        if isinstance(entry, Rejection):
            tally.records += 1
            tally.rejected[entry.counted_as] += 1
            lost.append(entry)
            continue
        tally.records += entry.records
        if isinstance(entry, NotDrawn):
            tally.not_drawn += entry.rows
            tally.merged += entry.records - entry.rows
            continue
        tally.rows += 1
        tally.merged += entry.records - 1
        rows.append(entry.row)
        tally.left_out.update(part.counted_as for part in entry.left_out)
        lost += entry.left_out
    return rows, lost


def _blind(row: Preference) -> Preference:
    """The row without the images of its prompts."""
    responses = tuple(
        dataclasses.replace(r, prompt=None if r.prompt is None else without_images(r.prompt))
        for r in row.responses
    )
    return dataclasses.replace(row, prompt=without_images(row.prompt), responses=responses)


def _scored(
    scorer: Scorer,
    rows: Sequence[Preference],
    root: Path,
    *,
    exact: bool,
    columns: Sequence[str] = (),
) -> list[list[Score]]:
    """
    Args:
        root: folder that paths of images start from.
        columns: of the rows, which the scorer reads.
    """
    groups: list[Group] = []
    unscored: dict[int, str] = {}
    for place, row in enumerate(rows):
        if row.has_own_prompts:
            unscored[place] = OWN_PROMPTS
            continue
        try:
            shown = located(row, root, ImagesRecipe()) if row.has_images else row
        except ImageError as error:
            unscored[place] = error.reason
            continue
        responses = tuple(response.content for response in shown.responses)
        read = {name: (shown.extra or {}).get(name) for name in columns}
        groups.append(Group(shown.prompt, responses, columns=read))
    scored = iter(score_groups(scorer, groups, exact=exact))
    return [
        [Score(None, unscored[place])] * len(row.responses) if place in unscored else next(scored)
        for place, row in enumerate(rows)
    ]


def _baselines(
    rows: Sequence[Preference], scored: Sequence[Sequence[Score]], root: Path
) -> Iterator[str]:
    """A line of a table for each prompt whose responses have scores."""
    for row, scores in zip(rows, scored, strict=True):
        if any(score.value is not None for score in scores):
            key = baseline_key(Group(rooted(row, root).prompt, ()))
            baseline = Baseline.of(key, scores)
            assert baseline is not None
            yield baseline.line()


def _nothing(quarantine: Path, first_file: str) -> DataError:
    """What to say where no record can be read: what the first lacks, and where the others are."""
    with quarantine.open(encoding="utf-8") as lines:
        first = next(lines, None)
        others = sum(1 for _ in lines)
    if first is None:
        return DataError("no rows", file=first_file)
    rejected = json.loads(first)
    more = f"; no usable row, {others} more in {quarantine}" if others else "; no usable row"
    reason = rejected["reason"] + more
    return DataError(reason, file=rejected["file"], row=rejected["row"], field=rejected["field"])


def _finish(
    recipe: ScoreRecipe, streams: Sequence[RowStream], state: Journal, folder: RunFolder
) -> ScoreResult:
    if not any(tally.rows for tally in state.tallies):
        raise _nothing(folder.path / QUARANTINE, recipe.data[0].path)
    scores = folder.path / LINES
    members = members_in(folder.path, scores, folder.path / TABLE)
    if recipe.format == "parquet":
        scores = folder.path / TABLE
        as_table(folder.path / LINES, scores)
    entries = []
    for stream, tally in zip(streams, state.tallies, strict=True):
        used = tally.rows + tally.not_drawn + tally.merged
        assert tally.records == used + tally.rejected.total()
        assert tally.responses == tally.scored + tally.unscored.total()
        entries.append(
            {
                "name": stream.name,
                "path": stream.path,
                "format": stream.reader.name,
                "recognised": stream.why,
                "split_role": "scored",
                "sha256": _digest(stream, state),
                "read": tally.records,
                "kept": tally.rows,
                "merged": tally.merged,
                "not_selected": tally.not_drawn,
                "rejected": dict(sorted(tally.rejected.items())),
                "responses_left_out": dict(sorted(tally.left_out.items())),
                "dropped": {},
                "truncated": {},
            }
        )
    summary = {
        "kind": "scores",
        "scorer": {"name": name_of(recipe.scorer), "type": recipe.scorer.type},
        "exact": recipe.exact,
        "file": scores.name,
        "sources": [
            {"name": stream.name, "rows": tally.rows} | tally.described()
            for stream, tally in zip(streams, state.tallies, strict=True)
        ],
        "responses": sum(tally.responses for tally in state.tallies),
        "scored": sum(tally.scored for tally in state.tallies),
        "unscored": dict(sorted(sum((t.unscored for t in state.tallies), Counter()).items())),
        "account": dict(sorted(state.account.items())),
        "members": members,
    }
    folder.write(Data.of({"kind": "scores", "sources": entries}))
    scored_by = {
        "name": name_of(recipe.scorer),
        "type": recipe.scorer.type,
        "weights": identities(recipe.scorer),
    }
    folder.write(
        lineage(
            verb="score",
            seed=recipe.seed,
            device=platform.machine(),
            sources=entries,
            base_model=None,
            models=(scored_by,),
        )
    )
    write_json(folder.path / "summary.json", summary)
    return ScoreResult(path=folder.path, scores=scores, summary=summary)


def _inputs(recipe: ScoreRecipe, streams: Sequence[RowStream]) -> Inputs:
    return {
        "data": {stream.name: digest(stream.records.files) for stream in streams},
        "model": dict(identities(recipe.scorer)),
        "file": files_of(recipe.scorer),
        "version": {"of scores": str(VERSION)},
    }


def _digest(stream: RowStream, state: Journal) -> str | None:
    """Of a source's files, which must be those that the run began with."""
    digest_now = digest(stream.records.files)
    if digest_now != state.inputs["data"][stream.name]:
        raise RunError(f"{stream.path}: changed while it was scored; choose another output_dir")
    return digest_now
