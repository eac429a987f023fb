"""``.npy`` files: bare arrays with a header."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.axes import guess_axes
from tilelab.io.images.source import Source, check_level
from tilelab.io.storage.files import hash_file, read_region
from tilelab.io.storage.local_file import LocalFile


class NpySource(Source):
    """The array of a ``.npy`` file, read by position.

    Raises:
        InputError: the file is missing, damaged, truncated, or holds Python objects.
    """

    format = "NumPy"

    def __init__(self, path: str, level: int = 0) -> None:
        check_level(path, level, 1)
        self.uri = path
        self._file = LocalFile(path)
        try:
            header = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
        except Exception as error:  # the header is Python source: its parser has exceptions of its own
            raise InputError(f"{path} is no readable .npy file: {error}") from error
        self.shape = header.shape
        self.axes, self.assumptions = guess_axes(path, self.shape)
        self.rgb = self.axes.endswith("s")
        self.chunks = (1,) * len(self.shape)
        self.levels = (self.shape,)
        self.scale_nm = {}
        self.details = {}
        self._stored = header.dtype
        self.dtype = header.dtype.newbyteorder("=")
        self._offset = int(header.offset)
        self._fortran = header.flags.f_contiguous and not header.flags.c_contiguous

    def read(self, box: Box) -> npt.NDArray[np.generic]:
        out = np.empty(box.shape, self._stored, order="F" if self._fortran else "C")
        if self._fortran:  # the transposed array is C-ordered
            mirrored = Box(box.start[::-1], box.stop[::-1])
            read_region(self._file, self._offset, self.shape[::-1], mirrored, out.T)
        else:
            read_region(self._file, self._offset, self.shape, box, out)
        return out.astype(self.dtype, copy=False)

    def fingerprint(self) -> dict[str, str]:
        return hash_file(self._file)

    def close(self) -> None:
        self._file.close()
