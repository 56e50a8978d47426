"""The rollout that makes no samples: it waits until the process is ended.

For setups that only serve: the trainer's process stays, workers and router answer whoever calls them.

Source: slime's `sleep_rollout`.
"""

import threading
from typing import Final, NoReturn

from .config import RolloutConfig
from .data_source import DataSource
from .plugins import rollout_functions

LOOK_UP_S: Final = 0.5
"""Time between looks at signals: one that another thread got does not wake this one."""


@rollout_functions.register("sleep")
def sleep_rollout(
    args: RolloutConfig,  # noqa: ARG001
    rollout_id: int,  # noqa: ARG001
    data_source: DataSource,  # noqa: ARG001
    evaluation: bool = False,  # noqa: ARG001, FBT001, FBT002  slime's signature
) -> NoReturn:
    """Wait for ever; Ctrl-C and signals that mean the same end it."""
    never = threading.Event()
    while True:
        never.wait(LOOK_UP_S)
