"""A model on disk: what any reader can tell of it without running it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.engines.files.ending import Ending
from tilelab.errors import ModelError
from tilelab.spec import ModelSpec, Precision

_MOST_CHANNELS = 16  # that a shape with its channels last is believed to have


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: a dimension is a number where it is fixed, else its name (possibly empty).

    Once `arranged`, `shape` is ``(n, c, *extent)`` whatever the network's own order is.

    Attributes:
        channels_last: the network has its channels last.
        batched, channelled: it has an axis for them at all.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    channels_last: bool = False
    batched: bool = True
    channelled: bool = True

    @property
    def raw(self) -> bool:
        """Of whole numbers, as images hold them."""
        return self.dtype in ("uint8", "uint16")

    @property
    def as_ours(self) -> bool:
        """Whether the network has ``(n, c, *extent)``."""
        return self.batched and self.channelled and not self.channels_last

    def native(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the network itself has for ``(n, c, *extent)``."""
        lead, channels = shape[:1] * self.batched, shape[1:2] * self.channelled
        return (*lead, *shape[2:], *channels) if self.channels_last else (*lead, *channels, *shape[2:])

    def ours(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(n, c, *extent)`` for a shape that the network itself has."""
        lead, rest = ((shape[0],), shape[1:]) if self.batched else ((1,), shape)
        if not self.channelled:
            return (*lead, 1, *rest)
        return (*lead, rest[-1], *rest[:-1]) if self.channels_last else (*lead, *rest)

    def view(self, array: Array) -> Array:
        """The network's own array as ``(n, c, *extent)``; nothing is copied."""
        if not self.batched:
            array = array[np.newaxis]
        if not self.channelled:
            return array[:, np.newaxis]
        return np.moveaxis(array, -1, 1) if self.channels_last else array

    def arranged(self, rank: int, source: Port | None = None) -> Port:
        """With `rank` spatial axes, as `shape` (and of an output, the input `source`) tells where the others are."""
        count = len(self.shape) - rank
        if count == 2:
            return self._with_channels_second(source.shape[2:] if source is not None else ())
        if count == 0:
            return replace(self, shape=(1, 1, *self.shape), batched=False, channelled=False)
        if count != 1:
            return self
        first, last = self.shape[0], self.shape[-1]
        few = isinstance(first, int) and 1 <= first <= _MOST_CHANNELS
        if source is not None:
            batched = source.batched
        else:
            trailing = isinstance(last, int) and last <= _MOST_CHANNELS and not few
            batched = not (few or trailing)
        if batched:
            return replace(self, shape=(first, 1, *self.shape[1:]), channelled=False)
        if not few and isinstance(last, int) and last <= _MOST_CHANNELS:
            return replace(self, shape=(1, last, *self.shape[:-1]), channels_last=True, batched=False)
        return replace(self, shape=(1, *self.shape), batched=False)

    def _with_channels_second(self, spatial: tuple[int | str, ...]) -> Port:
        """With ``(n, c, y, x)`` where the shape shows ``(n, y, x, c)``; `spatial` is the extent of the other port."""
        batch, *extent, last = self.shape
        if not isinstance(last, int) or last > _MOST_CHANNELS:
            return self
        if not all(isinstance(n, int) for n in extent):
            turned = not any(isinstance(n, int) for n in extent)
        elif spatial:
            turned = tuple(extent) == spatial != self.shape[2:]
        else:
            turned = extent[0] > last  # type: ignore[operator]  # numbers, both
        return replace(self, shape=(batch, last, *extent), channels_last=True) if turned else self

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(str(n) if n != '' else '?' for n in self.shape)})"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        path: the file.
        format: ``onnx``, ``openvino`` (an IR, .xml with .bin), ``tensorrt`` (a plan) or ``aotinductor`` (a .pt2);
            ``torchscript`` in a package; ``function`` where it is no file at all.
        files: all it consists of: the file itself first, then those that hold its weights.
        inputs, outputs: of the network, weights excluded.
        precision: the arithmetic the file itself prescribes: int8 when its activations are quantised, otherwise the
            type of its weights.
        description: the JSON of its `ModelSpec`, or None.
        endings: for each output, what the graph tells of its values, where there is one to read.
        opset, producer: of the exporter, where known.
        device: ``cpu`` or ``cuda`` where the file was compiled for one of them.
        notes: one line each, for the user: how the file came to be.
        assumptions: what had to be guessed of its description.
    """

    path: Path
    format: Literal["onnx", "openvino", "tensorrt", "aotinductor", "torchscript", "function"]
    files: tuple[Path, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    precision: Precision
    description: str | None
    endings: dict[str, Ending] = field(default_factory=dict)
    opset: int | None = None
    producer: str = ""
    device: str | None = None
    notes: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(path.stat().st_size for path in self.files)

    def digest(self) -> str:
        """SHA-256 of all its files, one after the other."""
        sha = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
        return sha.hexdigest()

    @property
    def spec(self) -> ModelSpec | None:
        """What the model says of itself, or None; raises `ModelError` when that is not valid."""
        if self.description is None:
            return None
        try:
            return ModelSpec.from_json(self.description)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from error
