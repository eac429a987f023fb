"""A checkpoint of `tilelab train`: exported once, by the command that does it, and then the file that came of it.

Exporting takes torch, which nothing that infers imports: a process of its own does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.files.onnx import read_onnx
from tilelab.engines.packages.kept import digest_of, is_kept, kept
from tilelab.errors import ModelError
from tilelab.machine.version import __version__
from tilelab.spec import METADATA_KEY

SUFFIX = ".safetensors"
_LONGEST = 100_000_000  # bytes of a header; the format's own limit


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of `tilelab train`, by the header of its own."""
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LONGEST:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    return isinstance(header, dict) and METADATA_KEY in (header.get("__metadata__") or {})


def is_exported(path: Path) -> bool:
    """Whether the ONNX file of a checkpoint is kept already; to make it takes half a minute."""
    return is_kept(_digest(path))


def read_checkpoint(path: Path) -> ModelFile:
    """The ONNX file of a checkpoint, exported where it was not yet.

    Raises:
        ModelError: it cannot be exported here; the message is that of `tilelab export`.
    """
    name = f"{path.stem}.onnx"
    folder, _ = kept(_digest(path), lambda scratch: _export(path, scratch / name))
    found = next(folder.glob("*.onnx"))
    return replace(read_onnx(found), notes=(f"{path} was exported to {found}",))


def _digest(path: Path) -> str:
    """Of a checkpoint and what exports it."""
    return hashlib.sha256(f"{__version__} {digest_of(path)}".encode()).hexdigest()


def _export(path: Path, onnx: Path) -> None:
    home = str(Path(__file__).parents[3])  # the tilelab that this is, installed or not
    paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tilelab", "export", str(path.resolve()), "-o", str(onnx)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise ModelError(f"{path} cannot be exported: {lines[-1].removeprefix('tilelab: error: ')}")
