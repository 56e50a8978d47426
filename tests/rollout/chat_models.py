"""Small tokenizers with chat templates in the style of four families of models, made on the spot."""

import json
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from espalier.rollout.tokenizer import PromptTokenizer

BEGIN: Final = "<｜begin▁of▁sentence｜>"
END: Final = "<｜end▁of▁sentence｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"

_MACROS = """\
{%- macro turn(role, text) %}{{ '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}{% endmacro %}
{%- macro text_of(m) %}{% if m.content is string %}{{ m.content }}{% else %}\
{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}
"""

_TURNS = """\
{%- if tools %}{{ turn('system', 'tools: ' + tools | tojson) }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if loop.previtem is undefined or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<result>' + text_of(m) + '</result>' }}
{%- if loop.nextitem is undefined or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif m.role == 'assistant' %}{{ assistant(m, loop.index0) }}
{%- else %}{{ turn(m.role, text_of(m)) }}{% endif %}
{%- endfor %}
"""

_PLAIN = """\
{%- macro assistant(m, index) %}{{ turn('assistant', text_of(m)) }}{% endmacro %}
{%- if messages[0].role != 'system' %}{{ turn('system', 'be helpful') }}{% endif %}
"""
"""A system message where there is none."""

_THINKING = """\
{%- set last = namespace(query=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.query = loop.index0 %}{% endif %}{% endfor %}
{%- macro assistant(m, index) %}
{%- if index > last.query %}
{{- turn('assistant', '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + text_of(m)) }}
{%- else %}{{ turn('assistant', text_of(m)) }}{% endif %}{% endmacro %}
"""
"""Reasoning, but only in the turns after the last query."""

_PROMPT = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_THINKING_PROMPT = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"

_DISTILLED = f"""\
{{{{- '{BEGIN}' }}}}
{{%- for m in messages %}}
{{%- if m.role == 'user' %}}{{{{ '{USER}' + m.content }}}}
{{%- elif m.role == 'assistant' %}}{{{{ '{ASSISTANT}' + m.content.split('</think>')[-1] + '{END}' }}}}
{{%- else %}}{{{{ m.content }}}}{{% endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ '{ASSISTANT}<think>\\n' }}}}{{% endif %}}"""

TEMPLATES: Final = {
    "qwen": _MACROS + _PLAIN + _TURNS + _PROMPT,
    "qwen3": _MACROS + _THINKING + _TURNS + _PROMPT,
    "qwen3_5": _MACROS + _THINKING + _TURNS + _THINKING_PROMPT,
    "distill_qwen": _DISTILLED,
}


def chat_tokenizer(folder: Path, family: str) -> PromptTokenizer:
    """Return a byte-level tokenizer with the template of `family`; its files are in `folder`."""
    special = [BEGIN, END, USER, ASSISTANT] if family == "distill_qwen" else ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["system user assistant\n\n think result four is the answer\n\n"] * 9, trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATES[family], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return PromptTokenizer(tokenizer, folder)
