"""What makes a lazy image an array to others: indices, NumPy's and Dask's protocols, operators."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterator, Mapping
from operator import index as whole
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tilelab.arrays import Array
from tilelab.errors import PlanError
from tilelab.geometry import Box
from tilelab.machine.memory import available_memory
from tilelab.text import format_bytes

_BLOCK_BYTES = 64 * 2**20
_LEAST_ROWS = 256  # read at once where entries are left out


class LazyArray(NDArrayOperatorsMixin, abc.ABC):
    """An array that is read where it is asked for.

    ``a[1000:2000, ::4]`` is a NumPy array of these pixels; ``np.asarray(a)``, ``a == 1``, ``np.mean(a)`` read it whole;
    ``dask.array.asarray(a)`` reads nothing yet.

    Attributes:
        axes: one letter per axis.
        shape: entries per axis.
        dtype: of an entry.
        chunks: what one read decodes, per axis.
        chunk_phase: how far inside a chunk the array begins, per axis; empty means that chunks begin with it.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    chunk_phase: tuple[int, ...] = ()

    __hash__ = object.__hash__  # `==` compares pixels, yet an image is one thing

    @abc.abstractmethod
    def read(self, box: Box) -> Array:
        """Decode one region, shape ``box.shape``, in `dtype`."""

    @abc.abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """What identifies the content."""

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many entries there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Array:
        """NumPy-style basic slicing with integers and slices; chunks that hold nothing of it are not read."""
        ranges, drop = self._ranges(index)
        rising = [r if r.step > 0 else r[::-1] for r in ranges]
        flip = tuple(slice(None, None, 1 if r.step > 0 else -1) for r in ranges)
        if not all(rising):
            found = np.empty([len(r) for r in rising], self.dtype)
        elif all(r.step == 1 for r in rising):
            found = self.read(Box(tuple(r.start for r in rising), tuple(r.stop for r in rising)))
        else:
            found = np.empty([len(r) for r in rising], self.dtype)
            for parts in itertools.product(*map(self._parts, range(self.ndim), rising)):
                box = Box(tuple(r[0] for _, r in parts), tuple(r[-1] + 1 for _, r in parts))
                found[tuple(at for at, _ in parts)] = self.read(box)[tuple(slice(None, None, r.step) for _, r in parts)]
        return found[flip].squeeze(axis=drop)

    def _ranges(self, index: Any) -> tuple[list[range], tuple[int, ...]]:
        """The entries of each axis, and the axes that an integer takes away."""
        items = list(index) if isinstance(index, tuple) else [index]
        dots = [at for at, item in enumerate(items) if item is Ellipsis]
        for at in dots[:1]:
            items[at : at + 1] = [slice(None)] * (self.ndim - len(items) + 1)
        items += [slice(None)] * (self.ndim - len(items))
        if len(items) > self.ndim or len(dots) > 1:
            raise IndexError(f"{len(items)} indices for an image with axes {self.axes!r}")
        ranges, drop = [], []
        for axis, (item, size) in enumerate(zip(items, self.shape, strict=True)):
            if isinstance(item, slice):
                found = range(*item.indices(size))
                ranges.append(found or range(0))
                continue
            try:
                i = whole(item)
            except TypeError:
                raise IndexError(
                    f"index {item!r} on axis {self.axes[axis]!r}: images are read by integers and slices; "
                    "take the part first, image[a:b][index]"
                ) from None
            if not -size <= i < size:
                raise IndexError(f"index {i} on axis {self.axes[axis]!r} of {size} pixels")
            ranges.append(range(i % size, i % size + 1))
            drop.append(axis)
        return ranges, tuple(drop)

    def _parts(self, axis: int, wanted: range) -> Iterator[tuple[slice, range]]:
        """`wanted` in parts that each lie in a few chunks: where in the result, and which entries."""
        if wanted.step == 1:
            yield slice(0, len(wanted)), wanted
            return
        chunk = max(1, self.chunks[axis])
        block = chunk if wanted.step >= chunk else chunk * -(-_LEAST_ROWS // chunk)
        phase = self.chunk_phase[axis] if self.chunk_phase else 0
        first = 0
        while first < len(wanted):
            end = ((wanted[first] + phase) // block + 1) * block - phase
            last = min(len(wanted), first + max(1, -(-(end - wanted[first]) // wanted.step)))
            yield slice(first, last), wanted[first:last]
            first = last

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of it, in memory.

        Raises:
            ValueError: `copy` is False: there is nothing in memory that could be shared.
            PlanError: it does not fit into the memory that is free.
        """
        if copy is False:
            raise ValueError(f"{self!r} is read from where it is stored: there is no array to share without a copy")
        if self.nbytes > (free := available_memory()):
            raise PlanError(
                f"{self!r} takes {format_bytes(self.nbytes)} in memory, {format_bytes(free)} are free: "
                "take a part of it, image[a:b, c:d], or dask.array.asarray(image)"
            )
        pixels = self[...]
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **chosen: Any) -> Any:
        """Operators and functions of NumPy: of the pixels."""
        if any(isinstance(one, LazyArray) for one in chosen.get("out", ())):
            return NotImplemented
        read = [np.asarray(one) if isinstance(one, LazyArray) else one for one in inputs]
        return getattr(ufunc, method)(*read, **chosen)

    def to_dask_array(self) -> Any:
        """A Dask array in blocks of whole chunks, at most 64 MiB each where a chunk is no larger.

        Raises:
            ModuleNotFoundError: ``dask[array]`` is not installed.
        """
        import dask.array as da

        block = [min(n, max(1, c)) for n, c in zip(self.shape, self.chunks, strict=True)]
        for axis in reversed(range(self.ndim)):  # rows stay whole as long as they can
            room = _BLOCK_BYTES // (math.prod(block) * self.dtype.itemsize)
            block[axis] = min(self.shape[axis], block[axis] * max(1, room))
        return da.from_array(self, chunks=tuple(block))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, self.shape, str(self.dtype), sorted(self.fingerprint().items())
