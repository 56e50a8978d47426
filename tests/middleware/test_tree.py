"""The token tree beside a plain list of trajectories."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from espalier.middleware.segments import Context, Generation, Segment, path, tokens_of
from espalier.middleware.tree import Prefix, Sampled, TokenTree

from .tokenizers_made import byte_level

TOKENIZER = byte_level()
WORDS = ["hello", " world", " the", "é", "🙂", "你好", "\x00", "<|im_end|>", "\n", "a", "aa", "b", "x" * 20]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map("".join)
sessions = st.sampled_from([None, "s", "t"])
BUDGET_TOKENS = 250


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def decode(ids: Sequence[int], *, skips_special_tokens: bool = False) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=skips_special_tokens)


def matched(tree: TokenTree, text: str, session_id: str | None = None) -> Prefix:
    match = tree.match_text(text, session_id)
    prefix = tree.hold(match, match.cut(decode))
    tree.release(match)
    return prefix


@dataclass
class Recorded:
    """One trajectory as the caller knows it: everything the worker read, then what it sampled."""

    rid: str
    session_id: str | None
    prompt: list[int]
    sampled: list[int]
    logprobs: list[float]
    mask: list[int]
    text: str
    spelled: str


class TreeMachine(RuleBasedStateMachine):
    """Records calls as the middleware does, by text and by ids, in a tree that is sometimes too small."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = TokenTree(max_cached_tokens=BUDGET_TOKENS, max_cached_bytes=1 << 40)
        self.recorded: list[Recorded] = []
        self.count = 0

    def known(self) -> list[Recorded]:
        return [each for each in self.recorded if self.tree.get(each.rid) is not None]

    @rule(text=texts, reply=texts, session_id=sessions, stops=st.booleans(), single=st.booleans())
    def call_by_text(self, text: str, reply: str, session_id: str | None, stops: bool, single: bool) -> None:
        self.call(text, reply, session_id, stops=stops, single=single)

    @rule(data=st.data(), reply=texts, stops=st.booleans(), spells=st.booleans())
    def next_turn(self, data: st.DataObject, reply: str, stops: bool, spells: bool) -> None:
        known = self.known()
        if known:
            before = data.draw(st.sampled_from(known))
            text = before.spelled if spells else before.text
            kept = len(text)
            text += data.draw(texts)
            self.call(text, reply, before.session_id, stops=stops, single=False, kept=kept)

    @rule(data=st.data(), reply=texts)
    def edited_history(self, data: st.DataObject, reply: str) -> None:
        known = self.known()
        if known:
            before = data.draw(st.sampled_from(known))
            cut = data.draw(st.integers(1, len(before.spelled)))
            self.call(before.spelled[:cut] + data.draw(texts), reply, None, stops=False, single=False)

    def call(
        self, text: str, reply: str, session_id: str | None, *, stops: bool, single: bool, kept: int = 0
    ) -> None:
        prefix = matched(self.tree, text, session_id)
        rest = text[prefix.matched_chars :]
        assert decode(prefix.tokens) == text[: prefix.matched_chars]
        assert prefix.matched_chars >= kept
        mask = mask_of(prefix.segment, len(prefix.tokens))
        if not any(mask):
            assert prefix.tokens.tolist() in ([], encode(text))
        ids = encode(rest)
        context = self.tree.open_context(prefix, ids, text, is_canonical=True)
        self.tree.release(prefix)
        prompt = prefix.tokens.tolist() + ids
        assert tokens_of(path(context, context.end)).tolist() == prompt
        sampled = [each for char in reply for each in encode(char)] if single else encode(reply)
        stop = [2] if stops else []
        self.count += 1
        rid = str(self.count)
        tokens = [*sampled, *stop]
        logprobs = [-(self.count + at / 1000) for at in range(len(tokens))]
        self.tree.record(
            context,
            Sampled(
                rid=rid,
                session_id=session_id,
                tokens=array("i", tokens),
                logprobs=array("d", logprobs),
                weight_versions=(),
                finish_type="stop" if stops else "length",
                text=decode(sampled),
                trimmed_stop="<|im_end|>" if stops else "",
                trimmed_tokens=len(stop),
                skips_special_tokens=False,
            ),
        )
        self.tree.release(context)
        visible = text + decode(sampled)
        self.recorded.append(
            Recorded(
                rid=rid,
                session_id=session_id,
                prompt=prompt,
                sampled=tokens,
                logprobs=logprobs,
                mask=mask + [0] * len(ids),
                text=visible,
                spelled=visible + ("<|im_end|>" if stops else ""),
            )
        )

    @rule(data=st.data(), rest=texts)
    def call_by_ids_continues_a_recorded_one(self, data: st.DataObject, rest: str) -> None:
        known = self.known()
        if not known:
            return
        before = data.draw(st.sampled_from(known))
        whole = before.prompt + before.sampled
        ids = whole[: data.draw(st.integers(1, len(whole)))] + encode(rest)
        prefix = self.tree.match_ids(array("i", ids), before.session_id)
        assert prefix.tokens.tolist() == ids[: len(prefix.tokens)]
        context = self.tree.open_context(prefix, ids[len(prefix.tokens) :], None, is_canonical=False)
        self.tree.release(prefix)
        assert tokens_of(path(context, context.end)).tolist() == ids
        self.tree.release(context)

    @rule(data=st.data())
    def whole_text_gives_back_a_generation_that_ends_there(self, data: st.DataObject) -> None:
        known = self.known()
        if not known:
            return
        wanted = data.draw(st.sampled_from(known))
        for text in (wanted.text, wanted.spelled):
            same = [each for each in known if text in (each.text, each.spelled)]
            own = [
                each
                for each in same
                if wanted.session_id is not None and each.session_id == wanted.session_id
            ]
            found = self.tree.find_text(text, wanted.session_id)
            assert found is not None
            assert found.rid == (own or same)[-1].rid

    @invariant()
    def every_trajectory_is_exactly_what_was_recorded(self) -> None:
        for each in self.known():
            generation = self.tree.get(each.rid)
            assert generation is not None
            pieces = path(generation, generation.end)
            assert tokens_of(pieces).tolist() == each.prompt + each.sampled
            assert mask_of(generation, generation.end) == each.mask + [1] * len(each.sampled)
            assert generation.logprobs is not None
            assert generation.logprobs.tolist() == each.logprobs
            assert self.tree.spelled_text(generation) == (each.text, each.spelled)

    @invariant()
    def budget_is_kept_and_counts_are_true(self) -> None:
        assert self.tree.cached_tokens <= BUDGET_TOKENS
        assert self.tree.trajectories == len(self.known())
        if not self.known():
            assert self.tree.cached_tokens == 0
            assert self.tree.cached_bytes == 0


