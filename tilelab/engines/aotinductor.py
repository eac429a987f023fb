"""Networks compiled ahead of time by PyTorch (AOTInductor, .pt2), for one kind of GPU or for the CPU.

The only engine that needs torch.  A .pt2 is an archive of machine code: load only what you trust.  It runs with the
torch version and on the GPU architecture or the kind of CPU that it was made for.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from tilelab.engines.cpu.aotinductor import AotInductorCpuEngine
from tilelab.engines.files.aotinductor_package import PRECISIONS
from tilelab.engines.loading import Availability, FileEngine, LoadRequest, Target
from tilelab.machine.nvidia import driver_problem, gpu_count
from tilelab.text import install_hint


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What AOTInductor can do here; does not import torch, which takes seconds."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Availability("", f"torch is not installed: {install_hint('train')}")
    devices = ["cpu"] if driver_problem() else ["cpu", *(f"cuda:{i}" for i in range(gpu_count()))]
    return Availability(found, targets=tuple(Target(device, p) for device in devices for p in PRECISIONS))


def load(request: LoadRequest) -> FileEngine:
    """A package, ready to run.

    Raises:
        EngineError: it was compiled by another torch, for another GPU or for a CPU with other instructions.
    """
    if request.device == "cpu":
        return AotInductorCpuEngine(request)
    from tilelab.engines.cuda.aotinductor import AotInductorCudaEngine

    return AotInductorCudaEngine(request)
