"""The workers' loads, as SGLang's router tells them and as SGLang itself does."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from ..calls import JsonObject
from .answers import Answer, failure

UNKNOWN_LOAD: Final = -1
"""What SGLang's router tells of a worker that does not say how loaded it is."""


def tokens_held(body: object) -> int | None:
    """Return the tokens that a worker holds or has waiting, over all its ranks; None where it does not tell.

    `body` is an answer to `/v1/loads`, or to the `/get_load` of older workers.
    """
    if isinstance(body, dict):
        loads, key = body.get("loads"), "num_total_tokens"
    else:
        loads, key = body, "num_tokens"
    if not isinstance(loads, list) or not loads:
        return None
    counts = [load.get(key) if isinstance(load, dict) else None for load in loads]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if len(known) == len(counts) else None


def joined(answers: Sequence[Answer], now: datetime | None = None) -> JsonObject:
    """Return all loads in the shape of one worker's `/v1/loads`, each with its worker's URL and id."""
    loads: list[JsonObject] = []
    failed: list[JsonObject] = []
    for answer in answers:
        told = answer.body.get("loads") if isinstance(answer.body, dict) else None
        if answer.succeeded and isinstance(told, list):
            name = {"worker": answer.worker.url, "worker_id": answer.worker.id}
            loads.extend(name | load for load in told if isinstance(load, dict))
        else:
            failed.append(failure(answer))
    return {
        "timestamp": (now or datetime.now(UTC)).isoformat(),
        "total": len(answers),
        "succeeded": len(answers) - len(failed),
        "loads": loads,
        "failed": failed,
    }
