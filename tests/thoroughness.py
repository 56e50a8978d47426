"""How hard properties are tried: the same cases every time, or, for a soak, many new ones."""

import os

from hypothesis import settings

DEPTH = int(os.environ.get("ESPALIER_TEST_DEPTH", "1"))
"""How many times as many cases as usual are tried. With 1 they are always the same."""


def cases(count: int, *, steps: int = 50) -> settings:
    """Return the settings for a property: how many cases, and for a state machine, steps in each."""
    return settings(
        max_examples=count * DEPTH,
        stateful_step_count=steps,
        deadline=None,
        derandomize=DEPTH == 1,
        database=None,
        report_multiple_bugs=False,
    )
