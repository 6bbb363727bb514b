"""Templates: no turn is left out unsaid, no day changes a prompt, no row ends a run."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from palate.data import templates
from palate.data.build import build
from palate.data.encode import Drop, Encoder
from palate.data.items import Item
from palate.data.schema import Preference, Response
from palate.data.templates import (
    CLOCK_DATE,
    NOT_A_PREFIX,
    ChatTemplate,
    Refused,
    freeze_clock,
    without_clock,
)
from palate.errors import DataError, ModelError
from palate.models.loading import load_tokenizer
from palate.recipes.schema import DataRecipe, DataSource, ModelRecipe
from tiny_chat import CHATML, STRICT, byte_tokenizer

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hi?"}
TOOL = {"role": "tool", "content": "42"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}

NO_SYSTEM = """\
{%- for m in messages -%}{%- if m.role in ('user', 'assistant') -%}
{{ '<start>' + m.role + '\\n' + m.content + '<end>\\n' }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>assistant\\n' }}{%- endif -%}
"""
"""No branch for the system or for tools: their turns vanish."""

LAST_QUESTION = """\
{%- for m in messages -%}{%- if loop.index > loop.length - 2 -%}
{{ '<start>' + m.role + '\\n' + m.content + '<end>\\n' }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>assistant\\n' }}{%- endif -%}
"""
"""Shows the last two turns alone."""

STRIPS_THOUGHTS = CHATML.replace("m.content", "m.content.split('</think>')[-1]")

CLOCK = """\
{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined -%}
{%- set date_string = strftime_now("%d %b %Y") -%}{%- else -%}
{%- set date_string = "26 Jul 2024" -%}{%- endif -%}{%- endif -%}
{{ '<start>system\\nToday Date: ' + date_string + '<end>\\n' }}
""" + CHATML.replace("m.content", "strftime_now('%-d.%-m.%y ') + m.content")

ANSWERS_WITH_THOUGHTS = """\
{%- for m in messages -%}{%- if m.role == 'assistant' and loop.last -%}
{%- set parts = m.content.split('</think>') -%}
{%- set thought = parts[0].replace('<think>', '') if parts | length > 1 else '' -%}
{{ '<start>assistant\\n<think>' + thought + '</think>' + parts[-1] + '<end>\\n' }}
{%- else -%}{{ '<start>' + m.role + '\\n' + m.content + '<end>\\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>assistant\\n<think></think>' }}{%- endif -%}
"""
"""Its prompt is a prefix of the chats whose answers hold no thought."""


def encoder(template: str) -> Encoder:
    return Encoder(byte_tokenizer(template=template))


def row(prompt: list[Any], chosen: Any = YES, rejected: Any = NO) -> Preference:
    responses = (Response(content=[chosen]), Response(content=[rejected]))
    return Preference(id="i", source="s", kind="pair", prompt=prompt, responses=responses)


def test_turns_that_a_template_leaves_out_drop_the_row() -> None:
    several = encoder(NO_SYSTEM)
    assert isinstance(several.encode_row(row([USER])), Item)
    for turn, role in ((SYSTEM, "system"), (TOOL, "tool")):
        prompt = [turn, USER] if role == "system" else [USER, YES, turn]
        reason = f"the chat template leaves out a turn of {role}"
        assert several.encode_row(row(prompt)) == Drop(reason)
        with pytest.raises(DataError, match=reason):
            several.encode_prompt(prompt)
    # A blank turn says nothing that could be lost.
    assert isinstance(several.encode_row(row([SYSTEM | {"content": " "}, USER])), Item)


DROPS_STARS = CHATML.replace("for m in messages", "for m in messages if '*' not in m.content")
CUTS = CHATML.replace("m.content", "m.content | truncate(20)")
SHORT_SYSTEM = CHATML.replace(
    "for m in messages", "for m in messages if m.role != 'system' or m.content | length < 25"
)
ESCAPES = CHATML.replace("m.content", "m.content | tojson")


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (DROPS_STARS, USER | {"content": "a * b?"}),
        (DROPS_STARS, TOOL | {"content": "**"}),
        (CUTS, USER | {"content": "Is the moon a star or is it not?"}),
        (SHORT_SYSTEM, SYSTEM | {"content": "Be kind, and be brief, and be right."}),
    ],
)
def test_turns_left_out_for_what_they_say(template: str, turn: Any) -> None:
    chat = ChatTemplate(byte_tokenizer(template=template), "model")
    with pytest.raises(Refused, match=f"leaves out a turn of {turn['role']}, or its end"):
        chat.whole([turn, USER, YES])
    assert "Hi?" in chat.whole([turn | {"content": "Go on."}, USER, YES])
    # What is only written otherwise is no turn left out.
    escaped = ChatTemplate(byte_tokenizer(template=ESCAPES), "model")
    assert "Say \\nso" in escaped.whole([USER | {"content": 'Say \nso "now"'}])


def test_a_template_of_chance_ends_the_run() -> None:
    chance = "{{ ['a', 'b'] | random }}" + CHATML
    for _ in range(5):
        with pytest.raises(ModelError, match=r"differently each time|no prefix"):
            ChatTemplate(byte_tokenizer(template=chance), "model").check()


def test_turns_are_looked_for_at_each_place() -> None:
    late = encoder(LAST_QUESTION)
    assert isinstance(late.encode_row(row([USER])), Item)
    long = late.encode_row(row([USER, YES, USER]))
    assert long == Drop("the chat template leaves out a turn of user")


def test_thoughts_that_a_template_takes_out_are_no_turn() -> None:
    thought = YES | {"content": "<think>Hm.</think>Yes."}
    item = encoder(STRIPS_THOUGHTS).encode_row(row([SYSTEM, USER, thought, USER]))
    assert isinstance(item, Item)


def test_a_template_that_looks_into_texts_is_not_held_against() -> None:
    template = CHATML.replace(
        "m.content",
        "(m.content if m.role != 'tool' or '4' in m.content else raise_exception('no number'))",
    )
    assert isinstance(encoder(template).encode_row(row([USER, YES, TOOL])), Item)


def test_no_extra_rendering_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    several = encoder(CHATML)
    several.encode([row([SYSTEM, USER])])
    calls = []
    apply = ChatTemplate._apply
    monkeypatch.setattr(ChatTemplate, "_apply", lambda *a, **k: calls.append(1) or apply(*a, **k))
    several.encode([row([SYSTEM, USER])] * 10)
    assert len(calls) == 30  # a prompt and two chats each


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what day it is for transformers."""

    def set_day(*date: int) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Clock:
                return cls(*date, 12, 30)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_day


def live(tokenizer: Any, turns: list[Any]) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def test_prompts_are_the_same_on_every_day(day: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(template=CLOCK)
    file = tmp_path / "clock.jinja"
    file.write_text(CLOCK, encoding="utf-8")
    day(2031, 2, 3)
    assert "03 Feb 2031" in live(tokenizer, [USER])  # the clock runs
    first = Encoder(tokenizer).encode_row(row([USER]))
    assert isinstance(first, Item)
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(first.prompts[0].ids)
    assert "26.7.24 Hi?" in tokenizer.decode(first.prompts[0].ids)
    day(2032, 4, 5)
    for setting in ("model", file):
        again = Encoder(tokenizer, setting)
        assert again.encode_row(row([USER])) == first
        assert again.template.date == CLOCK_DATE.isoformat() == "2024-07-26"


def test_what_is_saved_tells_the_day_of_training(day: Any) -> None:
    tokenizer = byte_tokenizer(template=CLOCK)
    item = Encoder(tokenizer).encode_row(row([USER]))
    assert isinstance(item, Item)
    saved = byte_tokenizer(template=Encoder(tokenizer).saved_template)
    day(2033, 6, 7)
    shown = live(saved, [USER, YES])
    text = tokenizer.decode([*item.prompts[0].ids, *item.responses[0].ids])
    assert shown.startswith(text) and shown.count("<bos>") == 1
    # Read again, it stays what it is.
    assert Encoder(saved).template_sha256 == Encoder(tokenizer).template_sha256
    own = byte_tokenizer(template=CLOCK)
    freeze_clock(own)
    assert live(own, [USER, YES]) == shown


def test_tokenizers_are_loaded_with_their_clock_stopped(tmp_path: Path, day: Any) -> None:
    byte_tokenizer(template=CLOCK).save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelRecipe(path=str(tmp_path)))
    day(2034, 8, 9)
    assert "Today Date: 26 Jul 2024" in live(loaded, [USER])


def test_chats_are_rendered_in_one_place() -> None:
    source = Path(templates.__file__).parents[1]
    files = [f for f in source.rglob("*.py") if "apply_chat_template(" in f.read_text("utf-8")]
    assert files == [Path(templates.__file__)]


def test_every_directive_of_the_clock() -> None:
    midnight = datetime.datetime.combine(CLOCK_DATE, datetime.time())
    for directive in (*"aAbBcdDeFGgHhIjmMprRSTuUVwWxXyYZz%", "-d", "-m", "-H", "-I"):
        text = f"on %{directive}, 100%%"
        template = "{{ strftime_now('" + text + "') }}{{ messages[0].content }}"
        shown = ChatTemplate(byte_tokenizer(template=template), "model").whole([USER])
        assert shown == midnight.strftime(text) + "Hi?"


def test_templates_without_a_clock_are_untouched() -> None:
    assert without_clock(CHATML) == CHATML
    assert Encoder(byte_tokenizer(template=CHATML)).template.date is None
    tokenizer = byte_tokenizer(template=CHATML)
    freeze_clock(tokenizer)
    assert tokenizer.chat_template == CHATML
    freeze_clock(byte_tokenizer())


def test_one_row_whose_prompt_is_no_prefix_is_counted(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "<think>Hm.</think>Yes."}
    chats = [{"prompt": [USER], "chosen": [YES], "rejected": [NO]} for _ in range(4)]
    chats[2] = chats[2] | {"chosen": [thought]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    recipe = DataRecipe(train=(DataSource(path=str(file)),))
    data = build(recipe, encoder(ANSWERS_WITH_THOUGHTS), kind="pair", seed=0)
    assert len(data.train) == 3
    assert data.report["sources"][0]["dropped"] == {NOT_A_PREFIX: 1}
    (line,) = data.quarantine
    assert (line["row"], line["reason"]) == (3, NOT_A_PREFIX)


@pytest.mark.parametrize(
    "fault",
    ["{{ 1 / 0 }}", "{{ m.content.index('z') }}", "{{ 'a' * m.content }}", "{{ m.a.b.c }}"],
)
def test_whatever_a_template_raises_for_one_row_drops_it(fault: str) -> None:
    template = CHATML.replace(
        "{{ '<start>'", "{%- if 'fault' in m.content -%}" + fault + "{%- endif -%}{{ '<start>'"
    )
    several = encoder(template)
    bad = several.encode_row(row([USER | {"content": "a fault"}]))
    assert isinstance(bad, Drop) and bad.reason.startswith("the chat template refuses it: ")
    assert isinstance(several.encode_row(row([USER])), Item)


def test_one_bad_answer_of_a_ranked_list_costs_itself() -> None:
    texts = ("Yes.", "<think>Hm.</think>Yes.", "No.", "Well.<end>")
    responses = tuple(
        Response(content=[{"role": "assistant", "content": text}], rank=i + 1)
        for i, text in enumerate(texts)
    )
    ranked = Preference(id="i", source="s", kind="rated", prompt=[USER], responses=responses)
    (made,) = encoder(ANSWERS_WITH_THOUGHTS).encode([ranked])
    assert isinstance(made.item, Item)
    assert len(made.item.responses) == 2
    assert made.left_out == (NOT_A_PREFIX, "text holds the special token <end>")


def test_a_template_that_fails_for_every_chat_ends_the_run() -> None:
    with pytest.raises(ModelError, match="roles must alternate"):
        encoder(STRICT.replace("!= (loop", "== (loop")).encode_row(row([USER]))
    with pytest.raises(ModelError, match="leaves out a turn of user"):
        encoder("{{ messages[-1].content }}").encode_row(row([USER]))
    with pytest.raises(Refused):
        ChatTemplate(byte_tokenizer(template=NO_SYSTEM), "model").whole([SYSTEM, USER])
