"""Compiling for the CPU with what is compiled kept for the next process where that can be: it never has to be."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba


def _spare_scipy() -> None:
    """Let Numba's array functions be imported without SciPy, which they try out alone: it takes longer than they do.

    What needs it still imports it when it is called.
    """
    with contextlib.suppress(ImportError, AttributeError):  # another Numba: then it takes its time
        from numba.np import linalg

        ensure = linalg.ensure_blas
        if find_spec("scipy") is None:
            return
        linalg.ensure_blas = lambda: None
        try:
            from numba.np import arraymath

            arraymath.ensure_blas = ensure
        finally:
            linalg.ensure_blas = ensure


_spare_scipy()


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` without the GIL, cached beside the package, else in the user's cache folder, else in one of ours.

    Where none of them can be written, or one is full, every process compiles for itself, and nothing is said.
    """

    def compile_later(function: Callable[..., Any]) -> Any:
        for place in (None, _own_folder):
            try:
                if place is not None:
                    numba.config.CACHE_DIR = place()
                made = numba.njit(nogil=True, cache=True, **options)(function)
            except (RuntimeError, OSError):  # "no locator available": neither can be written
                continue
            _tolerate_full_disk(made)
            return made
        return numba.njit(nogil=True, **options)(function)

    return compile_later


def _own_folder() -> str:
    """A folder of this user alone in the temporary one: what lies there is run, so nobody else may write to it.

    Raises:
        OSError: it cannot be made, or is not this user's.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"tilelab-kernels-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (os.name != "nt" and (found.st_uid != user or found.st_mode & 0o077)):
        raise OSError(f"{folder} is not of this user alone")
    return str(folder)


def _tolerate_full_disk(compiled: Any) -> None:
    """Let what cannot be kept go: Numba would end the program."""
    cache: Any = getattr(compiled, "_cache", None)
    save = getattr(cache, "save_overload", None)
    if save is None:
        return

    def save_if_possible(*args: Any) -> None:
        with contextlib.suppress(OSError):
            save(*args)

    cache.save_overload = save_if_possible
