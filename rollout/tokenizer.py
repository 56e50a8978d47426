"""Prompts to token ids, for rollouts that send tokens. Loads the `tokenizers` package when first asked."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PromptTokenizer:
    """A Hugging Face fast tokenizer, read from its `tokenizer.json`."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; a prompt that was formatted for chat names its special tokens itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


@functools.lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> PromptTokenizer:
    """Return the tokenizer in the folder or file `path`; the same one when asked again.

    Raises: ConfigError where there is none, or `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  only token-in rollouts need the package
    except ModuleNotFoundError:
        raise ConfigError("--hf-checkpoint needs the package tokenizers: pip install tokenizers") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"--hf-checkpoint {path}: there is no {file}")
    try:
        return PromptTokenizer(Tokenizer.from_file(str(file)))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"--hf-checkpoint {file}: {error}") from error
