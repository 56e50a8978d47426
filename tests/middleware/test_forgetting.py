"""What leaves the tree before the budget needs its room, and what later generations keep of it."""

from array import array
from itertools import count
from pathlib import Path

import pytest

from espalier.middleware.segments import Generation, path, tokens_of
from espalier.middleware.store import SESSIONS_A_SWEEP
from espalier.middleware.tree import Sampled, TokenTree
from espalier.sglang import WeightSpan

from .driver import Setup, says
from .test_tree import encode, matched, opened

TTL_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def tree_of(
    *, max_version_lag: int | None = None, session_ttl_s: float | None = None, clock: Clock | None = None
) -> TokenTree:
    return TokenTree(
        max_cached_tokens=10**6,
        max_cached_bytes=10**9,
        max_version_lag=max_version_lag,
        session_ttl_s=session_ttl_s,
        clock=clock or Clock(),
    )


def say(
    tree: TokenTree,
    prompt: str,
    reply: str,
    rid: str,
    *,
    session_id: str | None = None,
    versions: tuple[str, ...] = (),
) -> Generation:
    """Record that `reply` followed `prompt`; each version sampled one token, the last one the rest."""
    context = opened(tree, prompt)
    tokens = encode(reply)
    ends = [*range(1, len(versions)), len(tokens)]
    spans = [
        WeightSpan(version=version, start=start, end=end)
        for version, start, end in zip(versions, [0, *ends], ends, strict=False)
    ]
    generation = tree.record(
        context,
        Sampled(
            rid=rid,
            session_id=session_id,
            tokens=array("i", tokens),
            logprobs=array("d", [-float(at) for at in range(len(tokens))]),
            weight_versions=tuple(spans),
            finish_type="length",
            text=reply,
        ),
    )
    tree.release(context)
    return generation


def known(tree: TokenTree, *rids: str) -> list[str]:
    return [rid for rid in rids if tree.get(rid) is not None]


def test_forgotten_trajectory_is_not_found_by_any_name_and_frees_its_room() -> None:
    tree = tree_of()
    say(tree, "hello", " world", "a", session_id="s")
    assert tree.forget("a")
    assert not tree.forget("a")
    assert (tree.get("a"), tree.session("s"), tree.find_text("hello world", "s")) == (None, [], None)
    assert (tree.trajectories, tree.sessions, tree.cached_tokens, tree.cached_bytes) == (0, 0, 0, 0)


def test_forgotten_turn_stays_for_the_turn_that_follows_from_it_and_goes_with_it() -> None:
    tree = tree_of()
    first = say(tree, "hello", " world", "first", session_id="s")
    second = say(tree, "hello world\n", "there", "second", session_id="s")
    whole = tokens_of(path(second, second.end)).tolist()
    assert tree.forget("first")
    assert tree.find_text("hello world", None) is None
    assert tree.session("s") == [second]
    assert second.before is first
    assert tokens_of(path(second, second.end)).tolist() == whole
    third = say(tree, "hello world\nthere", "!", "third")
    assert (third.before, second.before) == (second, first)
    assert tree.find_text("hello world\nthere!", None) is third
    tree.forget("third")
    tree.forget("second")
    assert (tree.cached_tokens, tree.cached_bytes) == (0, 0)


def test_forgotten_trajectory_that_a_call_builds_on_stays_until_the_call_has_ended() -> None:
    tree = tree_of()
    say(tree, "hello", " world", "a")
    prefix = matched(tree, "hello world!")
    assert tree.forget("a")
    assert tree.cached_tokens > 0
    context = tree.open_context(prefix, encode("!"), "hello world!", is_canonical=True)
    tree.release(prefix)
    assert tokens_of(path(context, context.end)).tolist() == encode("hello") + encode(" world") + encode("!")
    tree.release(context)
    assert (tree.cached_tokens, tree.cached_bytes) == (0, 0)


def test_forgotten_session_is_gone_and_others_are_not() -> None:
    tree = tree_of()
    for rid, session_id in (("a", "s"), ("b", "s"), ("c", "t"), ("d", None)):
        say(tree, "hello", rid, rid, session_id=session_id)
    assert [each.rid for each in tree.session("s")] == ["a", "b"]
    assert tree.forget_session("s") == 2
    assert tree.forget_session("s") == 0
    assert known(tree, *"abcd") == ["c", "d"]


