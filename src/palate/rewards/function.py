"""Python functions as scorers, with the arguments that TRL's GRPOTrainer gives its `reward_funcs`.

    f(prompts=[...], completions=[...], completion_ids=[...],
      log_extra=..., log_metric=..., **columns)

One entry a completion in every list. A prompt that is a text has completions that are texts; one of
chat turns has completions of chat turns; both never stand in one call. `columns` are those of the
prompts' rows, None where a row has none. Images are Pillow images in the parts of a turn. Token ids
are None where no policy has sampled. There is no `trainer_state`, and there are no `environments`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import itertools
import numbers
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palate.data.image_urls import as_frames
from palate.data.images import ImageError, load
from palate.data.pixels import decoded
from palate.data.schema import Content, Message, image_of
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits, has_images, regrouped
from palate.errors import DataError, ModelError, in_one_line
from palate.recipes.images import ImagesRecipe
from palate.rewards.texts import response_text

RewardFunction = Callable[..., Any]
NONE_GIVEN = "the function judges no such completion"
ABSENT = ("trainer_state", "environments")
"""What TRL gives besides, and nothing here has."""
_TAKEN = ("prompts", "completions", "completion_ids", "log_extra", "log_metric")
_OWN_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not pass on."""
_MODULES = itertools.count()


class FunctionScorer:
    """Scores by a function; see the module's head.

    What it gives to `log_extra` (a value a completion) and `log_metric` (one for the call) are
    parts of scores, texts of `log_extra` their text.

    Args:
        function: plain or async.
        label: for messages; default: its file and name.
        relative: it compares the completions of one prompt.

    Raises:
        ModelError: it requires an argument that nothing here has.
    """

    def __init__(
        self,
        function: RewardFunction,
        *,
        name: str | None = None,
        label: str | None = None,
        relative: bool = False,
    ) -> None:
        self.function = function
        self.label = label or _label(function)
        self.name = name or _name(function)
        self.traits = Traits(relative=relative, modalities=TEXT_AND_IMAGES)
        self.counts: Counter[str] = Counter()
        check_signature(function, self.label)

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One call for all prompts that are texts, and one for all that are chats.

        Raises:
            ModelError: the function fails, or gives something else than a number a completion.
            DataError: a column with the name of an argument.
        """
        scores: list[list[Score]] = [[] for _ in groups]
        readable: list[int] = []
        shown: list[Group] = []
        for i, group in enumerate(groups):
            try:
                shown.append(replace(group, prompt=_shown(group.prompt)))
                readable.append(i)
            except ImageError as error:
                scores[i] = [Score(None, error.reason)] * len(group.responses)
        for is_text in (True, False):
            places = [k for k, g in enumerate(shown) if isinstance(g.prompt, str) is is_text]
            asked = [shown[k] for k in places]
            if any(group.responses for group in asked):
                answered = regrouped(self._scores(arguments(asked)), asked)
                for k, of_group in zip(places, answered, strict=True):
                    scores[readable[k]] = of_group
        return scores

    def _scores(self, given: dict[str, list[Any]]) -> list[Score]:
        return called(self.function, given, self.label)


def arguments(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Keyword arguments of one call: lists with an entry a response.

    Raises:
        DataError: a column with the name of an argument.
    """
    names = dict.fromkeys(name for group in groups for name in group.columns)
    for name in names:
        if name in _TAKEN:
            raise DataError(f"a column '{name}' has the name of an argument of reward functions")
    given: dict[str, list[Any]] = {"prompts": [], "completions": [], "completion_ids": []}
    given |= {name: [] for name in names if name not in _OWN_COLUMNS}
    for group in groups:
        ids = group.response_ids or [None] * len(group.responses)
        for response, response_ids in zip(group.responses, ids, strict=True):
            given["prompts"].append(group.prompt)
            given["completions"].append(_completion(group.prompt, response))
            given["completion_ids"].append(None if response_ids is None else list(response_ids))
            for name in names:
                if name not in _OWN_COLUMNS:
                    given[name].append(group.columns.get(name))
    return given


