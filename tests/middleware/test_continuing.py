from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from .driver import ASSISTANT, END, IM_END, USER, Setup, ids_of, masks, says
from .fake_worker import FakeWorker, logprob
from .tokenizers_made import byte_fallback, byte_level, unigram


@pytest.mark.parametrize("spells_stop", [True, False])
def test_next_turn_reuses_the_sampled_tokens_and_never_doubles_the_stop(
    tmp_path: Path, spells_stop: bool
) -> None:
    setup = Setup(tmp_path, says("it is 42", "bye", stop=True))
    prompt = USER + "what is 12 + 30?" + END + ASSISTANT
    first = setup.send(text=prompt)
    assert first["text"] == "it is 42"
    rest = (END if spells_stop else "\n") + USER + "thanks" + END + ASSISTANT
    setup.send(text=prompt + "it is 42" + rest)
    sampled = first["output_ids"] if spells_stop else first["output_ids"][:-1]
    tokenised = rest.removeprefix("<|im_end|>") if spells_stop else rest
    assert setup.worker.sent[1]["input_ids"] == ids_of(prompt) + sampled + ids_of(tokenised)
    assert setup.stat("reused_tokens_total") == len(ids_of(prompt) + sampled)


def test_trajectory_of_two_turns_has_both_generations_with_their_logprobs(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("it is 42", "bye", stop=True))
    prompt = USER + "hi" + END + ASSISTANT
    first = setup.send(text=prompt)
    setup.worker.weight_version = "v2"
    turn = prompt + "it is 42" + END + USER + "thanks" + END + ASSISTANT
    second = setup.send(text=turn)
    found = setup.retrieve(text=turn + "bye", return_logp=True)
    middle = ids_of("\n" + USER + "thanks" + END + ASSISTANT)
    parts = [ids_of(prompt), first["output_ids"], middle, second["output_ids"]]
    assert found.tokens == list(chain(*parts))
    assert found.loss_mask == masks(len(part) for part in parts)
    assert found.response == "it is 42" + END + USER + "thanks" + END + ASSISTANT + "bye"
    end = len(parts[0]) + len(parts[1])
    expected = [
        logprob(found.tokens[: at + 1], "v1" if at < end else "v2") for at in range(len(found.tokens))
    ]
    real = zip(found.rollout_logp or (), expected, found.loss_mask, strict=True)
    assert all(got == (want if mask else 0.0) for got, want, mask in real)
    assert [span.version for span in found.weight_versions] == ["v1", "v2"]
    assert byte_level().decode(found.tokens, skip_special_tokens=False) == turn + "bye<|im_end|>"


def test_edited_history_keeps_the_whole_tokens_before_the_edit(tmp_path: Path) -> None:
    setup = Setup(tmp_path, lambda _: ids_of("hello world"))
    setup.send(text="the quick", rid="a")
    setup.send(text="the quickhello worse")
    kept = ids_of("hello world")
    while not "hello wor".startswith(byte_level().decode(kept)):
        kept.pop()
    rest = "hello worse".removeprefix(byte_level().decode(kept))
    assert kept
    assert setup.worker.sent[1]["input_ids"] == ids_of("the quick") + kept + ids_of(rest)
    assert setup.retrieve(rid="a").tokens == ids_of("the quick") + ids_of("hello world")


def test_cut_inside_a_character_of_several_tokens_keeps_the_tokens_before_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("ok 🙂 fine"))
    setup.send(text="the quick")
    setup.send(text="the quickok 🙃 what")
    sampled = [each for char in "ok " for each in ids_of(char)]
    assert setup.worker.sent[1]["input_ids"] == ids_of("the quick") + sampled + ids_of("🙃 what")


def test_next_turn_continues_the_session_s_own_reply_among_equal_ones(tmp_path: Path) -> None:
    own, other = ids_of("hello"), [each for char in "hello" for each in ids_of(char)]
    replies = iter([own, other, ids_of("x"), ids_of("y")])
    setup = Setup(tmp_path, lambda _: next(replies))
    setup.send(text="the quick", session_id="mine")
    setup.send(text="the quick", session_id="theirs")
    setup.send(text="the quickhello and on", session_id="theirs")
    setup.send(text="the quickhello and on", session_id="mine")
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick") + other + ids_of(" and on")
    assert setup.worker.sent[3]["input_ids"] == ids_of("the quick") + own + ids_of(" and on")


