"""Which environment variables are settings, which are Kubernetes', and which are mistakes."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from .errors import ConfigError
from .suggestion import suggestion

_OF_A_SERVICE: Final = re.compile(
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
).fullmatch
"""How Kubernetes names what it tells a pod about each service of its namespace, after the service's name.

Source: its documentation, "Discovering services", environment variables. A service called `espalier-router`
gets names that begin like our settings'.
"""

_IS_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://").match
"""What `…_PORT` holds where Kubernetes set it."""


def variables(
    environment: Mapping[str, str], *, prefix: str, names: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield field name, variable and value of each setting in `environment`.

    Raises: ConfigError naming a variable that begins with `prefix` and is no setting, nor Kubernetes' own.
    """
    by_variable = {prefix + name.upper(): name for name in names}
    for variable, value in sorted(environment.items()):
        if not variable.startswith(prefix) or _is_kubernetes(variable.removeprefix(prefix), value):
            continue
        if variable not in by_variable:
            raise ConfigError(
                f"{variable}: there is no such setting{suggestion(variable, by_variable)}; "
                f"a variable is {prefix} and a flag's name, in capitals and with underscores"
            )
        yield by_variable[variable], variable, value


def _is_kubernetes(name: str, value: str) -> bool:
    is_address = re.fullmatch(r"(.+_)?PORT", name) is not None and _IS_SERVICE_ADDRESS(value) is not None
    return is_address or _OF_A_SERVICE(name) is not None
