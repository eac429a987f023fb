"""What every engine module gets and gives: the request to load, what works here, and the trial run after loading."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.base import BaseEngine, EngineMemory
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.meaning import Meaning
from tilelab.engines.outputs import place_output
from tilelab.engines.parts import make_parts, undo_activation
from tilelab.engines.streams import Streams
from tilelab.errors import ModelError
from tilelab.machine.cpu import physical_core_count
from tilelab.machine.memory import available_memory, resident_memory
from tilelab.spec import Activation, ModelSpec, Output, Precision
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
        source, targets: the input fed and the outputs used.
        spec: its full description.
        device, precision: one of the engine's working targets.
        batch, tile: the fixed shape of a batch.
        threads: of the engine; None for one on each core.
        warnings: one line each, for the user.
        meaning: of its output; None takes it for logits.
    """

    file: ModelFile
    source: Port
    targets: tuple[Port, ...]
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
        names = [target.name for target in self.targets] if len(self.file.outputs) > 1 else []
        said = [] if self.meaning is None or self.meaning.said is None else [f"as {self.meaning.said}"]
        return " ".join([self.file.digest(), *names, *said])

    @property
    def target(self) -> Port:
        """The output of the classes, or the first map."""
        return self.targets[0]

    @property
    def native_input_shape(self) -> tuple[int, ...]:
        """Of one batch, as the network has it."""
        return self.source.native(self.input_shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one batch."""
        return (self.batch, self.spec.channels, *self.tile)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one batch's values."""
        return (self.batch, self.spec.values, *self.spec.core)


@dataclass(frozen=True, slots=True)
class _Stream:
    """What one call of `run` has to itself: buffers to convert through, where types, axes or extents differ."""

    index: int
    input: Array | None
    outputs: tuple[Array, ...] | None


class FileEngine(BaseEngine):
    """What engines that load a model file have in common.

    A network that takes or gives another type, has its axes in another order, several outputs or such of another
    extent than its tile, goes through buffers of its own, and one that ends in an activation has it undone.

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
        self._parts = make_parts(request.spec, request.targets)
        self._open_streams(1, np.dtype(request.source.dtype), np.dtype(request.target.dtype))
        self._undo: Activation | None = None

    @property
    def model_digest(self) -> str:
        """Identifies the network; see `LoadRequest.model_digest`."""
        return self._request.model_digest()

    def run(self, tiles: Float32, out: Float32) -> None:
        """Compute the values of `tiles` into `out`; see `Engine.run`."""
        _check_array("tiles", tiles, self._request.input_shape)
        _check_array("out", out, self._request.output_shape)
        stream = self._idle.get()
        try:
            source: Array = tiles
            if stream.input is not None:
                _convert(tiles, self._request.source.view(stream.input))
                source = stream.input
            if stream.outputs is None:
                self._compute(source, (out,), stream.index)
                if self._undo is not None:
                    undo_activation(out, self._undo)
                return
            self._compute(source, stream.outputs, stream.index)
            for i, (part, array) in enumerate(zip(self._parts, stream.outputs, strict=True)):
                part.place(array, out, self._undo if i == 0 else None)
        finally:
            self._idle.put(stream)

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

    def fit_outputs(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Take the outputs for as large as the network gives them: `shapes` of one batch, in its own order of axes.

        Raises:
            ModelError: they do not fit the description.
        """
        self._request = fit_outputs(self._request, shapes)
        self.spec = self._request.spec
        self.warnings = self._request.warnings
        self._parts = make_parts(self.spec, self._request.targets)

    def _open_streams(self, count: int, source: np.dtype[Any], target: np.dtype[Any]) -> None:
        """Have `count` streams, for a network that takes and gives these types (`target`: of its first output)."""
        request, parts = self._request, self._parts
        types = [target, *(np.dtype(part.port.dtype) for part in parts[1:])]
        direct = len(parts) == 1 and parts[0].direct and target == np.float32
        self.streams = count
        self._idle: SimpleQueue[_Stream] = SimpleQueue()
        for index in range(count):
            taken, made = None, None
            if source != np.float32 or not request.source.as_ours:
                taken = np.empty(request.native_input_shape, source)
            if not direct:
                made = tuple(np.empty(p.native(request.batch), t) for p, t in zip(parts, types, strict=True))
            self._idle.put(_Stream(index, taken, made))

    @abc.abstractmethod
    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:
        """Run the network on `source` into `targets`, all of its own types and shapes."""

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
    """Raise `ModelError` unless the network gives one value per class and pixel of the tile (what GPU engines take)."""
    if request.target.ours(shape) != request.output_shape:
        raise _unfit(request, request.target, request.spec.values, shape, "run it with --device cpu, or resize it")


def fit_outputs(request: LoadRequest, shapes: Sequence[tuple[int, ...]]) -> LoadRequest:
    """`request` with the outputs where the network's `shapes` for one batch put them.

    Raises:
        ModelError: they are not as described.
    """
    spec, targets, placed, said = request.spec, [], [], []
    for port, output, shape in zip(request.targets, spec.outputs, shapes, strict=True):
        batch, channels, *extent = port.ours(shape) if len(shape) > 1 else (0, 0)
        count = spec.values_of(output)
        if (batch, channels) != (request.batch, count) or len(extent) != len(spec.tile):
            raise _unfit(request, port, count, shape, "check --classes, --activation and --model-axes")
        plain = msgspec.structs.replace(output, scale=(), halo=())
        try:
            found = place_output(plain, spec.tile, tuple(extent))
        except ModelError as error:
            raise ModelError(f"{request.file.path}: its output {port.name} {error}") from error
        if output != plain and found != output and tuple(extent) == _described_extent(output, spec.tile):
            found = output
        if output != plain and found != output:
            raise _unfit(request, port, count, shape, "its description says another scale or halo")
        placed.append(found)
        said += _placing(port, found)
        targets.append(replace(port, shape=(batch, channels, *extent)))
    if tuple(placed) != spec.outputs:
        spec = msgspec.structs.replace(spec, outputs=tuple(placed))
    return replace(request, spec=spec, targets=tuple(targets), warnings=(*request.warnings, *said))


def _described_extent(output: Output, tile: tuple[int, ...]) -> tuple[int, ...]:
    """That of a tile by the description; where it could have several, that is the one that counts."""
    scale, halo = output.scale or (1.0,) * len(tile), output.halo or (0,) * len(tile)
    return tuple(round((t - 2 * h) * s) for t, h, s in zip(tile, halo, scale, strict=True))


def _placing(port: Port, output: Output) -> list[str]:
    """Where the pixels of an output are, if not where the tile's are."""
    said = []
    if output.halo:
        said.append(
            f"output {port.name!r} lacks {size_text(output.halo)} px at either side of a tile: as much more is read "
            "around it, beyond the image its reflection"
        )
    if output.scale:
        how = "nearest" if output.kind == "labels" else "linearly"
        ways = [w for w, is_so in (("enlarged", min(output.scale) < 1), ("shrunk", max(output.scale) > 1)) if is_so]
        said.append(
            f"output {port.name!r} has {size_text(f'{s:g}' for s in output.scale)} pixels for each of the image: "
            f"{' and '.join(ways)} ({how}) to the image's size"
        )
    return said


def _unfit(request: LoadRequest, port: Port, count: int, shape: tuple[int, ...], advice: str) -> ModelError:
    want = port.native((request.batch, count, *request.spec.core))
    return ModelError(
        f"{request.file.path} gives {size_text(shape)} for a batch, not {size_text(want)} (batch, outputs, pixels): "
        f"{advice}"
    )


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
    out = np.full((engine.streams, engine.batch, engine.spec.values, *engine.spec.core), np.nan, np.float32)
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
