"""A generate function: sampling settings of its own for each problem, from the dataset's metadata.

A line `{"prompt": …, "metadata": {"sampling": {"temperature": 0.2}}}` is sampled at that temperature.

espalier rollout --custom-generate-function-path examples.plugins.generate_function:with_own_settings …
"""

from typing import Any

from espalier.errors import RolloutError
from espalier.rollout import RolloutConfig, Sample, generate

ALLOWED = {"temperature", "top_p", "top_k"}


async def with_own_settings(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Return the sample, generated with what its metadata sets. Other settings fail it, not its siblings."""
    own = sample.metadata.get("sampling", {})
    if not own.keys() <= ALLOWED:
        raise RolloutError(f"sample {sample.index}: only {', '.join(sorted(ALLOWED))} may be set")
    return await generate(args, sample, {**sampling_params, **own})
