"""Tile, blend and store with any function of batches; here a threshold on smoothed intensities, without a network.

    python examples/own_engine.py [FOLDER]

What `tilelab.infer` wants of an engine stands in `tilelab.engines.base`; `BaseEngine` gives all but `run`.  This one
runs NumPy; one that calls PyTorch, JAX or a web service looks the same.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tilelab
from tilelab.engines.base import BaseEngine
from tilelab.sample import write_superalloy
from tilelab.spec import ClassInfo, ModelSpec, Normalization

Batch = NDArray[np.float32]


class FunctionEngine(BaseEngine):
    """A function from tiles (B, C, y, x) to logits (B, K, y, x) as an engine.

    Args:
        function: called with one batch at a time, always of the same shape.
        spec: channels, classes, normalization, tile and overlap.
        settings: what the function depends on.  They are part of the result's fingerprint: a result that was made with
            others is not taken for this one.
    """

    def __init__(self, function: Callable[[Batch], Batch], spec: ModelSpec, settings: Mapping[str, str]) -> None:
        super().__init__(spec, batch=2)
        self.function, self.settings = function, settings

    def run(self, tiles: Batch, out: Batch) -> None:
        """Fill `out`."""
        out[...] = self.function(tiles)

    def versions(self) -> Mapping[str, str]:
        """What may change the result."""
        return {"numpy": np.__version__, **self.settings}


RADIUS = 4


def smooth(tiles: Batch) -> Batch:
    """The mean over a square around each pixel; what lies beyond the tile is reflected."""
    for axis in (2, 3):
        width = [(0, 0)] * 4
        width[axis] = (RADIUS + 1, RADIUS)
        total = np.cumsum(np.pad(tiles, width, mode="reflect"), axis=axis, dtype=np.float64)
        n, size = 2 * RADIUS + 1, tiles.shape[axis]
        tiles = ((total.take(range(n, n + size), axis) - total.take(range(size), axis)) / n).astype(np.float32)
    return tiles


def main(folder: Path) -> None:
    """Find what is brighter than the image is on average."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "micrograph.tif"
    if not image.exists():
        write_superalloy(image, folder / "truth.tif", (900, 1000))
    spec = ModelSpec(
        name="brighter than average",
        classes=(ClassInfo("dark", "#000000"), ClassInfo("bright", "#ffffff")),
        activation="sigmoid",  # one logit: positive is class 1
        normalization=Normalization(kind="mean-std"),  # of the whole image, so 0 is its mean
        tile=(256, 256),
        overlap=(32, 32),
        receptive_field=2 * RADIUS + 1,
    )
    engine = FunctionEngine(smooth, spec, {"radius": str(RADIUS)})
    run = tilelab.infer(image, engine, folder / "bright.ome.zarr", note=print)
    labels = tilelab.read_result(run.path).labels[0]
    print(f"{run.path}: {np.mean(labels[...]):.1%} of the pixels are bright")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["example"]))
