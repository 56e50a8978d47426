from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.router.settings import RouterSettings

MORE_THAN_0 = (
    "max_payload_size",
    "request_timeout_secs",
    "connect_timeout_secs",
    "fleet_concurrency",
    "fleet_timeout_secs",
    "health_failure_threshold",
    "health_success_threshold",
    "health_check_interval_secs",
    "health_check_timeout_secs",
)


@pytest.mark.parametrize("name", MORE_THAN_0)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), float("-inf")])
def test_amounts_are_finite_and_more_than_0(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {value}: expected more than 0"):
        RouterSettings(**options)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_grace_period_is_finite_and_0_or_more(value: float) -> None:
    with pytest.raises(ConfigError, match=f"--shutdown-grace-period-secs {value}: expected 0 or more"):
        RouterSettings(shutdown_grace_period_secs=value)
    RouterSettings(shutdown_grace_period_secs=0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_port_is_one(port: int) -> None:
    with pytest.raises(ConfigError, match=f"--port {port}: expected 0 to 65535"):
        RouterSettings(port=port)
    RouterSettings(port=0)
    RouterSettings(port=65535)


@pytest.mark.parametrize("middleware", [("none", "radix_tree"), ("radix_tree", "none"), ("none", "none")])
def test_none_stands_alone(middleware: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--middleware none stands alone"):
        RouterSettings(middleware=middleware)


def test_each_middleware_is_named_once() -> None:
    with pytest.raises(ConfigError, match="--middleware a b a: each one only once"):
        RouterSettings(middleware=("a", "b", "a"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance_abs_threshold": -1}, "--balance-abs-threshold -1: expected 0 or more"),
        ({"balance_rel_threshold": 0.9}, "--balance-rel-threshold 0.9: expected 1 or more"),
        ({"balance_rel_threshold": float("nan")}, "--balance-rel-threshold nan: expected 1 or more"),
    ],
)
def test_thresholds_of_the_balance_are_sensible(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RouterSettings(**options)
    RouterSettings(balance_abs_threshold=0, balance_rel_threshold=1)


@pytest.mark.parametrize(
    "endpoint", ["", "ready", "http://w/ready", "/re ady", "/ready\r\nx: y", "/r\u00e9ady"]
)
def test_health_check_endpoint_is_a_path(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"--health-check-endpoint .*: expected a path such as /ready"):
        RouterSettings(health_check_endpoint=endpoint)
    RouterSettings(health_check_endpoint="/ready?deep=1")
