"""Where the pictures of a prompt go: parts of its messages, or `<image>` in their texts.

Source: slime's `--multimodal-keys`, a JSON object from a kind of media to the key of a row, and its place
holder. Videos and audio are refused: nothing here encodes them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from ..errors import ConfigError

PLACE: Final = "<image>"
"""Stands in a text for the next picture of the row."""

_IMAGE_PARTS: Final = ("image", "image_url")
_OTHER_MEDIA: Final = re.compile("video|audio")
_EXAMPLE: Final = '{"image": "images"}'

Message: TypeAlias = dict[str, Any]


def image_key_in(multimodal_keys: str | Mapping[str, Any] | None) -> str | None:
    """Return the key of a row's pictures, or None: the settings have a JSON object, slime's what it says.

    Raises: ConfigError where it is no such object, or names other media.
    """
    keys = multimodal_keys
    if keys is None:
        return None
    if isinstance(keys, str):
        try:
            keys = msgspec.json.decode(keys, type=dict[str, str])
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise ConfigError(
                f"--multimodal-keys: expected a JSON object such as {_EXAMPLE}: {error}"
            ) from None
    if set(keys) != {"image"} or not isinstance(keys["image"], str):
        raise ConfigError(
            f"--multimodal-keys: expected {_EXAMPLE}, not {', '.join(map(repr, keys)) or 'nothing'}: "
            "only images can be sent"
        )
    return str(keys["image"])


def placed(messages: Sequence[Message], images: Sequence[object]) -> tuple[list[Message], list[object]]:
    """Return the messages with `{"type": "image"}` in each place for a picture, and the pictures in order.

    An image part may bring its own picture (`image`, `url`, or `image_url` as the chat completions API has
    it); every other place takes the next one of `images`, which are the row's.

    Raises: ValueError where there are more places than pictures, or pictures without a place, or parts of
    other media.
    """
    waiting = iter(images)
    shown: list[object] = []
    changed = [{**message, **_content(message, waiting, shown, images)} for message in messages]
    left = sum(1 for _ in waiting)
    if left:
        raise ValueError(
            f"{left} of its {len(images)} images have no place in the prompt: write {PLACE} where each goes"
        )
    return changed, shown


def _content(
    message: Message, waiting: Iterator[object], shown: list[object], images: Sequence[object]
) -> Message:
    content = message.get("content")
    if isinstance(content, str) and images and PLACE in content:
        parts: list[Message] = []
        for position, text in enumerate(content.split(PLACE)):
            if position:
                shown.append(_next(waiting, len(images)))
                parts.append({"type": "image"})
            if text:
                parts.append({"type": "text", "text": text})
        return {"content": parts}
    if not isinstance(content, list):
        return {}
    return {"content": [_part(part, waiting, shown, len(images)) for part in content]}


def _part(part: object, waiting: Iterator[object], shown: list[object], count: int) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        return part
    if _OTHER_MEDIA.search(kind):
        raise ValueError(f"a message has a part of type {kind!r}: only texts and images can be sent")
    if kind not in _IMAGE_PARTS:
        return part
    own = next((part[key] for key in ("image", "image_url", "url") if part.get(key)), None)
    shown.append(own if own is not None else _next(waiting, count))
    return {"type": "image"}


def _next(waiting: Iterator[object], count: int) -> object:
    for image in waiting:
        return image
    raise ValueError(f"the prompt has places for more images than the {count} that its row has")
