"""How workers answered a control call, and how that is told: one shape for every call to the fleet.

    {"total": 2, "succeeded": 1,
     "results": {"<worker id>": {"url", "status", "success", "latency_ms", "body"[, "weight_version"]}},
     "failed": [{"worker_id", "url", "status", "error", "message"}]}

`results` holds every worker that was asked. The status is 200 where all succeeded, 207 where some did, 502
where none did.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ..calls import JsonObject
from .workers import Worker

MAX_MESSAGE_CHARS = 500
"""How much of an answer that is no JSON is repeated as the reason of a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One worker's answer, or why there is none."""

    worker: Worker
    status: int
    """The worker's HTTP status; 502 or 504 where it gave no answer."""
    body: object
    """Decoded JSON, text where it is none, None where it is empty."""
    latency_s: float = 0.0
    code: str | None = None
    """Why the worker gave no answer, as errors name it; None where it did."""
    weight_version: str | None = None
    """The version that the worker reports after a call that may have changed it."""

    @property
    def succeeded(self) -> bool:
        """Whether the worker did what was asked: by its status, and by its `success` where it tells one."""
        told = self.body.get("success") if isinstance(self.body, dict) else None
        return 200 <= self.status < 300 and told is not False

    @property
    def message(self) -> str:
        """The worker's or the router's own words."""
        body = self.body
        for key in ("message", "error", "detail"):
            if not isinstance(body, dict):
                break
            if isinstance(body.get(key), str):
                return str(body[key])
            if isinstance(body.get(key), dict):
                body = body[key]
                if isinstance(body.get("message"), str):
                    return str(body["message"])
        if isinstance(body, str) and body:
            return body[:MAX_MESSAGE_CHARS].strip()
        return f"HTTP {self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker says that it serves; None where it does not tell."""

    weight_version: str | None
    model_path: str | None


class _ModelInfo(msgspec.Struct):
    weight_version: str | None = None
    model_path: str | None = None


def report_of(answer: Answer) -> Report | None:
    """Return what an answer to `/model_info` says; None where it is none."""
    if not answer.succeeded:
        return None
    try:
        info = msgspec.convert(answer.body, _ModelInfo)
    except msgspec.ValidationError:
        return None
    return Report(weight_version=info.weight_version, model_path=info.model_path)


def status_of(succeeded: int, total: int) -> int:
    """Return the status that tells whether all, some or none succeeded."""
    if succeeded == total:
        return 200
    return 207 if succeeded else 502


def told(answers: Sequence[Answer]) -> JsonObject:
    """Return the body that tells of all `answers`."""
    return {
        "total": len(answers),
        "succeeded": sum(answer.succeeded for answer in answers),
        "results": {answer.worker.id: _result(answer) for answer in answers},
        "failed": [failure(answer) for answer in answers if not answer.succeeded],
    }


def told_as_smg(answers: Sequence[Answer]) -> JsonObject:
    """Return the body as SMG has it: a worker stands either in `results` or in `failed`."""
    body = told(answers)
    body["results"] = {answer.worker.id: _result(answer) for answer in answers if answer.succeeded}
    return body


def failure(answer: Answer) -> JsonObject:
    """Return what is told of a worker that failed."""
    return {
        "worker_id": answer.worker.id,
        "url": answer.worker.url,
        "status": answer.status,
        "error": answer.code or "refused_by_worker",
        "message": answer.message,
    }


def _result(answer: Answer) -> JsonObject:
    result: JsonObject = {
        "url": answer.worker.url,
        "status": answer.status,
        "success": answer.succeeded,
        "latency_ms": round(answer.latency_s * 1000, 1),
        "body": answer.body,
    }
    if answer.weight_version is not None:
        result["weight_version"] = answer.weight_version
    return result
