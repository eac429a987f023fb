"""Networks compiled ahead of time by PyTorch (AOTInductor, .pt2) for one kind of GPU; the only engine that needs torch.

A .pt2 is an archive of machine code: load only what you trust.  It runs with the torch version and on the GPU
architecture that it was made for.
"""

from __future__ import annotations

import json
import zipfile
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from tilelab.engines.device_engine import DeviceEngine
from tilelab.engines.loading import Availability, LoadRequest, Target, explain, size_text
from tilelab.engines.model_file import ModelFile, Port
from tilelab.engines.nvidia import driver_problem, gpu_count
from tilelab.errors import EngineError, ModelError, OutputError
from tilelab.kernels import device
from tilelab.spec import METADATA_KEY, ModelSpec, Precision

_COMPILED_KEY = "tilelab_compiled"
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


class Compiled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a package was compiled for: torch version, kind of device, GPU capability, fixed batch, type of its ports.

    `capability` is None for a CPU.
    """

    torch: str
    device: str
    capability: tuple[int, int] | None
    batch: int
    precision: Precision
    dtype: str


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What AOTInductor can do here; does not import torch, which takes seconds."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Availability("", "torch is not installed: pip install tilelab[train]")
    problem = driver_problem()
    if problem:
        return Availability(found, problem)
    return Availability(found, targets=tuple(Target(f"cuda:{i}", p) for i in range(gpu_count()) for p in _PRECISIONS))


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
                    if METADATA_KEY in fields and _COMPILED_KEY in fields:
                        compiled = msgspec.json.decode(fields[_COMPILED_KEY], type=Compiled)
                        return ModelSpec.from_json(fields[METADATA_KEY]), compiled
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise ModelError(f"{path} is not a PyTorch package, or it is truncated: export it again") from error
    raise ModelError(f"{path} does not describe its model: make it with `tilelab export CHECKPOINT -o {path.name}`")


def load(request: LoadRequest) -> AotInductorEngine:
    """A package, ready to run.

    Raises:
        EngineError: it was compiled by another torch or for another GPU.
    """
    return AotInductorEngine(request)


class AotInductorEngine(DeviceEngine):
    """A compiled network."""

    name = "aotinductor"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        path = request.file.path
        _, compiled = _read_metadata(path)
        try:
            import torch
            import torch._inductor
        except ImportError as error:
            raise EngineError(f"{path} needs torch {compiled.torch} ({explain(error)}): pip install torch") from error
        self._torch: Any = torch
        here = str(torch.__version__)
        if _minor(here) != _minor(compiled.torch):
            raise EngineError(f"{path} was compiled by torch {compiled.torch}, here is {here}: export it again")
        if compiled.capability is not None and compiled.capability != self.info.capability:
            built, have = (".".join(map(str, c)) for c in (compiled.capability, self.info.capability))
            raise EngineError(
                f"{path} was compiled for compute capability {built}, {self.info.name} has {have}: export it again"
            )
        if compiled.precision != request.precision:
            raise EngineError(f"{path} was compiled for {compiled.precision}: it cannot run in {request.precision}")
        self._place = torch.device(compiled.device, self.index) if compiled.device == "cuda" else torch.device("cpu")
        try:
            self._network: Any = torch._inductor.aoti_load_package(
                str(path), device_index=self.index if compiled.device == "cuda" else -1
            )
        except Exception as error:  # torch raises plain RuntimeError for everything
            raise EngineError(f"torch {here} cannot load {path}: {explain(error)}") from error
        self._versions = {"torch": here, "gpu": self.info.name, "driver": self.info.driver}

    def _enqueue(self, tiles: device.DeviceArray, logits: device.DeviceArray) -> None:
        torch = self._torch
        source, target = (torch.as_tensor(array, device=self._place) for array in (tiles, logits))
        try:
            with torch.inference_mode():
                if self._place.type == "cuda":
                    stream = torch.cuda.ExternalStream(device.stream_handle(self.stream), self._place)
                    with torch.cuda.stream(stream):
                        target.copy_(self._network(source))
                else:
                    target.copy_(self._network(source))
        except Exception as error:
            raise EngineError(
                f"AOTInductor failed on a batch of {size_text(self._request.input_shape)}: {explain(error)}"
            ) from error

    def versions(self) -> dict[str, str]:
        """Of torch, and the GPU and driver it was compiled for."""
        return dict(self._versions)

    def close(self) -> None:
        """Drop the network."""
        super().close()
        self._network = None


def compile_package(
    network: Any, spec: ModelSpec, output: Path, *, batch: int, precision: Precision = "fp32", target: str = "cuda"
) -> Path:
    """Compile a torch network for the first GPU of this machine and write a .pt2.

    Args:
        network: a ``torch.nn.Module``, ``(B, C, *tile)`` to ``(B, K, *tile)``, float32; it is not changed.
        spec: its description; tile and batch are compiled in.
        output: file to write, ending with .pt2.
        batch: tiles per run.
        precision: fp32, fp16 or bf16; fp16 networks take and give float16.
        target: ``cuda``, or ``cpu`` to check the path without a GPU.

    Raises:
        OutputError: `output` does not end with .pt2.
        EngineError: `precision` is not one of those.
        ModelError: torch cannot export or compile the network.
    """
    import copy

    import torch
    import torch._inductor

    if output.suffix != ".pt2":
        raise OutputError(f"cannot write {output}: AOTInductor needs a name that ends with .pt2")
    if precision not in _PRECISIONS:
        raise EngineError(f"AOTInductor compiles for {', '.join(_PRECISIONS)}, not {precision}")
    inner = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    outer = torch.float16 if precision == "fp16" else torch.float32

    class Ported(torch.nn.Module):
        """The network with its ports' type."""

        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network).eval().to(target, inner)

        def forward(self, tiles: Any) -> Any:
            return self.network(tiles.to(inner)).to(outer).contiguous()

    compiled = Compiled(
        torch=str(torch.__version__),
        device=target,
        capability=torch.cuda.get_device_capability(0) if target == "cuda" else None,
        batch=batch,
        precision=precision,
        dtype=str(outer).removeprefix("torch."),
    )
    example = torch.zeros((batch, spec.channels, *spec.tile), dtype=outer, device=target)
    metadata = {METADATA_KEY: spec.to_json(), _COMPILED_KEY: msgspec.json.encode(compiled).decode()}
    try:
        with torch.no_grad():
            program = torch.export.export(Ported(), (example,))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(output), inductor_configs={"aot_inductor.metadata": metadata}
            )
    except Exception as error:
        raise ModelError(f"AOTInductor cannot compile {spec.name or 'the network'}: {explain(error)}") from error
    return output


def _minor(torch_version: str) -> str:
    """``2.11`` of ``2.11.0+cu130``: compiled code is bound to it."""
    return ".".join(torch_version.split("+")[0].split(".")[:2])
