"""Images of a call: a prompt has a token for each, which the worker replaces by as many as its model reads.

What the simulated model sees of an image is a number that differs from image to image. Its vocabulary has no
token for images: the padding token stands in.
"""

import base64
import binascii
from collections.abc import Sequence
from hashlib import blake2b

from .params import ValueProblem

IMAGE_ID = 0
"""`<|endoftext|>`."""

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")


def images_of(given: object, size: int, *, is_batch: bool) -> list[tuple[str, ...]]:
    """Return the images of each of `size` prompts, as `image_data` gives them: one, or a list.

    Raises: ValueProblem where it has another form.
    """
    if given is None:
        return [()] * size
    if not is_batch or not isinstance(given, list):
        return [_texts(given)] * size
    if len(given) != size:
        raise ValueProblem("The length of image_data should be equal to the batch size.")
    return [_texts(each) for each in given]


def with_image_tokens(ids: Sequence[int], images: int, tokens_per_image: int) -> list[int]:
    """Return the prompt as the model reads it.

    Raises: ValueProblem where it has not one token for each image.
    """
    places = sum(token_id == IMAGE_ID for token_id in ids)
    if places != images:
        raise ValueProblem(
            f"prompt has {places} image placeholder token(s) but {images} image(s) were provided"
        )
    read: list[int] = []
    for token_id in ids:
        read += [token_id] * (tokens_per_image if token_id == IMAGE_ID else 1)
    return read


def look_of(images: Sequence[str]) -> int:
    """Return what the model sees of the images; 0 without any. URLs are not fetched.

    Raises: ValueProblem where one is no image.
    """
    if not images:
        return 0
    digest = blake2b(digest_size=8)
    for image in images:
        digest.update(image.encode() if image.startswith(("http://", "https://")) else _content(image))
    return int.from_bytes(digest.digest(), "big")


def _content(image: str) -> bytes:
    encoded = image.partition(",")[2] if image.startswith("data:") else image
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueProblem(f"Error while loading image data: {error}") from None
    if not content.startswith(_BEGINNINGS):
        raise ValueProblem("Error while loading image data: cannot identify image file")
    return content


def _texts(given: object) -> tuple[str, ...]:
    images = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(image, str) for image in images):
        raise ValueProblem(f"Invalid image: {given!r:.100}")
    return tuple(images)
