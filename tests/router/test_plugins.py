"""Policies and middleware by name, and what is told where that fails."""

from pathlib import Path

import pytest

from espalier.errors import ConfigError, PluginError
from espalier.router.plugins import make_middleware, make_policy
from espalier.router.policies import LeastInFlight, PrefixAffinity, RoundRobin, help_text, policies
from tests.router.plugins import Shouting, Sized

HERE = "tests.router.plugins"


def made(name: str, *arguments: str) -> object:
    (layer,) = make_middleware([name], arguments, tokenizer_path=None)
    return layer


def test_built_in_policies_are_found_by_name() -> None:
    assert isinstance(make_policy("round_robin"), RoundRobin)
    assert isinstance(make_policy("least_inflight"), LeastInFlight)


@pytest.mark.parametrize("name", policies.names())
def test_every_built_in_policy_can_be_made_and_stands_in_the_help(name: str) -> None:
    make_policy(name, balance_abs_threshold=10, balance_rel_threshold=1.2)
    (line,) = (line for line in help_text().splitlines() if line.startswith(f"  {name} "))
    assert 25 < len(line) <= 100


def test_names_of_sglangs_router_mean_the_nearest_policy() -> None:
    assert isinstance(make_policy("cache_aware"), PrefixAffinity)
    assert isinstance(make_policy("least_load"), LeastInFlight)


def test_policy_takes_its_arguments_before_the_flags() -> None:
    with pytest.raises(ConfigError, match="balance_abs_threshold=-3: expected a whole number"):
        make_policy("prefix_affinity", ["balance_abs_threshold=-3"], balance_abs_threshold=10)
    with pytest.raises(ConfigError, match="balance_abs_threshold=-2: expected a whole number"):
        make_policy("prefix_affinity", balance_abs_threshold=-2)
    make_policy("round_robin", balance_abs_threshold=-2)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("random", "seed", "--policy-arg seed: expected KEY=VALUE"),
        ("random", "=7", "--policy-arg =7: expected KEY=VALUE"),
        ("random", "sede=7", "the policy 'random' has no option 'sede': known are seed"),
        ("round_robin", "seed=7", "the policy 'round_robin' has no option 'seed': known are none"),
        (
            "prefix_affinity",
            "x=1",
            "known are balance_abs_threshold, balance_rel_threshold, max_index_bytes, ties",
        ),
        ("least_inflight", "ties=coin", "ties=coin: expected rotate or checksum"),
        (f"{HERE}:Sized", "size=-1", "cannot be made: ValueError: size is below 0"),
    ],
)
def test_wrong_policy_argument_is_told(name: str, argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy(name, [argument])


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
