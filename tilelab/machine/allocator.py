"""The C library's allocator, told what to do with large arrays that are freed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Parameters of glibc's ``mallopt``, see its manual page."""
_STEP = 256 << 20
_LARGE = 1 << 20


def keep_freed_memory() -> bool:
    """Reuse freed memory instead of giving it back to the system; whether the C library can.

    Activations and gradients are tens of megabytes each.  By default glibc maps every one of them anew and unmaps it
    when it is freed, several hundred times a step, and the kernel clears each page again: a quarter of the time of a
    step on a CPU.  The process keeps its largest size until it ends, so this is not for inference.
    """
    return _tell((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _STEP))


@cache  # a sweep asks for it each time
def return_large_arrays() -> bool:
    """Give arrays of a mebibyte back to the system when they are freed; whether the C library can.

    Once one of up to 32 MiB was freed, glibc cuts all that are smaller from heaps, one for each thread.  Rows are read
    in one thread and freed in another, so that holes remain: 13 MiB of a plane of 4-byte pixels that needs 60.
    """
    return _tell((_MMAP_THRESHOLD, _LARGE))


def _tell(*parameters: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*parameter) for parameter in parameters)
