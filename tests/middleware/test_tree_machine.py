"""The token tree beside a plain list: calls that begin, end, branch and are evicted in any order."""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from espalier.middleware.cut import TextMatch
from espalier.middleware.segments import Context, Generation, Segment, chain, path
from espalier.middleware.tree import Prefix, Sampled, TokenTree
from espalier.sglang import WeightSpan
from tests.thoroughness import cases

from .naive_tree import (
    STOP,
    NaiveTree,
    Path,
    Recording,
    Token,
    context,
    decode,
    encode,
    ids_of_path,
    sources,
    stop_of,
)

BUDGET_TOKENS = 150
SESSION_TTL_S = 100.0
WORDS = ["hello", "<|", " world", " the", "é", "🙂", "你好", "\x00", STOP, "\n", "a", "aa", "b", "x" * 20]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join)
sessions = st.sampled_from([None, "s", "t"])
picks = st.integers(0, 1000)
"""Which of a list, modulo its length."""


class Answer(NamedTuple):
    """What a worker says, as many times as there are siblings; `cut` tokens short, so half a character."""

    text: str
    cut: int
    single: bool
    stops: bool
    skips: bool
    has_logprobs: bool
    siblings: int
    repeats_rid: bool

    def ids(self) -> list[int]:
        """Return the sampled ids, one character at a time if `single`: unlike the tokenizer's own."""
        parts = self.text if self.single else [self.text]
        ids = [each for part in parts for each in encode(part)]
        return ids[: max(0, len(ids) - self.cut)] + stop_of(stops=self.stops)


answers = st.builds(
    Answer,
    text=texts | st.just(""),
    cut=st.integers(0, 2),
    single=st.booleans(),
    stops=st.booleans(),
    skips=st.booleans(),
    has_logprobs=st.booleans(),
    siblings=st.sampled_from([1, 1, 1, 2, 3]),
    repeats_rid=st.booleans(),
)


@dataclass(kw_only=True, eq=False)
class Running:
    """A call whose prompt went to a worker, or a prefix that somebody holds."""

    held: Context | Prefix | TextMatch
    path: Path
    text: str | None
    session_id: str | None


