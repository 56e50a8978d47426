"""JSON bodies, read as FastAPI reads them: what does not fit is a `FormError`."""

from typing import Any

import msgspec

from .asgi import Request
from .requests import FormError

_decode = msgspec.json.Decoder().decode


async def read_body(request: Request) -> Any:
    """Return the JSON value of the body. Raises: FormError."""
    raw = await request.body()
    if not raw:
        raise FormError("missing", "Field required")
    content_type = (request.header(b"content-type") or b"").split(b";")[0].strip().lower()
    if content_type != b"application/json" and not content_type.endswith(b"+json"):
        raise FormError("dataclass_type", "Input should be a dictionary: the content type is not JSON")
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormError("json_invalid", f"JSON decode error: {error}") from None


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body. Raises: FormError."""
    value = await read_body(request)
    if not isinstance(value, dict):
        raise FormError("model_attributes_type", "Input should be a valid dictionary")
    return value


def field(body: dict[str, Any], name: str, kind: type, default: object = ...) -> Any:
    """Return a field of the body; null stands for the default.

    Raises: FormError where it is missing and has no default, or has another type.
    """
    value = body.get(name)
    if value is None:
        if default is ...:
            raise FormError("missing", f"{name}: Field required")
        return default
    if not isinstance(value, kind):
        raise FormError("type_error", f"{name}: Input should be a valid {kind.__name__}")
    return value
