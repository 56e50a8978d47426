"""Fixtures for every test: two real SGLang workers, made and started once where a test asks for them."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from tests.engine.environment import EngineEnvironment, EnvironmentFailed, prepare
from tests.engine.workers import EngineWorker, running_workers

ENVIRONMENT = pytest.StashKey[EngineEnvironment | EnvironmentFailed]()


def pytest_configure() -> None:
    """Take signals as on a terminal: a child of `nohup` or of a background job would ignore some."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the engine's environment before the first test, outside any test's time limit."""
    wanted = any(item.get_closest_marker("engine") for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        try:
            session.config.stash[ENVIRONMENT] = prepare()
        except EnvironmentFailed as error:
            session.config.stash[ENVIRONMENT] = error


@pytest.fixture(scope="session")
def engine_workers(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EngineWorker, ...]]:
    """Two running SGLang workers with weights of different seeds, for tests marked `engine`."""
    environment = pytestconfig.stash.get(ENVIRONMENT, None)
    if environment is None:
        pytest.fail("a test that uses engine_workers must carry the marker `engine`")
    if isinstance(environment, EnvironmentFailed):
        pytest.fail(f"the SGLang environment cannot be made: {environment}", pytrace=False)
    with running_workers(
        environment, environment.models, log_folder=tmp_path_factory.mktemp("engine")
    ) as workers:
        yield workers
