"""From what a network gives to what is blended: each output on the pixels of its tile's core, one after the other.

    network          float32          input's pixels          core
    (n, c, e) --undo--> logits --enlarge or shrink--> (n, c, t - 2h) --crop to the greatest halo--> out[:, a:b]

An output of another scale than the input's is enlarged linearly between the centres of its pixels (as PyTorch does
with ``align_corners=False``), or shrunk to the mean of the pixels that make one; labels take the nearest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.files.model_file import Port
from tilelab.spec import Activation, ModelSpec, Output


@dataclass(frozen=True, slots=True)
class Part:
    """One output on its way to the values of an engine.

    port: of the network.
    output: what the description says of it.
    first, last: its channels among the values.
    extent: of the network's array.
    core: of what is wanted.
    """

    port: Port
    output: Output
    first: int
    last: int
    extent: tuple[int, ...]
    core: tuple[int, ...]

    @property
    def direct(self) -> bool:
        """Whether the network may write where the values are wanted, as far as its type allows."""
        return self.port.as_ours and self.extent == self.core and self.output.step == 1

    def native(self, batch: int) -> tuple[int, ...]:
        """The shape of the network's array."""
        return self.port.native((batch, self.last - self.first, *self.extent))

    def place(self, array: Array, out: Float32, undo: Activation | None = None) -> None:
        """Write the values of the network's `array` into the channels of `out` ``(n, K, *core)`` that are this part's.

        With `undo` they are probabilities, of which the logits are wanted.
        """
        values: Float32 = self.port.view(array).astype(np.float32)
        if self.output.step > 1:
            values /= self.output.step
        if undo is not None:
            undo_activation(values, undo)
        for axis, (size, scale) in enumerate(zip(self.extent, self.output.scale, strict=False), start=2):
            if scale != 1:
                values = _resize(values, axis, round(size / scale), scale, self.output.kind == "labels")
        begin = [-((c - n) // 2) for n, c in zip(values.shape[2:], self.core, strict=True)]
        inside = tuple(slice(b, b + c) for b, c in zip(begin, self.core, strict=True))
        out[:, self.first : self.last] = values[(slice(None), slice(None), *inside)]


def make_parts(spec: ModelSpec, ports: tuple[Port, ...]) -> tuple[Part, ...]:
    """The outputs of a network, in the order of their channels."""
    found, first = [], 0
    for port, output in zip(ports, spec.outputs, strict=True):
        last = first + spec.values_of(output)
        scale, halo = output.scale or (1.0,) * len(spec.tile), output.halo or (0,) * len(spec.tile)
        extent = tuple(round((t - 2 * h) * s) for t, h, s in zip(spec.tile, halo, scale, strict=True))
        known = port.shape[2:]
        if known and all(isinstance(n, int) for n in known) and len(known) == len(extent):
            extent = tuple(int(n) for n in known)  # of an odd difference the halo is rounded up
        found.append(Part(port, output, first, last, extent, spec.core))
        first = last
    return tuple(found)


def undo_activation(out: Float32, activation: Activation) -> None:
    """Turn probabilities into logits in place, so that they can be blended and activated like any other.

    For softmax that is the logarithm: it differs from the logits by one number per pixel, which softmax and argmax do
    not see.  Probabilities that were rounded to 0 or 1 give the nearest finite logit.
    """
    if activation == "softmax":
        np.maximum(out, np.finfo(np.float32).tiny, out=out)
        np.log(out, out=out)
    else:
        np.clip(out, np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg, out=out)
        rest = 1 - out
        np.divide(out, rest, out=out)
        np.log(out, out=out)


def _resize(values: Float32, axis: int, size: int, scale: float, nearest: bool) -> Float32:
    """`values` with `size` pixels along an axis, of which it has `scale` for each."""
    have = values.shape[axis]
    if scale > 1 and not nearest:
        count = math.ceil(have / size)
        shape = (*values.shape[:axis], size, count, *values.shape[axis + 1 :])
        shrunk: Float32 = values.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
        return shrunk
    at = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
    low = np.floor(at + 0.5 * nearest).astype(np.int64)
    below: Float32 = values.take(np.minimum(low, have - 1), axis=axis)
    if nearest:
        return below
    part = (at - low).astype(np.float32).reshape((-1,) + (1,) * (values.ndim - 1 - axis))
    above: Float32 = values.take(np.minimum(low + 1, have - 1), axis=axis)
    above -= below
    above *= part
    above += below
    return above
