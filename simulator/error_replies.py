"""SGLang's five error shapes, and its sixth: the event of a stream.

{"error": {"message"}}                            a value that cannot be served
{"error": "message"}                              a sampling parameter's name or type; a missing key
{"object": "error", "message", "type", …}         the body's form; a full queue. Its message leaks file paths
{"detail": "Not Found"}                           no such path or method
Internal Server Error                             bare text
"""

from .asgi import SSE_DONE, Reply, json_reply, sse_event
from .requests import FormError


def value_error(message: str) -> Reply:
    """Return the reply to a value that cannot be served."""
    return json_reply({"error": {"message": message}}, 400)


def contract_error(message: str, status: int = 400) -> Reply:
    """Return the reply to a name or a type that does not fit."""
    return json_reply({"error": message}, status)


def form_error(path: str, error: FormError) -> Reply:
    """Return the reply to a body that has not the form of a request."""
    problem = {"type": error.kind, "loc": ("body",), "msg": str(error)}
    message = f'1 validation error:\n  {problem}\n\n  File "SITE_PACKAGES/http_server.py"\n    POST {path}'
    return _error_object(message, "Bad Request", 400)


def status_error(status: int, message: str) -> Reply:
    """Return the reply of a worker that cannot serve now."""
    return _error_object(message, str(status), status)


def stream_error(message: str) -> bytes:
    """Return the whole stream of a call with a value that cannot be served."""
    error = {"message": message, "type": "invalid_request_error", "code": 400, "retryable": False}
    return sse_event({"error": error}) + SSE_DONE


NOT_FOUND = json_reply({"detail": "Not Found"}, 404)
UNAUTHORIZED = contract_error("Unauthorized", 401)
INTERNAL = Reply(status=500, body=b"Internal Server Error", content_type=b"text/plain; charset=utf-8")


def method_not_allowed(allowed: list[str]) -> Reply:
    """Return the reply to a method that the path does not have."""
    allow = [(b"allow", ", ".join(allowed).encode())]
    return json_reply({"detail": "Method Not Allowed"}, 405, allow)


def _error_object(message: str, kind: str, status: int) -> Reply:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return json_reply(body, status)
