"""The middleware that comes with Espalier, and the registry of all that is installed."""

if __name__ != "espalier.middleware":
    raise ImportError(f"import espalier.middleware, not {__name__}: this folder is installed under that name")

from ..calls import MiddlewareFactory
from ..registry import Registry
from .radix_tree import RadixTreeMiddleware

__all__ = ["RadixTreeMiddleware", "middlewares"]

middlewares: Registry[MiddlewareFactory] = Registry("middleware")
"""Middleware by name. Installed packages add theirs as entry points of the group `espalier.middleware`."""

middlewares.register("radix_tree")(RadixTreeMiddleware)
