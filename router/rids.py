"""How calls are named at a worker, and how their clients' own names come back.

*Invariant*: no two rids that this router sends are equal, and none is a prefix of another one.

SGLang aborts by prefix: `/abort_request` for `pre-1` ends `pre-12` too. And it refuses a rid that is in use,
which a call that is sent a second time would meet. So each attempt of each call is named here, by rids of one
length, and the rid that the client chose, if it chose one, is put back wherever the reply tells it.

There are rids that are not ours: those of a batch that brings its own, and of clients that talk to a worker
directly. So that the abort of one of them, `7` perhaps, never ends calls of ours, these begin as nobody's do.

A call of one prompt is generated under the rid itself, a batch under `RID_0`, `RID_1`, … (so that within a
batch of more than ten, ending the second prompt ends the eleventh too, as without us); for `n > 1` SGLang
makes up rids that nobody is told before the end, so such a call cannot be aborted, only hung up on.
"""

import itertools
import secrets
from typing import Final, NamedTuple

import msgspec

from ..calls import Call, JsonObject
from ..errors import BadRequest

NAMED_PATHS: Final = frozenset({"/generate", "/v1/completions", "/v1/chat/completions"})
"""Where SGLang takes a `rid`. These calls only sample: one that was aborted may be run again."""

RID_LENGTH: Final = 32
"""As long as the ones that SGLang makes up itself."""

MARK: Final = "~"
"""How every rid of ours begins. It needs no escape in JSON, and nobody's own rids begin so."""

_MAX_ATTEMPTS: Final = 256
"""What the last two digits of a rid can count."""

_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_rid = msgspec.json.Decoder(str | None).decode
_encode = msgspec.json.Encoder().encode

_FIRST_FIELD = b'{"rid":"'
_WHITE_SPACE = b" \t\r\n"


class RidMaker:
    """Makes rids: the mark, 17 hexadecimal digits for the router, 12 for the call, two for the attempt."""

    def __init__(self) -> None:
        self._prefix = f"{MARK}{secrets.token_hex(9)[1:]}".encode()
        self._numbers = itertools.count(1)

    def next_call(self) -> int:
        """Return the number of a new call."""
        return next(self._numbers)

    def rid(self, call_number: int, attempt: int) -> bytes:
        """Return the rid of a call's attempt, the first of which is 1."""
        return b"%b%012x%02x" % (self._prefix, call_number, attempt % _MAX_ATTEMPTS)


class Naming(NamedTuple):
    """A call's body around the place of its rid, and the rid that its client gave it, if any."""

    before: bytes
    after: bytes
    client_rid: str | None

    def body(self, rid: bytes) -> bytes:
        """Return the body under the name `rid`."""
        return self.before + rid + self.after


def naming_of(call: Call) -> Naming | None:
    """Return how `call` takes a rid, or None where it takes none or brings a list of its own.

    What is no JSON object, or has a rid that is none, goes to the worker as it is: to be refused there.
    """
    if call.path not in NAMED_PATHS or call.method not in ("POST", "PUT"):
        return None
    body = call.body
    parsed = call.json_if_parsed()
    if ("rid" in parsed) if parsed is not None else (b'"rid"' in body):
        return _renaming(body)
    if not body.startswith(b"{"):
        body = body.lstrip(_WHITE_SPACE)
        if not body.startswith(b"{"):
            return None
    if body[1:2] != b'"' and body[1:].lstrip(_WHITE_SPACE)[:1] in (b"", b"}"):
        return None
    return Naming(_FIRST_FIELD, b'",' + body[1:], None)


def generated_rids(call: Call, rid: str) -> list[str]:
    """Return under which rids a worker generates `call`, sent as `rid`; none where they cannot be known."""
    try:
        body = call.json()
    except BadRequest:
        return []
    if _samples_several(body):
        return []
    size = _batch_size(body)
    return [rid] if size is None else [f"{rid}_{index}" for index in range(size)]


def is_one_generation(body: JsonObject) -> bool:
    """Tell whether a body asks for one generation: no batch, and no several samples."""
    return _batch_size(body) is None and not _samples_several(body)


def listed_rids(call: Call) -> list[str]:
    """Return the rids that a batch brings itself: its client answers for them."""
    if call.path not in NAMED_PATHS or b'"rid"' not in call.body:
        return []
    try:
        rids = call.json().get("rid")
    except BadRequest:
        return []
    return [rid for rid in rids if isinstance(rid, str)] if isinstance(rids, list) else []


def as_told(rid: str) -> bytes:
    """Return a rid as it stands inside a JSON string."""
    return _encode(rid)[1:-1]


class RidRestorer:
    """Puts the client's rid back into a body that comes in pieces.

    What could be the beginning of our rid at the end of a piece is kept until the next one: at most 31 bytes,
    and nothing where a piece ends as events do.
    """

    def __init__(self, rid: bytes, client_rid: str) -> None:
        self._rid = rid
        self._client_rid = as_told(client_rid)
        self._kept = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be passed on once `chunk` has come."""
        whole = (self._kept + chunk if self._kept else chunk).replace(self._rid, self._client_rid)
        kept = _overlap(whole, self._rid)
        self._kept = whole[len(whole) - kept :]
        return whole[: len(whole) - kept] if kept else whole

    def rest(self) -> bytes:
        """Return what was kept, at the end of the body."""
        kept, self._kept = self._kept, b""
        return kept


def _overlap(text: bytes, word: bytes) -> int:
    """Return the length of the longest end of `text` with which `word` begins, without being all of it."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0


def _renaming(body: bytes) -> Naming | None:
    try:
        fields = _decode_raw(body)
        client_rid = _decode_rid(fields.pop("rid", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    rest = _encode(fields)[1:]
    after = b'"' + rest if rest == b"}" else b'",' + rest
    return Naming(_FIRST_FIELD, after, client_rid)


def _samples_several(body: JsonObject) -> bool:
    params = body.get("sampling_params")
    each = params if isinstance(params, list) else [params]
    counts = [one.get("n") for one in each if isinstance(one, dict)]
    return any(isinstance(count, int) and count > 1 for count in [*counts, body.get("n")])


def _batch_size(body: JsonObject) -> int | None:
    """Return how many prompts a body holds; None for one that is no batch, but a single prompt."""
    ids = body.get("input_ids")
    if isinstance(ids, list):
        return len(ids) if ids and isinstance(ids[0], list) else None
    prompts = body.get("text", body.get("prompt"))
    if not isinstance(prompts, list) or (prompts and isinstance(prompts[0], int)):
        return None
    return len(prompts)
