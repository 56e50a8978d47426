"""What a client does to a history: every change is a branch at the last whole token that still matches.

No branch disturbs another: after each scenario, every trajectory is what its own call read and sampled.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from espalier.calls import JsonObject

from .driver import ASSISTANT, END, IM_END, USER, Setup, ids_of, retrieve, says
from .fake_worker import logprob

END_OF_TEXT = 0
QUESTION = USER + "what is 12 + 30?" + END + ASSISTANT


def spelled(text: str) -> list[int]:
    """Return a reply's ids as `says` samples them: none that the tokenizer would make of the whole text."""
    return [each for char in text for each in ids_of(char)]


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    """Yield the middleware; afterwards check every trajectory against what its call read and sampled."""
    made = Setup(tmp_path, says("it is 42", stop=True))
    yield made
    for asked, reply in zip(made.worker.sent, made.worker.replies, strict=True):
        prompt, sampled = asked["input_ids"], reply["output_ids"]
        rid = reply["meta_info"]["id"]
        found = asyncio.run(retrieve(made.middleware, rid=rid, return_logp=True))
        assert found.tokens == prompt + sampled, rid
        assert found.loss_mask[len(prompt) :] == [1] * len(sampled), rid
        assert isinstance(found.rollout_logp, list)
        for at, (mask, told) in enumerate(zip(found.loss_mask, found.rollout_logp, strict=True)):
            expected = logprob(found.tokens[: at + 1], made.worker.weight_version) if mask else 0.0
            assert told == expected, (rid, at)


def say(
    setup: Setup, prompt: str, reply: str, rid: str, *, stop: bool = True, **more: str | None
) -> JsonObject:
    setup.worker.sample = says(reply, stop=stop)
    return setup.send(text=prompt, rid=rid, **more)


def sent(setup: Setup) -> list[int]:
    """Return the ids of the last prompt."""
    ids: list[int] = setup.worker.sent[-1]["input_ids"]
    return ids


def stop() -> list[int]:
    return ids_of("<|im_end|>")


def test_siblings_branch_where_their_prompt_ends(setup: Setup) -> None:
    for number, reply in enumerate(("it is 42", "it is 42", "it is 41", "42", "")):
        say(setup, QUESTION, reply, f"sibling {number}")
        assert sent(setup) == ids_of(QUESTION)
    assert setup.stat("cached_tokens") == len(ids_of(QUESTION)) + sum(
        len(reply["output_ids"]) for reply in setup.worker.replies
    )


def test_each_sibling_goes_on_with_its_own_tokens(setup: Setup) -> None:
    replies = {"a": "it is 42", "b": "it is 41", "c": "it"}
    for rid, reply in replies.items():
        say(setup, QUESTION, reply, rid, session_id=rid)
    for rid, reply in replies.items():
        say(setup, QUESTION + reply + END + USER + "sure?", "yes", rid + "2", session_id=rid)
        assert sent(setup) == ids_of(QUESTION) + spelled(reply) + stop() + ids_of("\n" + USER + "sure?")


def test_sibling_that_stopped_otherwise_goes_on_with_its_own_tokens(setup: Setup) -> None:
    setup.worker.stop_ids = [END_OF_TEXT, IM_END]
    say(setup, QUESTION, "it is 42", "a", session_id="a")
    own = ids_of("it is 42")
    setup.worker.sample = lambda _: [*own, END_OF_TEXT]
    setup.send(text=QUESTION, rid="b", session_id="b")
    assert own != spelled("it is 42")
    for session_id, sampled in (("a", [*spelled("it is 42"), IM_END]), ("b", [*own, IM_END])):
        say(setup, QUESTION + "it is 42" + END + USER, "yes", session_id + "2", session_id=session_id)
        assert sent(setup) == [*ids_of(QUESTION), *sampled, *ids_of("\n" + USER)]


def test_agent_that_goes_back_and_retries_branches_at_that_turn(setup: Setup) -> None:
    say(setup, QUESTION, "run it", "turn 1")
    after = QUESTION + "run it" + END + USER + "error" + END + ASSISTANT
    say(setup, after, "hm", "turn 2")
    prompt = sent(setup)
    say(setup, after + "hm" + END + USER + "go on" + END + ASSISTANT, "done", "turn 3")
    say(setup, after, "let me see", "turn 2 again")
    assert sent(setup) == prompt
    say(setup, QUESTION, "do not run it", "turn 1 again")
    assert sent(setup) == ids_of(QUESTION)


