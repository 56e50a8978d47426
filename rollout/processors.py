"""Multimodal processors: what a model's own preprocessing makes of a text and its pictures."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..errors import PluginError
from ..registry import Registry
from .config import RolloutConfig
from .images import Reference, opened

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_TRAIN_INPUTS: Final = ("input_ids", "attention_mask")
"""What a processor returns that a sample has already: its tokens."""

MultimodalProcessor: TypeAlias = Callable[[RolloutConfig, str, "list[Image]"], Mapping[str, Any]]
"""`f(args, text, images)`: a mapping with `input_ids`, and whatever training takes. Runs in a thread."""


def _processor(args: RolloutConfig, text: str, images: list[Any]) -> object: ...


multimodal_processors: Registry[MultimodalProcessor] = Registry("multimodal processor", expects=_processor)
"""What makes the inputs of a model that reads pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """What a processor made of a prompt."""

    input_ids: list[int]
    """with every token that stands for a part of a picture"""

    train_inputs: dict[str, Any] | None
    """all else that it returned, as it returned it"""


async def processed(
    processor: MultimodalProcessor, args: RolloutConfig, text: str, images: Sequence[Reference]
) -> Processed:
    """Return what `processor` makes of a prompt.

    Raises: BadImage, ConfigError as `opened`; PluginError where it returns no `input_ids`; what it raises.
    """
    found: object = await asyncio.to_thread(
        lambda: processor(args, text, [opened(image) for image in images])
    )
    if not isinstance(found, Mapping) or "input_ids" not in found:
        raise PluginError(
            f"the multimodal processor must return a mapping with input_ids, not {type(found).__name__}"
        )
    train_inputs = {key: value for key, value in found.items() if key not in NOT_TRAIN_INPUTS}
    return Processed(input_ids=_token_ids(found["input_ids"]), train_inputs=train_inputs or None)


def _token_ids(found: Any) -> list[int]:
    """Return the ids of the one prompt: from a list, an array or a tensor, of one dimension or a batch."""
    ids: object = found.tolist() if hasattr(found, "tolist") else found
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):
        ids = ids[0]
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise PluginError("the multimodal processor's input_ids are not the token ids of one prompt")
    return ids
