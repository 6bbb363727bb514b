"""Responses from OpenAI-compatible servers: vLLM's and SGLang's.

    engine = ServerEngine(recipe.rollout.engine, tokenizer, policy, folder=run_folder)
    engine.sync(policy)
    completions = engine.generate(prompts, Sampling(samples_per_prompt=8, max_new_tokens=256))

Token ids go out and come back as they were sampled: nothing is decoded and encoded again. How a
server must be started, and what is checked: docs/rollout-servers.md.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.data.image_urls import ImageUrls, Wire, as_frames
from palate.data.images import ImageError
from palate.data.items import TokenIds, Tokens
from palate.errors import ModelError
from palate.models.generation.draws import sample_key
from palate.models.generation.engine import Completion, OnBatch, Prompt, Sampling
from palate.models.generation.servers.kind import Answer, Wanted
from palate.models.generation.servers.node import Node, NotNumbers, Weights
from palate.models.generation.servers.pool import AskAgain, Gate, Pool
from palate.models.generation.servers.probe import EXCLUDED, check_log_probs
from palate.models.merged import save_whole
from palate.models.stop_tokens import stop_tokens
from palate.models.structure import has_experts
from palate.recipes.rl_engines import ServerEngine as Recipe
from palate.store.folders import whole_folder
from palate.store.http import ServerError

if TYPE_CHECKING:
    from palate.models.model import Model

SYNC = "sync"
"""Folder in a run folder from which servers load weights."""
NO_LOG_PROB, RESERVED = "no_log_prob", "reserved_token"
"""Why a response is dropped."""
DRIFTED, CUT = "drifted", "cut_by_context"

log = logging.getLogger("palate")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One response to be asked for. prompt, index: as in `Completion`."""

    prompt: int
    index: int
    ids: TokenIds
    sampling: Sampling
    seed: int
    turns: Sequence[Wire] | None


