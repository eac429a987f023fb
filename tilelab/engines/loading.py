"""What every engine module gets and gives: the request to load, what works here, and the trial run after loading."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.base import BaseEngine, EngineMemory
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.meaning import Meaning
from tilelab.engines.streams import Streams
from tilelab.errors import ModelError
from tilelab.machine.cpu import physical_core_count
from tilelab.machine.memory import available_memory, resident_memory
from tilelab.spec import Activation, ModelSpec, Precision
from tilelab.text import explain, size_text


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
        threads: of the engine; None for one on each core.
        warnings: one line each, for the user.
        meaning: of its output; None takes it for logits.
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
    meaning: Meaning | None = None

    def model_digest(self) -> str:
        """Identifies the network: a hash of its files, the output used of several, and what the user says it is."""
        names = [self.target.name] if len(self.file.outputs) > 1 else []
        said = [] if self.meaning is None or self.meaning.said is None else [f"as {self.meaning.said}"]
        return " ".join([self.file.digest(), *names, *said])

    @property
    def native_input_shape(self) -> tuple[int, ...]:
        """Of one batch, as the network has it."""
        return self.source.native(self.input_shape)

    @property
    def native_output_shape(self) -> tuple[int, ...]:
        """Of one batch's logits, as the network has it."""
        return self.target.native(self.output_shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one batch."""
        return (self.batch, self.spec.channels, *self.tile)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one batch's logits."""
        return (self.batch, self.spec.values, *self.tile)


@dataclass(frozen=True, slots=True)
class _Stream:
    """What one call of `run` has to itself: buffers to convert through, where types or the order of axes differ."""

    index: int
    input: Array | None
    output: Array | None


class FileEngine(BaseEngine):
    """What engines that load a model file have in common.

    A network that takes or gives another type, or has its channels last, is fed through buffers of its own, and one
    that ends in an activation has it undone.

    Attributes:
        streams: see `Engine`; more calls of `run` than that wait for their turn.
    """

    name: str

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request.spec, request.tile, request.batch)
        self._held_before = resident_memory()
        self.device = request.device
        self.precision = request.precision
        self.warnings = request.warnings
        self._request = request
        self._open_streams(1, np.dtype(request.source.dtype), np.dtype(request.target.dtype))
        self._undo: Activation | None = None

    @property
    def model_digest(self) -> str:
        """Identifies the network; see `LoadRequest.model_digest`."""
        return self._request.model_digest()

    def run(self, tiles: Float32, out: Float32) -> None:
        """Compute the logits of `tiles` into `out`; see `Engine.run`."""
        _check_array("tiles", tiles, self._request.input_shape)
        _check_array("out", out, self._request.output_shape)
        stream = self._idle.get()
        try:
            source: Array = tiles
            if stream.input is not None:
                _convert(tiles, _channels_second(stream.input, self._request.source))
                source = stream.input
            self._compute(source, out if stream.output is None else stream.output, stream.index)
            if stream.output is not None:
                np.copyto(out, _channels_second(stream.output, self._request.target), casting="same_kind")
        finally:
            self._idle.put(stream)
        if self._undo is not None:
            undo_activation(out, self._undo)

    @property
    def takes_raw(self) -> bool:
        """Whether the network takes whole numbers as images hold them."""
        return self._request.source.raw

    def settle(self, meaning: Meaning) -> None:
        """Take the output for what it was found to be; until then `run` gives it as the network does."""
        self.output_is = meaning.kind or "logits"
        self._undo = meaning.undo
        self.warnings += meaning.warnings
        self.assumptions += meaning.assumptions

    def _open_streams(self, count: int, source: np.dtype[Any], target: np.dtype[Any]) -> None:
        """Have `count` streams, for a network that takes and gives these types."""
        ports = (
            (self._request.source, self._request.input_shape, source),
            (
                self._request.target,
                self._request.output_shape,
                target,
            ),
        )
        self.streams = count
        self._idle: SimpleQueue[_Stream] = SimpleQueue()
        for index in range(count):
            self._idle.put(_Stream(index, *(_buffer(*port) for port in ports)))

    @abc.abstractmethod
    def _compute(self, source: Array, target: Array, stream: int) -> None:
        """Run the network on `source` into `target`, both of its own types and the request's shapes."""

    def measure_memory(self) -> None:
        """Set `memory`, once the engine has run: what the process has grown by since loading began."""
        held = max(0, resident_memory() - self._held_before)
        self.memory = EngineMemory(held, self.memory.device_bytes)

    @abc.abstractmethod
    def versions(self) -> Mapping[str, str]:
        """See `Engine.versions`."""

    @abc.abstractmethod
    def close(self) -> None:
        """See `Engine.close`."""


