"""A causal language model on this machine as a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palate.data.encode import Drop, Encoder
from palate.data.schema import Message, Preference, Response, text_in
from palate.errors import DataError, ModelError
from palate.models.loading import load_model, load_tokenizer
from palate.recipes.schema import LengthRecipe, ModelRecipe
from palate.recipes.scorers import LocalChat
from palate.rewards.chat import Reply

NO_LIMIT = 1 << 30


class LocalModel:
    """Answers by transformers; a sample depends on the seed, its question and its number.

    Questions become the tokens that training on them would use, and an answer is begun as training
    writes it. A question with a special token written out in it (an end of turn, say), which no
    training takes, is not asked: the answer is empty. A template that training refuses is asked as
    it renders.

    Raises:
        ModelError: unreadable, or without a chat template.
    """

    def __init__(self, recipe: LocalChat) -> None:
        model = ModelRecipe(path=recipe.path, revision=recipe.revision, dtype=recipe.dtype)
        self.tokenizer = load_tokenizer(model)
        no_limits = LengthRecipe(max_prompt_tokens=NO_LIMIT, max_response_tokens=NO_LIMIT)
        encoder = Encoder(self.tokenizer, recipe.chat_template, no_limits)
        if encoder.template.text is None:
            raise ModelError(
                f"{recipe.path}: has no chat template, and a judge is asked in chats: set "
                "`chat_template`"
            )
        self._encoder = encoder if _trains(encoder) else None
        self.tokenizer.chat_template = encoder.template.text
        self.model: Any = load_model(model).eval()
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.batch_size = recipe.batch_size
        self.name = recipe.path.rstrip("/").rpartition("/")[2]
        self._pad = int(self.tokenizer.pad_token_id or 0)

    @torch.no_grad()
    def reply(
        self,
        questions: Sequence[list[Message]],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """See `Chat.reply`."""
        asked = [self._ids(question) for question in questions]
        jobs = [(i, k) for i, ids in enumerate(asked) for k in range(samples) if ids]
        # Alike lengths together: less padding.
        jobs.sort(key=lambda job: (-len(asked[job[0]]), job))
        found: dict[tuple[int, int], Reply] = {}
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            generators = [_generator(seed, asked[i], k) for i, k in part]
            texts = self._write(
                [asked[i] for i, _ in part], generators, temperature, max_new_tokens
            )
            found.update(zip(part, texts, strict=True))
        nothing = Reply(text="", finished=True)
        return [[found.get((i, k), nothing) for k in range(samples)] for i in range(len(asked))]

    def _write(
        self,
        asked: Sequence[list[int]],
        generators: Sequence[torch.Generator],
        temperature: float,
        max_new_tokens: int,
    ) -> list[Reply]:
        width = max(map(len, asked))
        ids = torch.full((len(asked), width), self._pad)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(asked):
            ids[row, width - len(own) :] = torch.tensor(own)
            mask[row, width - len(own) :] = 1
        ends = self._ends()
        device = self.model.device
        written: list[list[int]] = [[] for _ in asked]
        done = [False] * len(asked)
        inputs, mask, cache = ids.to(device), mask.to(device), None
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        for _ in range(max_new_tokens):
            out = self.model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            logits = out.logits[:, -1].float().cpu()
            tokens = [_pick(logits[row], temperature, generators[row]) for row in range(len(asked))]
            for row, token in enumerate(tokens):
                if not done[row]:
                    done[row] = token in ends
                    if not done[row]:
                        written[row].append(token)
            if all(done):
                break
            inputs = torch.tensor(tokens, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(asked), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [
            Reply(text=str(self.tokenizer.decode(own, skip_special_tokens=True)), finished=end)
            for own, end in zip(written, done, strict=True)
        ]

    @torch.no_grad()
    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """See `Chat.choose`: exact, of all the tokens of an option."""
        heads = [self._ids(question, begun=True) for question in questions]
        tails = [self.tokenizer(o, add_special_tokens=False)["input_ids"] for o in options]
        jobs = [(i, j) for i, ids in enumerate(heads) for j in range(len(options)) if ids]
        jobs.sort(key=lambda job: (-len(heads[job[0]]), job))
        table: dict[tuple[int, int], float] = {}
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            rows = [heads[i] + tails[j] for i, j in part]
            width = max(map(len, rows))
            ids = torch.full((len(rows), width), self._pad)
            mask = torch.zeros_like(ids)
            for row, own in enumerate(rows):
                ids[row, : len(own)] = torch.tensor(own)
                mask[row, : len(own)] = 1
            longest = max(len(tails[j]) for _, j in part)
            least = min(len(row) for row in rows)
            keep = width - least + longest + 1
            out = self.model(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                logits_to_keep=keep,
            )
            logp = out.logits.float().log_softmax(-1).cpu()
            shift = width - logp.shape[1]
            for row, (i, j) in enumerate(part):
                first = len(heads[i])
                table[i, j] = float(
                    sum(logp[row, first + t - 1 - shift, token] for t, token in enumerate(tails[j]))
                )
        return [
            {option: table[i, j] for j, option in enumerate(options)} if ids else None
            for i, ids in enumerate(heads)
        ]

    def _ids(self, question: list[Message], *, begun: bool = False) -> list[int]:
        """Ids of a question, with the assistant's turn opened or, where `begun`, begun in words;
        none of one that is not to be asked."""
        asked = question[:-1] if begun else question
        start = text_in(question[-1]["content"]) if begun else ""
        if self._encoder is not None:
            try:
                ids = self._encoder.encode_prompt(asked)
            except DataError:
                return []
            return [*ids, *(self._begun(asked, start) if begun else ())]
        return self._rendered(asked, start)

    def _begun(self, asked: list[Message], start: str) -> tuple[int, ...]:
        """Ids of an answer's first words, behind whatever the template writes before them."""
        assert self._encoder is not None
        answer = Message(role="assistant", content=start)
        (text,) = self._encoder.template.render(asked, [[answer]]).responses
        at = text.find(start)
        text = start if at < 0 else text[: at + len(start)]
        return self._encoder.tokens.continuations([text])[text]

    def _rendered(self, asked: list[Message], start: str) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [{"role": turn["role"], "content": text_in(turn["content"])} for turn in asked],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert isinstance(text, str)
        whole = self.tokenizer(text + start, add_special_tokens=False)["input_ids"]
        return list(whole)

    def _ends(self) -> frozenset[int]:
        own = getattr(self.model.generation_config, "eos_token_id", None)
        listed = list(own) if isinstance(own, (list, tuple)) else [own]
        if self._encoder is not None:
            # The one that training ends an answer with; a custom template may have its own.
            item = self._encoder.encode_example(_probe())
            listed += [] if isinstance(item, Drop) else [item.response_ids[-1]]
        return frozenset(int(x) for x in [*listed, self.tokenizer.eos_token_id] if x is not None)


def _trains(encoder: Encoder) -> bool:
    """Whether training takes the template."""
    try:
        encoder.encode_example(_probe())
    except ModelError:
        return False
    return True


def _probe() -> Preference:
    return Preference(
        id="",
        source="",
        kind="demonstration",
        prompt=[Message(role="user", content="Which?")],
        responses=(Response(content=[Message(role="assistant", content="This.")]),),
    )


def _pick(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def _generator(seed: int, ids: Sequence[int], sample: int) -> torch.Generator:
    digest = hashlib.sha256(repr((seed, sample, list(ids))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
