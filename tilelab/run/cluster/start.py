"""Get a Dask client: of worker processes started here, or of a scheduler that is there already."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from tilelab.errors import ClusterError
from tilelab.machine.memory import DEFAULT_LIMIT, available_memory
from tilelab.run.cluster.devices import worker_slots
from tilelab.run.options import Options
from tilelab.text import install_hint

CONNECT_SECONDS = 10
START_SECONDS = 120
CLOSE_SECONDS = 15

# One big task at a time and nothing kept between tasks: spilling, pausing, stealing and profiling only get in the way.
# A worker that reaches 95 % of its memory is ended by its nanny, and started anew.
_CONFIG = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.worker-ttl": "60s",
}


@contextlib.contextmanager
def start_client(options: Options) -> Iterator[tuple[Any, Options]]:
    """A connected client with at least one worker, and `options` fitted to the workers: device, threads and memory.

    Raises:
        ClusterError: Dask is not installed, the scheduler cannot be reached, or no worker comes.
    """
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(
            f"several workers need dask.distributed, which is not installed: {install_hint('cluster')}"
        ) from error
    with contextlib.ExitStack() as stack:
        if options.scheduler is None:
            cluster = stack.enter_context(_local_cluster(options))
            address: Any = cluster
        else:
            address = options.scheduler
        try:
            client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {options.scheduler}: {error or type(error).__name__}"
            ) from error
        stack.callback(_close, client)
        if options.scheduler is None:
            wanted, seconds = len(worker_slots(options)), float(START_SECONDS)
        else:
            wanted, seconds = options.workers or 1, options.patience_seconds
        try:
            client.wait_for_workers(wanted, timeout=seconds)
        except TimeoutError as error:
            have = 0
            with contextlib.suppress(OSError, RuntimeError):  # the scheduler may be gone
                have = len(client.nthreads())
            raise ClusterError(
                f"{have} of {wanted} workers came to {client.scheduler.address} in {seconds:.0f} s: "
                "start them, or ask for fewer with --workers"
            ) from error
        except (OSError, RuntimeError) as error:  # Dask's own are kinds of these
            raise ClusterError(
                f"the Dask scheduler at {options.scheduler or 'this machine'} went away before a worker came "
                f"({error or type(error).__name__}): start it again, and its workers"
            ) from error
        yield client, _fit(options, client)


def dashboard_link(client: Any) -> str | None:
    """Where the dashboard is; None when there is none (bokeh is not installed)."""
    link = client.dashboard_link
    return link if link and find_spec("bokeh") is not None else None


@contextlib.contextmanager
def _local_cluster(options: Options) -> Iterator[Any]:
    """A scheduler in this process and one worker process for each slot; reachable from this machine only."""
    import dask
    from distributed import Nanny, Scheduler, Security, SpecCluster

    _check_semaphores()
    slots = worker_slots(options)
    threads = threads_each(options)
    # On a machine with other users, anyone could connect to a scheduler without TLS, and run code as its owner.
    security = Security.temporary() if find_spec("cryptography") is not None else Security()
    common = {
        "host": "127.0.0.1",
        "protocol": "tls://" if security.require_encryption else "tcp://",
        "security": security,
    }
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    config = _CONFIG | {"distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": "65536"} | limits}
    memory = _total_memory() // len(slots)
    with dask.config.set(config), _quiet():
        cluster = SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": common | {"port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0"},
            },
            workers={
                index: {
                    "cls": Nanny,
                    "options": common
                    | {
                        "nthreads": 1,
                        "memory_limit": memory,
                        "env": slot.environment,
                        "resources": {"GPU": 1} if slot.environment else {},
                        "dashboard": False,
                        "silence_logs": logging.CRITICAL,
                        "config": config,
                        "preload": ["tilelab.run.cluster.preload", *dask.config.get("distributed.worker.preload")],
                    },
                }
                for index, slot in enumerate(slots)
            },
            name="tilelab",
            silence_logs=logging.CRITICAL,
            security=security,
        )
        try:
            yield cluster
        finally:
            with contextlib.suppress(TimeoutError):  # the workers end with this process, at the latest
                cluster.close(timeout=CLOSE_SECONDS)


def _check_semaphores() -> None:
    """Refuse to start workers where processes cannot share a lock, which their start needs.

    Raises:
        ClusterError: the system's reason, most often that /dev/shm cannot be written.
    """
    try:
        multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError) as error:
        raise ClusterError(
            f"worker processes need semaphores, which this machine refuses ({error}): "
            "make /dev/shm writable, or leave --workers out"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Dask says in its log and in warnings what we tell the user ourselves."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"distributed\..*")
            yield
    finally:
        logger.setLevel(level)


def threads_each(options: Options) -> int:
    """Threads of each local worker: its share of the cores, unless the user said how many."""
    from dask.system import CPU_COUNT

    return options.threads or max(1, CPU_COUNT // len(worker_slots(options)))


def _fit(options: Options, client: Any) -> Options:
    """What was asked for, as each worker is to understand it."""
    from dataclasses import replace

    workers = list(client.scheduler_info()["workers"].values())
    if options.scheduler is None:
        memory = available_memory() // (2 * len(workers))
        options = replace(options, device=worker_slots(options)[0].device, threads=threads_each(options))
    else:
        limits = [w["memory_limit"] for w in workers if w.get("memory_limit")]
        memory = min(limits, default=2 * DEFAULT_LIMIT) // 2
    if options.memory_bytes is None:
        options = replace(options, memory_bytes=min(DEFAULT_LIMIT, memory))
    return replace(options, workers=len(workers))


def _total_memory() -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def _close(client: Any) -> None:
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        client.close(timeout=5)
