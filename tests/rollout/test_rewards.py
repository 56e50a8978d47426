import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import PluginError, RolloutError
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm, batched_async_rm, rewards
from espalier.rollout.threads import MAX_GIVEN_UP, MAX_THREADS

HERE = __name__
MakeArgs = Callable[..., RolloutConfig]


@pytest.fixture
def args(tmp_path: Path) -> MakeArgs:
    def make(**changes: Any) -> RolloutConfig:
        return RolloutConfig(prompt_data=tmp_path, **changes)

    return make


def reward(config: RolloutConfig, sample: Sample) -> Any:
    return asyncio.run(async_rm(config, sample))


def graded(args: MakeArgs, response: str, label: Any) -> float:
    return float(reward(args(rm_type="math"), Sample(response=response, label=label)))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("42", "42"),
        ("42", 42),
        ("0", 0),
        ("-7", "-7"),
        ("1,234", "1234"),
        ("5.", "5"),
        (" 5 ", "5"),
        ("0.5", r"\frac{1}{2}"),
        (r"\dfrac{3}{4}", "0.75"),
        (r"\frac12", "0.5"),
        ("3/4", "0.75"),
        (r"-1\frac{1}{2}", "-1.5"),
        (r"\frac{-1}{2}", "-0.5"),
        ("3.7", 3.7),
        (r"1.5\times10^{3}", "1500"),
        ("2e3", "2000"),
        (r"\$5", "5"),
        (r"50\%", "50"),
        (r"\text{Sunday}", "Sunday"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("7", r"\boxed{7}"),
        ("1 1/2", "3/2"),
        ("- 1 1/2", "-1.5"),
        (r"1 \frac{1}{2}", "3/2"),
        ("1 234 567", "1234567"),
        (r"12\,345", "12345"),
        (r"1{,}000", "1000"),
        ("10^{3}", "1000"),
        ("2^{10}", "1024"),
        ("{42}", "42"),
        (r"42 \quad", "42"),
        (r"42\text{ cm}", "42"),
        (r"42\text{ cm}^2", r"42 \mathrm{cm}^{2}"),
        ("42", r"42\text{ cm}"),
        (r"3 \quad 4", r"3\qquad 4"),
        ("(1, 2)", "(1,2)"),
        ("x + 1", "x+1"),
    ],
)
def test_math_accepts_the_right_answer(args: MakeArgs, answer: str, label: Any) -> None:
    assert graded(args, rf"So it is \boxed{{{answer}}}.", label) == 1.0


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("41", "42"),
        ("123456789012345678901234567891", "123456789012345678901234567890"),
        ("(x+1)/2", "x+1/2"),
        (r"\frac{1}{2x}", r"\frac{x}{2}"),
        ("-0.5", r"-1\frac{1}{2}"),
        ("Sunday", "Sun"),
        ("3", 3.7),
        ("12,34", "1234"),
        ("1/0", "0"),
        ("1e999999999", "1"),
        ("9" * 5000, "9"),
        ("", "0"),
        ("0", "1"),
        ("1 1/2", "11/2"),
        ("1 2", "12"),
        ("1 2345", "12345"),
        (r"3 \quad 4", "34"),
        (r"3\,4", "34"),
        ("12, 345", "12345"),
        ("(1 2)", "(12)"),
        (r"\{1,2\}", "1,2"),
        (r"5\text{ million}", "5"),
        (r"42\text{ cm}", r"42\text{ m}"),
        ("42 x", "42"),
        ("0^{-1}", "0"),
        ("99999^{999999}", "1"),
    ],
)
def test_math_rejects_the_wrong_answer(args: MakeArgs, answer: str, label: Any) -> None:
    assert graded(args, rf"So it is \boxed{{{answer}}}.", label) == 0.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"\boxed{1} no, \boxed{2}", 1.0),
        (r"\boxed {2}", 1.0),
        (r"\boxed{\text{2}}", 1.0),
        ("2", 0.0),
        ("", 0.0),
        (r"\boxed{2", 0.0),
        (r"\boxed{2} or \boxed{", 0.0),
        ("\\boxed{" * 20_000, 0.0),
    ],
)
def test_math_reads_the_last_box(args: MakeArgs, response: str, expected: float) -> None:
    assert graded(args, response, "2") == expected


@pytest.mark.parametrize("label", [None, ["4"], {"answer": 4}, True, ""])
def test_math_refuses_a_label_that_is_neither_number_nor_text(args: MakeArgs, label: Any) -> None:
    with pytest.raises(RolloutError, match="needs a number or a text as label"):
        graded(args, r"\boxed{4}", label)


def test_digit_share_is_the_share_of_digits(args: MakeArgs) -> None:
    config = args(rm_type="digit_share")
    assert reward(config, Sample(response="a1b2")) == 0.5
    assert reward(config, Sample(response="")) == 0.0


