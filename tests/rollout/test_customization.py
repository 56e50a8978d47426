"""docs/customization.md says what the code says, and the examples of plug-ins run."""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import espalier.middleware
import espalier.rollout
import espalier.router.policies
from espalier.calls import Middleware
from espalier.errors import PluginError
from espalier.policies import Policy
from espalier.registry import Registry
from espalier.rollout import RolloutConfig, RolloutDataSource, Sample, generate_rollout
from espalier.rollout.plugins import Plugins
from espalier.rollout.tools import ToolFunction
from tests.rollout.fake_router import FakeRouter
from tests.router.running import router
from tests.router.scripted import answering, reply, scripted_worker

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "customization.md").read_text(encoding="utf-8")
HERE = __name__
MakeConfig = Callable[..., RolloutConfig]

PROTOCOLS: dict[str, Callable[..., object]] = {
    "policy": Policy.choose,
    "middleware": Middleware.__call__,
    "tool": ToolFunction.__call__,
}
"""Plug points whose plug-ins are objects: what is called on them."""


def documented() -> dict[str, tuple[str, str]]:
    """Kind -> the text of its section, and the parameters that its code block shows."""
    sections = re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return {
        kind: (text, parameters)
        for kind, text in sections
        for parameters in re.findall(r"```python\n(?:async )?def \w+(\(.*\)) -> .*\n```", text)
    }


def registries() -> dict[str, Registry[Any]]:
    """Every registry that there is, by kind."""
    packages = (espalier.rollout, espalier.middleware, espalier.router.policies)
    modules = [
        importlib.import_module(module.name)
        for package in packages
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    found = (value for module in (*packages, *modules) for value in vars(module).values())
    return {value.kind: value for value in found if isinstance(value, Registry)}


def takes_nothing() -> None: ...


def expected_parameters(registry: Registry[Any]) -> str:
    """Return the signature that the registry asks for, without the names of modules."""
    if registry.kind in PROTOCOLS:
        shown = str(inspect.signature(PROTOCOLS[registry.kind]))
    else:
        with pytest.raises(PluginError) as told:
            registry.resolve(f"{HERE}:takes_nothing")
        shown = re.search(r"expected (\(.*\)) -> ", str(told.value))[1]  # type: ignore[index]
    plain = re.sub(r"[A-Za-z_]\w*\.", "", shown.partition(" -> ")[0]).replace("~", "")
    return plain.replace("Callable[[Call], Awaitable[Reply]]", "Handler")


def test_every_plug_point_is_documented() -> None:
    assert set(registries()) == set(documented())


@pytest.mark.parametrize("kind", sorted(registries()))
def test_a_plug_point_is_documented_as_it_is(kind: str) -> None:
    registry = registries()[kind]
    text, parameters = documented()[kind]
    assert parameters == expected_parameters(registry)
    assert f"`{registry.group}`" in text
    for where in re.findall(r"registry `([\w.]+)`", text):
        module, _, name = where.rpartition(".")
        assert getattr(importlib.import_module(module), name) is registry


def test_flags_in_the_page_exist() -> None:
    fields = set(RolloutConfig.__dataclass_fields__)
    rollout_part = PAGE.partition("## Router")[0] + PAGE.partition("## Built-in rewards")[2]
    named = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]*)", rollout_part)}
    assert named <= fields


def test_built_in_plugins_are_in_the_page() -> None:
    for kind in ("reward", "dynamic filter", "over-sampling filter"):
        registry = registries()[kind]
        # Only ours: what other tests register comes from elsewhere.
        ours = [name for name in registry.names() if registry.resolve(name).__module__.startswith("espalier")]
        assert ours
        assert [name for name in ours if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "plugins").glob("*.py")), ids=lambda path: path.stem
)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def rolled_out(config: RolloutConfig, rollout_id: int = 0) -> Any:
    function = Plugins.resolve(config).rollout or generate_rollout
    return function(config, rollout_id, RolloutDataSource(config), evaluation=False)


