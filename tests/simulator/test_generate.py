from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import httpx
import pytest

from espalier.simulator import token_logprob
from espalier.simulator.tokenizer import Tokenizer
from tests.simulator.workers import INSTANT, generate, running_worker, stream

TOKENIZER = Tokenizer()
PROMPT = TOKENIZER.encode("What is 17 * 24?")


@pytest.fixture(scope="module")
def worker() -> Iterator[httpx.Client]:
    with running_worker(**INSTANT) as client:
        yield client


def params(**given: Any) -> dict[str, Any]:
    return {"max_new_tokens": 64, **given}


def test_every_logprob_can_be_recomputed(worker: httpx.Client) -> None:
    reply = generate(
        worker, input_ids=PROMPT, sampling_params=params(), return_logprob=True, logprob_start_len=0
    )
    meta = reply["meta_info"]
    ids = [*PROMPT, *reply["output_ids"]]
    told = [*meta["input_token_logprobs"], *meta["output_token_logprobs"]]
    assert [token_id for _, token_id, _ in told] == ids
    assert told[0][0] is None
    assert [logprob for logprob, _, _ in told[1:]] == [
        token_logprob(ids[:i], ids[i], "default") for i in range(1, len(ids))
    ]


def test_top_and_chosen_logprobs_are_told_for_each_token(worker: httpx.Client) -> None:
    reply = generate(
        worker,
        input_ids=PROMPT,
        sampling_params=params(),
        return_logprob=True,
        top_logprobs_num=3,
        token_ids_logprob=[7, 8],
        return_text_in_logprobs=True,
    )
    meta = reply["meta_info"]
    for i, (top, chosen) in enumerate(
        zip(meta["output_top_logprobs"], meta["output_token_ids_logprobs"], strict=True)
    ):
        before = [*PROMPT, *reply["output_ids"][:i]]
        logprobs = [logprob for logprob, _, _ in top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert len(top) == 3
        assert [[token_logprob(before, t, "default"), t, TOKENIZER.decode([t])] for t in (7, 8)] == chosen


def test_greedy_and_seeded_replies_repeat_and_others_vary(worker: httpx.Client) -> None:
    def ids(**given: Any) -> Any:
        return generate(worker, input_ids=PROMPT, sampling_params=params(**given))["output_ids"]

    assert ids(temperature=0) == ids(temperature=0)
    assert ids(sampling_seed=7) == ids(sampling_seed=7)
    assert ids(sampling_seed=7) != ids(sampling_seed=8)
    assert len({tuple(ids()) for _ in range(8)}) > 4


def test_a_scripted_run_is_repeatable_and_workers_of_other_seeds_differ() -> None:
    def run(seed: int) -> list[Any]:
        with running_worker(**INSTANT, seed=seed) as client:
            return [generate(client, input_ids=PROMPT)["output_ids"] for _ in range(4)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_reply_ends_with_the_end_token_which_is_not_in_the_text(worker: httpx.Client) -> None:
    reply = generate(worker, input_ids=PROMPT, sampling_params=params(temperature=0, max_new_tokens=3000))
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": TOKENIZER.end_id}
    assert reply["output_ids"][-1] == TOKENIZER.end_id
    assert reply["text"] == TOKENIZER.decode(reply["output_ids"][:-1])


def test_no_stop_trim_and_specials_show_the_end_token(worker: httpx.Client) -> None:
    shown = params(temperature=0, max_new_tokens=3000, no_stop_trim=True, skip_special_tokens=False)
    assert generate(worker, input_ids=PROMPT, sampling_params=shown)["text"].endswith("<|im_end|>")
    hidden = shown | {"skip_special_tokens": True}
    assert "<|im_end|>" not in generate(worker, input_ids=PROMPT, sampling_params=hidden)["text"]


def test_ignore_eos_goes_on_to_the_limit(worker: httpx.Client) -> None:
    reply = generate(worker, input_ids=PROMPT, sampling_params=params(ignore_eos=True, max_new_tokens=2000))
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 2000}
    assert reply["output_ids"].count(TOKENIZER.end_id) == 1


def test_min_new_tokens_puts_the_end_off(worker: httpx.Client) -> None:
    reply = generate(
        worker,
        input_ids=PROMPT,
        sampling_params=params(min_new_tokens=1600, max_new_tokens=3000, temperature=0),
    )
    assert reply["output_ids"].index(TOKENIZER.end_id) == 1600


def test_stop_string_ends_the_reply_and_is_trimmed(worker: httpx.Client) -> None:
    stop = params(stop=["408", "="], temperature=0)
    reply = generate(worker, input_ids=PROMPT, sampling_params=stop)
    kept = generate(worker, input_ids=PROMPT, sampling_params=stop | {"no_stop_trim": True})
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": "="}
    assert reply["text"].endswith("17 * 24 ")
    assert kept["text"] == reply["text"] + "="
    assert TOKENIZER.decode(reply["output_ids"]).endswith("=")


def test_stop_pattern_ends_the_reply(worker: httpx.Client) -> None:
    reply = generate(worker, input_ids=PROMPT, sampling_params=params(stop_regex=r"\d \* \d", temperature=0))
    assert reply["meta_info"]["finish_reason"]["matched"] == "7 * 2"
    assert reply["text"].endswith(" 1")


def test_stop_token_ids_are_kept_in_the_ids_only(worker: httpx.Client) -> None:
    star = TOKENIZER.encode(" *")[0]
    reply = generate(worker, input_ids=PROMPT, sampling_params=params(stop_token_ids=[star], temperature=0))
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": star}
    assert reply["output_ids"][-1] == star
    assert reply["text"].endswith("17")


def test_cumulative_stream_ends_with_the_whole_reply(worker: httpx.Client) -> None:
    body = {"input_ids": PROMPT, "sampling_params": params(sampling_seed=3), "return_logprob": True}
    whole = generate(worker, **body)
    events = stream(worker, **body)
    assert events[-1] == "[DONE]"
    texts = [event["text"] for event in events[:-1]]
    assert all(later.startswith(sooner) for sooner, later in pairwise(texts))
    final = events[-2]
    assert (final["text"], final["output_ids"]) == (whole["text"], whole["output_ids"])
    assert final["meta_info"]["output_token_logprobs"] == whole["meta_info"]["output_token_logprobs"]
    assert [len(event["output_ids"]) for event in events[:-1]] == list(range(1, len(whole["output_ids"]) + 1))


def test_incremental_stream_joins_to_the_whole_reply() -> None:
    body = {"input_ids": PROMPT, "sampling_params": params(sampling_seed=3), "return_logprob": True}
    with running_worker(**INSTANT, incremental_streaming_output=True, stream_interval=5) as client:
        whole = generate(client, **body)
        events = stream(client, **body)[:-1]
    assert "".join(event["text"] for event in events) == whole["text"]
    assert list(chain.from_iterable(event["output_ids"] for event in events)) == whole["output_ids"]
    logprobs = list(chain.from_iterable(event["meta_info"]["output_token_logprobs"] for event in events))
    assert logprobs == whole["meta_info"]["output_token_logprobs"]
    assert [event["meta_info"]["completion_tokens"] for event in events][:2] == [5, 10]


def test_character_that_is_not_complete_is_held_back_in_a_stream(worker: httpx.Client) -> None:
    first = TOKENIZER.encode("\u00e9")[0]
    forced = {"max_new_tokens": 2, "logit_bias": {str(first): 100}}
    events = stream(worker, input_ids=[50], sampling_params=forced)
    assert events[0]["text"] == ""
    assert events[1]["text"] == "\ufffd\ufffd"


def test_repeated_prompt_is_cached_until_the_cache_is_flushed(worker: httpx.Client) -> None:
    def cached() -> Any:
        return generate(worker, input_ids=[90, 91, 92, 93])["meta_info"]["cached_tokens"]

    worker.post("/flush_cache")
    assert [cached(), cached()] == [0, 3]
    worker.post("/flush_cache")
    assert cached() == 0


def test_text_prompt_is_tokenised(worker: httpx.Client) -> None:
    by_text = generate(worker, text="What is 17 * 24?", sampling_params=params(temperature=0))
    by_ids = generate(worker, input_ids=PROMPT, sampling_params=params(temperature=0))
    assert by_text["output_ids"] == by_ids["output_ids"]
    assert by_text["meta_info"]["prompt_tokens"] == len(PROMPT)


def test_tokenizer_that_model_info_names_is_the_worker_s(worker: httpx.Client) -> None:
    from pathlib import Path

    folder = Path(worker.get("/model_info").json()["tokenizer_path"])
    assert Tokenizer(folder).encode("What is 17 * 24?") == PROMPT
    told = worker.post("/tokenize", json={"prompt": "What is 17 * 24?"}).json()
    assert told["tokens"] == PROMPT
    assert worker.post("/detokenize", json={"tokens": PROMPT}).json() == {"text": "What is 17 * 24?"}


def test_oversized_batch_is_refused(worker: httpx.Client) -> None:
    reply = worker.post("/generate", json={"input_ids": [50], "sampling_params": {"n": 100_000}})
    assert reply.status_code == 400
    assert "4096" in reply.json()["error"]["message"]
