import json
from pathlib import Path

import jinja2
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from espalier.simulator.make_tokenizer import write
from espalier.simulator.tokenizer import FOLDER, Tokenizer, render_chat

TOKENIZER = Tokenizer()
REFERENCE = HuggingFaceTokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_script_makes_the_shipped_files(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


@given(st.text())
def test_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.integers(0, TOKENIZER.size - 1)), st.booleans())
def test_decoding_equals_the_library_s(ids: list[int], skip: bool) -> None:
    expected = REFERENCE.decode(ids, skip_special_tokens=skip)
    assert TOKENIZER.decode(ids, skip_special_tokens=skip) == expected


def test_special_tokens_are_single_ids() -> None:
    assert TOKENIZER.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert TOKENIZER.end_id == 2


@given(st.integers(0, TOKENIZER.size - 1))
def test_halves_spell_the_token(token_id: int) -> None:
    halves = TOKENIZER.halves(token_id)
    piece = TOKENIZER.pieces[token_id]
    assert (halves is None) == (len(piece) == 1 or token_id in TOKENIZER.special_ids)
    if halves is not None:
        assert TOKENIZER.pieces[halves[0]] + TOKENIZER.pieces[halves[1]] == piece


def test_chat_is_rendered_as_the_shipped_template_does() -> None:
    config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    messages = [("system", "Be brief."), ("user", "What is 1 + 1?")]
    rendered = jinja2.Template(config["chat_template"]).render(
        messages=[{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
    )
    assert render_chat(messages) == rendered


def test_tools_and_their_answers_are_rendered() -> None:
    template = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    said = [("user", "Who?"), ("assistant", "I look."), ("tool", "Mia"), ("tool", "Tom")]
    rendered = jinja2.Template(template).render(
        messages=[{"role": role, "content": content} for role, content in said],
        tools=[{"name": "search"}],
        add_generation_prompt=True,
    )
    system, _, talk = rendered.partition("<|im_start|>user\n")
    assert '<tools>\n{"name": "search"}\n</tools>' in system
    assert talk == (
        "Who?<|im_end|>\n<|im_start|>assistant\nI look.<|im_end|>\n<|im_start|>user\n<tool_response>\nMia\n"
        "</tool_response>\n<tool_response>\nTom\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