class ServerEngine:
    """See `Engine`.

    Every response is a request of its own, with a seed of its own. A server that fails is left
    alone for a while and its questions go to the others; see `Pool`. One that was started anew is
    given the policy's weights again before it is asked. Responses that are finished when an error
    ends a call have been handed to `on_batch`.

    A response with a log-prob that is no number, or with a token that stands for an image, is
    dropped and counted (`take_counts`), so that fewer may come back than were asked for.

    Args:
        model: the policy: its stop tokens, and what of its vocabulary is no text.
        folder: of the run; weights are written below it, or below the recipe's `sync_dir`.

    Attributes:
        version: how often it was synchronised; at 0 servers have the weights that they were started
            with.

    Raises:
        ModelError: a server does not answer, is of no known kind, has no such model, gives no token
            ids, or log-probs of another distribution than it draws from; or a policy that servers
            cannot write for.
    """

    exact = False

    def __init__(self, recipe: Recipe, tokenizer: Any, model: Model, *, folder: Path) -> None:
        if has_experts(model.config):
            raise ModelError(
                "rollout.engine: this model sends tokens to experts, a server may choose others "
                "than training does, and that is not measured: use `type: local`"
            )
        if recipe.sync == "lora" and not model.has_adapters:
            raise ModelError("rollout.engine.sync: lora needs `model.lora`: else use reload")
        self.version = 0
        self.recipe = recipe
        self.tokenizer = tokenizer
        self._stops = tuple(sorted(stop_tokens(model.base)))
        self._never = () if model.pictures is None else tuple(sorted(model.pictures.reserved))
        self._images = ImageUrls(None if model.pictures is None else model.pictures.limits)
        self._folder = _sync_folder(recipe, folder)
        self._name = secrets.token_hex(4)
        self._weights: Weights | None = None
        self._counts: Counter[str] = Counter()
        self._gate = Gate()
        self._nodes: list[Node] = []
        try:
            for url in recipe.urls:
                self._nodes.append(Node(recipe, url))
            self._check_servers()
        except BaseException:
            self.close()
            raise
        self._pool = Pool(self._nodes, concurrency=recipe.concurrency, retries=recipe.retries)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_batch: OnBatch | None = None,
        skip: Collection[tuple[int, int]] = (),
    ) -> list[Completion]:
        """See `Engine.generate`.

        Args:
            skip: prompt and index of responses that are there already.
        """
        self._check_sampling(sampling)
        jobs = list(self._jobs(prompts, sampling, frozenset(skip)))
        if self._weights is not None:
            for node in self._nodes:
                node.check_weights()
        completions: list[Completion] = []
        for answers in self._pool.run(jobs, self._ask):
            batch = [
                self._completion(job, answer, version)
                for job, (answer, version) in answers
                if isinstance(answer, Answer)
            ]
            self._counts.update(why for _, (why, _) in answers if isinstance(why, str))
            if batch and on_batch is not None:
                on_batch(batch)
            completions += batch
        return sorted(completions, key=lambda c: (c.prompt, c.index))

    def sync(self, model: Model) -> None:
        """See `Engine.sync`. Waits for what is under way, so that a response has one version.

        Raises:
            ServerError: no server takes the weights. RunError: they cannot be written.
        """
        version = self.version + 1
        weights = Weights(
            label=f"palate-{self._name}-v{version}", folder=self._folder / f"v{version:06d}"
        )
        with whole_folder(weights.folder) as whole:
            if self.recipe.sync == "lora":
                model.save(whole)
            else:
                save_whole(model, whole)

        def give(node: Node) -> str | None:
            try:
                node.make_ready(weights)
            except AskAgain as again:
                return again.problem
            return None

        with self._gate.closed(), ThreadPoolExecutor(max_workers=len(self._nodes)) as pool:
            problems = list(pool.map(give, self._nodes))
            if None not in problems:
                raise ServerError(str(problems[0]))
            self._weights, self.version = weights, version
        for problem in filter(None, problems):
            log.warning("%s: it is given the weights again before it is asked", problem)
        for old in self._folder.glob("v*"):
            if old != weights.folder:
                shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Ends connections, unloads adapters, and deletes the weights that servers were given."""
        for node in self._nodes:
            node.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def take_counts(self) -> dict[str, int]:
        """What happened since this was last asked.

        Returns:
            completions, tokens; drifted: responses whose text, encoded again, is other tokens;
            cut_by_context: ended by the server's context; dropped ones by reason: no_log_prob,
            reserved_token.
        """
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def _ask(self, node: Node, job: _Job) -> tuple[Answer | str, int]:
        """A response, or why it is dropped, and the version of the policy that wrote it."""
        with self._gate.open():
            weights, version = self._weights, self.version
            if weights is not None:
                node.make_ready(weights)
            adapter = weights.label if weights and self.recipe.sync == "lora" else None
            wanted = Wanted(
                ids=job.ids,
                sampling=job.sampling,
                seed=job.seed,
                model=self.recipe.model,
                adapter=adapter,
                turns=job.turns,
                stops=self._stops,
                never=self._never,
            )
            try:
                answer = node.ask(wanted)
            except NotNumbers:
                return NO_LOG_PROB, version
            if weights is not None and not node.wrote(answer, weights):
                raise AskAgain(f"{node.url}: has other weights than the policy's", broken=True)
        return self._checked(node, job, answer), version

    def _checked(self, node: Node, job: _Job, answer: Answer) -> Answer | str:
        """The response, where it is what was asked for; or why it is dropped."""
        _check_prompt(node, job, answer)
        ids, stops = answer.ids, frozenset(self._stops)
        if not ids or len(ids) != len(answer.logps):
            raise _wrong(node, f"gives {len(answer.logps)} log-probs of {len(ids)} tokens")
        if len(ids) > job.sampling.max_new_tokens:
            raise _wrong(node, f"writes {len(ids)} tokens of {job.sampling.max_new_tokens}")
        if stops.intersection(ids[:-1]):
            raise _wrong(node, "goes on after a stop token")
        if answer.finish == "stop" and ids[-1] not in stops:
            raise _wrong(
                node,
                f"ends a response at token {ids[-1]}, which is no stop token of the policy "
                f"({', '.join(map(str, self._stops)) or 'it has none'})",
            )
        if answer.finish not in ("stop", "length"):
            raise _wrong(node, f"ends a response by {answer.finish!r}")
        # Written so that NaN is dropped.
        if not all(EXCLUDED < logp < math.inf for logp in answer.logps):
            return NO_LOG_PROB
        if not frozenset(self._never).isdisjoint(ids):
            return RESERVED
        return answer

    def _completion(self, job: _Job, answer: Answer, version: int) -> Completion:
        ids = answer.ids
        finished = ids[-1] in self._stops
        self._counts["completions"] += 1
        self._counts["tokens"] += len(ids)
        self._counts[CUT] += not finished and len(ids) < job.sampling.max_new_tokens
        self._counts[DRIFTED] += drifts(self.tokenizer, ids)
        return Completion(
            prompt=job.prompt,
            index=job.index,
            prompt_ids=job.ids,
            response_ids=ids,
            logps=answer.logps,
            finished=finished,
            text=self.tokenizer.decode(list(ids), skip_special_tokens=True),
            version=version,
        )

    def _jobs(
        self, prompts: Sequence[Prompt], sampling: Sampling, skip: frozenset[tuple[int, int]]
    ) -> Iterator[_Job]:
        contexts = [node.context for node in self._nodes if node.context is not None]
        context = min(contexts, default=None)
        for place, prompt in enumerate(prompts):
            needed = len(prompt.tokens) + sampling.max_new_tokens
            if context is not None and needed > context:
                raise ModelError(
                    f"rollout.engine: prompt {place} has {len(prompt.tokens)} tokens and "
                    f"{sampling.max_new_tokens} are to be written, more than a server's context "
                    f"of {context} (--max-model-len)"
                )
            turns = self._turns(place, prompt)
            first = sampling.first_sample
            for index in range(first, first + sampling.samples_per_prompt):
                if (place, index) not in skip:
                    yield _Job(
                        prompt=place,
                        index=index,
                        ids=prompt.tokens.ids,
                        sampling=sampling,
                        seed=sample_seed(sampling.seed, prompt.tokens, index),
                        turns=turns,
                    )

    def _turns(self, place: int, prompt: Prompt) -> list[Wire] | None:
        """The turns of a prompt with images as they are sent; None of text alone."""
        if not prompt.tokens.images:
            return None
        for node in self._nodes:
            if not node.kind.images:
                raise ModelError(
                    f"{node.url} ({node.kind.name}): prompt {place} has images, and of those it "
                    "does not tell which tokens it makes: use vLLM"
                )
        if isinstance(prompt.content, str):
            raise ValueError(f"prompt {place}: images in a text without turns")
        try:
            return [self._images.turn(turn) for turn in as_frames(prompt.content)]
        except ImageError as error:
            raise ModelError(f"rollout.engine: prompt {place}: {error.reason}") from None

    def _check_sampling(self, sampling: Sampling) -> None:
        if sampling.top_p < 1 or sampling.top_k:
            for node in self._nodes:
                if not node.kind.filters:
                    raise ModelError(
                        f"{node.url} ({node.kind.name}): gives log-probs from before top-p and "
                        "top-k: use vLLM for those, or neither of them"
                    )

    def _check_servers(self) -> None:
        try:
            for node in self._nodes:
                if not check_log_probs(node, self.tokenizer, stops=self._stops):
                    log.warning(
                        "%s (%s): its alternatives lie too close together to tell whether its "
                        "log-probs are those of the distribution that it draws from",
                        node.url,
                        node.kind.name,
                    )
        except AskAgain as again:
            raise ServerError(again.problem) from None
        except NotNumbers:
            raise _wrong(node, "gives log-probs that are no numbers: are its weights?") from None


def sample_seed(seed: int, prompt: Tokens, index: int) -> int:
    """The seed of one response, of 63 bits: by the run's seed, the prompt and the sample's number.

    Args:
        prompt: its images count by what they show.
    """
    return int.from_bytes(sample_key(seed, prompt, index)[:8], "little") >> 1


def drifts(tokenizer: Any, ids: TokenIds) -> bool:
    """Whether the text of a response, encoded again, is other tokens than those sampled."""
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return tuple(tokenizer.encode(text, add_special_tokens=False)) != ids


def _check_prompt(node: Node, job: _Job, answer: Answer) -> None:
    """Refuses a response to other tokens than those of training.

    Raises:
        ModelError: says from which on.
    """
    seen = answer.prompt_ids
    number = answer.prompt_tokens if seen is None else len(seen)
    if seen == job.ids or (seen is None and number in (None, len(job.ids))):
        return
    where = ""
    if seen is not None:
        pairs = zip(seen, job.ids, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(seen), len(job.ids)))
        where = f" (they differ from token {place} on)"
    hint = "" if job.turns is None else ": give it the policy's chat template and image processor"
    raise _wrong(
        node,
        f"makes {number} tokens of prompt {job.prompt}, of which training makes "
        f"{len(job.ids)}{where}{hint}",
    )


def _wrong(node: Node, words: str) -> ServerError:
    return ServerError(f"{node.url} ({node.kind.name}): {words}")


def _sync_folder(recipe: Recipe, folder: Path) -> Path:
    """Where this run's weights are written: runs that share a `sync_dir` have folders of their own
    in it."""
    run = folder.expanduser().resolve()
    if recipe.sync_dir is None:
        return run / SYNC
    name = f"{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}"
    return recipe.sync_dir.expanduser().resolve() / name
