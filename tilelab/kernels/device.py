"""An NVIDIA GPU as the rest of tilelab sees it: arrays, pinned buffers, streams, events.

With ``NUMBA_ENABLE_CUDASIM=1`` in the environment everything runs in Numba's simulator, slowly and without a GPU.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilelab.arrays import Array
from tilelab.errors import EngineError
from tilelab.kernels.compiler import COMPILER, NO_CONTEXT, SIMULATED, cuda, is_fault
from tilelab.machine.nvidia import driver_problem
from tilelab.text import install_hint

DeviceArray = Any  # Numba's, or any object with __cuda_array_interface__
Stream = Any
Event = Any

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

__all__ = ["SIMULATED", "DeviceArray", "DeviceInfo", "Event", "Stream", "cuda", "select"]

_thread = threading.local()
_abandoned: list[Any] = []
_first_faults: dict[int, str] = {}  # by the GPU's number


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One GPU: `capability` is (major, minor), sizes are in bytes, `driver` the CUDA version the driver supports."""

    index: int
    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int
    driver: str


def select(index: int) -> DeviceInfo:
    """Make GPU `index` the calling thread's; every thread that uses a GPU does so first, as often as it likes.

    Raises:
        EngineError: no driver, no GPU, or fewer than `index` + 1; or the GPU has failed.
    """
    if not cuda.is_available():
        if not cuda.cuda_error() and not driver_problem():
            raise EngineError(
                f"there is a GPU, but {COMPILER} finds no libNVVM to compile kernels with: {install_hint('gpu')}, or "
                "name a CUDA toolkit in CUDA_HOME"
            )
        reason = " ".join(str(cuda.cuda_error() or "no driver or no device was found").split()).strip(":. ")
        raise EngineError(f"no NVIDIA GPU is usable here ({reason}): use --device cpu")
    count = len(cuda.gpus)
    if index >= count:
        raise EngineError(f"GPU cuda:{index} was asked for, but there are {count}: cuda:0 to cuda:{count - 1}")
    if SIMULATED:
        cuda.select_device(index)
        return DeviceInfo(index, "simulator", (5, 2), 1 << 40, 1 << 40, "simulator")
    with faults(index):
        _enter(index)
        device = cuda.get_current_device()
        free, total = cuda.current_context().get_memory_info()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    version = cuda.cudadrv.driver.driver.get_version()
    driver = ".".join(map(str, version)) if isinstance(version, tuple) else str(version)
    return DeviceInfo(index, name, tuple(device.compute_capability), int(free), int(total), driver)


def _enter(index: int) -> None:
    """Have the context of GPU `index` on top of the calling thread's stack, put there once, not at every call.

    Other libraries of the process set the thread's context, too: what is on top is asked, not remembered.
    """
    if getattr(_thread, "entered", False) and cuda.get_current_device().id == index:
        return
    if getattr(_thread, "entered", False):
        cuda.current_context().pop()
    cuda.select_device(index)
    _thread.entered = True
    for queue in _pending():
        _calm(queue)


def parse_index(device: str) -> int:
    """The number in ``cuda`` or ``cuda:3``; raises `EngineError` for anything else."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or device == "cuda"):
        raise EngineError(f"device {device!r} is not a GPU: use cuda or cuda:N")
    return int(number or 0)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
    """An uninitialised array on the calling thread's GPU; raises `EngineError` when it does not fit."""
    with memory_errors(math.prod(shape) * np.dtype(dtype).itemsize):
        return cuda.device_array(shape, dtype)


def pinned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An uninitialised host array that the GPU can copy from and to while the CPU works on."""
    try:
        array: Array = cuda.pinned_array(shape, dtype)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        need = math.prod(shape) * np.dtype(dtype).itemsize
        raise EngineError(
            f"the driver cannot pin {need / 2**30:.2f} GiB more of this machine's memory: raise --lanes, lower --tile, "
            "or see the limit of locked memory (ulimit -l)"
        ) from error
    return array


def upload(host: Array, device: DeviceArray, stream: Stream) -> None:
    """Copy a contiguous host array to a contiguous device array of its shape and dtype, in the stream's order."""
    device.copy_to_device(host, stream=stream)


def download(device: DeviceArray, host: Array, stream: Stream) -> None:
    """Copy a contiguous device array to a contiguous host array of its shape and dtype, in the stream's order."""
    device.copy_to_host(host, stream=stream)


def copy(source: DeviceArray, target: DeviceArray, stream: Stream) -> None:
    """Copy a contiguous device array to another of its shape and dtype, in the stream's order."""
    target.copy_to_device(source, stream=stream)