def test_random_is_the_same_for_the_same_seed_and_sample_and_varies_over_samples(args: MakeArgs) -> None:
    def drawn(seed: int) -> list[float]:
        return [reward(args(rm_type="random", rollout_seed=seed), Sample(index=i)) for i in range(40)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {0.0, 1.0} == set(drawn(1))


async def dict_reward(args: RolloutConfig, sample: Sample) -> dict[str, Any]:
    return {"score": 2, "pred": "x"}


def plain_reward(args: RolloutConfig, sample: Sample) -> float:
    return float(threading.current_thread() is not threading.main_thread())


async def odd_reward(args: RolloutConfig, sample: Sample) -> Any:
    return sample.label


async def hanging_reward(args: RolloutConfig, sample: Sample) -> float:
    await asyncio.Event().wait()
    return 1.0


def blocking_reward(args: RolloutConfig, sample: Sample) -> float:
    time.sleep(60)
    return 1.0


running = {"now": 0, "most": 0}
counting = threading.Lock()


def counted_reward(args: RolloutConfig, sample: Sample) -> float:
    with counting:
        running["now"] += 1
        running["most"] = max(running["most"], running["now"])
    time.sleep(0.05)
    with counting:
        running["now"] -= 1
    return 1.0


let_go = threading.Event()


def stuck_reward(args: RolloutConfig, sample: Sample) -> float:
    let_go.wait(60)
    return 1.0


def quitting_reward(args: RolloutConfig, sample: Sample) -> float:
    raise SystemExit("enough")


async def group_sizes(args: RolloutConfig, samples: list[Sample]) -> list[float]:
    return [float(len(samples))] * (len(samples) - int(samples[0].label or 0))


def test_order_of_choice(args: MakeArgs) -> None:
    sample = Sample(response="1a", metadata={"rm_type": "digit_share"})
    assert reward(args(rm_type="random"), sample) == 0.5
    assert reward(args(rm_type="random", custom_rm_path=f"{HERE}:plain_reward"), sample) == 1.0
    sample.custom_rm_path = f"{HERE}.dict_reward"
    assert reward(args(rm_type="random", reward_key="score"), sample) == {"score": 2, "pred": "x"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", [1.0], {"acc": 1}])
def test_reward_that_is_no_finite_number_is_refused(args: MakeArgs, value: Any) -> None:
    with pytest.raises(RolloutError, match="odd_reward"):
        reward(args(custom_rm_path=f"{HERE}:odd_reward"), Sample(label=value))


@pytest.mark.parametrize("name", ["hanging_reward", "blocking_reward"])
def test_reward_that_hangs_is_cut_off(args: MakeArgs, name: str) -> None:
    began = time.monotonic()
    with pytest.raises(RolloutError, match=r"took longer than 0\.1 s"):
        reward(args(custom_rm_path=f"{HERE}:{name}", reward_timeout_s=0.1), Sample())
    assert time.monotonic() - began < 10


def test_plain_rewards_run_a_bounded_number_at_a_time_and_waiting_takes_none_of_their_time(
    args: MakeArgs,
) -> None:
    """So many that the last ones begin long after the time that each of them has."""
    config = args(custom_rm_path=f"{HERE}:counted_reward", reward_timeout_s=1.0)
    count = MAX_THREADS * 24
    running.update(now=0, most=0)

    async def run() -> list[Any]:
        return await asyncio.gather(*(async_rm(config, Sample()) for _ in range(count)))

    began = time.monotonic()
    assert asyncio.run(run()) == [1.0] * count
    assert time.monotonic() - began > 1.0
    assert running["most"] <= MAX_THREADS


def test_rewards_that_never_end_are_not_begun_without_limit(args: MakeArgs) -> None:
    config = args(custom_rm_path=f"{HERE}:stuck_reward", reward_timeout_s=0.01)
    before = threading.active_count()

    async def run() -> list[Any]:
        calls = (async_rm(config, Sample()) for _ in range(MAX_GIVEN_UP + 200))
        return await asyncio.gather(*calls, return_exceptions=True)

    let_go.clear()
    try:
        problems = [str(problem) for problem in asyncio.run(run())]
        assert threading.active_count() - before <= MAX_GIVEN_UP + MAX_THREADS
    finally:
        let_go.set()
    assert "took longer than 0.01 s" in problems[0]
    assert "earlier calls have not ended" in problems[-1]


def test_a_plain_reward_that_exits_is_told_at_once(args: MakeArgs) -> None:
    with pytest.raises(RolloutError, match="SystemExit"):
        reward(args(custom_rm_path=f"{HERE}:quitting_reward"), Sample())


def test_no_reward_and_unknown_rewards_are_told(args: MakeArgs) -> None:
    with pytest.raises(RolloutError, match="--rm-type"):
        reward(args(), Sample())
    with pytest.raises(PluginError, match=r"known are .*digit_share, .*math, .*random"):
        reward(args(rm_type="maths"), Sample())


def test_reward_with_another_signature_is_refused() -> None:
    with pytest.raises(PluginError, match="expected"):
        rewards.resolve("json:dumps")
    with pytest.raises(PluginError, match=r"signature"):
        rewards.resolve(f"{HERE}:reward_without_sample")


def reward_without_sample(args: RolloutConfig) -> float:
    return 0.0


def test_batched_rewards_come_one_by_one_or_by_group(args: MakeArgs) -> None:
    samples = [Sample(response="1a"), Sample(response="ab")]
    assert asyncio.run(batched_async_rm(args(rm_type="digit_share"), samples)) == [0.5, 0.0]
    grouped = args(group_rm=True, custom_rm_path=f"{HERE}:group_sizes")
    assert asyncio.run(batched_async_rm(grouped, samples)) == [2.0, 2.0]
    with pytest.raises(RolloutError, match="must return 2 rewards"):
        asyncio.run(batched_async_rm(grouped, [Sample(label=1), Sample()]))
