from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from espalier.errors import ConfigError
from espalier.rollout.chat_template import ChatTemplate, TemplateRefused, load_chat_template
from espalier.rollout.tokenizer import load_tokenizer
from espalier.simulator import worker

SIMULATED = Path(worker.__file__).parent
HELLO = [{"role": "user", "content": "hello"}]


def render(source: str, **variables: object) -> str:
    template = ChatTemplate(
        {"default": source}, {"eos_token": "</s>"}, now=lambda: datetime(2030, 5, 1, tzinfo=UTC)
    )
    return template.render(HELLO, **variables)  # type: ignore[arg-type]  # the template's own variables


def test_messages_become_the_text_that_the_checkpoint_reads() -> None:
    template = load_chat_template(SIMULATED)
    text = "<|im_start|>user\nhello<|im_end|>\n"
    assert template.render(HELLO) == text
    assert template.render(HELLO, add_generation_prompt=True) == f"{text}<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].content }}{{ eos_token }}", "hello</s>"),
        ("{% if tools %}T{% endif %}{{ add_generation_prompt }}", "False"),
        ("{{ {'ä': '<'} | tojson }}", '{"ä": "<"}'),
        ("{{ strftime_now('%d %B %Y') }}", "01 May 2030"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}!", "user!"),
        ("{%- if enable_thinking is defined %}\n    T{% endif %}\n", "    T"),
    ],
)
def test_a_template_may_use_what_hugging_face_gives_it(source: str, expected: str) -> None:
    assert render(source, enable_thinking=True) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "access to attribute .append. of .list. object is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for x in range(999999999) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_fails_or_oversteps_is_told_and_reaches_nothing(source: str, message: str) -> None:
    with pytest.raises(TemplateRefused, match=message):
        render(source)


def checkpoint(folder: Path, **config: object) -> Path:
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(config))
    return folder


def test_a_file_of_its_own_goes_before_the_configuration(tmp_path: Path) -> None:
    checkpoint(tmp_path, chat_template="old", bos_token={"content": "<s>", "lstrip": False})
    assert load_chat_template(tmp_path).render(HELLO) == "old"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}new")
    assert load_chat_template(tmp_path).render(HELLO) == "<s>new"


def test_a_template_for_tools_is_used_where_there_are_tools(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ]
    template = load_chat_template(checkpoint(tmp_path, chat_template=named))
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, [{"name": "search"}]) == "1"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no chat template"),
        ({"chat_template": "{% if %}"}, "cannot be compiled"),
        ({"chat_template": 5}, "Expected `str"),
        (
            {"chat_template": [{"name": "tool_use", "template": ""}]},
            "no chat template 'default', only tool_use",
        ),
    ],
)
def test_a_checkpoint_without_a_usable_template_is_told(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_chat_template(checkpoint(tmp_path, **config))
    assert "--hf-checkpoint" in str(caught.value)


def test_a_tokenizer_answers_as_transformers_do() -> None:
    tokenizer = load_tokenizer(SIMULATED)
    text = tokenizer.apply_chat_template(HELLO, tokenize=False)
    assert isinstance(text, str)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert found["input_ids"] == tokenizer.apply_chat_template(HELLO) == tokenizer.encode(text)
    assert "".join(text[start:end] for start, end in found["offset_mapping"]) == text
    assert tokenizer.get_added_vocab()["<|im_end|>"] in found["input_ids"]
    assert tokenizer.count_tokens([text, ""]) == [len(found["input_ids"]), 0]
