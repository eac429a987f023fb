"""What compiles the CUDA kernels: numba-cuda-mlir, or numba-cuda where that is not installed. The one import of them.

numba-cuda-mlir comes first because it is the one that is maintained: it works with every NumPy and Python from 3.11 on.
numba-cuda stays for its simulator (``NUMBA_ENABLE_CUDASIM=1``), which the other has not, and for machines that have
nothing else.

Compiled kernels are kept between processes, under the user's cache folder, where that can be written.  A kernel is
found again by its signature, its code and what it closes over, the compute capability, the versions of the CUDA
runtime and of the compiler (all by Numba), and a digest of this folder's sources (by us: Numba does not see what a
kernel calls).  Any number of processes may do so at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.errors import EngineError
from tilelab.text import install_hint

__all__ = [
    "COMPILER",
    "NO_CONTEXT",
    "SIMULATED",
    "cache_folder",
    "cuda",
    "float32",
    "int32",
    "is_fault",
    "jit",
    "libdevice",
]
__all__ += ["typeof", "types", "uint32", "uint64"]

NO_CONTEXT = "NULL context"
"""What cuda-core before 1.0 says instead of the driver's error when that gives it no context."""

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def _import_numba_cuda() -> Any:
    """numba-cuda; its releases up to 0.30.4 ask NumPy by name for a function that 2.5 removed, while they load."""
    lacking = not hasattr(np, "row_stack")
    if lacking:
        np.row_stack = np.vstack  # noqa: NPY201
    try:
        module = import_module("numba.cuda")
        if not SIMULATED:
            import_module("numba.cuda.np.arrayobj")
    finally:
        if lacking:
            del np.row_stack  # noqa: NPY201
    return module


def _import_mlir() -> None:
    """numba-cuda-mlir, made ready without torch, which it would import if it found it: no kernel needs that."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import_module("numba_cuda_mlir.cuda")
        with contextlib.suppress(AttributeError):  # else it does so when the first kernel is compiled, or found on disk
            import_module("numba_cuda_mlir.descriptor").mlir_target.ensure_initialized()
    finally:
        if hidden:
            del sys.modules["torch"]


def _choose() -> tuple[str, str]:
    """The compiler's package, and where the modules lie that it shares with the other."""
    problems = []
    if not SIMULATED:
        try:
            _import_mlir()
        except ImportError as error:
            problems.append(f"numba-cuda-mlir: {error}")
        else:
            return "numba-cuda-mlir", "numba_cuda_mlir.numba_cuda"
    try:
        import_module("numba_cuda")
        _import_numba_cuda()
    except ImportError as error:
        problems.append(f"numba-cuda: {error}")
        raise EngineError(
            f"the GPU path needs numba-cuda-mlir, which does not load ({'; '.join(problems)}): " + install_hint("gpu")
        ) from error
    return "numba-cuda", "numba.cuda"


COMPILER, _home = _choose()
_new = COMPILER == "numba-cuda-mlir"
cuda: Any = import_module("numba_cuda_mlir.cuda" if _new else "numba.cuda")
libdevice: Any = import_module("numba_cuda_mlir.cuda.libdevice" if _new else "numba.cuda.libdevice")
types: Any = import_module("numba_cuda_mlir.types" if _new else "numba.types")
float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
typeof: Any = import_module(f"{_home}.typing.typeof" if _new else "numba").typeof
_config: Any = import_module(f"{_home}.core.config")
# our small launches (a few tables, a flag) are meant to be small
_config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: by compiler and state of the sources; None without a place."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        base = _config.CACHE_DIR or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilelab"
        folder = Path(base) / "kernels" / f"{COMPILER}-{digest.hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # it cannot be written; there is no home
        return None
    return folder


def jit(function: Any) -> Any:
    """A kernel, compiled when it is first launched, and kept on disk where there is a place for that."""
    folder = None if SIMULATED else cache_folder()
    if folder is None:
        return cuda.jit(function)
    given = _config.CACHE_DIR
    try:
        _config.CACHE_DIR = str(folder)
        kernel = cuda.jit(cache=True)(function)
    except RuntimeError:  # the function has no source file, by which its cache is known
        return cuda.jit(function)
    finally:
        _config.CACHE_DIR = given
    _name_by_content(kernel._cache._cache_file)
    save = kernel._cache.save_overload

    def save_if_possible(*args: Any) -> None:
        with contextlib.suppress(OSError):  # the disk is full, or over its quota
            save(*args)

    kernel._cache.save_overload = save_if_possible
    return kernel


def _name_by_content(files: Any) -> None:
    """Have compiled kernels in files that are named by what they are for.

    Numba takes the next number of an index that it has read and writes the index first: of two processes that compile
    at the same time one would find the other's kernel, for other types, under its own number.  So what they may lose
    of each other is an entry of the index.
    """

    def save(key: Any, data: Any) -> None:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        name = f"{files._index_name.removesuffix('.nbi')}.{digest}.nbc"
        files._save_data(name, data)
        known = files._load_index()
        if known.get(key) != name:
            files._save_index(known | {key: name})

    files.save = save


def is_fault(error: BaseException) -> bool:
    """Whether an exception is the driver's, by any of the libraries that call it."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if names & {"numba_cuda_mlir.CudaDriverError", "numba.CudaDriverError", "cuda.CUDAError"}:
        return True
    if isinstance(error, ValueError) and NO_CONTEXT in str(error):
        return True
    return isinstance(error, RuntimeError) and "CUDA_ERROR_" in str(error)  # numba-cuda-mlir's own, of a kernel
