"""What every reader owes, checked in one place: a new format is one row in `READERS`."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzzing import FORMATS, PLANE, STACK, Format
from tests.image_files import Array, check_reads, pixels
from tests.vendor_files import opened, write_dm3, write_ser
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import describe, open_image

ALL = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Reader:
    """A format and what is expected of its reader.

    module: of `tilelab.io.images`, that reads it.
    form: how it is drawn.
    pixel_size_nm: that the drawn file states.
    names_axes: the file says what its axes are, or there is nothing to say.
    dtypes: that it can hold and that come out as they are.
    opened: what to open, of the file that was drawn.
    """

    module: str
    form: Format
    pixel_size_nm: tuple[float, ...] | None = None
    names_axes: bool = True
    dtypes: tuple[str, ...] = ALL
    opened: Callable[[Path], Any] = str

    def draw(self, folder: Path, values: Array) -> Any:
        """Draw `values`, in place of what was drawn before; returns what to open."""
        path = folder / self.form.file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # mrcfile's, of what is no number
            self.form.draw(path, values)
        return self.opened(path)

    def values(self, dtype: str, seed: int = 0) -> Array:
        """Pixels to store, float ones with what is no number."""
        stored = pixels(self.form.shape, dtype, seed)
        if dtype == "float32":
            stored[..., 3, 5], stored[..., 4, :2] = np.nan, (np.inf, -np.inf)
        return stored


def _reader(module: str, form: str, **more: Any) -> Reader:
    return Reader(module, FORMATS[form], **more)


_BMP = Format("bmp", "a.bmp", PLANE, FORMATS["png"].draw, FORMATS["png"].read)
_DM3 = Format("dm3", "a.dm3", PLANE, write_dm3, opened)
_SER = Format("ser", "a.ser", STACK, write_ser, opened)
_IN_MEMORY = Format("array", "a.npy", STACK, FORMATS["npy"].draw, FORMATS["npy"].read)

READERS = {
    row.form.name: row
    for row in (
        _reader("tiff", "tiff"),
        _reader("tiff", "tiff-tiles"),
        _reader("tiff", "tiff-lzw"),
        _reader("tiff", "tiff-zstd", names_axes=False),
        _reader("tiff", "tiff-ome"),
        _reader("tiff", "tiff-imagej"),
        _reader("tiff", "bigtiff"),
        _reader("raster", "png", dtypes=("uint8", "uint16")),
        Reader("bmp", _BMP, dtypes=("uint8",)),
        Reader("readout", _DM3, pixel_size_nm=(4, 4)),
        Reader("readout", _SER, pixel_size_nm=(4, 4, 4), names_axes=False),
        _reader("npy", "npy", names_axes=False),
        _reader("zarr", "zarr2", names_axes=False),
        _reader("zarr", "zarr3", names_axes=False),
        _reader("zarr", "ome-zarr", pixel_size_nm=(4, 4)),
        _reader("hdf5", "hdf5", names_axes=False),
        _reader("mrc", "mrc", pixel_size_nm=(4, 4, 4), dtypes=("uint16", "float32")),
        _reader("n5", "n5", names_axes=False),
        _reader("precomputed", "precomputed", pixel_size_nm=(40, 4, 4)),
        _reader("slices", "slices", dtypes=("uint8", "uint16")),
        Reader("array", _IN_MEMORY, names_axes=False, opened=np.load),
    )
}


def check_reader(row: Reader, dtype: str, folder: Path) -> None:
    """All that can be asked of a whole file."""
    stored = row.values(dtype)
    opened = row.draw(folder, stored)
    with open_image(opened) as image:
        assert image.axes == "zyx"[-stored.ndim :]
        assert image.pixel_size_nm == (None if row.pixel_size_nm is None else pytest.approx(row.pixel_size_nm))
        assert any(guess.flag == "--axes" for guess in image.assumptions) == (not row.names_axes)
        assert all(said.isprintable() for said in image.warnings)
        check_reads(image, stored, examples=4)
        _check_refusals(image, opened)
        _check_threads(image, stored)
        first = image.fingerprint()
    image.close()
    with pytest.raises(InputError, match="closed"):
        image.read(Box.whole(stored.shape))
    facts = describe(opened)
    assert facts["image"] == {"axes": image.axes, "shape": list(stored.shape), "dtype": dtype}
    with open_image(opened) as again:
        assert again.fingerprint() == first
    with open_image(row.draw(folder, row.values(dtype, seed=1))) as changed:
        assert changed.fingerprint() != first


def check_truncated(row: Reader, folder: Path) -> None:
    """A file that ends too early is refused in one line, or its pixels are right."""
    stored = row.values(row.dtypes[0])
    row.draw(folder, stored)
    path = folder / row.form.file
    victim = max((f for f in path.rglob("*") if f.is_file()), key=_size) if path.is_dir() else path
    whole = victim.read_bytes()
    for share in (0, 0.3, 0.7, 0.99):
        victim.write_bytes(whole[: int(len(whole) * share)])
        try:
            with open_image(row.opened(path)) as image:
                found = image.read(Box.whole(stored.shape))
        except InputError as error:
            said = str(error)
        else:
            said = path.name
            np.testing.assert_array_equal(found, stored)
        assert "\n" not in said
        assert path.name in said


def _size(file: Path) -> int:
    return file.stat().st_size


def _check_refusals(image: Any, opened: Any) -> None:
    """Regions and levels that are not there; an empty region is none of them."""
    shape = image.shape
    assert image.read(Box(shape, shape)).shape == (0,) * len(shape)
    zero, beyond = (0,) * len(shape), (*shape[:-1], shape[-1] + 1)
    for box in (Box(zero, beyond), Box((*zero[:-1], -1), shape), Box(zero[1:], shape[1:])):
        with pytest.raises(InputError, match=r"^region .* was asked for"):
            image.read(box)
    with pytest.raises(InputError, match=r"level 9 was asked for"):
        open_image(opened, level=9)


def _check_threads(image: Any, stored: Array) -> None:
    """Four threads that read at once get what they ask for."""
    begin = threading.Barrier(4)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        begin.wait()
        for _ in range(8):
            start = tuple(int(rng.integers(n)) for n in stored.shape)
            box = Box(start, tuple(int(rng.integers(a, n)) + 1 for a, n in zip(start, stored.shape, strict=True)))
            np.testing.assert_array_equal(image.read(box), stored[box.slices])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
