import pytest

from espalier.rollout import Sample
from espalier.rollout.staleness import WeightHistory


def history_of(*versions: str) -> WeightHistory:
    history = WeightHistory()
    for version in versions:
        history.note(version)
    return history


def test_numbers_count_as_such_whatever_order_they_come_in() -> None:
    history = history_of("5", "3", "9")
    assert [history.age(version) for version in ("9", "5", "3", "12")] == [0, 4, 6, 0]


def test_other_names_count_in_the_order_of_their_coming() -> None:
    history = history_of("default", "a", "b", "a")
    assert [history.age(version) for version in ("b", "a", "default", "unheard of")] == [0, 1, 2, 0]


@pytest.mark.parametrize(("versions", "age"), [([], 0), ([["3"]], 0), ([["3"], ["1", "2"]], 2)])
def test_a_group_is_as_old_as_its_oldest_weights(versions: list[list[str]], age: int) -> None:
    samples = [Sample(weight_versions=each) for each in versions]
    history = history_of("3")
    history.note(None)
    assert history.age_of(samples) == age
