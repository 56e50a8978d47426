"""What of a prompt is recorded already: the tree's answer, and the decoding that it may take.

A generation that the prompt leaves in the middle is decoded, to be cut between two tokens. Where it is long,
or a worker decodes it, a thread does that while the event loop goes on, and its segment is held meanwhile.
Where decoding fails, what needs it is not reused: a prompt never fails for that.
"""

from collections.abc import Sequence
from functools import partial

from .cut import Cut, Decode, TextMatch
from .segments import Generation
from .tokenizer import INLINE_TOKENS, Tokenizer, TokenizerFailed, in_thread_if
from .tree import Prefix, TokenTree
from .worker_tokenizer import WorkerDecode

INLINE_CUT_TOKENS = INLINE_TOKENS // 20
"""Longer generations are cut in a thread: a cut decodes about twenty times."""

DECODE_LOOKBACK_TOKENS = 8
"""Tokens before a run of ids with which it is decoded: a character across the start fits in."""


async def match_text(tree: TokenTree, text: str, session_id: str | None, decode: Decode | None) -> Prefix:
    """Return the recorded tokens with which `text` begins, held until `TokenTree.release`.

    Without `decode` only whole generations are reused. Text in which no generation lies gets no tokens,
    unless the same prompt was tokenised before.

    Raises: UnicodeEncodeError where the text holds a lone surrogate.
    """
    match = tree.match_text(text, session_id)
    try:
        return tree.hold(match, await _cut(match, decode))
    finally:
        tree.release(match)


async def _cut(match: TextMatch, decode: Decode | None) -> Cut:
    if not match.tokens or decode is None:
        return match.cut(decode)
    is_long = len(match.tokens) > INLINE_CUT_TOKENS or isinstance(decode, WorkerDecode)
    try:
        return await in_thread_if(is_long, partial(match.cut, decode))
    except TokenizerFailed:
        return match.cut(None)


async def text_before(tree: TokenTree, prefix: Prefix, decode: Decode) -> str | None:
    """Return the text that a prefix matched by token ids spells, or None where it is not known."""
    segment = prefix.segment
    if segment is None:
        return ""
    texts = tree.spelled_text(segment)
    if texts is None:
        return None
    visible, spelled = texts
    if not isinstance(segment, Generation):
        return spelled if len(prefix.tokens) == segment.end else None
    count = len(prefix.tokens) - segment.start
    if not segment.cuts_token and count == segment.spelled_tokens:
        return spelled
    if not segment.cuts_token and count == segment.size - segment.trimmed_tokens:
        return visible
    show = partial(decode, segment.tokens[:count], skips_special_tokens=segment.skips_special_tokens)
    try:
        shown = await in_thread_if(count > INLINE_TOKENS or isinstance(decode, WorkerDecode), show)
    except TokenizerFailed:
        return None
    before = spelled.encode()[: segment.text_start].decode() + shown
    return before if spelled.startswith(before) else None


async def text_after(prefix: Prefix, ids: Sequence[int], tokenizer: Tokenizer) -> str | None:
    """Return the text that `ids` have beyond a prefix matched by them, or None where it is not known."""
    lookback = prefix.tokens[-DECODE_LOOKBACK_TOKENS:]
    if not lookback:
        return await tokenizer.decode_prompt(ids)
    return await tokenizer.decode_after(lookback, ids[len(prefix.tokens) :])
