"""Reads the log-probabilities of a long reply in half the time that decoding them takes, or cuts them out.

`meta_info.output_token_logprobs` is nine tenths of a reply: `[[logprob, token_id, null], ...]`. Decoded as
it stands it becomes a thousand tuples, which are taken apart at once. Here the section is cut out of the
bytes, its inner brackets are dropped, and the flat list is sliced; what is left of the reply is small.

The section is taken only where it is certain what it is: written without white space, the name found once
and as a key, no string inside, three values an entry, ids that are integers. Everything else gives None, and
is decoded in the ordinary way.
"""

import re
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import orjson

from .segments import Logprobs, Tokens

_NAME = b'"output_token_logprobs":'
_START = _NAME + b"[["
_ADDED_START = b',"input_token_logprobs":[],"output_token_logprobs":['
_ADDED_END = re.compile(rb'"output_token_logprobs_length":[0-9]+(?=[,}])')

_Number = TypeVar("_Number", int, float)


class CutReply(NamedTuple):
    """The sampled ids and their log-probabilities, and the reply with `[]` in their place."""

    tokens: Tokens
    logprobs: Logprobs
    rest: bytes


def cut_logprobs(content: bytes) -> CutReply | None:
    """Cut the log-probabilities out of a reply, or return None where they are not plain to see.

    A quote ends the search for the section's end: there is none inside, unless an entry holds text.
    """
    name = content.find(_START)
    if name <= 0 or content[name - 1 : name] not in (b",", b"{"):
        return None
    start = name + len(_NAME)
    end = content.find(b'"', start) - 1
    if content[end - 2 : end + 1] != b"]]," or content.find(_NAME, end) != -1:
        return None
    section = content[start:end]
    try:
        flat = orjson.loads(b"[%b]" % section.translate(None, b"[]"))
        tokens = pack(array("i"), flat[1::3])
        logprobs = pack_logprobs(flat[0::3])
    except (orjson.JSONDecodeError, struct.error):
        return None
    if len(flat) != 3 * len(tokens) or flat[2::3].count(None) != len(tokens):
        return None
    return CutReply(tokens, logprobs, b"%b[]%b" % (content[:start], content[end:]))


def cut_added(content: bytes, start: int = 0) -> bytes | None:
    """Return `content` without the three fields that `return_logprob` adds, all else as it is.

    They are looked for from `start` on. None where they do not stand there in the order and the spelling in
    which SGLang writes them, or where `meta_info` may hold more log-probabilities than these.
    """
    begin = content.find(_ADDED_START, start)
    if begin < 0:
        return None
    inside = begin + len(_ADDED_START)
    end = content.find(b'"', inside)  # there is no string inside, or this is none of these fields' names
    added = _ADDED_END.match(content, end) if content[end - 2 : end] == b"]," else None
    if added is None or content.find(b"_logprobs", added.end()) >= 0:
        return None
    return content[:begin] + content[added.end() :]


def pack_logprobs(logprobs: list[float | None]) -> Logprobs:
    """Return log-probabilities as an array, NaN where there is none.

    SGLang computes in single precision and writes what that is in double: such numbers are kept in half the
    bytes. Where one of them would not come back as it was, all are kept in double precision.

    Raises: struct.error where one is no number.
    """
    try:
        single = pack(array("f"), logprobs)
    except OverflowError:
        return pack(array("d"), logprobs)
    except struct.error:
        return pack(array("d"), [float("nan") if each is None else each for each in logprobs])
    return single if single.tolist() == logprobs else pack(array("d"), logprobs)


def extend_logprobs(logprobs: Logprobs, more: Logprobs) -> Logprobs:
    """Return `logprobs`, with `more` at the end: in double precision if one of them is."""
    if logprobs.typecode != more.typecode:
        logprobs, more = array("d", logprobs), array("d", more)
    logprobs += more
    return logprobs


def pack(empty: "array[_Number]", values: Sequence[object]) -> "array[_Number]":
    """Return `empty`, filled: in a quarter of the time that `array` itself takes for a list.

    Raises: struct.error where a value does not fit.
    """
    empty.frombytes(struct.pack(f"{len(values)}{empty.typecode}", *values))
    return empty
