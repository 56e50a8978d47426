"""Our replies as Starlette's responses, and every error of the router's own endpoints in one shape."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..calls import Reply
from ..errors import BadRequest, HttpError


def as_response(reply: Reply) -> Response:
    """Return a whole reply as a response."""
    assert isinstance(reply.body, bytes)
    response = Response(reply.body, reply.status)
    response.raw_headers.extend(reply.headers)
    return response


def tell_errors(app: FastAPI) -> None:
    """Let `app` answer its errors as `{"error": {"message", "type", "code"}}`."""
    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        HttpError: _http_error,
        HTTPException: _http_exception,
        RequestValidationError: _invalid,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return as_response(Reply.of_error(error))


async def _http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    told = {"error": {"message": error.detail, "type": "HttpError", "code": code}}
    response = as_response(Reply.of_json(told, error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
    return as_response(Reply.of_error(BadRequest("; ".join(problems))))
