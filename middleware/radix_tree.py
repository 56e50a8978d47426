"""The radix-tree middleware: forwards token ids, records what was sampled, gives it back.

A recorded call goes to the worker as `input_ids` with `return_logprob` on. Its prompt is made of the tokens
that were sampled before, as far as the tree knows the text, and of the tokenizer's ids for the rest; so what
is recorded is what the worker read. What the client had not asked for is taken out of its reply again.

Recording never costs a reply: what cannot be recorded passes through untouched, is counted by reason, and
is said once a reason in the log.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..calls import Call, Handler, JsonObject, Middleware, Reply
from ..errors import BadRequest, ConfigError, HttpError
from .forwarded import forwarded_body
from .prompts import Asked, Prompt, Unrecorded, Vocabulary, read_asked
from .recording import Opened, Recording
from .replies import read_whole
from .reuse import match_text, text_after, text_before
from .streams import SSE_TYPE, RecordedStream, StreamReader
from .tally import Tally
from .tokenizer import Tokenizer, TokenizerFailed
from .tokenizer_source import TokenizerSource
from .trajectories import Trajectories
from .tree import Prefix, TokenTree

if TYPE_CHECKING:
    from fastapi import APIRouter

log = logging.getLogger(__name__)

MAX_CACHED_TOKENS = 50_000_000
"""About 1.2 GB: two thousand samples of 8,000 tokens, three times over."""

MAX_CACHED_BYTES = 4 << 30
"""Guards against what the budget in tokens does not see: very many very short calls, very long texts."""

MAX_REPLY_BYTES = 256 << 20
"""Longer replies, and longer events of a stream, are relayed as they arrive, and not recorded."""

GENERATE_METHODS = frozenset({"POST", "PUT"})
"""SGLang generates for either."""

SESSION_HEADERS = (b"x-smg-routing-key", b"x-session-id")
"""Where a session is named, unless the body has a `session_id`; the first is SGLang's router's."""

COUNTERS = (
    "calls_recorded_total",
    "generations_recorded_total",
    "prompt_tokens_total",
    "reused_tokens_total",
    "generated_tokens_total",
    "record_failures_total",
    "replies_not_200_total",
    "replies_refused_total",
    "streams_broken_off_total",
)
"""What is counted, beside the calls that pass through."""


class _Prepared(NamedTuple):
    """A call as it goes to a worker, and what becomes of the reply."""

    call: Call
    recording: Recording
    takes_out: bool
    """Whether the reply will hold log-probabilities that the client had not asked for."""


class RadixTreeMiddleware:
    """Records `/generate` calls in a token tree. See the module's docstring."""

    def __init__(
        self,
        *,
        tokenizer_path: str | None = None,
        vocabulary_size: int | None = None,
        max_cached_tokens: int = MAX_CACHED_TOKENS,
        max_cached_bytes: int = MAX_CACHED_BYTES,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        max_version_lag: int | None = None,
        session_ttl_s: float | None = None,
        stream_logprobs: bool = True,
    ) -> None:
        """Take the place of the tokenizer (a `tokenizer.json` or its folder), and the bounds.

        Without `tokenizer_path` the workers are asked for it. Without `vocabulary_size` it is the greater of
        the tokenizer's and that of the `config.json` beside it. With `max_version_lag` and `session_ttl_s`
        old trajectories go before the budget needs their room: see `TokenTree`. With `stream_logprobs` off,
        streams are recorded without the log-probabilities that their clients did not ask for.

        Raises: ConfigError where the tokenizer cannot be loaded, or an option has no value that it can have.
        """
        self._vocabulary_size = (
            _positive("vocabulary_size", vocabulary_size) if vocabulary_size is not None else None
        )
        self._max_cached_tokens = _positive("max_cached_tokens", max_cached_tokens)
        self._max_reply_bytes = _positive("max_reply_bytes", max_reply_bytes)
        self._tree = TokenTree(
            max_cached_tokens=self._max_cached_tokens,
            max_cached_bytes=_positive("max_cached_bytes", max_cached_bytes),
            max_version_lag=_version_lag(max_version_lag),
            session_ttl_s=_session_ttl_s(session_ttl_s),
        )
        self._source = TokenizerSource(Path(tokenizer_path) if tokenizer_path is not None else None)
        self._forward: Handler | None = None
        self._stream_logprobs = _flag("stream_logprobs", stream_logprobs)
        self._tally = Tally()
        self.trajectories = Trajectories(self._tree, self._tokenizer, self._stats)

    async def start(self, forward: Handler) -> None:
        """Remember how to reach a worker; the tokenizer is looked for on first need."""
        self._forward = forward

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""

    def stats(self) -> Mapping[str, float]:
        """Return the counters of `GET /radix_tree/stats`, each name with `radix_tree_` before it."""
        return {f"radix_tree_{name}": value for name, value in self._stats().items()}

    def routes(self) -> "APIRouter":
        """Return the endpoints that give back what was recorded, and those that tell of the tree."""
        return self.trajectories.routes()

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        """Forward the call, recorded where it can be.

        Raises: BadRequest for what would kill a worker: an empty prompt, an id outside the vocabulary.
        """
        if call.path != "/generate" or call.method not in GENERATE_METHODS:
            return await forward(call)
        try:
            body = call.json()
        except BadRequest as error:
            return await self._pass_through(call, forward, Unrecorded.MALFORMED, error)
        with ExitStack() as held:
            try:
                prepared = await self._prepare(call, body, forward, held)
            except HttpError:
                raise
            except TokenizerFailed as error:
                return await self._pass_through(call, forward, Unrecorded.NO_TOKENIZER, error)
            except UnicodeEncodeError as error:
                return await self._pass_through(call, forward, Unrecorded.MALFORMED, error)
            except Exception as error:  # the boundary that keeps its promise: the cache never costs a reply
                log.exception("radix_tree_failed request_id=%s", call.request_id)
                return await self._pass_through(call, forward, Unrecorded.UNEXPECTED_ERROR, error)
            if isinstance(prepared, Unrecorded):
                return await self._pass_through(call, forward, prepared)
            reply = await forward(prepared.call)
            return await self._finish(reply, prepared, held)

    async def _prepare(
        self, call: Call, body: JsonObject, forward: Handler, held: ExitStack
    ) -> "_Prepared | Unrecorded":
        """Return the call as it goes to a worker, and what records its answers; or why it is not recorded.

        Raises: BadRequest, TokenizerFailed, UnicodeEncodeError.
        """
        tokenizer = await self._source.get(forward)
        asked = read_asked(body, _session_of(call), self._vocabulary(tokenizer))
        if isinstance(asked, Unrecorded):
            return asked
        opened = await self._open_all(asked, tokenizer, held)
        asks_logprobs = self._stream_logprobs or not asked.is_streamed
        sent = forwarded_body(body, asked, [each.ids for each in opened], asks_logprobs=asks_logprobs)
        return _Prepared(
            call if sent is body else call.with_json(sent),
            Recording(self._tree, self._tally, asked, opened, tokenizer, request_id=call.request_id),
            asks_logprobs and not asked.all_want_logprobs,
        )

    def _vocabulary(self, tokenizer: Tokenizer | None) -> Vocabulary:
        size = self._vocabulary_size
        if size is None and tokenizer is not None:
            size = tokenizer.vocabulary_size
        return Vocabulary(size, self._tree.recorded_length)

    async def _open_all(self, asked: Asked, tokenizer: Tokenizer | None, held: ExitStack) -> list[Opened]:
        """Open every prompt; `held` lets go of them again.

        Raises: TokenizerFailed, UnicodeEncodeError, BadRequest where one has no tokens.
        """
        opened: list[Opened] = []
        try:
            for prompt in asked.prompts:
                if opened:
                    await asyncio.sleep(0)  # a batch may take long: others get their turn between its prompts
                each = await self._open(prompt, tokenizer)
                held.callback(self._tree.release, each.context)
                opened.append(each)
        except BaseException:
            held.close()
            raise
        return opened

    async def _open(self, prompt: Prompt, tokenizer: Tokenizer | None) -> Opened:
        if prompt.ids is None:
            assert prompt.text is not None
            if tokenizer is None:
                raise TokenizerFailed("there is none: set radix_tree.tokenizer_path")
            prefix = await match_text(self._tree, prompt.text, prompt.session_id, tokenizer.decode)
        else:
            prefix = self._tree.match_ids(prompt.ids, prompt.session_id)
        try:
            if prompt.ids is not None:
                return await self._open_ids(prefix, prompt.ids.tolist(), tokenizer)
            assert prompt.text is not None
            assert tokenizer is not None
            return await self._open_text(prefix, prompt.text, tokenizer, name=prompt.name)
        finally:
            self._tree.release(prefix)

    async def _open_text(self, prefix: Prefix, text: str, tokenizer: Tokenizer, *, name: str) -> Opened:
        rest = text[prefix.matched_chars :]
        ids: list[int] = []
        if not prefix.tokens:
            ids = await tokenizer.encode_prompt(text)
            if not ids:
                raise BadRequest(f"The prompt is empty: the tokenizer makes no token of `{name}`")
        elif rest:
            ids = await tokenizer.encode_continuation(rest)
        context = self._tree.open_context(prefix, ids, text, is_canonical=True)
        return Opened(context, prefix.tokens.tolist() + ids, len(prefix.tokens))

    async def _open_ids(self, prefix: Prefix, ids: list[int], tokenizer: Tokenizer | None) -> Opened:
        rest = ids[len(prefix.tokens) :]
        before: str | None = None
        added: str | None = None
        if prefix.exact is None and tokenizer is not None and tokenizer.decode is not None:
            before = await text_before(self._tree, prefix, tokenizer.decode)
            added = await text_after(prefix, ids, tokenizer)
        if before is None or added is None:
            context = self._tree.open_context(prefix, rest, None, is_canonical=False)
        else:
            context = self._tree.open_context(
                prefix,
                rest,
                before + added,
                is_canonical=False,
                text_before_bytes=len(before.encode()),
            )
        return Opened(context, ids, len(prefix.tokens))

    async def _finish(self, reply: Reply, prepared: _Prepared, held: ExitStack) -> Reply:
        """Record the reply, and return it as the client asked for it.

        A stream takes over `held`, and lets go of it at its end.
        """
        _, recording, takes_out = prepared
        if reply.status != 200:
            self._tally.add("replies_not_200_total")
            return reply
        if _is_event_stream(reply):
            reader = StreamReader(recording, takes_out=takes_out, max_bytes=self._max_reply_bytes)
            if isinstance(reply.body, bytes):
                reply.body = reader.feed(reply.body) + reader.end(is_complete=True)
                return reply
            reply.headers = [field for field in reply.headers if field[0] != b"content-length"]
            reply.body = RecordedStream(reply.body, reader, held.pop_all().close)
            return reply
        if not isinstance(reply.body, bytes) and recording.asked.is_streamed:
            recording.fail("the reply is no event stream that can be read")
            return reply
        content = await read_whole(reply, self._max_reply_bytes)
        if content is None:
            recording.fail("the reply is over max_reply_bytes")
        else:
            reply.body = await recording.take(content, takes_out=takes_out)
        return reply

    async def _pass_through(
        self, call: Call, forward: Handler, reason: Unrecorded, error: Exception | None = None
    ) -> Reply:
        self._tally.pass_through(reason, error or "", call.request_id)
        return await forward(call)

    async def _tokenizer(self) -> Tokenizer | None:
        return await self._source.get(self._forward)

    def _stats(self) -> dict[str, int]:
        tree = self._tree
        return {
            **self._tally.read([*COUNTERS, *(f"passed_through_{reason}_total" for reason in Unrecorded)]),
            "evicted_tokens_total": tree.evicted_tokens,
            "expired_sessions_total": tree.expired_sessions,
            "outdated_trajectories_total": tree.outdated_trajectories,
            "sessions": tree.sessions,
            "trajectories": tree.trajectories,
            "cached_tokens": tree.cached_tokens,
            "cached_bytes": tree.cached_bytes,
            "max_cached_tokens": self._max_cached_tokens,
        }


_: type[Middleware] = RadixTreeMiddleware


def _is_event_stream(reply: Reply) -> bool:
    kind = reply.header(b"content-type") or b""
    return kind.lower().startswith(SSE_TYPE) and reply.header(b"content-encoding") is None


def _session_of(call: Call) -> str | None:
    for name in SESSION_HEADERS:
        value = call.header(name)
        if value:
            return value.decode("latin-1")
    return None


def _positive(name: str, value: object) -> int:
    """Return an option's value; options from the command line may come as text."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
        raise ConfigError(f"radix_tree.{name} must be a positive whole number, not {value!r}")
    return number


def _version_lag(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ConfigError(f"radix_tree.max_version_lag must be a whole number, 0 or more, not {value!r}")


def _session_ttl_s(value: object) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        return value
    raise ConfigError(f"radix_tree.session_ttl_s must be a number of seconds above 0, not {value!r}")


def _flag(name: str, value: object) -> bool:
    """Return an option that is on or off; options from the command line come as text."""
    flag = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise ConfigError(f"radix_tree.{name} must be true or false, not {value!r}")
    return flag
