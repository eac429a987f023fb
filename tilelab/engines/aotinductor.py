"""Networks compiled ahead of time by PyTorch (AOTInductor, .pt2), for one kind of GPU or for the CPU.

The only engine that needs torch.  A .pt2 is an archive of machine code: load only what you trust.  It runs with the
torch version and on the GPU architecture or the kind of CPU that it was made for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from tilelab.engines.loading import Array, Availability, FileEngine, LoadRequest, Target, explain, size_text
from tilelab.engines.machine import cpu_features
from tilelab.engines.model_file import ModelFile, Port
from tilelab.engines.nvidia import driver_problem, gpu_count
from tilelab.errors import EngineError, ModelError
from tilelab.spec import METADATA_KEY, ModelSpec, Precision

COMPILED_KEY = "tilelab_compiled"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


class Compiled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a package was compiled for.

    Attributes:
        torch: its version.
        device: ``cuda`` or ``cpu``.
        capability: of the GPU; None for a CPU.
        cpu: instruction sets of the CPU; empty for a GPU.
        batch: tiles per run.
        precision: of the arithmetic.
        dtype: of what goes in and comes out.
    """

    torch: str
    device: str
    capability: tuple[int, int] | None
    batch: int
    precision: Precision
    dtype: str
    cpu: str = ""


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What AOTInductor can do here; does not import torch, which takes seconds."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Availability("", "torch is not installed: pip install tilelab[train]")
    devices = ["cpu"] if driver_problem() else ["cpu", *(f"cuda:{i}" for i in range(gpu_count()))]
    return Availability(found, targets=tuple(Target(device, p) for device in devices for p in PRECISIONS))


def read_package(path: Path) -> ModelFile:
    """What a .pt2 holds, without torch.

    Raises:
        ModelError: missing, damaged, or not made by `tilelab export`.
    """
    spec, compiled = _read_metadata(path)
    return ModelFile(
        path=path,
        format="aotinductor",
        files=(path,),
        inputs=(Port("tiles", compiled.dtype, (compiled.batch, spec.channels, *spec.tile)),),
        outputs=(Port("logits", compiled.dtype, (compiled.batch, spec.outputs, *spec.tile)),),
        precision=compiled.precision,
        device=compiled.device,
        description=spec.to_json(),
        producer=f"torch {compiled.torch}",
    )


def _read_metadata(path: Path) -> tuple[ModelSpec, Compiled]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ModelError(f"{path} is damaged: export it again")
            for name in archive.namelist():
                if name.endswith("_metadata.json"):
                    fields = json.loads(archive.read(name))
                    if METADATA_KEY in fields and COMPILED_KEY in fields:
                        compiled = msgspec.json.decode(fields[COMPILED_KEY], type=Compiled)
                        return ModelSpec.from_json(fields[METADATA_KEY]), compiled
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise ModelError(f"{path} is not a PyTorch package, or it is truncated: export it again") from error
    raise ModelError(f"{path} does not describe its model: make it with `tilelab export CHECKPOINT -o {path.name}`")


def load(request: LoadRequest) -> FileEngine:
    """A package, ready to run.

    Raises:
        EngineError: it was compiled by another torch, for another GPU or for a CPU with other instructions.
    """
    if request.device == "cpu":
        return AotInductorCpuEngine(request)
    from tilelab.engines.aotinductor_cuda import AotInductorCudaEngine

    return AotInductorCudaEngine(request)


def load_network(request: LoadRequest, device_index: int) -> tuple[Any, Any]:
    """Torch, and the compiled network of a package; `device_index` is the GPU's number, -1 for the CPU.

    Raises:
        EngineError: torch is missing or another one, the precision is another, or the code does not load.
    """
    path = request.file.path
    compiled = read_compiled(path)
    try:
        import torch
        import torch._inductor
    except ImportError as error:
        raise EngineError(f"{path} needs torch {compiled.torch} ({explain(error)}): pip install torch") from error
    here = str(torch.__version__)
    if _minor(here) != _minor(compiled.torch):
        raise EngineError(f"{path} was compiled by torch {compiled.torch}, here is {here}: export it again")
    if compiled.precision != request.precision:
        raise EngineError(f"{path} was compiled for {compiled.precision}: it cannot run in {request.precision}")
    try:
        return torch, torch._inductor.aoti_load_package(str(path), device_index=device_index)
    except Exception as error:  # torch raises plain RuntimeError for everything
        raise EngineError(f"torch {here} cannot load {path}: {explain(error)}") from error


def read_compiled(path: Path) -> Compiled:
    """What a package was compiled for.

    Raises:
        ModelError: as `read_package`.
    """
    return _read_metadata(path)[1]


class AotInductorCpuEngine(FileEngine):
    """A network compiled for the CPU."""

    name = "aotinductor"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        compiled = read_compiled(request.file.path)
        if compiled.cpu and not set(compiled.cpu.split()) <= set(cpu_features().split()):
            raise EngineError(
                f"{request.file.path} was compiled for a CPU with {compiled.cpu}, this one has {cpu_features()}: "
                "export it again here"
            )
        self._torch, self._network = load_network(request, -1)
        self._threads: int = request.threads or self._torch.get_num_threads()

    def _compute(self, source: Array, target: Array, stream: int) -> None:  # noqa: ARG002 - the only one
        torch = self._torch
        if torch.get_num_threads() != self._threads:  # a property of each thread that calls
            torch.set_num_threads(self._threads)
        tiles = torch.from_numpy(source if source.flags.writeable else source.copy())
        try:
            with torch.inference_mode():
                torch.from_numpy(target).copy_(self._network(tiles))
        except Exception as error:
            raise EngineError(
                f"AOTInductor failed on a batch of {size_text(self._request.input_shape)}: {explain(error)}"
            ) from error

    def versions(self) -> Mapping[str, str]:
        """Of torch, the instruction sets that it may use, and the threads that it cuts its sums for."""
        return {"torch": str(self._torch.__version__), "cpu": cpu_features(), "threads": str(self._threads)}

    def close(self) -> None:
        """Drop the network."""
        self._network = None


def _minor(torch_version: str) -> str:
    """``2.11`` of ``2.11.0+cu130``: compiled code is bound to it."""
    return ".".join(torch_version.split("+")[0].split(".")[:2])
