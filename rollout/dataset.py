"""A dataset's rows as problems: what a rollout asks, and what its rewards compare with."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import ConfigError, DataError
from .chat_template import ChatTemplate, TemplateRefused
from .config import RolloutConfig
from .image_places import image_key_in, placed
from .images import reference_to
from .problems import BadImage
from .rows import Row, dataset_folder, read_rows
from .source_state import DatasetMark
from .tokenizer import PromptTokenizer, load_tokenizer
from .tools import load_tools

TOOLS_IN_METADATA: Final = "tools"
"""Where a sample's metadata has the tools of its row, as in slime."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a dataset."""

    where: str
    """the row's file and number, from 1, as messages name them"""

    prompt: str | list[dict[str, Any]]
    """a text, or the messages of a conversation where nothing makes a text of them"""

    label: Any
    metadata: dict[str, Any]

    images: list[str] = field(default_factory=list)
    """references to its pictures, in the order in which the prompt shows them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """Which keys of a row hold what, and what becomes of its prompt."""

    input_key: str = "prompt"
    label_key: str = "label"
    metadata_key: str = "metadata"
    tool_key: str = "tools"
    template: ChatTemplate | None = None
    """makes a text of messages; a text is then one message of the user"""

    template_variables: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    """told to the template where a row has none of its own"""

    takes_messages: bool = False
    """prompts may stay messages: there is a plug-in to read them"""

    image_key: str | None = None
    folder: Path = Path()
    """where relative paths of images begin"""


def load_problems(args: RolloutConfig) -> list[Problem]:
    """Read the dataset that the settings name, as they say.

    Raises: DataError naming file, row and reason; ConfigError where a tokenizer, a chat template or a package
    is missing.
    """
    tokenizer = load_tokenizer(Path(args.hf_checkpoint)) if args.hf_checkpoint is not None else None
    row_format = RowFormat(
        input_key=args.input_key,
        label_key=args.label_key,
        metadata_key=args.metadata_key,
        tool_key=args.tool_key,
        template=_needed(tokenizer, "--apply-chat-template").template if args.apply_chat_template else None,
        template_variables=template_variables(args.apply_chat_template_kwargs),
        tools=tuple(tool.spec for tool in load_tools(getattr(args, "tools", ()))),  # slime's have none
        takes_messages=bool(args.custom_generate_function_path or args.rollout_function_path),
        image_key=image_key_in(args.multimodal_keys),
        folder=dataset_folder(args.prompt_data),
    )
    problems = [problem_of(row, row_format) for row in read_rows(args.prompt_data)]
    if not row_format.takes_messages and any(problem.images for problem in problems):
        _needed(tokenizer, "a dataset with images")
    if args.rollout_max_prompt_len is None:
        return problems
    short = filter_long_prompt(
        problems, _needed(tokenizer, "--rollout-max-prompt-len"), args.rollout_max_prompt_len
    )
    if not short:
        raise DataError(
            f"{args.prompt_data}: every prompt has more than --rollout-max-prompt-len "
            f"{args.rollout_max_prompt_len} tokens"
        )
    return short


def problem_of(row: Row, row_format: RowFormat) -> Problem:
    """Return the problem in `row`.

    Raises: DataError naming the row and the reason.
    """
    values = row.values
    key = row_format.input_key
    if key not in values:
        raise DataError(f"{row.where}: no key {key!r}, only {', '.join(map(repr, values)) or 'none'}")
    metadata = values.get(row_format.metadata_key) or {}
    if not isinstance(metadata, dict):
        raise DataError(f"{row.where}: {row_format.metadata_key!r} must be a JSON object")
    tools = _tools(row, row_format)
    if tools:
        metadata = {**metadata, TOOLS_IN_METADATA: tools}
    prompt, images = _prompt(row, row_format, tools)
    return Problem(
        row.where,
        prompt,
        values.get(row_format.label_key),
        metadata,
        [_reference(row, row_format, image) for image in images],
    )


def filter_long_prompt(
    problems: Sequence[Problem], tokenizer: PromptTokenizer, max_tokens: int
) -> list[Problem]:
    """Return the problems whose prompts have at most `max_tokens` tokens; how many have more is logged.

    Of images only their places count: what a worker makes of them is the worker's to know.

    Raises: DataError where a prompt is no text, whose tokens could be counted.
    """
    texts: list[str] = []
    for problem in problems:
        if not isinstance(problem.prompt, str):
            raise DataError(
                f"{problem.where}: messages have no length in tokens: give --apply-chat-template too"
            )
        texts.append(problem.prompt)
    lengths = tokenizer.count_tokens(texts)
    short = [each for each, length in zip(problems, lengths, strict=True) if length <= max_tokens]
    if len(short) < len(problems):
        _log.warning(
            "event=long_prompts_dropped dropped=%d kept=%d max_tokens=%d longest_tokens=%d",
            len(problems) - len(short),
            len(short),
            max_tokens,
            max(lengths),
        )
    return short


def mark_of(problems: Sequence[Problem]) -> DatasetMark:
    """Return what tells the dataset from others: its prompts, in order."""
    digest = blake2b(digest_size=16)
    for problem in problems:
        digest.update(msgspec.json.encode(problem.prompt) + b"\n")
    return DatasetMark(prompts=len(problems), digest=digest.hexdigest())


def _prompt(
    row: Row, row_format: RowFormat, tools: list[dict[str, Any]]
) -> tuple[str | list[dict[str, Any]], list[object]]:
    """Return the prompt and its images, as the row gives them, in the order in which it shows them."""
    images = _images(row, row_format)
    key, prompt = row_format.input_key, row.values[row_format.input_key]
    messages = _messages(row, key, prompt) if isinstance(prompt, list) else None
    if messages is None and (not isinstance(prompt, str) or not prompt):
        raise DataError(f"{row.where}: {key!r} must be a text that is not empty, or a list of messages")
    if row_format.template is not None:
        if messages is None:
            messages = [{"role": "user", "content": prompt}]
        messages, images = _placed(row, messages, images)
        try:
            text = row_format.template.render(
                messages,
                tools or row_format.tools,
                add_generation_prompt=True,
                **row_format.template_variables,
            )
        except TemplateRefused as error:
            raise DataError(f"{row.where}: {error}") from error
        return text, images
    if messages is None:
        return str(prompt), images
    if not row_format.takes_messages:
        raise DataError(
            f"{row.where}: {key!r} must be a text; --apply-chat-template makes one of a list of messages"
        )
    return _placed(row, messages, images)


def _images(row: Row, row_format: RowFormat) -> list[object]:
    """Return what stands under the key of the images: one, a list of them, or none."""
    found = row.values.get(row_format.image_key) if row_format.image_key is not None else None
    if not found:
        return []
    return list(found) if isinstance(found, list) else [found]


def _placed(
    row: Row, messages: list[dict[str, Any]], images: list[object]
) -> tuple[list[dict[str, Any]], list[object]]:
    try:
        return placed(messages, images)
    except ValueError as error:
        raise DataError(f"{row.where}: {error}") from None


def _reference(row: Row, row_format: RowFormat, image: object) -> str:
    try:
        return reference_to(image, row_format.folder)
    except (BadImage, OSError) as error:
        raise DataError(f"{row.where}: {error}") from None


def _messages(row: Row, key: str, prompt: list[Any]) -> list[dict[str, Any]]:
    is_valid = all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in prompt)
    if not prompt or not is_valid:
        raise DataError(f"{row.where}: {key!r} must be a text, or messages that each have a role")
    return prompt


def _tools(row: Row, row_format: RowFormat) -> list[dict[str, Any]]:
    """Return the row's tools: a list, or a text that is one in JSON, as Parquet files have them."""
    found = row.values.get(row_format.tool_key)
    if not found:
        return []
    if isinstance(found, str):
        try:
            found = msgspec.json.decode(found)
        except (msgspec.DecodeError, UnicodeEncodeError):
            found = None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(f"{row.where}: {row_format.tool_key!r} must be a list of tools, or one as JSON text")
    return found


def _needed(tokenizer: PromptTokenizer | None, flag: str) -> PromptTokenizer:
    if tokenizer is None:
        raise ConfigError(f"{flag} needs --hf-checkpoint, which has the tokenizer")
    return tokenizer


def template_variables(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the chat template's variables: settings have them as JSON, slime's settings as what that says.

    Raises: ConfigError where they are no JSON object.
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    try:
        return msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        example = '{"enable_thinking": false}'
        raise ConfigError(
            f"--apply-chat-template-kwargs: expected a JSON object such as {example}: {error}"
        ) from None
