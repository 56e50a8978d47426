import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.rollout.batch import Batch, Verdict
from espalier.rollout.sample import Sample


def verdict(position: int, reason: str | None = None) -> Verdict:
    return Verdict([Sample(index=position)], reason)


def kept(batch: Batch) -> list[int | None]:
    return [group[0].index for group in batch.kept]


def test_in_order_of_arrival_a_straggler_does_not_hold_the_batch() -> None:
    batch = Batch(target=2)
    batch.submit(3)
    for position in (2, 1):
        batch.settle(position, verdict(position))
    assert batch.is_complete
    assert kept(batch) == [2, 1]
    assert batch.settle(0, verdict(0)) == []
    assert [group[0].index for group in batch.surplus] == [0]


def test_in_order_of_submission_the_first_good_groups_are_taken() -> None:
    batch = Batch(target=2, in_order=True)
    batch.submit(4)
    assert batch.settle(3, verdict(3)) == []
    assert batch.settle(1, verdict(1, "dull")) == []
    assert [v.drop_reason for v in batch.settle(0, verdict(0))] == [None, "dull"]
    batch.settle(2, verdict(2))
    batch.close()
    assert batch.is_complete
    assert kept(batch) == [0, 2]
    assert batch.dropped == {"dull": 1}
    assert [group[0].index for group in batch.surplus] == [3]


@pytest.mark.parametrize("in_order", [False, True])
def test_replacements_are_asked_for_as_soon_as_too_few_are_left(in_order: bool) -> None:
    batch = Batch(target=2, in_order=in_order)
    needs = [batch.needs_submission]
    assert list(batch.submit(3)) == [0, 1, 2]
    for position in (2, 1):
        batch.settle(position, verdict(position, "dull"))
        needs.append(batch.needs_submission)
    assert list(batch.submit(3)) == [3, 4, 5]
    assert [*needs, batch.needs_submission] == [True, False, True, False]


def test_drops_in_a_row_start_anew_with_a_good_group() -> None:
    batch = Batch(target=9)
    batch.submit(4)
    for position, reason in enumerate(["dull", "dull", None, "dull"]):
        batch.settle(position, verdict(position, reason))
    assert batch.dropped_in_a_row == 1


@given(
    good=st.lists(st.booleans(), min_size=60, max_size=60),
    target=st.integers(1, 5),
    spare=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_in_order_the_batch_and_the_submissions_do_not_depend_on_arrival(
    good: list[bool], target: int, spare: int, order: object
) -> None:
    good += [True] * (target + spare)

    def run(choose: object) -> tuple[list[int | None], int]:
        batch = Batch(target=target, in_order=True)
        running: list[int] = []
        while not batch.is_complete:
            while batch.needs_submission:
                running += batch.submit(target + spare)
            position = running.pop(choose.randrange(len(running)) if hasattr(choose, "randrange") else 0)
            is_good = position >= len(good) or good[position]
            batch.settle(position, verdict(position, None if is_good else "dull"))
        return kept(batch), batch.submitted

    assert run(order) == run(None)


def soft(position: int) -> Verdict:
    return Verdict([Sample(index=position)], "dull", by_filter=True, keep_when_insufficient=True)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_rejected_group_that_says_so_is_kept_when_no_other_is_under_way(in_order: bool) -> None:
    batch = Batch(target=2, in_order=in_order)
    batch.submit(3)
    assert [v.drop_reason for v in batch.settle(0, soft(0))] == ["dull"]
    assert not batch.needs_submission
    assert [v.drop_reason for v in batch.settle(1, soft(1))] == [None]
    batch.settle(2, verdict(2))
    assert kept(batch) == [1, 2]
    assert (batch.dropped, batch.submitted) == ({"dull": 1}, 3)


@given(
    kinds=st.lists(st.sampled_from(["good", "dull", "soft"]), min_size=60, max_size=60),
    data=st.data(),
    size=st.integers(2, 5),
)
def test_in_order_of_submission_soft_verdicts_do_not_depend_on_arrival(
    kinds: list[str], data: st.DataObject, size: int
) -> None:
    def play(shuffled: bool) -> tuple[list[int | None], int]:
        batch, under_way = Batch(target=2, in_order=True), []
        while not batch.is_complete and batch.submitted + size <= len(kinds):
            while batch.needs_submission:
                under_way += list(batch.submit(size))
            position = data.draw(st.sampled_from(under_way)) if shuffled else min(under_way)
            under_way.remove(position)
            kind = kinds[position]
            batch.settle(position, soft(position) if kind == "soft" else verdict(position, _reason(kind)))
        return kept(batch), batch.submitted

    assert play(shuffled=True) == play(shuffled=False)


def _reason(kind: str) -> str | None:
    return None if kind == "good" else kind
