"""What of a prompt is recorded already: the tree's answer, and the decoding that it may take.

A generation that the prompt leaves in the middle is decoded, to be cut between two tokens. Where it is long,
a thread does that while the event loop goes on, and its segment is held meanwhile.
"""

from functools import partial

from .cut import Decode
from .segments import Generation
from .tokenizer import INLINE_TOKENS, in_thread_if
from .tree import Prefix, TokenTree

INLINE_CUT_TOKENS = INLINE_TOKENS // 20
"""Longer generations are cut in a thread: a cut decodes about twenty times."""


async def match_text(tree: TokenTree, text: str, session_id: str | None, decode: Decode | None) -> Prefix:
    """Return the recorded tokens with which `text` begins, held until `TokenTree.release`.

    Without `decode` only whole generations are reused. Text in which no generation lies gets no tokens,
    unless the same prompt was tokenised before.

    Raises: UnicodeEncodeError where the text holds a lone surrogate.
    """
    match = tree.match_text(text, session_id)
    try:
        is_long = match.decoded_tokens > INLINE_CUT_TOKENS
        return tree.hold(match, await in_thread_if(is_long, partial(match.cut, decode)))
    finally:
        tree.release(match)


async def text_before(tree: TokenTree, prefix: Prefix, decode: Decode) -> str | None:
    """Return the text that a prefix matched by token ids spells, or None where it is not known."""
    generation = prefix.segment
    if generation is None:
        return ""
    texts = tree.spelled_text(generation) if isinstance(generation, Generation) else None
    if texts is None:
        return None
    assert isinstance(generation, Generation)
    visible, spelled = texts
    count = len(prefix.tokens) - generation.start
    if not generation.cuts_token and count == generation.spelled_tokens:
        return spelled
    if not generation.cuts_token and count == len(generation.tokens) - generation.trimmed_tokens:
        return visible
    show = partial(decode, generation.tokens[:count], skips_special_tokens=generation.skips_special_tokens)
    shown = await in_thread_if(count > INLINE_TOKENS, show)
    before = spelled.encode()[: generation.text_start].decode() + shown
    return before if spelled.startswith(before) else None
