import os
import signal
import threading
from collections.abc import Callable

import pytest

from espalier.rollout import RolloutConfig, RolloutDataSource
from espalier.rollout.plugins import Plugins


def test_the_sleeping_rollout_waits_until_it_is_ended(make_config: Callable[..., RolloutConfig]) -> None:
    config = make_config(rollout_function_path="sleep")
    function = Plugins.resolve(config).rollout
    assert function is not None
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        function(config, 0, RolloutDataSource(config), evaluation=False)
