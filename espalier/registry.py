"""Plug-ins by name.

A plug-in is found by, in this order: its registered name, an installed entry point of the registry's group,
`package.module:attribute`, or `package.module.attribute` as slime writes it.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from .errors import ConfigError, PluginError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named plug-ins of one kind. Refuses duplicates; lists the known names when one is missing."""

    def __init__(self, kind: str, *, expects: Callable[..., object] | None = None) -> None:
        """Name the kind as people say it ("reward"), for messages and the entry point group.

        `expects` is a function with the signature that plug-ins must accept, checked by `resolve`.
        """
        self.kind = kind
        self.group = f"espalier.{kind.replace(' ', '_')}"
        self._expects = expects
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates, unchanged, as `name`."""

        def decorate(plugin: T) -> T:
            if name in self._known:
                raise PluginError(f"the {self.kind} {name!r} is already registered")
            self._known[name] = plugin
            return plugin

        return decorate

    def names(self) -> list[str]:
        """Return all known names, sorted: the registered ones and the installed entry points."""
        return sorted({*self._known, *(point.name for point in entry_points(group=self.group))})

    def resolve(self, spec: str) -> T:
        """Return the plug-in that `spec` names.

        Raises: PluginError where there is none, it cannot be imported, or its signature does not fit.
        """
        plugin = self._known.get(spec)
        if plugin is None:
            plugin = self._from_entry_point(spec) or self._from_path(spec)
            if self._expects is not None:
                check_signature(plugin, self._expects, f"{self.kind} {spec!r}")
        return plugin

    def _from_entry_point(self, name: str) -> T | None:
        for point in entry_points(group=self.group, name=name):
            try:
                return cast("T", point.load())
            except Exception as error:  # a plug-in's module may raise anything
                raise PluginError(
                    f"the {self.kind} {name!r} ({point.value}) cannot be loaded: {_told(error)}"
                ) from error
        return None

    def _from_path(self, spec: str) -> T:
        module_name, colon, attribute = spec.partition(":")
        if not colon:
            module_name, _, attribute = spec.rpartition(".")
        if not module_name or not attribute:
            known = ", ".join(self.names()) or "none"
            raise PluginError(
                f"unknown {self.kind} {spec!r}: known are {known}; "
                "or give package.module:attribute for one of your own"
            )
        try:
            found: object = importlib.import_module(module_name)
        except Exception as error:  # a plug-in's module may raise anything
            raise PluginError(f"the {self.kind} {spec!r} cannot be imported: {_told(error)}") from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise PluginError(
                    f"the {self.kind} {spec!r} cannot be found: {module_name} has no {attribute!r}"
                )
            found = getattr(found, part)
        return cast("T", found)


def check_signature(plugin: object, expects: Callable[..., object], what: str) -> None:
    """Check that `plugin` can be called as `expects` is.

    Raises: PluginError naming `what`, with the signature it has and the one it should have.
    """
    if not callable(plugin):
        raise PluginError(f"the {what} is a {type(plugin).__name__}, not something to call")
    try:
        actual = inspect.signature(plugin)
    except (TypeError, ValueError):
        return
    expected = inspect.signature(expects)
    positional = [
        p for p in expected.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]
    keywords = {p.name: None for p in expected.parameters.values() if p.kind is p.KEYWORD_ONLY}
    try:
        actual.bind(*(None for _ in positional), **keywords)
    except TypeError as error:
        raise PluginError(f"the {what} has the signature {actual}; expected {expected} ({error})") from error


def call_with_options(factory: Callable[..., T], options: dict[str, object], what: str) -> T:
    """Return `factory(**options)`.

    Raises: ConfigError naming `what` and the known options where one is unknown or missing; PluginError
    where the factory itself fails.
    """
    if not callable(factory):
        raise PluginError(f"the {what} is a {type(factory).__name__}, not something to call")
    signature = inspect.signature(factory)
    known = _options(signature)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in options:
        if name not in known and not takes_any:
            raise ConfigError(f"the {what} has no option {name!r}: known are {', '.join(known) or 'none'}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"the {what} cannot be made: {error}") from None
    try:
        return factory(**options)
    except ConfigError:
        raise
    except Exception as error:  # a plug-in's constructor may raise anything
        raise PluginError(f"the {what} cannot be made: {_told(error)}") from error


def takes_option(factory: Callable[..., object], name: str) -> bool:
    """Tell whether `factory` names the option among its parameters."""
    return callable(factory) and name in _options(inspect.signature(factory))


def check_methods(plugin: object, names: Sequence[str], what: str, fix: str) -> None:
    """Check that `plugin` has the methods `names`.

    Raises: PluginError naming `what`, the missing method and the `fix`.
    """
    for name in names:
        if not callable(getattr(plugin, name, None)):
            raise PluginError(f"the {what} has no method {name}(): {fix}")


def _options(signature: inspect.Signature) -> list[str]:
    parameters = signature.parameters.values()
    return sorted(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
