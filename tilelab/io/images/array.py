"""Arrays in memory or behind a Python interface: NumPy, Dask, Zarr, xarray, h5py, anything that slices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.axes import named_axes
from tilelab.io.images.source import Source, check_level

_HASHED_WHOLE = 256 * 2**20
_SAMPLES = 8
_SAMPLE_PIXELS = 2**20


class ArraySource(Source):
    """Anything with ``shape``, ``dtype`` and slicing.  It must allow reads from several threads, as those named do.

    Raises:
        InputError: it is none of that.
    """

    def __init__(self, array: Any, level: int = 0) -> None:
        kind = type(array)
        self.uri = f"<{kind.__module__.partition('.')[0]} {kind.__name__}>"
        try:
            self.shape = tuple(int(n) for n in array.shape)
            stored = np.dtype(str(array.dtype).removeprefix("torch."))
            _ = kind.__getitem__
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.uri} is no image: give a path, or an array with shape, dtype and slicing ({error})"
            ) from error
        check_level(self.uri, level, 1)
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise InputError(f"{self.uri} has pixels that its mask leaves out: give array.filled(VALUE), or array.data")
        self._array = array
        self.format = "array"
        self.dtype = stored.newbyteorder("=")
        self.axes, self.assumptions = named_axes(self.uri, getattr(array, "dims", None), self.shape)
        self.rgb = self.axes.endswith("s")
        self.chunks = _chunks(array, self.shape)
        self.levels = (self.shape,)
        self.scale_nm = {}
        self.details = {"kind": f"{kind.__module__}.{kind.__qualname__}"}

    def read(self, box: Box) -> Array:
        try:
            pixels = np.asarray(self._array[box.slices])
        except Exception as error:
            raise InputError(f"{self.uri} failed at region {box}: {type(error).__name__}: {error}") from error
        if pixels.shape != box.shape:
            raise InputError(f"{self.uri} gave {pixels.shape} for region {box}, {box.shape} was asked for")
        return pixels.astype(self.dtype, copy=pixels.base is not None)  # a view belongs to the array's owner

    def fingerprint(self) -> dict[str, str]:
        """Hash of all bytes up to 256 MiB of a NumPy array, else of some regions spread over it."""
        total = hashlib.sha256()
        whole = isinstance(self._array, np.ndarray) and self._array.nbytes <= _HASHED_WHOLE
        if whole:
            total.update(np.ascontiguousarray(self._array, self.dtype).data)  # no copy, as a rule
        else:
            for box in _sample_boxes(self.shape):
                total.update(np.ascontiguousarray(self.read(box)).data)
        return {"shape": str(self.shape), "dtype": str(self.dtype), "sha256": total.hexdigest()}


def _chunks(array: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Its chunks where it has some: a number per axis (Zarr, h5py), or all extents of an axis (Dask), the largest."""
    chunks = getattr(array, "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) != len(shape):
        return (1,) * len(shape)
    return tuple(max(1, int(max(c) if isinstance(c, tuple) else c)) for c in chunks)


def _sample_boxes(shape: tuple[int, ...]) -> Iterator[Box]:
    """A few small regions from the first corner to the last."""
    extent = list(shape)
    for axis in range(len(shape)):  # shrink leading axes first, rows stay whole as long as they can
        while extent[axis] > 1 and np.prod(extent, dtype=np.float64) > _SAMPLE_PIXELS:
            extent[axis] = (extent[axis] + 1) // 2
    for i in range(_SAMPLES):
        start = tuple((n - e) * i // (_SAMPLES - 1) for n, e in zip(shape, extent, strict=True))
        yield Box(start, tuple(a + e for a, e in zip(start, extent, strict=True)))
