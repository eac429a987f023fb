"""Runs scripts against the stand-in for NVIDIA's driver (`standin/cuda.c`), each in a process of its own.

Those of `run_on_standin` begin from nothing; those of `Prepared` are forked, which takes a fifth of the time.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

HERE = Path(__file__).parent
FOLDER = HERE / "standin"
STRICT = ["-W", "error", "-W", "default::DeprecationWarning"]
# said last: what the driver counted
_REPORT = """
import ctypes as _c
_text = _c.create_string_buffer(1 << 13)
_c.CDLL("libcuda.so.1").standin_report(_text, len(_text))
print(_text.value.decode(), flush=True)
"""
_COMMAND = """
import sys
import standin_gpu
standin_gpu.install()
from tilelab.cli import main
code = main(sys.argv[1:])
"""


def digest(result: Path) -> str:
    """Of the names and bytes of a result's files, descriptions left out."""
    total = hashlib.sha256()
    for file in sorted(p for p in result.rglob("*") if p.is_file() and p.name != "zarr.json"):
        total.update(str(file.relative_to(result)).encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def draw_picture(folder: Path, shape: tuple[int, int], blank: tuple[slice, slice], tile: int) -> Path:
    """Put an image with a blank area into a folder, and a network of three classes with such tiles; returns it."""
    from tiny_models import make_spec, save_conv

    image = (np.random.default_rng(0).random(shape) * 250).astype(np.uint8)
    image[blank] = 60
    np.save(folder / "image.npy", image)
    spec = make_spec(classes=3, tile=(tile, tile), overlap=(tile // 4, tile // 4))
    save_conv(folder / "net.onnx", (tile, tile), classes=3, spec=spec)
    return folder


def compilers() -> list[str]:
    """The compilers of CUDA kernels that are installed."""
    found = []
    for name in ("numba-cuda-mlir", "numba-cuda"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


@functools.cache
def build() -> Path:
    """A folder with the stand-in as ``libcuda.so.1``; skips where there is no Linux or no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the stand-in for the driver needs Linux and a C compiler")
    folder = Path(tempfile.mkdtemp(prefix="tilelab-standin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", folder / "libcuda.so.1", FOLDER / "cuda.c", "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def environment(cache: Path | str, **settings: Any) -> dict[str, str]:
    """That of a process which finds the stand-in; `settings` are those of the stand-in and others."""
    library = os.pathsep.join(filter(None, [str(build()), os.environ.get("LD_LIBRARY_PATH")]))
    path = os.pathsep.join([str(HERE.parent), str(HERE), str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {name: str(value) for name, value in settings.items()}
    return {**os.environ, "LD_LIBRARY_PATH": library, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache), **given}


class Ended(NamedTuple):
    """A script's exit code, what it printed, what the driver counted, and what was written to stderr."""

    code: int
    said: str
    counted: dict[str, int]
    errors: str


def run_on_standin(
    script: str, cache: Path | str, *, without: str = "", **settings: Any
) -> tuple[str, dict[str, int], str]:
    """What a script prints, what the driver counted, and what was written to stderr; the script has to succeed.

    cache: the folder for compiled kernels; given again, nothing is compiled again.
    without: a package that the script shall not find.
    """
    pytest.importorskip("numba_cuda" if without == "numba_cuda_mlir" else "numba")
    prelude = f"import sys\nsys.modules[{without!r}] = None\n" if without else ""
    result = subprocess.run(
        [sys.executable, *STRICT, "-c", prelude + script + _REPORT],
        env=environment(cache, **settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    *lines, counted = result.stdout.splitlines()
    return "\n".join(lines), json.loads(counted), result.stderr


class Prepared:
    """A process in which everything is imported; what it is given runs in processes forked from it.

    They share a folder of compiled kernels: what one compiles, the next one finds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, *STRICT, FOLDER / "prepared.py"],
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "prepared"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self, script: str, *arguments: object, **settings: object) -> Ended:
        """Run a script, with words for ``sys.argv``, to whatever end; `settings` are of its environment."""
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        for file in (out, err):
            file.write_text("")
        asked = {"script": script, "arguments": list(map(str, arguments)), "out": str(out), "err": str(err)}
        assert self._process.stdin is not None
        given = {name: str(value) for name, value in settings.items()}
        self._process.stdin.write(json.dumps(asked | {"environment": given}) + "\n")
        self._process.stdin.flush()
        code = int(self._answer())
        lines = out.read_text().splitlines()
        counted = json.loads(lines.pop()) if lines and lines[-1].startswith('{"gpus"') else {}
        return Ended(code, "\n".join(lines), counted, err.read_text())

    def run(self, script: str, **settings: object) -> Ended:
        """Run a script that has to succeed."""
        ended = self.end(script + _REPORT, **settings)
        assert ended.code == 0, ended.said + ended.errors
        return ended

    def tilelab(self, *words: object, **settings: object) -> Ended:
        """Run the command ``tilelab`` to whatever end."""
        return self.end(_COMMAND + _REPORT + "sys.exit(code)\n", *words, **settings)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
