"""Compiling for the CPU with what is compiled kept for the next process where that can be: it never has to be."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
from numba.core import event

_TOLD_SECONDS = 2.0


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


@contextlib.contextmanager
def tell_compiling(tell: Callable[[str], None]) -> Iterator[None]:
    """Say when kernels begin to be compiled, for which the first use on a machine has to wait, and how long it took."""
    heard = _Heard(tell)
    with event.install_listener("numba:compile", heard):
        yield
    if heard.seconds >= _TOLD_SECONDS:
        tell(f"compiled kernels in {heard.seconds:.0f} s; the next time they are there")


class _Heard(event.Listener):  # type: ignore[misc]
    """Seconds during which anything was compiled, in whatever thread."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.seconds = 0.0
        self._tell, self._lock, self._under_way, self._began = tell, threading.Lock(), 0, 0.0

    def on_start(self, _: Any) -> None:
        with self._lock:
            if not self._under_way:
                self._began = time.monotonic()
            if not self._under_way and not self.seconds:
                self._tell("compiling kernels, once on this machine")
            self._under_way += 1

    def on_end(self, _: Any) -> None:
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                self.seconds += time.monotonic() - self._began


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
