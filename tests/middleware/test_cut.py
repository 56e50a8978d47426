"""Where a reply is cut that a prompt leaves in the middle, beside the obvious search."""

from collections.abc import Callable, Sequence

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.middleware.cut import Decode, whole_tokens

from .driver import ids_of
from .tokenizers_made import byte_fallback, byte_level

HIDDEN = 1


def cut_of(tokens: Sequence[int], text: str, decode: Decode) -> tuple[int, str]:
    return whole_tokens(tokens, text, decode, skips_special_tokens=True)


class CountingDecode:
    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.calls = 0

    def __call__(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        self.calls += 1
        return self.tokenizer.decode(list(ids), skip_special_tokens=skips_special_tokens)


def obvious_cut(tokens: Sequence[int], text: str, decode: Decode) -> tuple[int, str]:
    shown = [decode(tokens[:count], skips_special_tokens=True) for count in range(len(tokens) + 1)]
    count = max(count for count, each in enumerate(shown) if text.startswith(each))
    while count and shown[count - 1] == shown[count]:
        count -= 1
    return count, shown[count]


@pytest.mark.parametrize("made", [byte_level, byte_fallback])
def test_cut_is_the_one_that_trying_every_token_finds(made: Callable[[], tokenizers.Tokenizer]) -> None:
    tokenizer = made()
    decode = CountingDecode(tokenizer)
    characters = st.text(st.sampled_from("ab é你🙂🙃"), min_size=1, max_size=12)
    encoded = characters.map(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    pieces = encoded | st.just([HIDDEN] * 3)
    if made is byte_level:  # one that takes back what it showed makes of bytes that are no text anything
        pieces |= st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=4)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(pieces, min_size=1, max_size=4), st.data())
    def check(parts: list[list[int]], data: st.DataObject) -> None:
        tokens = [each for part in parts for each in part]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        cut = data.draw(st.integers(0, len(text)))
        assert cut_of(tokens, text[:cut], decode) == obvious_cut(tokens, text[:cut], decode)

    check()


@pytest.mark.parametrize("before", ["hello", "hello 🙂"])
def test_thousands_of_tokens_that_show_nothing_cost_few_decodings(before: str) -> None:
    kept = ids_of(before)
    unfinished = ids_of("🙃")[:1]
    decode = CountingDecode(byte_level())
    tokens = [*kept, *[HIDDEN] * 8000, *unfinished, *[HIDDEN] * 8000, *ids_of("world")]
    assert cut_of(tokens, before + "!", decode) == (len(kept), before)
    assert decode.calls < 100


def test_row_of_bytes_is_cut_between_two_characters() -> None:
    tokenizer = byte_fallback()
    faces = tokenizer.encode("a" + "🙂" * 30, add_special_tokens=False).ids
    text = tokenizer.decode(faces)
    assert len(faces) > 4 * 30
    for kept in range(1, 30):
        assert cut_of(faces, text[:-kept], CountingDecode(tokenizer)) == (
            len(faces) - 4 * kept,
            text[:-kept],
        )


def test_tokens_that_never_end_with_a_character_are_given_up_at_bounded_cost() -> None:
    decode = CountingDecode(byte_level())

    def shifted(ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        decode.calls += 1
        return "é" * len(ids) + "\ufffd" if ids else ""

    assert cut_of([5] * 10_000, "é" * 9_000, shifted) == (0, "")
    assert decode.calls < 100
