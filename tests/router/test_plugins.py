"""Policies and middleware by name, and what is told where that fails."""

from pathlib import Path

import pytest

from espalier.errors import ConfigError, PluginError
from espalier.router.plugins import make_middleware, make_policy
from espalier.router.policies import LeastInFlight, RoundRobin
from tests.router.plugins import Shouting, Sized

HERE = "tests.router.plugins"


def made(name: str, *arguments: str) -> object:
    (layer,) = make_middleware([name], arguments, tokenizer_path=None)
    return layer


def test_built_in_policies_are_found_by_name() -> None:
    assert isinstance(make_policy("round_robin"), RoundRobin)
    assert isinstance(make_policy("least_inflight"), LeastInFlight)


def test_middleware_is_made_in_order_and_with_its_options() -> None:
    names = [f"{HERE}:Shouting", f"{HERE}:Sized"]
    layers = make_middleware(names, [f"{HERE}:Sized.size=3"], tokenizer_path=None)
    assert [type(layer) for layer in layers] == [Shouting, Sized]
    assert make_middleware(["none"], [], tokenizer_path=None) == []


@pytest.mark.parametrize(
    ("text", "kind"), [('"3"', "str"), ("three", "str"), ("{}", "dict"), ("[" * 100_000, "str")]
)
def test_options_are_json_and_else_text(text: str, kind: str) -> None:
    with pytest.raises(PluginError, match=f"not supported between instances of '{kind}' and 'int'"):
        made(f"{HERE}:Sized", f"{HERE}:Sized.size={text}")


def test_unknown_names_fail_with_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"unknown policy 'x': known are .*round_robin"):
        make_policy("x")
    with pytest.raises(PluginError, match=r"unknown middleware 'x': known are .*radix_tree"):
        made("x")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("radix_tree.max", "expected NAME.KEY=VALUE"),
        ("max=1", "expected NAME.KEY=VALUE"),
        ("other.key=1", "'other' is not in use; --middleware other turns it on"),
        ("radix_tree.nonsense=1", "the middleware 'radix_tree' has no option 'nonsense': known are"),
    ],
)
def test_wrong_argument_is_told(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made("radix_tree", argument)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (f"{HERE}:Sized", (), f"the middleware '{HERE}:Sized' cannot be made: missing .*'size'"),
        (f"{HERE}:Sized", (f"{HERE}:Sized.size=-1",), "cannot be made: ValueError: size is below 0"),
        (f"{HERE}:Halfway", (), r"has no method start\(\): inherit espalier.calls.MiddlewareBase"),
        ("json:__name__", (), "the middleware 'json:__name__' is a str, not something to call"),
        ("json:nothing", (), "json has no 'nothing'"),
        ("..x", (), "the middleware '..x' cannot be imported: "),
        ("no.such:thing", (), "cannot be imported: No module named 'no'"),
    ],
)
def test_middleware_that_is_none_is_told(name: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name, *arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{HERE}:Aimless", rf"the policy '{HERE}:Aimless' has no method choose\(\): a policy has choose"),
        (f"{HERE}:Sized", f"the policy '{HERE}:Sized' cannot be made: missing .*'size'"),
        ("json:__name__", "the policy 'json:__name__' is a str, not something to call"),
        ("..x", "the policy '..x' cannot be imported: "),
    ],
)
def test_policy_that_is_none_is_told(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def broken(:", "cannot be imported: SyntaxError: "),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_found", "cannot be imported: No module named 'nowhere_to_be_found'"),
    ],
)
def test_module_that_cannot_be_imported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "module_with_a_mistake.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for spec in ("module_with_a_mistake:Layer", "module_with_a_mistake.Layer"):
        with pytest.raises(PluginError, match=message):
            made(spec)
