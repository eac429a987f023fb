"""A folder of slices, one file each, in the order of their numbers: a stack along z."""

from __future__ import annotations

import fnmatch
import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.series import SUFFIXES, arrange_slices
from tilelab.io.images.view import assumed_thickness, check_region, given_pixel_size
from tilelab.io.storage.decode import LARGE_BYTES, for_each
from tilelab.io.storage.files import hash_stats
from tilelab.io.storage.local_path import LocalPath

_MOST_OPEN = 8
_COMPARED = 1024


class SliceStack(Image):
    """The image files of a folder as planes of one image (see `series.py`); other files are ignored.

    Args:
        path: the folder, or ``folder/a_*.tif``, some of its files.
        open_slice: opens one file.
        pixel_size_nm: replaces what the first slice says, one value or three.

    Attributes:
        files: of the slices.
        guesses: what was guessed to choose and order them.

    Raises:
        InputError: the folder has no images, or they differ in axes, shape or dtype; the first that does is named.
    """

    def __init__(
        self, path: str, open_slice: Callable[[str], Image], pixel_size_nm: float | Sequence[float] | None = None
    ) -> None:
        self.uri = path
        self._open = open_slice
        self._differences: tuple[Assumption, ...] = ()
        folder, pattern = split_pattern(path)
        try:
            entries = list(os.scandir(folder))
            names = [entry.name for entry in entries if entry.is_file()]
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            odd = not entry.is_file() and not entry.name.startswith(".") and entry.name.lower().endswith(SUFFIXES)
            if odd and fnmatch.fnmatchcase(entry.name, pattern):
                raise InputError(f"{entry.path} is named as a slice but is no file: rename or remove it")
        wanted = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not wanted and names and pattern != "*":
            raise InputError(f"{path} names no file: {folder} holds {len(names)} others")
        found, self.guesses = arrange_slices(
            folder,
            wanted,
            lambda *two: self._same(*(os.path.join(folder, name) for name in two)),  # noqa: PTH118
        )
        self.files = [os.path.join(folder, name) for name in found]  # noqa: PTH118
        self._slices: OrderedDict[int, Image] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._most_open = 1
        first = self._check_all()
        self.axes = first.axes.replace("yx", "zyx")
        self._z = self.axes.index("z")
        self.shape = (*first.shape[: self._z], len(self.files), *first.shape[self._z :])
        self.chunks = (*first.chunks[: self._z], 1, *first.chunks[self._z :])
        self.dtype, self.rgb = first.dtype, first.rgb
        self.bar, self.bar_said = first.bar, first.bar_said
        self.warnings, self.assumptions = first.warnings, (*first.assumptions, *self.guesses, *self._differences)
        plane_bytes = math.prod(first.shape) * first.dtype.itemsize
        self._most_open = max(1, min(_MOST_OPEN, 2 * LARGE_BYTES // plane_bytes))
        size = first.pixel_size_nm
        if pixel_size_nm is not None:
            self.pixel_size_nm = given_pixel_size(pixel_size_nm, "zyx", path)
        elif size is not None:
            self.pixel_size_nm = (size[0], *size)
            self.assumptions += (assumed_thickness(path, size[0]),)

    def read(self, box: Box) -> Array:
        if self._closed:
            raise InputError(f"{self.uri} cannot be read: it is closed")
        check_region(self, box)
        out = np.empty(box.shape, self.dtype)
        at = self._z
        plane = Box(box.start[:at] + box.start[at + 1 :], box.stop[:at] + box.stop[at + 1 :])

        def fill(i: int) -> None:
            out[(slice(None),) * at + (i - box.start[at],)] = self._slice(i).read(plane)

        for_each(fill, range(box.start[at], box.stop[at]))
        return out

    def fingerprint(self) -> dict[str, str]:
        names = hashlib.sha256("\n".join(Path(file).name for file in self.files).encode()).hexdigest()
        first = {f"first.{key}": value for key, value in self._slice(0).fingerprint().items()}
        return {"names_sha256": names, "files_sha256": hash_stats(map(LocalPath, self.files)), **first}

    def close(self) -> None:
        self._closed = True
        with self._lock:
            while self._slices:
                self._slices.popitem()[1].close()

    def _slice(self, i: int) -> Image:
        """Slice `i`, open; the last few stay so.  One that is dropped while another thread reads it closes after."""
        with self._lock:
            image = self._slices.get(i)
            if image is None:
                image = self._slices[i] = self._open(self.files[i])
                if len(self._slices) > self._most_open:
                    self._slices.popitem(last=False)
            else:
                self._slices.move_to_end(i)
        return image

    def _check_all(self) -> Image:
        """The first slice; refuses a folder whose slices do not agree with it."""
        first = self._slice(0)
        if "z" in first.axes and len(self.files) > 1:
            raise InputError(f"{first.uri} is a stack itself: a folder of slices holds one plane per file")
        sizes = {first.pixel_size_nm}
        for file in self.files[1:]:
            with self._open(file) as image:
                sizes.add(image.pixel_size_nm)
                if (image.axes, image.shape, image.dtype) != (first.axes, first.shape, first.dtype):
                    raise InputError(
                        f"slices of {self.uri} differ: {Path(file).name} is {image.axes} {image.shape} {image.dtype}, "
                        f"{Path(self.files[0]).name} is {first.axes} {first.shape} {first.dtype}: separate images are "
                        "no stack, give them one by one"
                    )
        if len(sizes) > 1:
            told = "unknown" if first.pixel_size_nm is None else f"{first.pixel_size_nm[-1]:g} nm, that of the first"
            because = f"its slices state {len(sizes)} different ones"
            what = f"the pixel size of {self.uri}"
            self._differences = (Assumption(what=what, taken=told, because=because, flag="--pixel-size"),)
        return first

    def _same(self, one: str, other: str) -> bool:
        """Whether two files hold the same pixels, by their first ones."""
        with self._open(one) as a, self._open(other) as b:
            if (a.axes, a.shape, a.dtype) != (b.axes, b.shape, b.dtype):
                return False
            part = Box((0,) * len(a.shape), tuple(min(n, _COMPARED) for n in a.shape))
            return np.array_equal(a.read(part), b.read(part))


def split_pattern(path: str) -> tuple[str, str]:
    """The folder of a stack, and which of its files are meant: ``folder/a_*.tif``, or all of a folder."""
    head, name = os.path.split(path)
    return (head or ".", name) if is_pattern(path) else (path, "*")


def is_pattern(path: str) -> bool:
    """Whether `path` names several files of a folder."""
    folder, name = os.path.split(path)
    wild = any(sign in name for sign in "*?[")
    return wild and not os.path.lexists(path) and os.path.isdir(folder or ".")  # noqa: PTH112 - as in `find_reader`


def slice_axes(path: str, axes: str) -> str:
    """The axes of each file of a folder, of those of the stack: z counts the files.

    Raises:
        InputError: there is no z, or more than one.
    """
    if axes.lower().count("z") != 1:
        raise InputError(
            f"axes {axes!r} were given for {path}, a folder of slices: z stands for its files, the others are those of "
            "each file, e.g. zyx"
        )
    return axes.lower().replace("z", "")
