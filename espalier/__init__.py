"""Espalier: a router for LLM reinforcement-learning rollouts.

The core lives here: errors, wire types, contracts and registries. `espalier.router`, `espalier.middleware`,
`espalier.rollout` and `espalier.simulator` are built on it and never imported by it.
"""

from .version import __version__

__all__ = ["__version__"]