def test_ids_caller_s_next_turn_knows_which_tokens_were_sampled(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("one", "two", stop=True))
    prompt = ids_of(USER + "hi" + END + ASSISTANT)
    first = setup.send(input_ids=prompt)
    observation = ids_of("\n" + USER + "more" + END + ASSISTANT)
    turn = prompt + first["output_ids"] + observation
    second = setup.send(input_ids=turn, rid="second")
    found = setup.retrieve(rid="second")
    assert found.tokens == turn + second["output_ids"]
    sizes = [len(prompt), len(first["output_ids"]), len(observation), len(second["output_ids"])]
    assert found.loss_mask == masks(sizes)
    by_text = setup.retrieve(text=byte_level().decode(turn, skip_special_tokens=False) + "two")
    assert (by_text.tokens, by_text.loss_mask) == (found.tokens, found.loss_mask)


def test_stop_string_that_was_trimmed_is_reused_when_spelled_out(tmp_path: Path) -> None:
    ids = [*ids_of("reastr"), *ids_of(" of")]
    setup = Setup(tmp_path, lambda _: ids)
    setup.worker.finish = {"type": "stop", "matched": " of"}
    setup.worker.answer = trimming(setup.worker, "reastr")  # type: ignore[method-assign]
    setup.send(text="hello")
    setup.send(text="helloreastr of it")
    setup.send(text="helloreastr; no")
    assert setup.worker.sent[1]["input_ids"] == ids_of("hello") + ids + ids_of(" it")
    assert setup.worker.sent[2]["input_ids"] == ids_of("hello") + ids_of("reastr") + ids_of("; no")
    assert setup.retrieve(text="helloreastr").tokens == ids_of("hello") + ids


def trimming(worker: FakeWorker, text: str) -> Any:
    answer = worker.answer
    return lambda body: answer(body) | {"text": text}


def test_byte_fallback_continuation_gets_no_space_of_its_own(tmp_path: Path) -> None:
    tokenizer = byte_fallback()
    sampled = tokenizer.encode("\nworld", add_special_tokens=False).ids[2:]
    setup = Setup(tmp_path, lambda _: sampled, tokenizer)
    reply = setup.send(text="hello")
    text = "hello" + reply["text"]
    setup.send(text=text + "user")
    sent = setup.worker.sent[1]["input_ids"]
    assert sent[:1] == [1]
    assert tokenizer.decode(sent) == text + "user"


def test_ids_caller_with_a_beginning_token_is_found_by_the_text_with_and_without_it(tmp_path: Path) -> None:
    tokenizer = byte_fallback()
    sampled = tokenizer.encode("\nworld", add_special_tokens=False).ids[2:]
    setup = Setup(tmp_path, lambda _: sampled, tokenizer)
    prompt = tokenizer.encode("hello").ids
    reply = setup.send(input_ids=prompt)
    for text in ("hello" + reply["text"], "<s>hello" + reply["text"]):
        found = setup.retrieve(text=text)
        assert (found.tokens, found.response) == (prompt + sampled, reply["text"])


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("no_stop_trim", [True, False])
def test_stop_is_found_however_the_client_wants_its_text(
    tmp_path: Path, skips: bool, no_stop_trim: bool
) -> None:
    setup = Setup(tmp_path, says("it is 42", stop=True))
    params = {"skip_special_tokens": skips, "no_stop_trim": no_stop_trim}
    reply = setup.send(text="the quick", sampling_params=params)
    shows_stop = no_stop_trim and not skips
    assert reply["text"] == "it is 42" + ("<|im_end|>" if shows_stop else "")
    setup.send(text="the quickit is 42<|im_end|>\nand", sampling_params=params)
    assert setup.worker.sent[1]["input_ids"] == ids_of("the quick") + reply["output_ids"] + ids_of("\nand")
    assert (
        setup.retrieve(text="the quick" + reply["text"]).tokens == ids_of("the quick") + reply["output_ids"]
    )


def test_special_tokens_left_out_of_the_text_stay_in_the_tokens(tmp_path: Path) -> None:
    sampled = [*ids_of("one"), 1, *ids_of("two")]
    setup = Setup(tmp_path, lambda _: sampled)
    assert setup.send(text="the quick")["text"] == "onetwo"
    setup.send(text="the quickonetwo, three")
    setup.send(text="the quickone, three")
    assert setup.worker.sent[1]["input_ids"] == ids_of("the quick") + sampled + ids_of(", three")
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick") + ids_of("one") + ids_of(", three")


def test_reply_that_ends_inside_a_character_is_continued_from_its_last_token(tmp_path: Path) -> None:
    sampled = [*ids_of("so "), *ids_of("🚀")[:2]]
    setup = Setup(tmp_path, lambda _: sampled)
    shown = setup.send(text="the quick")["text"]
    assert shown.endswith("\ufffd")
    setup.send(text="the quick" + shown + " and")
    assert setup.worker.sent[1]["input_ids"] == ids_of("the quick") + sampled + ids_of(" and")


