import pytest

from espalier.router.versions import MAX_REMEMBERED, VersionOrder


@pytest.mark.parametrize(
    ("seen", "newest"),
    [
        ([], None),
        (["default"], "default"),
        (["7", "default"], "7"),
        (["9", "10"], "10"),
        (["10", "9"], "10"),
        (["step-9", "step-10"], "step-10"),
        (["step-10", "step-9"], "step-9"),
        (["9", "base"], "base"),
        (["base", "9"], "9"),
        (["5", "a", "3"], "3"),
        (["-1", "-2"], "-2"),
        (["²", "1"], "1"),
    ],
)
def test_numbers_go_by_value_and_other_names_by_when_they_were_first_seen(
    seen: list[str], newest: str | None
) -> None:
    order = VersionOrder()
    for version in seen:
        order.see(version)
    assert order.newest(seen) == order.newest(seen[::-1]) == newest


def test_version_that_was_gone_for_a_while_is_no_news() -> None:
    order = VersionOrder()
    for version in ("a", "b", "a"):
        order.see(version)
    assert order.newest(["a", "b"]) == "b"
    assert order.newest(["a"]) == "a"


def test_only_the_latest_versions_are_remembered() -> None:
    order = VersionOrder()
    for number in range(MAX_REMEMBERED + 1):
        order.see(f"v{number}")
    order.see("v0")
    assert order.newest(["v1", "v0"]) == "v0"
    order.see("v2")
    assert order.newest(["v2", "v0"]) == "v0"
