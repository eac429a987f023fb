"""The C library's allocator, told to keep what training frees."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's ``mallopt``, see its manual page."""
_STEP = 256 << 20


def keep_freed_memory() -> bool:
    """Reuse freed memory instead of giving it back to the system; whether the C library can.

    Activations and gradients are tens of megabytes each.  By default glibc maps every one of them anew and unmaps it
    when it is freed, several hundred times a step, and the kernel clears each page again: a quarter of the time of a
    step on a CPU.  The process keeps its largest size until it ends, so this is not for inference.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, _STEP)])