def test_finished_reply_is_not_displaced_by_another_that_shares_a_character_more(tmp_path: Path) -> None:
    replies = iter(
        [[each for char in "hello wo" for each in ids_of(char)], ids_of("hello world"), ids_of("x")]
    )
    setup = Setup(tmp_path, lambda _: next(replies))
    finished = setup.send(text="the quick")["output_ids"]
    setup.send(text="the quick")
    setup.send(text="the quickhello wor!")
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick") + finished + ids_of("r!")


def test_reply_without_its_stop_is_finished_too(tmp_path: Path) -> None:
    replies = iter(
        [[each for char in "it is 42" for each in ids_of(char)], ids_of("it is 42 or so"), ids_of("x")]
    )
    setup = Setup(tmp_path, lambda _: [*next(replies), IM_END])
    finished = setup.send(text="the quick")["output_ids"]
    setup.send(text="the quick")
    setup.send(text="the quickit is 42\nthanks")
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick") + finished[:-1] + ids_of("\nthanks")


def test_reply_is_whole_where_the_prompt_goes_on_with_a_part_of_its_stop(tmp_path: Path) -> None:
    sampled = [each for char in "hello" for each in ids_of(char)]
    replies = iter([[*sampled, IM_END], ids_of("x"), ids_of("y")])
    setup = Setup(tmp_path, lambda _: next(replies))
    for text in ("the quick", "the quickhhello", "the quickhello<think>"):
        setup.send(text=text, session_id="s")
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick") + sampled + ids_of("<think>")


def test_reply_without_a_token_does_not_hide_the_one_that_a_prompt_goes_on_from(tmp_path: Path) -> None:
    sampled = [each for char in "hello" for each in ids_of(char)]
    replies = iter([[], sampled, ids_of("x")])
    setup = Setup(tmp_path, lambda _: next(replies))
    for text in ("the quickhello and", "the quick", "the quickhello and on"):
        setup.send(text=text)
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick") + sampled + ids_of(" and on")


@pytest.mark.parametrize("make", [byte_fallback, unigram])
def test_edited_reply_that_begins_with_a_space_keeps_its_tokens_before_the_edit(
    tmp_path: Path, make: Callable[[], tokenizers.Tokenizer]
) -> None:
    tokenizer = make()
    sampled = tokenizer.encode("\n world the quick", add_special_tokens=False).ids[2:]
    setup = Setup(tmp_path, lambda _: sampled, tokenizer)
    reply = setup.send(text="hello")
    assert reply["text"] == " world the quick"
    setup.send(text="hello world the 🙂")
    kept = tokenizer.encode("\n world the", add_special_tokens=False).ids[2:]
    read = setup.worker.sent[1]["input_ids"]
    prompt = tokenizer.encode("hello").ids
    assert read[: len(prompt + kept)] == prompt + kept
    assert tokenizer.decode(read) == "hello world the 🙂"
    assert setup.stat("reused_tokens_total") >= len(prompt + kept)


def test_branch_inside_a_reply_has_the_logprobs_and_versions_up_to_there(
    tmp_path: Path,
) -> None:
    setup = Setup(tmp_path, says("hello"))
    sampled = setup.send(text="the quick", return_logprob=True)
    entries = sampled["meta_info"]["output_token_logprobs"]
    found = setup.retrieve(text="the quickhel!", return_logp=True)
    start = len(ids_of("the quick"))
    assert found.tokens == ids_of("the quick") + sampled["output_ids"][:3] + ids_of("!")
    assert found.loss_mask == [0] * start + [1] * 3 + [0]
    assert found.rollout_logp == [0.0] * start + [each[0] for each in entries[:3]] + [0.0]
    assert [(span.start, span.end) for span in found.weight_versions] == [(start, start + 3)]


def test_sampled_token_without_a_logprob_has_none_and_no_zero(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    answer = setup.worker.answer
    setup.worker.answer = lambda body: answer(body | {"return_logprob": False})  # type: ignore[method-assign]
    setup.send(text="the quick", rid="r")
    found = msgspec.json.decode(msgspec.json.encode(setup.retrieve(rid="r", return_logp=True)))
    assert found["rollout_logp"] == [0.0] * len(ids_of("the quick")) + [None] * 5


def test_ids_that_end_inside_a_character_are_not_found_by_a_replacement_character(tmp_path: Path) -> None:
    face, prompt = ids_of("🙂"), ids_of("the quick")
    replies = iter([ids_of("🙂🙂"), ids_of(", "), ids_of("x")])
    setup = Setup(tmp_path, lambda _: next(replies))
    setup.send(input_ids=prompt)
    setup.send(input_ids=[*prompt, *face[:1]])
    setup.send(text="the quick\ufffd, and")
    assert setup.worker.sent[2]["input_ids"] == ids_of("the quick\ufffd, and")
