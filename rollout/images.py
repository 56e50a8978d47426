"""One picture: what a dataset may give for it, and what a worker is sent.

A picture is kept as a reference, one text: a URL, the absolute path of a file, or a data URI. Files are read
when they are sent, so that a dataset of pictures is not held in memory; a URL is left to the worker, which
fetches it itself. Nothing here needs Pillow, except to open pictures for a processor.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError
from .problems import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES: Final = "images"
"""Where a sample's `multimodal_inputs` has its pictures, as in slime."""

MAX_IMAGE_BYTES: Final = 64 << 20
"""Largest picture that is read: more is a mistake, and would be held in memory once for each call."""

_HEAD_BYTES: Final = 16
"""Enough of a file to tell its kind."""

_MAX_PATH_CHARS: Final = 4096
"""No file has a longer path: a longer text is base64."""

_SHOWN_CHARS: Final = 80
_KINDS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
"""How files of each kind begin."""


@runtime_checkable
class Picture(Protocol):
    """A picture of Pillow's, as far as it is needed here."""

    def save(self, file: io.BytesIO, /, *, format: str) -> None:  # noqa: A002  Pillow's name
        """Write the picture."""
        ...


Reference: TypeAlias = str | Picture
"""A URL, an absolute path or a data URI; a plug-in may also put Pillow's pictures in their place."""


def reference_to(value: object, folder: Path) -> str:
    """Return the reference to a picture that a dataset gives as `value`.

    It may be a path (relative ones begin at `folder`), an http or file URL, a data URI, bare base64, the
    file's bytes, a picture of Pillow's, or an object with one of them as `bytes`, `path` or `url`, as
    Hugging Face datasets and chat messages have them.

    Raises: BadImage where there is no such file, or it is none of a picture or too large.
    """
    if isinstance(value, Mapping):
        found = next((value[key] for key in ("bytes", "path", "url") if value.get(key)), None)
        if found is None:
            raise BadImage(f"an image must have 'bytes', 'path' or 'url', not {', '.join(map(str, value))}")
        value = found
    if isinstance(value, bytes):
        return _data_uri(value, "the image's bytes")
    if isinstance(value, Picture):
        return _png(value)
    if not isinstance(value, str) or not value:
        raise BadImage(f"an image must be a path, a URL, base64 or bytes, not {type(value).__name__}")
    if value.startswith(("http://", "https://")):
        return value
    if value.startswith("data:"):
        return _data_uri(_decoded(value.partition(",")[2], "the data URI"), "the data URI")
    path = _file(value, folder)
    if path is not None:
        with path.open("rb") as file:
            _kind(file.read(_HEAD_BYTES), str(path))
        _check_size(path.stat().st_size, str(path))
        return str(path)
    return _from_base64(value, folder)


def image_data(reference: Reference) -> str:
    """Return what stands for the picture in `image_data` of a call: a URL, or a data URI with all of it.

    Raises: BadImage where its file is gone, or is no picture any more.
    """
    if isinstance(reference, Picture):
        return _png(reference)
    if _is_remote(reference) or reference.startswith("data:"):
        return reference
    return _data_uri(_content(reference), reference)


def opened(reference: Reference) -> "Image":
    """Return the picture as Pillow has it, for a processor.

    Raises: BadImage for a URL, which only workers fetch, and for what Pillow cannot read; ConfigError where
    Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: PLC0415  only processors need the package
    except ModuleNotFoundError:
        raise ConfigError("a multimodal processor needs Pillow: pip install 'espalier[images]'") from None
    if isinstance(reference, PIL.Image.Image):
        return reference
    if isinstance(reference, Picture):
        content = _decoded(_png(reference).partition(",")[2], "the image")
    elif _is_remote(reference):
        raise BadImage(f"a processor needs the image itself: give a file or base64 for {_shown(reference)}")
    elif reference.startswith("data:"):
        content = _decoded(reference.partition(",")[2], "the data URI")
    else:
        content = _content(reference)
    try:
        picture = PIL.Image.open(io.BytesIO(content))
        picture.load()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise BadImage(f"{_shown(label(reference))} cannot be read: {error}") from None
    return picture


def label(reference: Reference) -> str:
    """Return a short name for the picture: its path or URL, else `blake2b:` and a digest of its bytes."""
    if isinstance(reference, str) and not reference.startswith("data:"):
        return reference
    content = base64.b64decode(image_data(reference).partition(",")[2])
    return f"blake2b:{blake2b(content, digest_size=16).hexdigest()}"


def _is_remote(reference: str) -> bool:
    return reference.startswith(("http://", "https://"))


def _file(value: str, folder: Path) -> Path | None:
    """Return the absolute path of the file that `value` names, if there is one."""
    text = unquote(urlsplit(value).path) if value.startswith("file://") else value
    if len(text) > _MAX_PATH_CHARS:
        return None
    try:
        path = (folder / text).absolute()
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return None


def _from_base64(value: str, folder: Path) -> str:
    problem = (
        f"there is no file {_shown(value)} (relative paths begin at {folder.absolute()}), nor is it base64"
    )
    if value.startswith("file://"):
        raise BadImage(f"there is no file {_shown(value)}")
    try:
        content = _decoded(value, "the base64")
        _kind(content[:_HEAD_BYTES], "the base64")
    except BadImage:
        raise BadImage(f"{problem} of an image") from None
    return _data_uri(content, "the base64")


def _decoded(text: str, where: str) -> bytes:
    _check_size(len(text) * 3 // 4, where)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(f"{where} cannot be decoded: {error}") from None


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror or error}") from None
    _kind(content[:_HEAD_BYTES], path)
    _check_size(len(content), path)
    return content


def _data_uri(content: bytes, where: str) -> str:
    kind = _kind(content[:_HEAD_BYTES], where)
    _check_size(len(content), where)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png(picture: Picture) -> str:
    file = io.BytesIO()
    try:
        picture.save(file, format="PNG")
    except (OSError, ValueError) as error:
        raise BadImage(f"the picture cannot be written as PNG: {error}") from None
    return _data_uri(file.getvalue(), "the picture")


def _kind(head: bytes, where: str) -> str:
    """Return the media type of what begins with `head`."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    for beginning, kind in _KINDS:
        if head.startswith(beginning):
            return kind
    raise BadImage(f"{where} is no PNG, JPEG, GIF, WebP, BMP or TIFF image")


def _check_size(size_bytes: int, where: str) -> None:
    if size_bytes > MAX_IMAGE_BYTES:
        raise BadImage(
            f"{where} has {size_bytes} bytes; an image may have {MAX_IMAGE_BYTES}: make it smaller"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")
