"""Compares the shape of two replies: keys, types, types of list elements."""

import json
from pathlib import Path
from typing import Any

CAPTURES = Path(__file__).parent.parent / "captures"

NULL_OR = frozenset({"cached_tokens_details", "dp_rank"})
"""Keys that are null or something, depending on what the worker did before."""


def capture(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def differences(ours: Any, theirs: Any, where: str = "reply") -> list[str]:
    """Return what is different in shape, as sentences; nothing where the shapes are equal."""
    if where.endswith(".finish_reason") and isinstance(ours, dict):
        known = FINISH_REASONS.get((ours["type"], frozenset(ours)))
        return [] if known is not None else [f"{where}: SGLang never said {sorted(ours)} for {ours['type']}"]
    if where.rpartition(".")[2] in NULL_OR and (ours is None or theirs is None):
        return []
    if kind(ours) != kind(theirs):
        return [f"{where}: {kind(ours)} instead of {kind(theirs)}"]
    if isinstance(ours, dict):
        found = [f"{where}: lacks {key!r}" for key in theirs if key not in ours]
        found += [f"{where}: has {key!r}, which SGLang has not" for key in ours if key not in theirs]
        for key in ours:
            if key in theirs:
                found += differences(ours[key], theirs[key], f"{where}.{key}")
        return found
    if isinstance(ours, list) and ours and theirs:
        if {kind(item) for item in ours} <= {kind(item) for item in theirs}:
            found = []
            for item in distinct(ours):
                same_kind = [other for other in distinct(theirs) if kind(other) == kind(item)]
                found += fewest([differences(item, other, f"{where}[]") for other in same_kind])
            return found
        return [f"{where}: elements {set(map(kind, ours))} instead of {set(map(kind, theirs))}"]
    return []


def fewest(candidates: list[list[str]]) -> list[str]:
    return min(candidates, key=len)


def distinct(items: list[Any]) -> list[Any]:
    """Return one item of each shape."""
    return list({shape(item): item for item in items}.values())


def shape(value: Any) -> Any:
    if isinstance(value, list):
        return ("array", tuple(shape(item) for item in value))
    if isinstance(value, dict):
        return ("object", tuple((key, shape(item)) for key, item in value.items()))
    return kind(value)


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def _finish_reasons() -> dict[tuple[str, frozenset[str]], str]:
    """Return every finish reason that SGLang was seen to give, by type and keys."""
    found: dict[tuple[str, frozenset[str]], str] = {}
    for path in sorted(CAPTURES.glob("*.json")):
        for line in _bodies(json.loads(path.read_text(encoding="utf-8"))):
            for reply in line if isinstance(line, list) else [line]:
                reason = reply.get("meta_info", {}).get("finish_reason") if isinstance(reply, dict) else None
                if reason:
                    found[(reason["type"], frozenset(reason))] = path.name
    return found


def _bodies(loaded: Any) -> list[Any]:
    response = loaded.get("response") if isinstance(loaded, dict) else None
    if not isinstance(response, dict):
        return []
    return [response.get("json"), *sse_events(response.get("sse_lines") or [])]


def sse_events(lines: list[dict[str, Any]]) -> list[Any]:
    """Return the events in the lines of a captured stream, without the final `[DONE]`."""
    texts = [line["line"].strip().removeprefix("data: ") for line in lines]
    return [json.loads(text) for text in texts if text.startswith("{")]


FINISH_REASONS = _finish_reasons()
