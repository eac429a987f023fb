"""What an engine is: something that turns one batch of tiles into one batch of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tilelab.arrays import Float32
from tilelab.assumptions import Assumption
from tilelab.spec import ModelSpec, Precision


class Engine(Protocol):
    """A loaded model on one device at one precision, for one batch shape.

    Attributes:
        name: ``openvino``, ``onnxruntime``, ``identity``, ...
        device: ``cpu``, ``cuda:0``, ...
        precision: the arithmetic it really uses, never another than was asked for.
        spec: what the model says of itself.
        batch: tiles per run, fixed.
        tile: pixels per axis of a tile, in the order of ``spec.axes``, fixed.
        warnings: one line each, for the user.
        assumptions: what had to be guessed of the model.
        streams: calls of `run` that may be under way at once, from as many threads, and make use of it.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def batch(self) -> int: ...
    @property
    def tile(self) -> tuple[int, ...]: ...
    @property
    def streams(self) -> int: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def assumptions(self) -> tuple[Assumption, ...]: ...

    def run(self, tiles: Float32, out: Float32) -> None:
        """Compute the logits of one batch into `out`; blocks, and releases the GIL while computing.

        The caller owns both arrays and alternates between a few of them, so an engine can bind them without a copy.

        Args:
            tiles: float32, C-contiguous, ``(batch, spec.channels, *tile)``, normalised.
            out: float32, C-contiguous, ``(batch, spec.outputs, *tile)``, overwritten.

        Raises:
            EngineError: the device failed or ran out of memory; the message names the sizes.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Library versions that may change the result, for reports and fingerprints."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...