def test_the_example_reward_takes_length_into_account(make_config: MakeConfig) -> None:
    config = make_config(
        custom_rm_path="examples.plugins.reward:right_and_short", rollout_max_response_len=20
    )
    samples = [sample for group in rolled_out(config).samples for sample in group]
    assert {sample.reward for sample in samples} == {
        1 - 0.5 * sample.response_length / 20 if r"\boxed{4}" in sample.response else 0.0
        for sample in samples
    }
    assert len({sample.reward for sample in samples}) > 1


def test_the_example_filter_drops_groups_that_all_say_the_same(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    usual = fake.generation
    fake.generation = lambda payload: usual(
        {**payload, "sampling_params": {}} if "question 1 ?" in payload["text"] else payload
    )
    output = rolled_out(
        make_config(
            dynamic_sampling_filter_path="examples.plugins.dynamic_filter:worth_training",
            n_samples_per_prompt=12,
        )
    )
    assert output.metrics["rollout/dynamic_filter/drop_all_the_same"] == 1


def test_the_example_generate_function_uses_a_problems_own_settings(
    fake: FakeRouter, make_config: MakeConfig, dataset: Path
) -> None:
    lines = [
        {"prompt": f"user question {number} ?", "label": "4", "metadata": {"sampling": sampling}}
        for number, sampling in enumerate([{"temperature": 0.25}, {"stop": ["x"]}, {}, {"top_k": 5}])
    ]
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = make_config(
        custom_generate_function_path="examples.plugins.generate_function:with_own_settings",
        rollout_batch_size=3,
    )
    output = rolled_out(config)
    assert [group[0].group_index for group in output.samples] == [0, 2, 3]
    asked = [request["sampling_params"] for request in fake.requests if "text" in request]
    assert {params["temperature"] for params in asked} == {0.25, 1.0}
    assert {params["top_k"] for params in asked} == {5, -1}


def test_the_example_rollout_function_cools_down(fake: FakeRouter, make_config: MakeConfig) -> None:
    config = make_config(rollout_function_path="examples.plugins.rollout_function:cooling")
    output = rolled_out(config, rollout_id=5)
    assert output.metrics["rollout/temperature"] == 0.75
    assert {request["sampling_params"]["temperature"] for request in fake.requests if "text" in request} == {
        0.75
    }


def test_the_example_buffer_filter_takes_the_longest(make_config: MakeConfig) -> None:
    longest_first = importlib.import_module("examples.plugins.buffer_filter").longest_first
    buffer = [[Sample(index=length, response_length=length)] for length in (1, 3, 2)]
    taken = longest_first(make_config(), None, buffer, 2)
    assert [group[0].index for group in taken] == [3, 2]
    assert [group[0].index for group in buffer] == [1]


def test_the_example_middleware_caps_what_is_asked_for() -> None:
    seen: list[dict[str, Any]] = []

    def script(client: Any, request: bytes) -> bool:
        seen.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        return answering(reply())(client, request)

    name = "examples.plugins.middleware:TokenCap"
    with (
        scripted_worker(script) as worker,
        router(worker, middleware=(name,), middleware_arg=(f"{name}.max_new_tokens=8",)) as client,
    ):
        for params in ({"max_new_tokens": 5}, {"max_new_tokens": 9}, None, [{"max_new_tokens": 9}, {}]):
            assert client.post("/generate", json={"text": "hi", "sampling_params": params}).status_code == 200
        metrics = client.get("/metrics").text
    limits = [body["sampling_params"] for body in seen]
    assert limits == [
        {"max_new_tokens": 5},
        {"max_new_tokens": 8},
        {"max_new_tokens": 8},
        [{"max_new_tokens": 8}, {"max_new_tokens": 8}],
    ]
    assert "espalier_token_cap_capped_total 4.0" in metrics
