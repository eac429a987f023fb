"""The SHA-256 of what five runs leave on disk, every byte of every file: a change that moves code leaves them.

    python -m tests.five_runs [FOLDER]      # of another checkout: PYTHONPATH=THAT python tests/five_runs.py

The files are drawn anew with fixed times of change, so two checkouts on one machine must print the same lines.  Other
processors may round otherwise, and then print others.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

RUNS = {
    "superalloy on a drawn plane": "plane.tif -m superalloy -o superalloy.ome.zarr --ignore-pixel-size",
    "3-D identity": "stack.tif -m identity:3 --model-axes zyx --tile 16,32,32 --overlap 4,8,8 -o volume.ome.zarr",
    "2.5-D": "stack.tif -m identity:3 --neighbours 1 --tile 64 --overlap 16 --probabilities all -o slices.ome.zarr",
    "two workers": "plane.tif -m superalloy -o workers.ome.zarr --ignore-pixel-size --workers 2",
    "precomputed": "stack.tif -m identity:3 --channels 3 --neighbours 1 --tile 64 --overlap 16 -o labels.precomputed",
    "TIFF": "plane.tif -m superalloy -o labels.ome.tif --ignore-pixel-size",
}


def draw(folder: Path) -> None:
    """A plane with texture at several scales and a stack, from one seed."""
    random = np.random.default_rng(10)
    coarse = np.kron(random.integers(0, 120, (90, 77)), np.ones((16, 16), np.int64))
    plane = np.clip(coarse + random.integers(0, 130, coarse.shape), 0, 255).astype(np.uint8)
    tifffile.imwrite(folder / "plane.tif", plane, tile=(256, 256), compression="zlib")
    stack = random.integers(0, 256, (40, 150, 170), np.uint8)
    tifffile.imwrite(folder / "stack.tif", stack, photometric="minisblack", imagej=True, metadata={"axes": "ZYX"})
    for file in folder.iterdir():
        os.utime(file, (1_700_000_000, 1_700_000_000))


def digest(result: Path) -> str:
    """Of a file, or of the names and bytes of all files in a folder."""
    total = hashlib.sha256()
    for file in sorted(p for p in ([result] if result.is_file() else result.rglob("*")) if p.is_file()):
        total.update(f"{file.relative_to(result)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return total.hexdigest()


def main(folder: Path) -> None:
    """Draw, run, print."""
    draw(folder)
    for name, command in RUNS.items():
        words = command.split()
        subprocess.run([sys.executable, "-m", "tilelab", "infer", "-q", *words], cwd=folder, check=True)
        print(f"{digest(folder / words[words.index('-o') + 1])}  {name}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
