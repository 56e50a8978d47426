import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from espalier.simulator import LogprobState, token_logprob

IDS = st.lists(st.integers(0, 1499), max_size=40)


@given(IDS, st.lists(st.integers(0, 1499), min_size=1, max_size=20), st.sampled_from(["default", "v2", ""]))
def test_rolling_form_equals_the_pure_function(prompt: list[int], output: list[int], version: str) -> None:
    rolled = LogprobState(prompt).sample(output, version)
    assert rolled == [token_logprob([*prompt, *output[:i]], output[i], version) for i in range(len(output))]


@given(IDS, st.integers(0, 1499))
def test_logprob_is_a_negative_float32(ids: list[int], token_id: int) -> None:
    logprob = token_logprob(ids, token_id, "default")
    assert -20 < logprob < 0
    assert struct.unpack("f", struct.pack("f", logprob))[0] == logprob


def test_logprob_depends_on_token_on_what_is_before_and_on_the_version() -> None:
    base = token_logprob([1, 2, 3], 4, "default")
    others = [
        token_logprob([1, 2, 3], 5, "default"),
        token_logprob([2, 1, 3], 4, "default"),
        token_logprob([1, 2], 4, "default"),
        token_logprob([0, 1, 2, 3], 4, "default"),
        token_logprob([1, 2, 3], 4, "v2"),
    ]
    assert base not in others


def test_logprobs_are_spread_like_those_of_a_model() -> None:
    logprobs = sorted(LogprobState().sample([(7 * i * i) % 1500 for i in range(5000)], "default"))
    assert math.isclose(logprobs[2500], -0.072, abs_tol=0.02)
    assert logprobs[0] < -5
    assert len(set(logprobs)) > 4000


def test_logprobs_never_change() -> None:
    told = [-0.11014583706855774, -0.3501302897930145, -0.06141020357608795]
    assert LogprobState([1, 2]).sample([3, 4, 1499], "default") == told