def test_sub_agents_branch_from_their_parent_s_turn_and_it_goes_on_without_them(setup: Setup) -> None:
    say(setup, QUESTION, "ask two others", "parent", session_id="p")
    common = QUESTION + "ask two others" + END
    known = ids_of(QUESTION) + spelled("ask two others") + stop()
    for name in ("first", "second"):
        task = USER + f"you are the {name}" + END + ASSISTANT
        say(setup, common + task, f"I, the {name}", name, session_id=name)
        assert sent(setup) == known + ids_of("\n" + task)
    say(setup, common + USER + "both agree" + END + ASSISTANT, "so it is", "parent 2", session_id="p")
    assert sent(setup) == known + ids_of("\n" + USER + "both agree" + END + ASSISTANT)


def test_removed_think_block_branches_before_it(setup: Setup) -> None:
    say(setup, QUESTION, "<think>30 + 12</think>it is 42", "thinks")
    say(setup, QUESTION + "it is 42" + END + USER + "sure?" + END + ASSISTANT, "yes", "removed")
    assert sent(setup) == ids_of(QUESTION + "it is 42" + END + USER + "sure?" + END + ASSISTANT)


def test_think_block_removed_from_the_second_turn_keeps_the_first(setup: Setup) -> None:
    say(setup, QUESTION, "it is 42", "turn 1")
    before = QUESTION + "it is 42" + END + USER + "sure?" + END + ASSISTANT
    say(setup, before, "<think>hm</think>yes", "turn 2")
    known = ids_of(QUESTION) + spelled("it is 42") + stop()
    say(setup, before + "yes" + END + USER + "ok" + END + ASSISTANT, "bye", "turn 3")
    rest = "\n" + USER + "sure?" + END + ASSISTANT + "yes" + END + USER + "ok" + END + ASSISTANT
    assert sent(setup) == known + ids_of(rest)


def test_white_space_stripped_from_the_end_keeps_the_tokens_before_it(setup: Setup) -> None:
    say(setup, QUESTION, "it is 42 \n\n", "spaced")
    rest = END + USER + "sure?" + END + ASSISTANT
    say(setup, QUESTION + "it is 42" + rest, "yes", "stripped")
    assert sent(setup) == ids_of(QUESTION) + spelled("it is 42") + ids_of(rest)


def test_white_space_stripped_from_the_start_keeps_the_prompt(setup: Setup) -> None:
    say(setup, QUESTION, "\n\nit is 42", "spaced")
    text = QUESTION + "it is 42" + END + USER + "sure?" + END + ASSISTANT
    say(setup, text, "yes", "stripped")
    assert sent(setup) == ids_of(text)


def test_shortened_history_branches_at_its_first_turn(setup: Setup) -> None:
    say(setup, QUESTION, "it is 42", "turn 1")
    second = QUESTION + "it is 42" + END + USER + "sure?" + END + ASSISTANT
    say(setup, second, "yes", "turn 2")
    say(setup, second + "yes" + END + USER + "why?" + END + ASSISTANT, "so", "turn 3")
    without_second = QUESTION + "it is 42" + END + USER + "why?" + END + ASSISTANT
    say(setup, without_second, "because", "shortened")
    known = ids_of(QUESTION) + spelled("it is 42") + stop()
    assert sent(setup) == known + ids_of("\n" + USER + "why?" + END + ASSISTANT)


def test_history_without_its_beginning_shares_nothing(setup: Setup) -> None:
    say(setup, QUESTION, "it is 42", "turn 1")
    later = USER + "sure?" + END + ASSISTANT
    say(setup, QUESTION + "it is 42" + END + later, "yes", "turn 2")
    say(setup, later, "what?", "without beginning")
    assert sent(setup) == ids_of(later)


