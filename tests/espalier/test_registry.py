import sys
import types
from pathlib import Path

import pytest

from espalier.errors import ConfigError, PluginError
from espalier.registry import Registry, call_with_options, check_methods, check_signature


def reward(args: object, sample: object) -> float:
    return 0.0


def test_registered_plugin_is_returned_unchanged_and_found_by_name() -> None:
    registry: Registry[object] = Registry("reward")
    assert registry.register("mine")(reward) is reward
    assert registry.resolve("mine") is reward
    assert registry.names() == ["mine"]


def test_duplicate_name_is_refused() -> None:
    registry: Registry[object] = Registry("reward")
    registry.register("mine")(reward)
    with pytest.raises(PluginError, match="'mine' is already registered"):
        registry.register("mine")(reward)


@pytest.mark.parametrize("spec", [f"{__name__}:reward", f"{__name__}.reward"])
def test_plugin_is_found_by_import_path_in_both_spellings(spec: str) -> None:
    assert Registry[object]("reward").resolve(spec).__name__ == "reward"  # type: ignore[attr-defined]


def test_attribute_of_a_class_is_found_after_a_colon() -> None:
    assert Registry[object]("thing").resolve("collections:OrderedDict.fromkeys") is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mystery", "unknown reward 'mystery': known are a, b"),
        ("no.such.module:f", "cannot be imported: No module named 'no'"),
        ("json:nothing", "json has no 'nothing'"),
        ("", "unknown reward ''"),
        ("..x", r"the reward '\.\.x' cannot be imported: "),
        (".:x", r"the reward '\.:x' cannot be imported: "),
        (":x", "unknown reward ':x'"),
    ],
)
def test_what_cannot_be_found_is_told_with_the_known_names(spec: str, message: str) -> None:
    registry: Registry[object] = Registry("reward")
    registry.register("b")(reward)
    registry.register("a")(reward)
    with pytest.raises(PluginError, match=message):
        registry.resolve(spec)


def test_wrong_signature_fails_with_the_expected_one() -> None:
    def lonely(sample: object) -> float:
        return 0.0

    module = types.ModuleType("plugin_with_wrong_signature")
    module.lonely = lonely  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    registry: Registry[object] = Registry("reward", expects=reward)
    with pytest.raises(
        PluginError, match=r"lonely.* has the signature .*expected \(args: object, sample: object\)"
    ):
        registry.resolve("plugin_with_wrong_signature:lonely")


def test_plugin_that_is_not_callable_fails() -> None:
    with pytest.raises(PluginError, match="is a str, not something to call"):
        check_signature("text", reward, "reward 'x'")


def test_plugin_may_take_more_than_it_must() -> None:
    def generous(args: object, sample: object, *more: object, scale: float = 1.0, **options: object) -> float:
        return scale

    check_signature(generous, reward, "reward")


def test_unknown_option_is_told_with_the_known_ones() -> None:
    def make(*, size: int = 1, name: str = "") -> tuple[int, str]:
        return size, name

    assert call_with_options(make, {"size": 2}, "thing") == (2, "")
    with pytest.raises(ConfigError, match="the thing has no option 'seize': known are name, size"):
        call_with_options(make, {"seize": 2}, "thing")


def test_option_that_must_be_given_is_told() -> None:
    def make(*, size: int) -> int:
        return size

    with pytest.raises(ConfigError, match=r"the thing cannot be made: missing a required .*'size'"):
        call_with_options(make, {}, "thing")


def test_factory_that_fails_is_told_and_its_own_config_error_passes() -> None:
    def broken() -> None:
        raise ZeroDivisionError("no luck")

    def precise() -> None:
        raise ConfigError("size: expected 1")

    with pytest.raises(PluginError, match="the thing cannot be made: ZeroDivisionError: no luck"):
        call_with_options(broken, {}, "thing")
    with pytest.raises(ConfigError, match=r"^size: expected 1$"):
        call_with_options(precise, {}, "thing")


def test_factory_that_is_none_is_told() -> None:
    with pytest.raises(PluginError, match="the thing is a str, not something to call"):
        call_with_options(Registry[str]("thing").resolve("json:__name__"), {}, "thing")  # type: ignore[arg-type]


def test_missing_method_is_told_with_the_fix() -> None:
    check_methods([], ("append", "__len__"), "thing", "inherit list")
    with pytest.raises(PluginError, match=r"the thing has no method push\(\): inherit list"):
        check_methods([], ("append", "push"), "thing", "inherit list")


@pytest.mark.parametrize(
    ("code", "message"), [("def f(:", "SyntaxError: "), ("1 / 0", "ZeroDivisionError: division by zero")]
)
def test_module_that_cannot_be_imported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "plugin_with_a_mistake.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=f"'plugin_with_a_mistake:f' cannot be imported: {message}"):
        Registry[object]("reward").resolve("plugin_with_a_mistake:f")
