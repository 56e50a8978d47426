"""Makes the policy and the middleware that the settings name."""

from collections.abc import Mapping, Sequence

import msgspec

from ..calls import Middleware
from ..errors import ConfigError
from ..middleware import middlewares
from ..policies import Policy
from ..registry import call_with_options, check_methods, takes_option
from .policies import policies


def make_policy(name: str, arguments: Sequence[str] = (), **defaults: object) -> Policy:
    """Return the policy called `name`, made with `arguments` (`KEY=VALUE`).

    `defaults` are options that have flags of their own. They are for the policies that know them; an argument
    goes before them.

    Raises: ConfigError, PluginError where there is no such policy, it is none, or cannot be made so.
    """
    what = f"policy {name!r}"
    factory = policies.resolve(name)
    options = {key: value for key, value in defaults.items() if takes_option(factory, key)}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"--policy-arg {argument}: expected KEY=VALUE")
        options[key] = _decoded(value)
    policy = call_with_options(factory, options, what)
    check_methods(policy, ("choose",), what, "a policy has choose(call, candidates)")
    return policy


def make_middleware(
    names: Sequence[str], arguments: Sequence[str], *, tokenizer_path: str | None
) -> list[Middleware]:
    """Return the middleware called `names`, in order, made with `arguments` (`NAME.KEY=VALUE`).

    `tokenizer_path` is an option of the radix tree that has a flag of its own.

    Raises: ConfigError, PluginError where one is unknown, is no middleware, or cannot be made so.
    """
    options: dict[str, dict[str, object]] = {name: {} for name in names if name != "none"}
    if "radix_tree" in options and tokenizer_path is not None:
        options["radix_tree"]["tokenizer_path"] = tokenizer_path
    for argument in arguments:
        _add_option(options, argument)
    return [_make(name, options[name]) for name in options]


def _make(name: str, options: dict[str, object]) -> Middleware:
    what = f"middleware {name!r}"
    made = call_with_options(middlewares.resolve(name), options, what)
    methods = ("__call__", "start", "aclose", "stats", "routes")
    check_methods(made, methods, what, "inherit espalier.calls.MiddlewareBase, which has the rest")
    return made


def _add_option(options: Mapping[str, dict[str, object]], argument: str) -> None:
    key, equals, value = argument.partition("=")
    name, dot, option = key.rpartition(".")
    if not equals or not dot:
        raise ConfigError(f"--middleware-arg {argument}: expected NAME.KEY=VALUE")
    if name not in options:
        raise ConfigError(
            f"--middleware-arg {argument}: {name!r} is not in use; --middleware {name} turns it on"
        )
    options[name][option] = _decoded(value)


def _decoded(value: str) -> object:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value
