"""Square crops: read where they lie, resized, turned, changed and normalised; and batches of them, drawn ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch

from tilelab.arrays import Int64, UInt8
from tilelab.errors import InputError
from tilelab.geometry import Box, reflect
from tilelab.io.images.volume import Volume
from tilelab.machine.cpu import core_count
from tilelab.run.normalize import plane_constants
from tilelab.spec import Normalization
from tilelab.training.augment import (
    Symmetry,
    change_intensity,
    draw_angle,
    resize,
    resize_labels,
    room_to_turn,
    turn,
)
from tilelab.training.sections import Augmentation

Example = tuple[torch.Tensor, torch.Tensor]
"""An input and its target."""

_MOST_THREADS = 8


class Regions(Protocol):
    """A plane of labels, read region by region."""

    def read(self, box: Box) -> UInt8:
        """A region ``(y, x)``."""
        ...


@dataclass(frozen=True, slots=True)
class Square:
    """A square of a plane, in pixels; what lies beyond the plane is reflected."""

    start: tuple[int, int]
    extent: int

    def grown(self, factor: float) -> Square:
        """One about the same middle whose side is so many times as long."""
        extent = math.ceil(self.extent * factor)
        margin = (extent - self.extent) // 2
        return Square((self.start[0] - margin, self.start[1] - margin), extent)

    def inside(self, shape: tuple[int, int]) -> tuple[Box, tuple[Int64, Int64]]:
        """The smallest box of a plane that holds it, and its pixels in that box, for indexing."""
        rows, columns = (
            reflect(np.arange(at, at + self.extent, dtype=np.int64), size)
            for at, size in zip(self.start, shape, strict=True)
        )
        box = Box((int(rows.min()), int(columns.min())), (int(rows.max()) + 1, int(columns.max()) + 1))
        return box, ((rows - box.start[0])[:, None], columns - box.start[1])


class CropSource:
    """A plane that crops are cut from.

    Args:
        volume: the plane.
        normalization: as in use; statistics are those of this image.
        channels: input channels of the network.

    Raises:
        ModelError: the image's channels or dtype do not suit.
    """

    def __init__(self, volume: Volume, normalization: Normalization, channels: int):
        self.volume = volume
        self.shape = (volume.shape[1], volume.shape[2])
        constants = plane_constants(volume, normalization, channels)
        self._mean, self._gain = (torch.from_numpy(values)[:, None, None] for values in constants)
        self._clip = normalization.clip

    def cut(
        self,
        square: Square,
        size: int,
        augmentation: Augmentation,
        rng: np.random.Generator,
        labels: Regions | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A square as the network is to see it, and its labels, turned and resized alike.

        Returns:
            float32 ``(C, size, size)``, normalised, and uint8 ``(size, size)`` or None.
        """
        angle, wanted = draw_angle(augmentation, rng), size
        if angle:  # the square and what its corners reach when it is turned
            square, size = square.grown(room_to_turn(angle)), math.ceil(size * room_to_turn(angle))
        box, index = square.inside(self.shape)
        region = self.volume.read(Box((0, *box.start), (1, *box.stop)))[:, 0]
        if region.dtype.kind == "f" and not np.isfinite(region).all():
            count = int((~np.isfinite(region)).sum())
            raise InputError(
                f"{self.volume.image.uri} holds {count} pixels that are not finite (NaN or infinite) in a crop: "
                "replace them, or leave the image out"
            )
        white = full_scale(self.volume.dtype)
        image = resize(torch.from_numpy(region[:, index[0], index[1]].astype(np.float32) / np.float32(white)), size)
        mask = None if labels is None else resize_labels(torch.from_numpy(labels.read(box)[index]), size)
        if angle:
            image, mask = turn(image, angle, wanted), None if mask is None else turn(mask[None], angle, wanted)[0]
        if augmentation.flips:
            axes = augmentation.flips
            symmetry = Symmetry.draw(rng) if axes is True else Symmetry.draw_mirror(axes, rng)
            image, mask = symmetry.apply(image), None if mask is None else symmetry.apply(mask)
        image = change_intensity(image, augmentation, rng) * white
        image = (image - self._mean) * self._gain
        return image if self._clip is None else image.clamp(*self._clip), mask


def full_scale(dtype: np.dtype[Any]) -> float:
    """The intensity that counts as 1: the greatest of an integer type, 1 for floating point."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def fit_start(wanted: Sequence[int], extent: int, shape: Sequence[int]) -> tuple[int, int]:
    """`wanted` moved so that a square of `extent` lies within `shape`, or about its middle where it is too large."""
    y, x = (
        (size - extent) // 2 if size < extent else min(max(0, at), size - extent)
        for at, size in zip(wanted, shape, strict=True)
    )
    return y, x


def stack(examples: Sequence[Example]) -> Example:
    """A batch: float32 ``(B, C, H, W)``, and int64 targets with a leading B."""
    return torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples]).long()


class Batches:
    """Batches of consecutive steps, the next one drawn while one is in use.

    Examples depend on step and index alone, so the threads change nothing but the time.

    Args:
        draw: gives the example of a step and index; called from several threads.
        indices: of the examples in a batch.
        first: the step to begin with.
        threads: 0 takes half the cores, at most 8.
    """

    def __init__(self, draw: Callable[[int, int], Example], indices: range, first: int, threads: int = 0):
        self._draw, self._indices, self._step = draw, indices, first
        count = threads or max(1, min(core_count() // 2, len(indices), _MOST_THREADS))
        # Crops are small: shared among torch's own threads they wait for cores that the network keeps busy (a blur of
        # 1 px at 256 px then took 40 ms instead of 1).  The setting is that of each thread.
        self._pool = ThreadPoolExecutor(count, "tilelab-crops", initializer=torch.set_num_threads, initargs=(1,))
        self._waiting = self._ask()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _ask(self) -> list[Future[Example]]:
        return [self._pool.submit(self._draw, self._step, index) for index in self._indices]

    def take(self) -> Example:
        """The batch of the next step."""
        examples = [future.result() for future in self._waiting]
        self._step += 1
        self._waiting = self._ask()
        return stack(examples)
