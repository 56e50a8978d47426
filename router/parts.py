"""Makes the parts that `app` puts together, each from the settings that it needs."""

from collections.abc import Callable, Coroutine
from typing import Final

from ..errors import BadRequest, ConfigError
from .admission import Admission
from .auth import Gate, Keyring, read_keys
from .own_paths import OwnPaths
from .prober import Prober, revive_unseen
from .retries import Backoff, RetryBudget, RetryPolicy
from .settings import RouterSettings
from .tally import Tally
from .upstreams import make_credentials
from .worker_file import WorkerFile
from .workers import WorkerPool

Watcher = Callable[[], Coroutine[None, None, None]]
"""Works in the background until it is cancelled."""

TELLING_PATHS: Final = frozenset({"/server_info", "/get_server_info"})
"""Tell a worker's whole command line, its keys included: for an admin's key."""


def make_pool(settings: RouterSettings) -> WorkerPool:
    """Return the pool with the workers that the settings name.

    Raises: ConfigError where a URL is not valid.
    """
    pool = WorkerPool(
        failure_threshold=settings.health_failure_threshold,
        success_threshold=settings.health_success_threshold,
        allow_stale_workers=settings.allow_stale_workers,
    )
    for url in settings.worker_urls:
        try:
            pool.add(url)
        except BadRequest as error:
            raise ConfigError(f"--worker-urls: {error.message}") from None
    return pool


def make_watchers(settings: RouterSettings, pool: WorkerPool) -> list[Watcher]:
    """Return what follows the workers in the background; a worker file is read now.

    Raises: ConfigError where the file cannot be used.
    """
    interval_s = settings.health_check_interval_secs
    prober = Prober(
        pool,
        interval_s=interval_s,
        timeout_s=settings.health_check_timeout_secs,
        endpoint=settings.health_check_endpoint,
        credentials=make_credentials(settings),
    )
    watchers: list[Watcher] = [prober.run]
    if settings.disable_health_check:
        watchers = [lambda: revive_unseen(pool, interval_s=interval_s)]
    if settings.worker_file is not None:
        worker_file = WorkerFile(pool, settings.worker_file)
        worker_file.load()
        watchers.append(worker_file.run)
    return watchers


def make_admission(settings: RouterSettings, tally: Tally) -> Admission | None:
    """Return the bound on calls at work, or None where there is none."""
    if settings.max_concurrent_requests == -1:
        return None
    return Admission(
        max_concurrent=settings.max_concurrent_requests,
        queue_size=settings.queue_size,
        queue_timeout_s=settings.queue_timeout_secs,
        tally=tally,
    )


def make_retry_policy(settings: RouterSettings) -> RetryPolicy:
    """Return when and how often calls are sent again."""
    backoff = Backoff(
        initial_s=settings.retry_initial_backoff_ms / 1000,
        multiplier=settings.retry_backoff_multiplier,
        max_s=settings.retry_max_backoff_ms / 1000,
        jitter=settings.retry_jitter_factor,
    )
    max_retries = 0 if settings.disable_retries else settings.retry_max_retries
    return RetryPolicy(max_retries=max_retries, backoff=backoff, budget=RetryBudget())


def make_gate(settings: RouterSettings, *, own_paths: OwnPaths, controls: OwnPaths) -> Gate | None:
    """Return what asks for keys, or None where none are set; `controls` are the paths for an admin's key.

    Raises: ConfigError where a key file cannot be used.
    """
    keys = Keyring(read_keys(settings.api_key, settings.api_key_file, "--api-key"))
    admin_keys = Keyring(read_keys(settings.admin_api_key, settings.admin_api_key_file, "--admin-api-key"))
    if not keys and not admin_keys:
        return None
    return Gate(
        keys,
        admin_keys,
        is_own=lambda path: path in own_paths,
        is_control=lambda path: path in controls or path in TELLING_PATHS,
        protect_metrics=settings.protect_metrics,
    )
