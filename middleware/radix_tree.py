"""The radix-tree middleware: forwards token ids, records what was sampled, gives it back.

A recorded call goes to the worker as `input_ids` with `return_logprob` on. Its prompt is made of the tokens
that were sampled before, as far as the tree knows the text, and of the tokenizer's ids for the rest; so what
is recorded is what the worker read. What the client had not asked for is taken out of its reply again.

Recording never costs a reply: what cannot be recorded passes through untouched, is counted by reason, and
is said once a reason in the log.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..calls import Call, Handler, JsonObject, Middleware, Reply
from ..errors import BadRequest, ConfigError, HttpError
from .prompts import Prompt, Unrecorded, Vocabulary, read_prompt
from .replies import Unrecordable, read_answer, read_whole, without_logprobs
from .reuse import match_text, text_after, text_before
from .segments import Context
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
"""Longer replies are relayed as they arrive, and not recorded."""

GENERATE_METHODS = frozenset({"POST", "PUT"})
"""SGLang generates for either."""

SESSION_HEADERS = (b"x-smg-routing-key", b"x-session-id")
"""Where a session is named, unless the body has a `session_id`; the first is SGLang's router's."""

LOGPROB_OPTIONS = ("logprob_start_len", "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs")
"""Without `return_logprob` these do nothing, so they are not sent where the client left it off."""


class _Opened(NamedTuple):
    """A prompt ready to be sent: the context that holds its tokens, and how many were reused."""

    context: Context
    ids: list[int]
    reused: int


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
    ) -> None:
        """Take the place of the tokenizer (a `tokenizer.json` or its folder), and the bounds.

        Without `tokenizer_path` the workers are asked for it. Without `vocabulary_size` it is the greater of
        the tokenizer's and that of the `config.json` beside it. With `max_version_lag` and `session_ttl_s`
        old trajectories go before the budget needs their room: see `TokenTree`.

        Raises: ConfigError where the tokenizer cannot be loaded, or a bound is no positive number.
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
        self._counts: Counter[str] = Counter()
        self._said: set[str] = set()
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
        tokenizer = await self._source.get(forward)
        prompt = read_prompt(body, _session_of(call), self._vocabulary(tokenizer))
        if isinstance(prompt, Unrecorded):
            return await self._pass_through(call, forward, prompt)
        if prompt.text is not None and tokenizer is None:
            return await self._pass_through(call, forward, Unrecorded.NO_TOKENIZER)
        try:
            opened = await self._open(prompt, tokenizer)
        except HttpError:
            raise
        except TokenizerFailed as error:
            return await self._pass_through(call, forward, Unrecorded.NO_TOKENIZER, error)
        except UnicodeEncodeError as error:
            return await self._pass_through(call, forward, Unrecorded.MALFORMED, error)
        except Exception as error:  # the boundary that keeps its promise: the cache never costs a reply
            log.exception("radix_tree_failed request_id=%s", call.request_id)
            return await self._pass_through(call, forward, Unrecorded.UNEXPECTED_ERROR, error)
        try:
            reply = await forward(_rewritten(call, body, prompt, opened))
            return await self._finish(call, reply, prompt, opened, tokenizer)
        finally:
            self._tree.release(opened.context)

    def _vocabulary(self, tokenizer: Tokenizer | None) -> Vocabulary:
        size = self._vocabulary_size
        if size is None and tokenizer is not None:
            size = tokenizer.vocabulary_size
        return Vocabulary(size, self._tree.recorded_length)

    async def _open(self, prompt: Prompt, tokenizer: Tokenizer | None) -> _Opened:
        if prompt.ids is None:
            assert prompt.text is not None
            assert tokenizer is not None
            prefix = await match_text(self._tree, prompt.text, prompt.session_id, tokenizer.decode)
        else:
            prefix = self._tree.match_ids(prompt.ids, prompt.session_id)
        try:
            if prompt.ids is not None:
                return await self._open_ids(prefix, prompt.ids.tolist(), tokenizer)
            assert prompt.text is not None
            assert tokenizer is not None
            return await self._open_text(prefix, prompt.text, tokenizer)
        finally:
            self._tree.release(prefix)

    async def _open_text(self, prefix: Prefix, text: str, tokenizer: Tokenizer) -> _Opened:
        rest = text[prefix.matched_chars :]
        ids: list[int] = []
        if not prefix.tokens:
            ids = await tokenizer.encode_prompt(text)
            if not ids:
                raise BadRequest("The prompt is empty: the tokenizer makes no token of `text`")
        elif rest:
            ids = await tokenizer.encode_continuation(rest)
        context = self._tree.open_context(prefix, ids, text, is_canonical=True)
        return _Opened(context, prefix.tokens.tolist() + ids, len(prefix.tokens))

    async def _open_ids(self, prefix: Prefix, ids: list[int], tokenizer: Tokenizer | None) -> _Opened:
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
        return _Opened(context, ids, len(prefix.tokens))

    async def _finish(
        self, call: Call, reply: Reply, prompt: Prompt, opened: _Opened, tokenizer: Tokenizer | None
    ) -> Reply:
        """Record the reply, and return it as the client asked for it."""
        if reply.status != 200:
            self._counts["replies_not_200_total"] += 1
            return reply
        content = await read_whole(reply, self._max_reply_bytes)
        if content is None:
            self._count_failure(call, "the reply is over max_reply_bytes")
            return reply
        try:
            sampled, content = read_answer(content, prompt, tokenizer, prompt_tokens=len(opened.ids))
            self._tree.record(opened.context, sampled)
            self._counts["calls_recorded_total"] += 1
            self._counts["prompt_tokens_total"] += len(opened.ids)
            self._counts["reused_tokens_total"] += opened.reused
            self._counts["generated_tokens_total"] += len(sampled.tokens)
        except Unrecordable as error:
            self._count_failure(call, str(error))
        except Exception as error:  # the boundary that keeps its promise: the cache never costs a reply
            log.exception("radix_tree_failed request_id=%s", call.request_id)
            self._count_failure(call, repr(error))
        if not prompt.wants_logprobs:
            try:
                reply.body = without_logprobs(content)
            except msgspec.DecodeError as error:
                self._count_failure(call, str(error))
        return reply

    async def _pass_through(
        self, call: Call, forward: Handler, reason: Unrecorded, error: Exception | None = None
    ) -> Reply:
        self._counts[f"passed_through_{reason}_total"] += 1
        if reason not in self._said:
            self._said.add(reason)
            log.warning(
                "event=not_recorded reason=%s detail=%r request_id=%s note=said_once",
                reason,
                str(error or ""),
                call.request_id,
            )
        return await forward(call)

    def _count_failure(self, call: Call, detail: str) -> None:
        self._counts["record_failures_total"] += 1
        if "record_failed" not in self._said:
            self._said.add("record_failed")
            log.warning("event=record_failed detail=%r request_id=%s note=said_once", detail, call.request_id)

    async def _tokenizer(self) -> Tokenizer | None:
        return await self._source.get(self._forward)

    def _stats(self) -> dict[str, int]:
        tree = self._tree
        names = ["calls_recorded", "prompt_tokens", "reused_tokens", "generated_tokens"]
        names += [
            "record_failures",
            "replies_not_200",
            *(f"passed_through_{reason}" for reason in Unrecorded),
        ]
        return {
            **{f"{name}_total": self._counts[f"{name}_total"] for name in names},
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


def _rewritten(call: Call, body: JsonObject, prompt: Prompt, opened: _Opened) -> Call:
    """Return the call as it goes to the worker: by token ids, with log-probabilities."""
    if prompt.ids is not None and prompt.wants_logprobs and "text" not in body:
        return call
    sent = dict(body)
    sent.pop("text", None)
    if not prompt.wants_logprobs:
        for option in LOGPROB_OPTIONS:
            sent.pop(option, None)
    sent["input_ids"] = opened.ids
    sent["return_logprob"] = True
    return call.with_json(sent)


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
