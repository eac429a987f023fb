"""Runs in processes of their own, each forked from one that is warm, that say by how much each grew.

python memory_of_runs.py FOLDER CASES.json      # prints a line of JSON for each case
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import tilelab
from tilelab.engines.base import BaseEngine
from tilelab.machine.memory import peak_memory, resident_memory
from tilelab.spec import ClassInfo, ModelSpec


class Idle(BaseEngine):
    """An engine of several streams that computes nothing, but reads and writes what it is given."""

    name = "idle"

    def run(self, tiles: Any, out: Any) -> None:
        """The first output is the first channel, and so on."""
        for k in range(out.shape[1]):
            np.multiply(tiles[:, k % tiles.shape[1]], 1 + k % 2, out=out[:, k])


def idle(tile: list[int], streams: int, batch: int = 1, outputs: int = 3, neighbours: int = 0) -> Idle:
    """An engine for tiles of so many axes, which overlap by a quarter."""
    spec = ModelSpec(
        classes=tuple(ClassInfo(f"c{i}", "#000000") for i in range(outputs)),
        activation="softmax",
        axes="zyx" if len(tile) == 3 else "yx",
        tile=tuple(tile),
        overlap=tuple(n // 4 for n in tile),
        channels=2 * neighbours + 1,
        neighbours=neighbours,
    )
    engine = Idle(spec, batch=batch)
    engine.streams = streams
    return engine


def image(folder: Path, shape: list[int], dtype: str) -> Path:
    """Noise, in TIFF tiles of 256 px; nothing made of it compresses."""
    path = folder / f"{dtype}-{'-'.join(map(str, shape))}.tif"
    if not path.exists():
        noise = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
        tifffile.imwrite(path, noise, tile=(256, 256), photometric="minisblack", compression="zlib")
    return path


def run(folder: Path, case: dict[str, Any], name: str) -> dict[str, Any]:
    """One run: bytes that it grew by at its peak, and what had been planned."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in case["options"].items()}
    if "mask" in options:
        options["mask"] = image(folder, *options["mask"])
    before = resident_memory()
    done = tilelab.infer(
        image(folder, *case["image"]),
        idle(**case["engine"]),
        folder / f"{name}.ome.zarr",
        options=tilelab.Options(ignore_pixel_size=True, intensity_range=(0, 255), **options),
    )
    return {"grown": peak_memory() - before, "planned": done.report["memory"]["planned"], "units": done.report["units"]}


def main() -> None:
    """Every case in a process of its own."""
    folder, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    for case in cases:  # draws the images, and compiles what a run of this kind needs
        image(folder, *case["image"])
        small = [*([6] if len(case["image"][0]) == 3 else []), 300, 300]
        if len(case["engine"]["tile"]) == 3:
            small[0] = 40
        warm = case | {"image": [small, case["image"][1]]}
        if "mask" in case["options"]:
            image(folder, *case["options"]["mask"])
            warm["options"] = {**case["options"], "mask": [small, case["options"]["mask"][1]]}
        run(folder, warm, f"warm-{cases.index(case)}")
    for number, case in enumerate(cases):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                print(json.dumps(run(folder, case, str(number))), flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