def mask_of(segment: Segment | None, end: int) -> list[int]:
    mask: list[int] = []
    for piece in path(segment, end):
        mask += [int(isinstance(piece.segment, Generation))] * piece.used
    return mask


TestTokenTree = TreeMachine.TestCase
TestTokenTree.settings = settings(max_examples=45, stateful_step_count=25, deadline=None)


def record(tree: TokenTree, context: Context, rid: str, text: str | None) -> Generation:
    sampled = encode(text or "z")
    generation = tree.record(
        context,
        Sampled(
            rid=rid,
            session_id=None,
            tokens=array("i", sampled),
            logprobs=None,
            weight_versions=(),
            finish_type="length",
            text=text,
        ),
    )
    tree.release(context)
    return generation


def opened(tree: TokenTree, text: str, *, by_ids: bool = False) -> Context:
    """Open the prompt `text` as the middleware does; by its ids alone, its text is not known to the tree."""
    ids = array("i", encode(text))
    prefix = tree.match_ids(ids, None) if by_ids else matched(tree, text)
    rest = ids[len(prefix.tokens) :] if by_ids else encode(text[prefix.matched_chars :])
    context = tree.open_context(prefix, rest, None if by_ids else text, is_canonical=not by_ids)
    tree.release(prefix)
    return context


def test_contexts_store_what_they_share_once() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    for rid in ("a", "b", "c"):
        record(tree, opened(tree, "x" * 40 + rid), rid, "z")
    assert tree.cached_tokens == 40 + 3 * 2


def test_context_that_shares_little_does_not_keep_a_long_one_alive() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    record(tree, opened(tree, "x" * 20 + "y" * 500), "long", "z")
    short = record(tree, opened(tree, "x" * 20 + "b"), "short", "z")
    assert short.parent is not None
    assert short.parent.parent is None


def test_context_by_ids_whose_text_is_unknown_does_not_hide_a_reply_from_texts() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    reply = record(tree, opened(tree, "hello"), "first", " world")
    turn = "hello world" + "x" * 40
    record(tree, opened(tree, turn, by_ids=True), "by ids", None)
    record(tree, opened(tree, turn), "by text", "z")
    prefix = matched(tree, turn + "?")
    assert prefix.segment is reply
    assert prefix.matched_chars == len("hello world")


def test_bytes_are_bounded_where_tokens_are_few() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=100_000)
    for rid in range(500):
        record(tree, opened(tree, f"prompt {rid}"), str(rid), "z")
    assert tree.cached_bytes <= 100_000
    assert 10 < tree.trajectories < 500
    assert tree.get("499") is not None
    assert tree.get("0") is None


def test_least_recently_used_trajectory_goes_first() -> None:
    tree = TokenTree(max_cached_tokens=6, max_cached_bytes=10**9)
    for rid in "abc":
        record(tree, opened(tree, rid), rid, "z")
    assert tree.get("a") is not None
    record(tree, opened(tree, "?"), "d", "z")
    assert [rid for rid in "abcd" if tree.get(rid) is not None] == ["a", "c", "d"]


def test_branch_inside_a_reply_is_found_past_a_context_of_unknown_text() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    reply = record(tree, opened(tree, "hello"), "first", "aba")
    turn = "hello" + "a" + "x" * 40
    record(tree, opened(tree, turn, by_ids=True), "by ids", None)
    record(tree, opened(tree, turn), "by text", "z")
    prefix = matched(tree, turn + "?")
    assert (prefix.segment, prefix.matched_chars) == (reply, len("helloa"))


def test_tokens_sampled_under_an_unknown_text_stay_context_for_a_text() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    sampled = tree.record(
        held := opened(tree, "hello", by_ids=True),
        Sampled(
            rid="by ids",
            session_id=None,
            tokens=array("i", encode("x" * 40)),
            logprobs=None,
            weight_versions=(),
            finish_type="length",
            text=None,
        ),
    )
    tree.release(held)
    generation = record(tree, opened(tree, "hello" + "x" * 40), "by text", "z")
    assert mask_of(generation, generation.start) == [0] * generation.start
    assert mask_of(sampled, sampled.end) == [0] * sampled.start + [1] * 40