def stream() -> Stream:
    """A new stream: what is put on it runs in order, at the same time as other streams."""
    return cuda.stream()


def stream_handle(value: Stream) -> int:
    """The ``cudaStream_t`` of a stream, for other libraries."""
    return 0 if SIMULATED else int(value)


def event() -> Event:
    """A marker to record in one stream, and to wait for in another or on the host; it takes no times."""
    return cuda.event(timing=False) if not SIMULATED else cuda.event()


def wrap(array: Any) -> DeviceArray:
    """Any object with ``__cuda_array_interface__`` as a device array, without a copy and without waiting."""
    return array if SIMULATED else cuda.as_cuda_array(array, sync=False)


def pointer(array: DeviceArray) -> int:
    """Address of the first element of a device array."""
    if SIMULATED:
        return int(array._ary.ctypes.data)
    return int(array.__cuda_array_interface__["data"][0])


def give_back() -> None:
    """Free now what the calling thread's GPU still holds for arrays that are gone; Numba would wait for more."""
    for queue in _pending():
        queue.clear()


@contextmanager
def faults(index: int) -> Iterator[None]:
    """Turn the driver's exceptions into an `EngineError` that names the first fault of that GPU.

    After most of them nothing works on that GPU in this process any more, so whatever fails next is told the same way:
    who cleans up does so in `quietly`.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        if not is_fault(error):
            raise
        if _is_out_of_memory(error):
            advice = "raise --lanes, or lower --batch or --tile"
            raise EngineError(f"GPU out of memory ({_words(error)}): {advice}") from error
        _abandon(index, error)
        raise EngineError(
            f"cuda:{index} failed ({_first_faults[index]}): finished rows are kept and the same command continues; "
            "if it fails again, see the driver's log (dmesg, nvidia-smi -q), or run with --device cpu"
        ) from error


def _words(error: BaseException) -> str:
    """What the driver said, without the compiler's frame around it."""
    said = re.sub(r"^\[.*?\] Call to (\w+) results in ", r"\1: ", " ".join(str(error).split()))
    if NO_CONTEXT in said:
        said = "cuDevicePrimaryCtxRetain: it gave no context"
    if " from library: " in said:  # a kernel, by the name that it was compiled to
        said = "a kernel cannot be loaded: " + said.rpartition(": ")[2]
    return said.partition(". ")[0][:160]


def _is_out_of_memory(error: BaseException) -> bool:
    return getattr(error, "code", None) == _OUT_OF_MEMORY or "OUT_OF_MEMORY" in str(error)


def has_failed() -> bool:
    """Whether a GPU has failed in this process: it will not come back, a new process may find it well."""
    return bool(_abandoned)


def _abandon(index: int, error: BaseException) -> None:
    """Free nothing on the calling thread's GPU any more: after a fault every call would only raise it again."""
    _first_faults.setdefault(index, _words(error))
    with contextlib.suppress(Exception):
        for queue in _pending():
            held = queue.disable()
            held.__enter__()
            _abandoned.append(held)


def _calm(queue: Any) -> None:
    """Have what frees memory keep a fault for the next call: finalizers call it, whose exceptions are printed."""
    if "clear" in vars(queue):
        return
    clear = queue.clear

    def clear_calmly() -> None:
        try:
            clear()
        except Exception as error:
            if not is_fault(error):
                raise
            _abandon(int(cuda.get_current_device().id), error)

    queue.clear = clear_calmly


def _pending() -> tuple[Any, ...]:
    """What waits to be freed: memory, and streams, events and code."""
    if SIMULATED:
        return ()
    context = cuda.current_context()
    return context.memory_manager.deallocations, context.deallocations


@contextmanager
def quietly() -> Iterator[None]:
    """Clean up after a fault: the driver answers every call with it again, and the first one counts."""
    try:
        yield
    except Exception as error:
        if not is_fault(error):
            raise
        _abandon(int(cuda.get_current_device().id), error)


@contextmanager
def memory_errors(need_bytes: int) -> Iterator[None]:
    """Turn the driver's out-of-memory into an `EngineError` that names the numbers and what to lower."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        free, total = cuda.current_context().get_memory_info()
        raise EngineError(
            f"GPU out of memory: {need_bytes / 2**30:.2f} GiB more were needed, {free / 2**30:.2f} of "
            f"{total / 2**30:.2f} GiB are free: raise --lanes, or lower --batch or --tile"
        ) from error
