"""What several tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tilelab.machine.cpu import core_count

# A test that imports OpenVINO itself would have it report every conversion, each from a process that it forks.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

# What an earlier run measured decides nothing here.
os.environ["TILELAB_CACHE"] = ""

# Workers of pytest-xdist share the cores; libraries read this when they are loaded, here and in what tests start.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(max(1, core_count() // workers)))

# Where the tests run in the background of a shell, Ctrl-C is ignored, and would be by every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: a loaded machine is no failure. CI draws the same examples every time, so that a change is not stopped
# by what another one broke; people's runs go on searching.
settings.register_profile(
    "tilelab",
    deadline=None,
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),
    database=None if os.environ.get("CI") else settings.default.database,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tilelab")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled micrographs; tests that need it skip where it is absent."""
    root = Path(os.environ.get("TILELAB_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real micrographs at {root} (set TILELAB_DATA)")
    return root


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled CUDA kernels: what one test compiles, the next one finds."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def standin(kernels: Path) -> Iterator[Any]:
    """A process on the stand-in for NVIDIA's driver, which forks for every script; see `driver_standin.Prepared`."""
    from driver_standin import Prepared

    process = Prepared(kernels)
    yield process
    process.close()


@pytest.fixture(autouse=True)
def _translations() -> None:
    """The exporter's table of torch's operators is made once in a process: at every export it takes a second."""
    for name in [name for name in sys.modules if name.startswith("onnxscript._framework_apis.torch_")]:
        module: Any = sys.modules[name]
        if hasattr(module, "get_torchlib_ops") and not hasattr(module.get_torchlib_ops, "cache_info"):
            module.get_torchlib_ops = cache(module.get_torchlib_ops)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: small networks are no faster on more, and sums are the same on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def device() -> Any:
    """`tilelab.kernels.device` on a real GPU or in Numba's simulator."""
    pytest.importorskip("numba_cuda")
    from tilelab.errors import EngineError
    from tilelab.kernels import device

    if device.SIMULATED:
        from numba.cuda.simulator import kernel
        from simulated import Block

        kernel.BlockManager = Block
    try:
        device.select(0)
    except EngineError as error:
        pytest.skip(f"{error} (the simulator's test runs these without a GPU)")
    return device


@pytest.hookimpl(optionalhook=True)  # also where pytest-xdist is not installed
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core, at most two: every one takes up to 2 GiB, and starts clusters of its own."""
    return min(2, core_count())


def _processor_seconds() -> float:
    """Of this process and those it started and waited for: the workers too, and what these started."""
    return sum(os.times()[:4])


_spent: Counter[str] = Counter()
_before = _processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the processor time since the last report, in the process that ran the test."""
    global _before
    report = yield
    now = _processor_seconds()
    report.processor_seconds, _before = now - _before, now  # type: ignore[attr-defined]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count each file's processor time."""
    _spent[report.nodeid.partition("::")[0]] += getattr(report, "processor_seconds", 0.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the run cost, and where: the whole suite is bounded to fifteen minutes on two cores."""
    dearest = ", ".join(f"{Path(file).stem} {seconds:.0f}" for file, seconds in _spent.most_common(6) if seconds >= 1)
    terminalreporter.write_line(f"{_processor_seconds():.0f} s of processor time" + (dearest and f": {dearest}"))
