"""What is seen of a set of images with masks while it is opened: its classes, what is wrong with it, what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array, Bool, Int64, UInt8
from tilelab.errors import InputError
from tilelab.evaluation.label_map import IGNORE
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.training.sections import Data

_ROWS = 512


@dataclass
class Inspection:
    """Facts of one set, gathered plane by plane.

    Attributes:
        what: ``train`` or ``validation``, as in the recipe.
        names: of the classes.
        planes: how many there are.
        counts: pixels by class, int64 ``(256,)``; `IGNORE` is one of them.
        notes: one line each about what the user should know.
    """

    what: str
    names: Sequence[str]
    planes: int = 0
    counts: Int64 = field(default_factory=lambda: np.zeros(256, np.int64))
    notes: list[str] = field(default_factory=list)
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    def see(self, *arrays: Array) -> None:
        """Take pixels into the digest."""
        for array in arrays:
            self._hash.update(f"{array.dtype} {array.shape}".encode())
            self._hash.update(np.ascontiguousarray(array))

    def count(self, mask: UInt8) -> None:
        """Count a mask, or a part of one."""
        self.counts += np.bincount(mask.ravel(), minlength=256)
        self.see(mask)

    @property
    def digest(self) -> str:
        """Of all masks, and of the images: whole ones where they are kept in memory, else their first rows."""
        return f"sha256:{self._hash.hexdigest()}"

    def record(self, data: Data, root: Path) -> dict[str, Any]:
        """What the data are, for the model's description; folders by name, none of the paths that lead to them."""
        folders = {key: str(getattr(data, key)) for key in ("images", "masks")}
        told = {key: Path(text).name if Path(text).is_absolute() else text for key, text in folders.items()}
        pixels = int(self.counts.sum())
        return {
            "folder": root.resolve().name,
            **told,
            **({"labels": data.labels} if data.labels else {}),
            "planes": self.planes,
            "pixels": pixels,
            "digest": self.digest,
        }

    def summary(self) -> str:
        """Planes, pixels and the shares of the classes, in a line."""
        total, left_out = int(self.counts.sum()), int(self.counts[IGNORE])
        shares = [
            f"{name} {100 * int(n) / max(1, total - left_out):.3g} %"
            for name, n in zip(self.names, self.counts, strict=False)
        ]
        apart = f"; {100 * left_out / total:.3g} % of the pixels left out" if left_out else ""
        planes = f"{self.planes} plane{'s' if self.planes > 1 else ''}"
        return f"{self.what}: {planes}, {total / 1e6:.3g} MP: {', '.join(shares)}{apart}"

    @property
    def absent(self) -> list[str]:
        """Classes without a pixel."""
        return [name for name, n in zip(self.names, self.counts, strict=False) if not n]

    def require(self, least: int) -> None:
        """Refuse a set of fewer than `least` classes.

        Raises:
            InputError: it has fewer; what there is, is named.
        """
        there = [name for name in self.names if name not in self.absent]
        if len(there) < least:
            raise InputError(
                f"the {self.what} masks hold {' and '.join(there) or 'no class'} alone, of {', '.join(self.names)}: "
                f"nothing can be {'learned' if least > 1 else 'scored'}; see {self.what}.masks and {self.what}.labels"
            )


def check_finite(uri: str, volume: Volume, start: int, stop: int) -> None:
    """Refuse planes `start` to `stop` of an image with pixels that are NaN or infinite.

    Raises:
        InputError: there are some; their number and the first of them are named.
    """
    if volume.dtype.kind != "f":
        return
    count, first = 0, ""
    for z in range(start, stop):
        for top in range(0, volume.shape[1], _ROWS):
            rows = volume.read(Box((z, top, 0), (z + 1, min(volume.shape[1], top + _ROWS), volume.shape[2])))
            wrong: Bool = ~np.logical_and.reduce(np.isfinite(rows[:, 0]))
            if wrong.any():
                y, x = (int(i[0]) for i in np.nonzero(wrong))
                first = first or f"z {z}, y {top + y}, x {x}"
                count += int(wrong.sum())
    if count:
        raise InputError(
            f"{uri} holds {count} pixels that are not finite (NaN or infinite), the first at {first}: replace them; "
            "to leave them out in the mask is not enough, a network sees around every pixel"
        )
