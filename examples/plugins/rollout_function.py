"""A rollout function: explores at first, and samples more and more coolly.

espalier rollout --rollout-function-path examples.plugins.rollout_function:cooling …
"""

from dataclasses import replace

from espalier.rollout import (
    DataSource,
    RolloutConfig,
    RolloutFnEvalOutput,
    RolloutFnTrainOutput,
    generate_rollout,
)

STEPS = 10
"""Steps until the temperature is half of what it was; it stays there."""


def cooling(
    args: RolloutConfig, rollout_id: int, data_source: DataSource, evaluation: bool = False
) -> RolloutFnTrainOutput | RolloutFnEvalOutput:
    """Run the rollout at the step's temperature, and report that as a metric."""
    temperature = args.rollout_temperature * (1.0 - 0.5 * min(rollout_id / STEPS, 1.0))
    output = generate_rollout(
        replace(args, rollout_temperature=temperature), rollout_id, data_source, evaluation
    )
    output.metrics = {**(output.metrics or {}), "rollout/temperature": temperature}
    return output
