"""Byte-level tokenizers of several kinds and chat templates of several manners, made in code."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<start>", "<end>")

CHATML = """\
{%- for m in messages -%}{{ '<start>' + m.role + '\\n' + m.content + '<end>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>assistant\\n' }}{%- endif -%}
"""
"""No BOS; a line break after the end of a turn."""

STRICT = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}
{%- endif -%}
{{ '<start>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}
{{- '<end>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>model\\n' }}{%- endif -%}
"""
"""Writes BOS, trims, refuses roles that do not alternate."""

DOUBLE_END = CHATML.replace("{%- if add_gen", "{%- if not add_generation_prompt -%}{{ eos_token }}"
                            "{%- endif -%}\n{%- if add_gen")  # fmt: skip
"""EOS after the last turn's own end."""

NO_END = """\
{%- for m in messages -%}{{ '[' + m.role + '] ' + m.content + '\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant] ' }}{%- endif -%}
"""
"""No special token at all."""

THINKING = CHATML.replace("'<start>assistant\\n'", "'<start>assistant\\n[think]\\n'")
"""The prompt opens a thought that the full chat does not have: no prefix."""


def byte_tokenizer(
    *, adds_bos: bool = True, template: str | None = None
) -> PreTrainedTokenizerFast:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
        )
    return _wrapped(tokenizer, template)


def spacing_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2: a space is put before every text, so that texts do not simply join."""
    letters = ["▁", "\n", *(chr(c) for c in range(33, 127))]
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, "<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _wrapped(tokenizer, None)


def _wrapped(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<start>", "<end>"],
    )
    wrapped.chat_template = template
    return wrapped
