"""What an engine is: something that turns one batch of tiles into one batch of logits."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tilelab.arrays import Float32
from tilelab.assumptions import Assumption
from tilelab.spec import ModelSpec, OutputKind, Precision

if TYPE_CHECKING:  # brings Numba's CUDA
    from tilelab.kernels.device import DeviceArray, DeviceInfo, Stream


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes that a loaded engine holds, weights and workspace, as far as the system and its library say; else 0.

    Attributes:
        host_bytes: of the process.
        device_bytes: of its GPU.
        more_host_bytes: that it may come to hold besides while it runs, at most.
    """

    host_bytes: int = 0
    device_bytes: int = 0
    more_host_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """What a sweep has to know of an engine's GPU before it allocates there.

    Attributes:
        tiles_dtype, logits_dtype: float32 or float16, what the network takes and gives.
        free_bytes: beside the loaded engine.
    """

    tiles_dtype: np.dtype[Any]
    logits_dtype: np.dtype[Any]
    free_bytes: int


class Engine(Protocol):
    """A loaded model on one device at one precision, for one batch shape; `BaseEngine` is what most begin with.

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
        output_is: what the network itself gives; `run` gives logits of probabilities, too.
        model_digest: identifies the network; part of the fingerprint of every result.
        memory: what it holds.
        gpu_room: what it leaves of its GPU, wherever that is; None without a GPU.
        on_device: the engine for those who have their tiles on its GPU, or None: ask here, nowhere else.
        members: the engines that it is made of, where it is made of several.
        macs: multiplications that it makes of a tile, where it counts them.
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
    @property
    def output_is(self) -> OutputKind: ...
    @property
    def model_digest(self) -> str: ...
    @property
    def memory(self) -> EngineMemory: ...
    @property
    def gpu_room(self) -> GpuRoom | None: ...
    @property
    def on_device(self) -> DeviceEngine | None: ...
    @property
    def members(self) -> tuple[Engine, ...]: ...
    @property
    def macs(self) -> int | None: ...

    def run(self, tiles: Float32, out: Float32) -> None:
        """Compute what the network gives for one batch into `out`; blocks, and releases the GIL while computing.

        The caller owns both arrays and alternates between a few of them, so an engine can bind them without a copy.

        Args:
            tiles: float32, C-contiguous, ``(batch, spec.channels, *tile)``, normalised.
            out: float32, C-contiguous, ``(batch, spec.values, *spec.core)``, overwritten: the channels of all outputs
                that the description lists, on the pixels of the tile or, where it has a halo, of its core.

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


class DeviceEngine(Engine, Protocol):
    """An engine that also takes and gives arrays that are on its GPU, in the order of a stream.

    Attributes:
        index: of the GPU.
        info: the GPU as it was when the engine was loaded.
        stream: what `enqueue` puts its work on.
        tiles_dtype, logits_dtype: float32 or float16, what the network itself takes and gives.
    """

    @property
    def index(self) -> int: ...
    @property
    def info(self) -> DeviceInfo: ...
    @property
    def stream(self) -> Stream: ...
    @property
    def tiles_dtype(self) -> np.dtype[Any]: ...
    @property
    def logits_dtype(self) -> np.dtype[Any]: ...

    def enqueue(self, tiles: DeviceArray, logits: DeviceArray) -> None:
        """Compute the logits of one batch, in the order of `stream`; may return before it is done.

        Args:
            tiles: on the GPU, C-contiguous, `tiles_dtype`, ``(batch, spec.channels, *tile)``, normalised.
            logits: on the GPU, C-contiguous, `logits_dtype`, ``(batch, spec.values, *tile)``, overwritten.

        Raises:
            EngineError: the device failed or ran out of memory.
        """
        ...


class BaseEngine(abc.ABC):
    """An engine on the CPU with nothing to say of itself; see `Engine`.

    One of your own needs `run`, and `versions` where its results depend on more than its name.

    Args:
        spec: what the model says of itself.
        tile, batch: the fixed shape of a batch; by default the model's tile, one at a time.
        model_digest: identifies the network, for the fingerprints of results; by default the engine's name.
    """

    name = "function"
    device = "cpu"
    precision: Precision = "fp32"
    streams = 1
    warnings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    output_is: OutputKind = "logits"
    memory = EngineMemory()
    members: tuple[Engine, ...] = ()
    macs: int | None = None

    def __init__(
        self, spec: ModelSpec, tile: tuple[int, ...] | None = None, batch: int = 1, model_digest: str = ""
    ) -> None:
        self.spec = spec
        self.tile = spec.tile if tile is None else tile
        self.batch = batch
        self._digest = model_digest

    @property
    def model_digest(self) -> str:
        """See `Engine.model_digest`."""
        return self._digest or self.name

    @property
    def gpu_room(self) -> GpuRoom | None:
        """It has no GPU."""
        return None

    @property
    def on_device(self) -> DeviceEngine | None:
        """It has no GPU."""
        return None

    @abc.abstractmethod
    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""

    def versions(self) -> Mapping[str, str]:
        """Nothing that could change the result."""
        return {}

    def close(self) -> None:
        """Nothing to free."""
