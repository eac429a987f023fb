"""What every engine module gets and gives: the request to load, what works here, and the trial run after loading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilelab.engines.base import Engine, Float32
from tilelab.engines.model_file import ModelFile, Port
from tilelab.errors import ModelError
from tilelab.spec import ModelSpec, Precision


@dataclass(frozen=True, slots=True)
class Target:
    """A device and precision of an engine; `reason` says why it does not work here, and is empty when it does."""

    device: str
    precision: Precision
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Availability:
    """What an engine can do on this machine.

    Attributes:
        version: of its library, empty when that is not installed.
        reason: why the engine as a whole does not work, empty when it does.
        targets: every device and precision it knows.
    """

    version: str
    reason: str = ""
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One model on one device at one precision for one batch shape; all checked against each other.

    Attributes:
        file: the model.
        source, target: the input fed and the output used.
        spec: its full description.
        device, precision: one of the engine's working targets.
        batch, tile: the fixed shape of a batch.
        threads: of the engine's own pool; None leaves it to the library (all cores).
        warnings: one line each, for the user.
    """

    file: ModelFile
    source: Port
    target: Port
    spec: ModelSpec
    device: str
    precision: Precision
    batch: int
    tile: tuple[int, ...]
    threads: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one batch."""
        return (self.batch, self.spec.channels, *self.tile)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one batch's logits."""
        return (self.batch, self.spec.outputs, *self.tile)


def first_line(error: BaseException) -> str:
    """The one line of a library's message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '", "While validating"))]
    return (told or lines or [""])[0][:300] or type(error).__name__


def check_output(request: LoadRequest, shape: tuple[int, ...]) -> None:
    """Raise `ModelError` unless the network gives one logit per class and pixel of the tile."""
    want = request.output_shape
    if shape == want:
        return
    given, wanted = " x ".join(map(str, shape)), " x ".join(map(str, want))
    hint = ""
    if len(shape) == len(want) and shape[:2] == want[:2]:
        hint = ": tilelab needs outputs as large as their tile, so pad inside the model or upsample its output"
    elif len(shape) == len(want) and shape[1] != want[1]:
        hint = ": check --classes and --activation"
    raise ModelError(f"{request.file.path} gives {given} for a batch, not {wanted} (batch, outputs, pixels){hint}")


def try_out(engine: Engine, path: object) -> None:
    """Run one made-up batch: finds missing libraries and wrong numbers now rather than hours into a job.

    Raises:
        ModelError: the output has NaN or infinite values.
    """
    shape = (engine.batch, engine.spec.channels, *engine.tile)
    count = int(np.prod(shape))
    # Every normalised intensity that is to be expected, at every scale of wavelength.
    tiles: Float32 = (2 * np.sin(np.arange(count, dtype=np.float32) ** 1.2)).reshape(shape)
    out = np.full((engine.batch, engine.spec.outputs, *engine.tile), np.nan, np.float32)
    engine.run(tiles, out)
    bad = out.size - int(np.isfinite(out).sum())
    if bad:
        raise ModelError(
            f"{path} gives NaN or infinite values ({bad} of {out.size}) with {engine.name} {engine.precision}: "
            f"try another --engine or --precision, or export the model again"
        )
