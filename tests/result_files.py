"""Finished results on disk, made without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from tilelab.geometry import Box
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.result import Result, read_result
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.spec import ClassInfo

CLASSES = (ClassInfo("matrix", "#101010"), ClassInfo("a < b & ü", "#1f77b4"), ClassInfo("tertiary", "#d62728"))
METADATA = {"model": "superalloy", "fingerprint": {"tile": [512, 512], "name": 'a "quoted" < name'}}


def make_result(path: Path, shape: tuple[int, ...], kind: Literal["2d", "3d"] = "2d", **options: Any) -> Result:
    """A result with random blobs."""
    pixel_size_nm = options.pop("pixel_size_nm", (30.0, 4.0, 5.0)[3 - len(shape) :])
    layout = Layout.fit(shape, pixel_size_nm, kind)
    rng = np.random.default_rng(1)
    z, y, x = layout.shape
    labels = rng.integers(0, 3, (z, y // 7 + 1, x // 7 + 1)).astype(np.uint8).repeat(7, 1).repeat(7, 2)[:, :y, :x]
    probabilities = rng.integers(0, 256, (2, z, y, x)).astype(np.uint8)
    known = {
        "classes": CLASSES,
        "probabilities": (1, 2),
        "axes": "yx" if len(shape) == 2 else "zyx",
        "pixel_size_nm": pixel_size_nm,
        "metadata": METADATA,
    } | options
    sink = OmeZarrSink.create(path, layout, **known)
    rows = Finished(
        np.ascontiguousarray(labels) if sink.info.labels else None,
        probabilities if sink.info.probabilities else None,
        None,
    )
    sink.writer(Box.whole(layout.shape), 0, 1).write(rows)
    sink.finalize()
    return read_result(path)