def called(function: RewardFunction, given: dict[str, list[Any]], label: str) -> list[Score]:
    """What a function makes of one call's completions.

    Raises:
        ModelError: it fails, takes no such arguments, or gives something else than a number each.
    """
    n = len(given["completions"])
    logged = _Logged(n)
    keywords = {**given, "log_extra": logged.extra, "log_metric": logged.metric}
    signature = _signature(function)
    try:
        if signature is not None:
            signature.bind(**keywords)
    except TypeError as error:
        raise ModelError(
            f"{label}: {error}: take **kwargs, as reward functions of TRL do"
        ) from None
    try:
        values = function(**keywords)
        if inspect.isawaitable(values):
            values = _finished(_awaited(values))
        values = list(values)
    except Exception as error:
        raise ModelError(f"{label}: {_told(error)}") from error
    if len(values) != n:
        raise ModelError(f"{label}: gives {len(values)} rewards for {n} completions")
    return [logged.on(_score(value, i, label), i) for i, value in enumerate(values)]


def load_function(path: str) -> RewardFunction:
    """The function that `file.py:name` names; the file is run, its folder in the module path
    meanwhile.

    Raises:
        ModelError: no such file or function, or the file fails.
    """
    name = path.rpartition(":")[2]
    file = Path(path.rpartition(":")[0]).expanduser().absolute()
    if not file.is_file():
        raise ModelError(f"{path}: no file {file}")
    spec = importlib.util.spec_from_file_location(f"_palate_rewards_{next(_MODULES)}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is run.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ModelError(f"{path}: {_told(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{path}: no function {name} in it")
    return function  # type: ignore[no-any-return]


def check_signature(function: RewardFunction, label: str) -> None:
    """That a function requires nothing that it will not get.

    Raises:
        ModelError: it does.
    """
    signature = _signature(function)
    for parameter in signature.parameters.values() if signature is not None else ():
        if parameter.name in ABSENT and parameter.default is inspect.Parameter.empty:
            raise ModelError(
                f"{label}: requires `{parameter.name}`, which there is not: give it a default"
            )


@dataclass
class _Logged:
    """What a function logs of one call of n completions."""

    n: int
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def extra(self, column: str, values: Iterable[Any]) -> None:
        """A value a completion."""
        listed = list(values)
        if len(listed) != self.n:
            raise ValueError(f"log_extra('{column}'): {len(listed)} values, {self.n} completions")
        self.extras[column] = listed

    def metric(self, name: str, value: float) -> None:
        """One value for the call."""
        self.metrics[name] = float(value)

    def on(self, score: Score, place: int) -> Score:
        """The score of a completion with what was logged of it."""
        parts = {name: Score.of(value) for name, value in self.metrics.items()}
        texts = []
        for column, values in self.extras.items():
            value = values[place]
            if _is_number(value):
                parts[column] = Score.of(float(value))
            elif value is not None:
                texts.append(f"{column}: {value}")
        return replace(score, parts=parts, text="\n".join(texts) or None)


def _score(value: Any, place: int, label: str) -> Score:
    if value is None:
        return Score(None, NONE_GIVEN)
    try:
        if isinstance(value, str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        words = in_one_line(repr(value), 60)
        raise ModelError(f"{label}: gives {words} for completion {place + 1}: no number") from None
    return Score.of(number)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _completion(prompt: Content, response: Content) -> Content:
    """A response in the form of its prompt: a text of a text, turns of turns."""
    if isinstance(prompt, str):
        return response_text(response)
    if isinstance(response, str):
        return [Message(role="assistant", content=response)]
    return response


def _shown(prompt: Content) -> Content:
    """The prompt with Pillow images in its parts.

    Raises:
        ImageError: one cannot be read.
    """
    if isinstance(prompt, str) or not has_images(prompt):
        return prompt
    shown: list[Any] = []
    for turn in as_frames(prompt):
        content: Any = turn["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image", "image": decoded(load(image_of(part), Path(), ImagesRecipe()))}
                if part["type"] == "image"
                else part
                for part in content
            ]
        shown.append({"role": turn["role"], "content": content})
    return shown


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all async functions, in a thread of its own: what a function keeps open between
    calls belongs to the loop that it was opened in."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop


async def _awaited(values: Any) -> Any:
    return await values


def _finished(values: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(values, _loop()).result()


def _told(error: BaseException) -> str:
    """An error in one line, with where in its file it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    return f"{type(error).__name__}: {in_one_line(error)}{line}"


def _signature(function: RewardFunction) -> inspect.Signature | None:
    """None of one that is not written in Python."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def _name(function: RewardFunction) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _label(function: RewardFunction) -> str:
    code = inspect.unwrap(function)
    if isinstance(code, functools.partial):
        code = code.func
    try:
        file = inspect.getsourcefile(code)
    except TypeError:
        file = None
    return f"{file}:{_name(function)}" if file else _name(function)
