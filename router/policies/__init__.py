"""The built-in load-balancing policies, by name. docs/policies.md tells which one is for what.

`balancing` holds those that look at nothing but the workers, `hashing` those where a key belongs to a worker,
`affinity` the one that follows prompts.
"""

from typing import Final

from ...policies import PolicyFactory
from ...registry import Registry
from .affinity import PrefixAffinity
from .balancing import LeastInFlight, PowerOfTwo, RandomChoice, RoundRobin
from .hashing import ConsistentHashing, Deterministic

__all__ = [
    "ConsistentHashing",
    "Deterministic",
    "LeastInFlight",
    "PowerOfTwo",
    "PrefixAffinity",
    "RandomChoice",
    "RoundRobin",
    "help_text",
    "policies",
]

BUILT_IN: Final[dict[str, PolicyFactory]] = {
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "least_inflight": LeastInFlight,
    "power_of_two": PowerOfTwo,
    "consistent_hashing": ConsistentHashing,
    "prefix_affinity": PrefixAffinity,
    "deterministic": Deterministic,
}

OTHER_NAMES: Final = {
    "cache_aware": "prefix_affinity",
    "prefix_hash": "prefix_affinity",
    "least_load": "least_inflight",
    "manual": "consistent_hashing",
}
"""What SGLang's routers call a policy of nearly the same meaning."""

policies: Registry[PolicyFactory] = Registry("policy")
"""Known policies; `policies.register("name")` adds one."""

for _name, _factory in BUILT_IN.items():
    policies.register(_name)(_factory)
for _name, _meant in OTHER_NAMES.items():
    policies.register(_name)(BUILT_IN[_meant])


def help_text() -> str:
    """Return a line for each policy, for `--help`: its name, and the first line of its docstring."""
    lines = [f"  {name:<19} {_summary(factory)}" for name, factory in BUILT_IN.items()]
    others = [f"  {name:<19} SGLang's name; here {meant}" for name, meant in OTHER_NAMES.items()]
    return "\n".join(["policies (--policy; options go to --policy-arg):", *lines, *others])


def _summary(factory: PolicyFactory) -> str:
    return (factory.__doc__ or "").partition("\n")[0]
