"""Which paths the router answers itself."""

from collections.abc import Iterable

from starlette.routing import BaseRoute


class OwnPaths:
    """The paths that an application's routes answer: whole ones, and beginnings of those with parameters."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        paths = [str(getattr(route, "path", "")) for route in routes]
        self._whole = frozenset(path for path in paths if "{" not in path)
        self._beginnings = tuple({path.partition("{")[0]: None for path in paths if "{" in path})

    def __contains__(self, path: str) -> bool:
        """Tell whether the application answers `path`."""
        return path in self._whole or path.startswith(self._beginnings)

    def label_of(self, path: str) -> str | None:
        """Return `path`, or its beginning and `{…}` where parameters follow; None where it is not ours."""
        if path in self._whole:
            return path
        return next((f"{start}{{…}}" for start in self._beginnings if path.startswith(start)), None)