def test_edit_inside_a_token_branches_before_that_token(setup: Setup) -> None:
    reply = ids_of("the quick brown fox")
    setup.worker.sample = lambda _: reply
    setup.send(text=QUESTION, rid="whole")
    whole_tokens = [setup.tokenizer.decode([each]) for each in reply]
    long = next(at for at, each in enumerate(whole_tokens) if at and len(each) > 2)
    kept = "".join(whole_tokens[:long])
    say(setup, QUESTION + kept + whole_tokens[long][:2] + "!", "ok", "edited")
    assert sent(setup)[: len(ids_of(QUESTION)) + long] == ids_of(QUESTION) + reply[:long]
    assert setup.tokenizer.decode(sent(setup), skip_special_tokens=False) == (
        QUESTION + kept + whole_tokens[long][:2] + "!"
    )


def test_branches_by_ids_share_what_was_sampled_and_nothing_else(setup: Setup) -> None:
    prompt = ids_of(QUESTION)
    setup.worker.sample = says("it is 42", stop=True)
    first = setup.send(input_ids=prompt, rid="first")["output_ids"]
    for at, rid in ((3, "cut at three"), (len(first), "whole")):
        setup.send(input_ids=prompt + first[:at] + ids_of("\n" + USER), rid=rid)
        found = setup.retrieve(rid=rid)
        assert found.loss_mask[: len(prompt) + at + 1] == [0] * len(prompt) + [1] * at + [0]


def test_many_branches_at_once_keep_apart(setup: Setup) -> None:
    say(setup, QUESTION, "it is 42, or so", "root")
    cuts = ["it", "it is", "it is 4", "it is 42, or so<|im_end|>", "it is 42!", "it was"]

    async def all_at_once() -> None:
        setup.worker.sample = says("yes", "no", "perhaps")
        calls = (
            setup.read({"text": QUESTION + cut + USER + str(number % 3), "rid": f"{number}"})
            for number, cut in enumerate(cuts * 4)
        )
        await asyncio.gather(*calls)

    asyncio.run(all_at_once())
    assert setup.stat("trajectories") == 1 + 4 * len(cuts)


def say_nothing(setup: Setup, prompt: str, rid: str, session_id: str | None) -> None:
    """The worker samples one special token that the text leaves out, and is told to stop."""
    setup.worker.sample = lambda _: [END_OF_TEXT]
    setup.send(text=prompt, rid=rid, session_id=session_id)
    assert setup.worker.replies[-1]["text"] == ""


def test_reply_that_shows_nothing_is_in_its_own_session_s_next_turn(setup: Setup) -> None:
    say_nothing(setup, QUESTION, "a", "a")
    say(setup, QUESTION, "it is 42", "b", session_id="b")
    say(setup, QUESTION + END + USER + "well?", "yes", "a2", session_id="a")
    known = [*ids_of(QUESTION), END_OF_TEXT]
    assert sent(setup) == known + ids_of(END + USER + "well?")
    say(setup, QUESTION + END + "no, " + USER + "well?", "yes", "a2 again", session_id="a")
    assert sent(setup) == known + ids_of(END + "no, " + USER + "well?")
    say(setup, QUESTION + "it is 42" + END + USER, "yes", "b2", session_id="b")
    assert sent(setup) == ids_of(QUESTION) + spelled("it is 42") + stop() + ids_of("\n" + USER)


def test_reply_that_shows_nothing_is_in_no_prompt_that_does_not_follow_it(setup: Setup) -> None:
    say_nothing(setup, QUESTION, "a", "a")
    for session_id in ("a", "b", None):
        say(setup, QUESTION, "it is 42", f"{session_id} again", session_id=session_id)
        assert sent(setup) == ids_of(QUESTION)
    say_nothing(setup, USER, "nobody's", None)
    for session_id in ("b", None):
        say(setup, QUESTION + END + USER, "yes", f"{session_id} longer", session_id=session_id)
        assert sent(setup) == ids_of(QUESTION + END + USER)


def test_replies_that_show_nothing_follow_one_another(setup: Setup) -> None:
    known, text = ids_of(QUESTION), QUESTION
    for turn in range(4):
        say_nothing(setup, text, f"turn {turn}", "a")
        assert sent(setup) == known
        text += f"Go on {turn}."
        known += [END_OF_TEXT, *ids_of(f"Go on {turn}.")]
