"""Texts and messages to token ids. Loads the `tokenizers` package when first asked."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError
from .chat_template import ChatTemplate, Messages, Tools, load_chat_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_TEXTS: Final = 1024
"""Texts tokenized at a time: enough for every core, and not a whole dataset's encodings in memory."""


class PromptTokenizer:
    """A Hugging Face fast tokenizer, read from its `tokenizer.json`, with its checkpoint's chat template.

    The methods that functions written for slime use have the names and defaults that they have in
    `transformers`.
    """

    def __init__(self, tokenizer: "Tokenizer", folder: Path | None = None) -> None:
        """Wrap `tokenizer`; its chat template is read from `folder` when it is first needed."""
        self._tokenizer = tokenizer
        self._folder = folder

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template.

        Raises: ConfigError where it has none.
        """
        if self._folder is None:
            raise ConfigError(
                "--hf-checkpoint: give the folder of the tokenizer, which has its chat template"
            )
        return load_chat_template(self._folder)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; a prompt that was formatted for chat names its special tokens itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, special tokens not added."""
        return [
            len(found)
            for start in range(0, len(texts), _BATCH_TEXTS)
            for found in self._tokenizer.encode_batch_fast(
                texts[start : start + _BATCH_TEXTS], add_special_tokens=False
            )
        ]

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **variables: object,
    ) -> str | list[int]:
        """Return the ids of the messages or, without `tokenize`, their text.

        Raises: ConfigError without a chat template; TemplateRefused where it does not render them.
        """
        text = self.template.render(messages, tools, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text) if tokenize else text

    def get_added_vocab(self) -> dict[str, int]:
        """Return the tokens that are no part of the base vocabulary, special ones included."""
        return {token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items()}

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """Return `input_ids` and, if asked, `offset_mapping`: each token's start and end in `text`."""
        found = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        offsets = {"offset_mapping": list(found.offsets)} if return_offsets_mapping else {}
        return {"input_ids": list(found.ids), **offsets}


@functools.lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> PromptTokenizer:
    """Return the tokenizer in the folder or file `path`; the same one when asked again.

    Raises: ConfigError where there is none, or `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  only token-in rollouts need the package
    except ModuleNotFoundError:
        raise ConfigError("--hf-checkpoint needs tokenizers: pip install 'espalier[data]'") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"--hf-checkpoint {path}: there is no {file}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"--hf-checkpoint {file}: {error}") from error
    return PromptTokenizer(tokenizer, file.parent)
