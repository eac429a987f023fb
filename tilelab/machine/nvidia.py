"""Whether an NVIDIA driver is there, found out without loading any library for it."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

_LIBRARIES = {"win32": ("nvcuda.dll",), "linux": ("libcuda.so.1", "libcuda.so")}


@lru_cache(maxsize=1)
def _driver() -> Any:
    """The driver's library, or None."""
    for name in _LIBRARIES.get(sys.platform, ()):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@lru_cache(maxsize=1)
def driver_problem() -> str:
    """Why no GPU can be used, or the empty string when at least one can."""
    library = _driver()
    if library is None:
        return "no NVIDIA driver is installed: use --device cpu"
    count = ctypes.c_int()
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver finds no usable GPU (CUDA error {status}): use --device cpu"
    return "" if count.value else "the NVIDIA driver finds no GPU: use --device cpu"


def missing_gpu(number: int) -> str:
    """Why a GPU cannot be used where there are fewer; empty where it can, or where there are none at all."""
    if not (count := gpu_count()) or number < count:
        return ""
    there = "1 GPU here, cuda:0" if count == 1 else f"{count} GPUs here, cuda:0 to cuda:{count - 1}"
    return f"the driver shows {there}"


def gpu_count() -> int:
    """Number of GPUs that the driver shows this process; 0 without a driver."""
    if driver_problem():
        return 0
    count = ctypes.c_int()
    _driver().cuDeviceGetCount(ctypes.byref(count))
    return count.value