def _check_array(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Libraries are given a bare address: anything else than promised would be read or written beyond its end."""
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous float32 {size_text(shape)}, not {array.dtype} {size_text(array.shape)}"
        )


def affordable_streams(threads: int | None, batch_bytes: int) -> int:
    """How many cores can each compute a batch of their own within half of the memory that is free.

    Args:
        threads: asked for; None for all cores.
        batch_bytes: that one batch takes while it is computed.
    """
    return min(threads or physical_core_count(), max(1, available_memory() // 2 // max(1, batch_bytes)))


def _buffer(port: Port, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
    """A buffer to convert through where the network's type is not float32, or it has its channels last."""
    return None if dtype == np.float32 and not port.channels_last else np.empty(port.native(shape), dtype)


def _channels_second(array: Array, port: Port) -> Array:
    """A view of the network's own array with the axes of ours."""
    return np.moveaxis(array, -1, 1) if port.channels_last else array


def _convert(tiles: Float32, target: Array) -> None:
    """Into the network's own type; whole numbers are rounded to, and cut off at their ends."""
    if target.dtype.kind != "u":
        np.copyto(target, tiles, casting="same_kind")
        return
    np.copyto(target, np.clip(np.rint(tiles), 0, np.iinfo(target.dtype).max), casting="unsafe")


def refuse(library: str, request: LoadRequest, error: BaseException) -> ModelError:
    """The error for a network that a library does not accept for the batch that was asked for."""
    hint = ""
    if not request.spec.tile_fixed and any(n > 1 and n % 32 for n in request.tile):
        hint = ": try a --tile that is a multiple of 32"
    batch = size_text(request.input_shape)
    return ModelError(f"{library} cannot run {request.file.path} on a batch of {batch}: {explain(error)}{hint}")


def check_output(request: LoadRequest, shape: tuple[int, ...]) -> None:
    """Raise `ModelError` unless the network gives one logit per class and pixel of the tile."""
    if shape == request.native_output_shape:
        return
    want = request.output_shape
    given, wanted = size_text(shape), size_text(want)
    hint = ""
    if len(shape) == len(want) and shape[:2] == want[:2]:
        hint = ": tilelab needs outputs as large as their tile, so pad inside the model or upsample its output"
    elif len(shape) == len(want) and shape[1] != want[1]:
        hint = ": check --classes and --activation"
    raise ModelError(f"{request.file.path} gives {given} for a batch, not {wanted} (batch, outputs, pixels){hint}")


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


def made_up_tiles(shape: tuple[int, ...]) -> Float32:
    """A batch with every normalised intensity that is to be expected, at every scale of wavelength."""
    waves: Float32 = 2 * np.sin(np.arange(int(np.prod(shape)), dtype=np.float32) ** 1.2)
    return waves.reshape(shape)


def try_out(engine: FileEngine, path: object) -> Float32:
    """Run a made-up batch on every stream: finds missing libraries, memory and wrong numbers now, not hours into a job.

    Returns:
        What it gave.

    Raises:
        ModelError: the output has NaN or infinite values.
    """
    tiles = made_up_tiles((engine.batch, engine.spec.channels, *engine.tile))
    if engine.takes_raw:
        tiles = 64 * tiles + 128
    out = np.full((engine.streams, engine.batch, engine.spec.values, *engine.tile), np.nan, np.float32)
    with Streams(engine) as streams:
        streams.run_each(engine.run, tiles, out)
    bad = out[0].size - int(np.isfinite(out[0]).sum())
    if bad:
        raise ModelError(
            f"{path} gives NaN or infinite values ({bad} of {out[0].size}) with {engine.name} {engine.precision}: "
            f"try another --engine or --precision, or export the model again"
        )
    first: Float32 = out[0]
    return first
