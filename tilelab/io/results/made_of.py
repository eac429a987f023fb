"""What a file or volume that was made of a result says of that result, whatever its kind."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tilelab.errors import InputError
from tilelab.io.results.result import ResultInfo

_TIFF = (".tif", ".tiff")


def read_made_of(path: str | Path) -> ResultInfo | None:
    """The description in a local TIFF, PNG or precomputed volume that tilelab wrote; None of anything else."""
    suffix = Path(path).suffix.lower()
    with contextlib.suppress(InputError):
        if suffix == ".png":
            from tilelab.io.results.png import read_png_info

            return read_png_info(path)
        if suffix in _TIFF:
            from tilelab.io.results.tiff import read_tiff_info

            return read_tiff_info(path)
        from tilelab.io.results.precomputed import read_precomputed_info

        return read_precomputed_info(path)
    return None
