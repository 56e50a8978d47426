import pytest

from espalier.middleware.weight_versions import WeightVersions


def ordered(*seen: str) -> list[str]:
    versions = WeightVersions()
    for version in seen:
        versions.see(version)
    newest = versions.back(0)
    assert newest is not None
    return [*versions.before(newest), newest]


@pytest.mark.parametrize(
    ("seen", "order"),
    [
        (("default", "b", "a"), ["default", "b", "a"]),
        (("9", "10", "8"), ["8", "9", "10"]),
        (("default", "10", "x", "9"), ["default", "9", "10", "x"]),
        (("step-10", "step-9"), ["step-10", "step-9"]),
        (("2", "9" * 5000, "1"), ["1", "2", "9" * 5000]),
        (("a", "b", "a"), ["a", "b"]),
    ],
)
def test_versions_stand_as_first_seen_and_numbers_as_numbers(seen: tuple[str, ...], order: list[str]) -> None:
    assert ordered(*seen) == order


def test_version_is_new_once() -> None:
    versions = WeightVersions()
    assert [versions.see(version) for version in ("1", "1", "2")] == [True, False, True]


def test_version_some_versions_back_is_none_where_there_are_not_as_many() -> None:
    versions = WeightVersions()
    assert versions.back(0) is None
    for version in ("1", "2", "3"):
        versions.see(version)
    assert [versions.back(lag) for lag in range(4)] == ["3", "2", "1", None]
    assert versions.before("never") == []