def test_session_that_is_not_used_expires_and_one_that_is_used_does_not() -> None:
    clock = Clock()
    tree = tree_of(session_ttl_s=TTL_S, clock=clock)
    for name in ("continued", "matched", "listed", "idle"):
        say(tree, name, " world", name, session_id=name)
    say(tree, "no session", " world", "none")
    clock.now_s += TTL_S
    assert tree.expire(clock.now_s) == 0
    say(tree, "another", " world", "again", session_id="continued")
    tree.release(matched(tree, "matched", "matched"))
    assert len(tree.session("listed")) == 1
    clock.now_s += 1
    assert tree.expire(clock.now_s) == 1
    assert known(tree, "idle", "continued", "matched", "listed", "none") == [
        "continued",
        "matched",
        "listed",
        "none",
    ]
    assert tree.expired_sessions == 1


def test_sessions_expire_a_few_a_call_with_the_calls_that_are_recorded() -> None:
    clock = Clock()
    tree = tree_of(session_ttl_s=TTL_S, clock=clock)
    sessions = 2 * SESSIONS_A_SWEEP
    for number in range(sessions):
        say(tree, "hello", str(number), str(number), session_id=str(number))
    clock.now_s += TTL_S + 1
    left = []
    for rid in ("x", "y", "z"):
        say(tree, "hello", rid, rid)
        left.append(tree.sessions)
    assert left == [sessions - SESSIONS_A_SWEEP, 0, 0]


def test_sessions_do_not_expire_unless_told_to() -> None:
    clock = Clock()
    tree = tree_of(clock=clock)
    say(tree, "hello", " world", "a", session_id="s")
    clock.now_s += 10**9
    assert tree.expire(clock.now_s) == 0
    assert known(tree, "a") == ["a"]


@pytest.mark.parametrize(
    ("lag", "kept"), [(0, ["3"]), (1, ["2", "3"]), (2, ["1", "2", "3"]), (None, ["1", "2", "3"])]
)
def test_generations_more_than_some_versions_old_are_dropped(lag: int | None, kept: list[str]) -> None:
    tree = tree_of(max_version_lag=lag)
    for version in ("1", "2", "3"):
        say(tree, "hello", version, version, versions=(version,))
    say(tree, "hello", "unknown", "unknown")
    assert known(tree, "1", "2", "3", "unknown") == [*kept, "unknown"]
    assert tree.outdated_trajectories == 3 - len(kept)


def test_numbers_are_ordered_as_numbers_and_names_as_they_were_seen() -> None:
    for versions, kept in ((("9", "10", "11"), ["10", "11"]), (("z", "y", "x"), ["y", "x"])):
        tree = tree_of(max_version_lag=1)
        for version in versions:
            say(tree, "hello", version, version, versions=(version,))
        assert known(tree, *versions) == kept


def test_generation_is_as_old_as_its_last_token() -> None:
    tree = tree_of(max_version_lag=0)
    say(tree, "hello", " world and so on", "spans two", versions=("1", "2"))
    say(tree, "hello", " there", "late", versions=("1",))
    assert known(tree, "spans two") == ["spans two"]
    say(tree, "hello", " you", "new", versions=("3",))
    assert known(tree, "spans two", "late", "new") == ["new"]


def test_old_turn_stays_for_the_newer_turn_that_follows_from_it() -> None:
    tree = tree_of(max_version_lag=0)
    first = say(tree, "hello", " world", "first", versions=("1",))
    second = say(tree, "hello world\n", "there", "second", versions=("2",))
    assert known(tree, "first", "second") == ["second"]
    assert second.before is first
    say(tree, "another", " one", "third", versions=("3",))
    assert tree.cached_tokens == len(encode("another") + encode(" one"))


def test_versions_before_one_that_was_never_seen_are_not_known() -> None:
    tree = tree_of()
    say(tree, "hello", " world", "a", versions=("1",))
    assert tree.drop_versions_before("2") == 0
    say(tree, "hello", " there", "b", versions=("2",))
    assert tree.drop_versions_before("2") == 1
    assert known(tree, "a", "b") == ["b"]


def test_rid_that_is_used_again_names_the_latest_and_forgets_that() -> None:
    tree = tree_of()
    rids = count()
    for reply in (" world", " there"):
        say(tree, "hello", reply, "same", session_id=str(next(rids)))
    assert tree.find_text("hello there", None) is tree.get("same")
    tree.forget("same")
    assert tree.get("same") is None
    assert tree.find_text("hello there", None) is None
    assert tree.find_text("hello world", None) is not None
    assert tree.forget_session("0") == 1
    assert tree.cached_tokens == 0


def test_options_of_the_middleware_reach_the_tree(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"), max_version_lag=0, session_ttl_s=3600)
    for version in ("1", "2"):
        setup.worker.weight_version = version
        setup.send(text="the quick", rid=version, session_id=version)
    assert (setup.stat("trajectories"), setup.stat("sessions")) == (1, 1)
    assert (setup.stat("outdated_trajectories_total"), setup.stat("expired_sessions_total")) == (1, 0)
