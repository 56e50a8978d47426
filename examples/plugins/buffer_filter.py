"""A buffer filter: of the groups that were cut off, those that are nearest to their end go first.

espalier rollout --partial-rollout --buffer-filter-path examples.plugins.buffer_filter:longest_first …
"""

from espalier.rollout import RolloutConfig, Sample


def longest_first(
    args: RolloutConfig, rollout_id: int | None, buffer: list[list[Sample]], num_samples: int
) -> list[list[Sample]]:
    """Take the groups with the most sampled tokens out of `buffer`, at most `num_samples`; return them."""
    buffer.sort(key=lambda group: sum(sample.response_length for sample in group), reverse=True)
    taken = buffer[:num_samples]
    del buffer[:num_samples]
    return taken
