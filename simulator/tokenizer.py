"""The simulated model's tokenizer, with what sampling needs: bytes and smaller spelling of each token."""

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer

FOLDER = Path(__file__).parent
"""Where tokenizer.json and tokenizer_config.json lie; /model_info tells it as the tokenizer's path."""

END_OF_TURN = "<|im_end|>"


class Tokenizer:
    """Text to token ids and back. `size` ids, from 0."""

    def __init__(self, folder: Path = FOLDER) -> None:
        path = folder / "tokenizer.json"
        self._tokenizer = HuggingFaceTokenizer.from_file(str(path))
        self.size = self._tokenizer.get_vocab_size()
        model = json.loads(path.read_text(encoding="utf-8"))
        self.special_ids = frozenset(int(token["id"]) for token in model["added_tokens"])
        self.end_id = int(model["model"]["vocab"][END_OF_TURN])
        self.pieces = _pieces(model["model"]["vocab"], self.special_ids)
        self.visible_pieces = tuple(
            b"" if token_id in self.special_ids else piece for token_id, piece in enumerate(self.pieces)
        )
        self._halves = _halves(model["model"]["vocab"], model["model"]["merges"])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens that are spelled out become their ids."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Raises: IndexError where an id is outside the vocabulary.
        """
        pieces = self.visible_pieces if skip_special_tokens else self.pieces
        return b"".join([pieces[token_id] for token_id in ids]).decode("utf-8", errors="replace")

    def halves(self, token_id: int) -> tuple[int, int] | None:
        """Return the two smaller tokens that spell `token_id`, or None for a byte or a special token."""
        return self._halves.get(token_id)


def whole_characters(data: bytes) -> str:
    """Return the text of `data` without a character that is not complete yet at its end."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def render_chat(messages: Sequence[tuple[str, str]]) -> str:
    """Return the prompt of a conversation of (role, content), as the chat template in the config does."""
    turns = [f"<|im_start|>{role}\n{content}{END_OF_TURN}\n" for role, content in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _pieces(vocabulary: dict[str, int], special_ids: frozenset[int]) -> tuple[bytes, ...]:
    bytes_of = {character: byte for byte, character in enumerate(_byte_alphabet())}
    pieces = [b""] * len(vocabulary)
    for token, token_id in vocabulary.items():
        if token_id in special_ids:
            pieces[token_id] = token.encode()
        else:
            pieces[token_id] = bytes(bytes_of[character] for character in token)
    return tuple(pieces)


def _byte_alphabet() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary.

    Source: GPT-2's encoding. Printable bytes stand for themselves, the others for U+0100 and on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def _halves(vocabulary: dict[str, int], merges: Sequence[Sequence[str]]) -> dict[int, tuple[int, int]]:
    return {vocabulary[left + right]: (vocabulary[left], vocabulary[right]) for left, right in merges}