class TreeMachine(RuleBasedStateMachine):
    """Drives the tree as the middleware does, several calls at a time, with room for a few trajectories."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.used_at_s: dict[str, float] = {}
        self.tree = TokenTree(
            max_cached_tokens=BUDGET_TOKENS,
            max_cached_bytes=1 << 40,
            session_ttl_s=SESSION_TTL_S,
            clock=lambda: self.now_s,
        )
        self.naive = NaiveTree()
        self.all: dict[int, Recording] = {}
        self.generations: dict[int, Generation] = {}
        self.running: list[Running] = []
        self.prefixes: list[Running] = []
        self.opened: list[tuple[Context, str | None]] = []
        self.step = 0

    # What is asked: a text or ids, made of anything or of what was recorded.

    @rule(text=texts, session_id=sessions)
    def ask_anything(self, text: str, session_id: str | None) -> None:
        self.ask(text, session_id)

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks, spells=st.booleans(), more=texts | st.just(""), own=st.booleans())
    def ask_next_turn(self, pick: int, spells: bool, more: str, own: bool) -> None:
        before = self.known(pick)
        if before.texts:
            self.ask(before.texts[-1 if spells else 0] + more, before.session_id if own else None)

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks, cut=picks, more=texts | st.just(""))
    def ask_edited_history(self, pick: int, cut: int, more: str) -> None:
        before = self.known(pick)
        if before.texts:
            text = before.texts[-1]
            self.ask(text[: 1 + cut % len(text)] + more, before.session_id)

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks, cut=picks, more=texts)
    def ask_from_a_token_on(self, pick: int, cut: int, more: str) -> None:
        before = self.known(pick)
        kept = before.path[: 1 + cut % len(before.path)]
        if before.texts:
            self.ask(self.naive.text_of(kept, self.all) + more, before.session_id)

    @rule(text=texts, session_id=sessions)
    def ask_anything_by_ids(self, text: str, session_id: str | None) -> None:
        self.ask_ids(encode(text), text, session_id)

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks, cut=picks, more=texts | st.just(""), whole=st.booleans(), knows_text=st.booleans())
    def ask_recorded_ids(self, pick: int, cut: int, more: str, whole: bool, knows_text: bool) -> None:
        before = self.known(pick)
        kept = before.path if whole else before.path[: 1 + cut % len(before.path)]
        text = None
        if knows_text and before.texts:
            text = self.naive.text_of(kept, self.all) + more
        self.ask_ids(ids_of_path(kept) + encode(more), text, before.session_id)

    # What becomes of a call.

    @precondition(lambda self: self.running)
    @rule(pick=picks, said=answers)
    def answer(self, pick: int, said: Answer) -> None:
        call = self.running[pick % len(self.running)]
        for _ in range(said.siblings):
            self.record(call, "again" if said.repeats_rid else str(self.step), said)
        self.running.remove(call)
        self.release(call)

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def give_up(self, pick: int) -> None:
        self.release(self.running.pop(pick % len(self.running)))

    @precondition(lambda self: self.prefixes)
    @rule(pick=picks)
    def let_go(self, pick: int) -> None:
        self.release(self.prefixes.pop(pick % len(self.prefixes)))

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks)
    def forget(self, pick: int) -> None:
        """Where the tree can: what is forgotten is not found by its id, and what goes on from it stays."""
        forget = cast("Callable[[str], object] | None", getattr(self.tree, "forget", None))
        rid = self.known(pick).rid
        same = [each for each in self.naive.recordings if each.rid == rid]
        if forget is None or any(self.is_needed(each) for each in same):
            return
        leaves = self.leaves()
        forget(rid)
        self.take_gone(leaves)
        assert self.tree.get(rid) is None

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks)
    def forget_session(self, pick: int) -> None:
        """What others go on from stays, and is not looked at here: then nothing is forgotten."""
        session_id = self.known(pick).session_id
        same = [each for each in self.naive.recordings if each.session_id == session_id]
        if session_id is not None and not self.is_needed_by_others(same):
            assert self.tree.forget_session(session_id) == len(same)
            self.all_are_gone(same)

    @rule(seconds=st.sampled_from([0.0, 60.0, 150.0]))
    def expire(self, seconds: float) -> None:
        """Time passes; the sessions that nobody used for too long are not found any more."""
        now_s = self.now_s + seconds
        old = [each for each, used_at_s in self.used_at_s.items() if used_at_s < now_s - SESSION_TTL_S]
        same = [each for each in self.naive.recordings if each.session_id in old]
        if self.is_needed_by_others(same):
            return
        self.now_s = now_s
        assert self.tree.expire(now_s) == len(same)
        self.all_are_gone(same)

    def all_are_gone(self, forgotten: list[Recording]) -> None:
        leaves = self.leaves()
        assert set(self.take_gone(leaves)) == set(forgotten)
        for session_id in {each.session_id for each in forgotten}:
            assert session_id is not None
            assert self.tree.session(session_id) == []

    def is_needed_by_others(self, recordings: list[Recording]) -> bool:
        """Say whether anything but they themselves goes on from one of them."""
        paths = [each.prompt for each in self.naive.recordings if each not in recordings]
        paths += [each.path for each in (*self.running, *self.prefixes)]
        return any(each.number in sources(path) for each in recordings for path in paths)

    def use_session(self, session_id: str | None) -> None:
        if any(each.session_id == session_id is not None for each in self.naive.recordings):
            self.used_at_s[cast("str", session_id)] = self.now_s

    # What is found.

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks)
    def get(self, pick: int) -> None:
        rid = self.known(pick).rid
        assert self.tree.get(rid) is self.generation_of(rid)
        self.use(self.latest(rid))

    @precondition(lambda self: self.naive.recordings)
    @rule(pick=picks, session_id=sessions)
    def find_by_text(self, pick: int, session_id: str | None) -> None:
        for text in self.known(pick).texts:
            same = self.naive.ending_at(text)
            own = [each for each in same if session_id is not None and each.session_id == session_id]
            found = self.tree.find_text(text, session_id)
            self.use_session(session_id)
            wanted = (own or same)[-1]
            assert found is self.generations[wanted.number]
            self.use(wanted)

    @rule(text=texts)
    def find_nothing_by_other_texts(self, text: str) -> None:
        if not self.naive.ending_at(text):
            assert self.tree.find_text(text, None) is None

    # How it is done, and what must hold each time.

    def ask(self, text: str, session_id: str | None) -> None:
        match = self.tree.match_text(text, session_id)
        self.use_session(session_id)
        prefix = self.tree.hold(match, match.cut(decode))
        reused = self.path_of(prefix.segment, len(prefix.tokens))
        self.let_go_of_match(match, Running(held=prefix, path=reused, text=None, session_id=None))
        assert ids_of_path(reused) == prefix.tokens.tolist()
        assert self.naive.has_path(reused, self.held_paths())
        assert self.naive.text_of(reused, self.all) == text[: prefix.matched_chars]
        assert prefix.matched_chars >= self.naive.least_match(text, session_id)
        silent = self.naive.last_silent(text, session_id)
        if silent is not None:
            assert silent.number in sources(reused)
        if not sources(reused):
            assert ids_of_path(reused) in ([], encode(text))
        rest = encode(text[prefix.matched_chars :])
        held = self.tree.open_context(prefix, rest, text, is_canonical=True)
        self.begin(Running(held=held, path=reused + context(rest), text=text, session_id=session_id))

    def let_go_of_match(self, match: TextMatch, prefix: Running) -> None:
        """Release the match, whose prefix is held."""
        self.prefixes.append(prefix)
        for each in self.naive.recordings:
            if self.generations[each.number] is match.segment:
                each.may_be_used_at = self.step
        self.release(Running(held=match, path=(), text=None, session_id=None))

    def ask_ids(self, ids: list[int], text: str | None, session_id: str | None) -> None:
        prefix = self.tree.match_ids(array("i", ids), session_id)
        self.use_session(session_id)
        reused = self.path_of(prefix.segment, len(prefix.tokens))
        assert ids_of_path(reused) == ids[: len(reused)]
        assert self.naive.has_path(reused, self.held_paths())
        assert len(reused) >= self.naive.longest_beginning_of_ids(ids)
        self.prefixes.append(Running(held=prefix, path=reused, text=None, session_id=None))
        before = self.naive.text_of(reused, self.all)
        known = text if text is not None and text.startswith(before) else None
        if prefix.segment is not None and not prefix.segment.has_text:
            known = None
        held = self.tree.open_context(
            prefix,
            ids[len(reused) :],
            known,
            is_canonical=False,
            text_before_bytes=len(before.encode()) if known is not None else None,
        )
        if prefix.exact is not None:
            known = next(text for opened, text in self.opened if opened is held)
        call = Running(
            held=held, path=reused + context(ids[len(reused) :]), text=known, session_id=session_id
        )
        self.begin(call)

    def begin(self, call: Running) -> None:
        """The prompt is opened; three of four times its prefix is let go of at once."""
        assert isinstance(call.held, Context)
        assert self.path_of(call.held, call.held.end) == call.path
        assert call.held.has_text == (call.text is not None)
        self.running.append(call)
        self.opened.append((call.held, call.text))
        if self.step % 4:
            self.release(self.prefixes.pop())

    def record(self, call: Running, rid: str, said: Answer) -> None:
        ids = said.ids()
        self.step += 1
        number = self.step
        logprobs = [-(number + at / 1000) for at in range(len(ids))] if said.has_logprobs else None
        half = len(ids) // 2
        recording = Recording(
            number=number,
            rid=rid,
            session_id=call.session_id,
            prompt=call.path,
            prompt_text=call.text,
            sampled=tuple(
                Token(each, number, logprobs[at] if logprobs is not None else None)
                for at, each in enumerate(ids)
            ),
            stops=said.stops,
            skips=said.skips,
            weight_versions=(
                WeightSpan(version="old", start=0, end=half),
                WeightSpan(version="new", start=half, end=len(ids)),
            ),
            used_at=number,
            may_be_used_at=number,
        )
        leaves = self.leaves()
        freed = self.tree.evicted_tokens
        assert isinstance(call.held, Context)
        self.generations[number] = self.tree.record(
            call.held,
            Sampled(
                rid=rid,
                session_id=call.session_id,
                tokens=array("i", ids),
                logprobs=array("d", logprobs) if logprobs is not None else None,
                weight_versions=recording.weight_versions,
                finish_type="stop" if said.stops else "length",
                text=recording.reply if call.text is not None else None,
                trimmed_stop=STOP if said.stops else "",
                trimmed_tokens=int(said.stops),
                skips_special_tokens=said.skips,
            ),
        )
        self.all[number] = recording
        self.naive.recordings.append(recording)
        self.use_session(call.session_id)
        self.settle([*leaves, recording], freed)

    def release(self, call: Running) -> None:
        self.step += 1
        if not isinstance(call.held, Context) and call.held.segment is None:
            self.tree.release(call.held)
            return
        leaves, freed = self.leaves(), self.tree.evicted_tokens
        for each in self.naive.recordings:
            if each.number in sources(call.path):
                each.may_be_used_at = self.step
        self.tree.release(call.held)
        self.settle(leaves, freed)

    def settle(self, leaves: list[Recording], freed: int) -> None:
        """Take from the list what the tree has evicted, having checked that it had to go."""
        gone = self.take_gone(leaves)
        assert not any(self.is_needed(each) for each in gone)
        if gone:
            assert self.tree.cached_tokens + self.tree.evicted_tokens - freed > BUDGET_TOKENS
        if self.tree.cached_tokens > BUDGET_TOKENS:
            assert all(self.is_needed(each) for each in self.naive.recordings)
        stayed = [each for each in leaves if each not in gone and not self.is_needed(each)]
        for left in gone:
            assert left not in leaves or all(left.used_at <= each.may_be_used_at for each in stayed)

    def take_gone(self, leaves: list[Recording]) -> list[Recording]:
        """Take from the list what the tree has not any more, and return it."""
        gone = [each for each in self.naive.recordings if not self.is_recorded(each)]
        self.naive.recordings = [each for each in self.naive.recordings if self.is_recorded(each)]
        for each in self.naive.recordings:
            if each not in leaves and any(each.number in sources(left.prompt) for left in gone):
                each.used_at = -1  # its last branch went: it is the next to go
        named = {each.session_id for each in self.naive.recordings}
        self.used_at_s = {each: at for each, at in self.used_at_s.items() if each in named}
        return gone

    def leaves(self) -> list[Recording]:
        return [each for each in self.naive.recordings if not self.is_needed(each)]

    def is_needed(self, recording: Recording) -> bool:
        """Say whether a running call, a held prefix or another trajectory goes on from its tokens."""
        held = any(recording.number in sources(each.path) for each in (*self.running, *self.prefixes))
        return held or self.naive.goes_on_from(recording.number)

    def held_paths(self) -> list[Path]:
        return [each.path for each in (*self.running, *self.prefixes)]

    def is_recorded(self, recording: Recording) -> bool:
        return self.generations[recording.number].ids_node is not None

    def latest(self, rid: str) -> Recording:
        return [each for each in self.all.values() if each.rid == rid][-1]

    def generation_of(self, rid: str) -> Generation | None:
        """Return the generation of the latest call of an id; an older one never stands in for it."""
        latest = self.latest(rid)
        return self.generations[latest.number] if self.is_recorded(latest) else None

    def use(self, recording: Recording) -> None:
        self.step += 1
        recording.may_be_used_at = self.step
        if not self.is_needed(recording):
            recording.used_at = self.step

    def known(self, pick: int) -> Recording:
        return self.naive.recordings[pick % len(self.naive.recordings)]

    def path_of(self, segment: Segment | None, end: int) -> Path:
        """Return what the tree says of the path's tokens: ids, who sampled them, log-probabilities."""
        numbers = {id(generation): number for number, generation in self.generations.items()}
        tokens: list[Token] = []
        for piece in path(segment, end):
            each = piece.segment
            if not isinstance(each, Generation):
                tokens += context(each.tokens[: piece.used])
                continue
            told = each.logprobs if each.logprobs is not None else [None] * len(each.tokens)
            tokens += [
                Token(token_id, numbers[id(each)], logprob)
                for token_id, logprob in zip(each.tokens[: piece.used], told[: piece.used], strict=True)
            ]
        return tuple(tokens)

    @invariant()
    def every_trajectory_is_exactly_what_was_recorded(self) -> None:
        for each in self.naive.recordings:
            generation = self.generations[each.number]
            assert self.path_of(generation, generation.end) == each.path
            assert generation.weight_versions == each.weight_versions
            assert (generation.rid, generation.session_id) == (each.rid, each.session_id)
            told = self.tree.spelled_text(generation)
            assert told == ((each.texts[0], each.texts[-1]) if each.texts else None)
        for call in self.running:
            assert isinstance(call.held, Context)
            assert self.path_of(call.held, call.held.end) == call.path

    @invariant()
    def counts_are_true(self) -> None:
        assert self.tree.trajectories == len(self.naive.recordings)
        held = [each.held if isinstance(each.held, Context) else each.held.segment for each in self.running]
        held += [each.held.segment for each in self.prefixes if isinstance(each.held, Prefix)]
        ends = [*(self.generations[each.number] for each in self.naive.recordings), *held]
        alive = {id(each): each for end in ends for each in chain(end)}
        assert self.tree.cached_tokens == sum(len(each.tokens) for each in alive.values())

    def teardown(self) -> None:
        """Let go of everything, then push it all out: nothing is left, and nothing is found any more."""
        for call in (*self.running, *self.prefixes):
            self.tree.release(call.held)
        for each in self.all.values():
            assert self.tree.get(each.rid) is self.generation_of(each.rid)
        prefix = self.tree.match_ids(array("i", [7]), None)
        large = self.tree.open_context(prefix, [7] * (BUDGET_TOKENS + 1), None, is_canonical=False)
        self.tree.release(prefix)
        tokens, nothing = array("i", [7]), array("d", [math.nan])
        self.tree.record(
            large,
            Sampled(
                rid="large",
                session_id=None,
                tokens=tokens,
                logprobs=nothing,
                weight_versions=(),
                finish_type="length",
                text=None,
            ),
        )
        self.tree.release(large)
        assert (self.tree.cached_tokens, self.tree.cached_bytes, self.tree.trajectories) == (0, 0, 0)
        for each in self.all.values():
            assert self.tree.get(each.rid) is None
            assert self.tree.recorded_length(array("i", ids_of_path(each.path))) == 0
            assert all(self.tree.find_text(text, each.session_id) is None for text in each.texts)


TestTokenTree = TreeMachine.TestCase
TestTokenTree.settings = cases(150, steps=40)
