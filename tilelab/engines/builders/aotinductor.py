"""From a torch network to an AOTInductor package, on the machine it is for."""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import sys
import tempfile
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from tilelab.engines.files.aotinductor_package import COMPILED_KEY, PRECISIONS, Compiled, exact_fp32
from tilelab.errors import EngineError, ModelError, OutputError
from tilelab.machine.cpu import cpu_features
from tilelab.machine.disk import replacing
from tilelab.machine.nvidia import driver_problem, missing_gpu
from tilelab.spec import METADATA_KEY, ModelSpec, Precision
from tilelab.text import explain

_COMPILER_ERROR = re.compile(r"(?:: (?:fatal )?error: (?!ld returned)|(?=cannot find -l))(.*)")


def compile_package(
    network: Any, spec: ModelSpec, output: Path, *, batch: int, precision: Precision = "fp32", target: str = "cuda"
) -> Path:
    """Compile a torch network for a GPU or the CPU of this machine and write a .pt2.

    Args:
        network: a ``torch.nn.Module``, ``(B, C, *tile)`` to ``(B, K, *tile)``, float32; it is not changed.
        spec: its description; tile and batch are compiled in.
        output: file to write, ending with .pt2.
        batch: tiles per run.
        precision: fp32, fp16 or bf16; fp16 networks take and give float16.
        target: ``cpu``, ``cuda`` (the first GPU) or ``cuda:N``: it is compiled and tuned on that one, and runs on all
            of its compute capability.

    Raises:
        OutputError: `output` does not end with .pt2.
        EngineError: `precision` is not one of those, there is no such GPU, or no C++ compiler.
        ModelError: torch cannot export or compile the network.
    """
    import torch
    import torch._inductor

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no GPU, on every import
    if output.suffix != ".pt2":
        raise OutputError(f"cannot write {output}: AOTInductor needs a name that ends with .pt2")
    if precision not in PRECISIONS:
        raise EngineError(f"AOTInductor compiles for {', '.join(PRECISIONS)}, not {precision}")
    if not find_compiler():
        raise EngineError("AOTInductor needs a C++ compiler and finds none: install g++, or name one in CXX")
    index = None if target == "cpu" else _find_gpu(torch, target)
    place = "cpu" if index is None else f"cuda:{index}"
    ported, outer = _with_ports(network, precision, place)
    compiled = Compiled(
        torch=str(torch.__version__),
        device=place.partition(":")[0],
        capability=None if index is None else torch.cuda.get_device_capability(index),
        batch=batch,
        precision=precision,
        dtype=str(outer).removeprefix("torch."),
        cpu=cpu_features() if index is None else "",
    )
    example = torch.zeros((batch, spec.channels, *spec.tile), dtype=outer, device=place)
    metadata = {METADATA_KEY: spec.to_json(), COMPILED_KEY: msgspec.json.encode(compiled).decode()}
    try:
        with torch.no_grad(), exact_fp32(torch), nullcontext() if index is None else torch.cuda.device(index):
            program = torch.export.export(ported, (example,))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(output), inductor_configs={"aot_inductor.metadata": metadata}
            )
    except Exception as error:
        raise ModelError(f"AOTInductor cannot compile {spec.name or 'the network'}: {_reason(error)}") from error
    _forget_machine(output)
    return output


def _find_gpu(torch: Any, target: str) -> int:
    """The number of the GPU that is meant, which torch can use.

    Raises:
        EngineError: it is not there.
    """
    kind, _, number = target.partition(":")
    if kind != "cuda" or not (number.isdecimal() or target == "cuda"):
        raise EngineError(f"device {target!r} is neither a GPU nor the CPU: use cpu, cuda or cuda:N")
    index = int(number or 0)
    if problem := driver_problem() or missing_gpu(index):
        raise EngineError(f"a .pt2 cannot be compiled for {target}: {problem}")
    if index >= torch.cuda.device_count():
        raise EngineError(
            f"a .pt2 cannot be compiled for {target}: torch {torch.__version__} finds {torch.cuda.device_count()} GPUs "
            "(its build has to be one for CUDA that suits the driver)"
        )
    return index


def _reason(error: BaseException) -> str:
    """What went wrong: of a compiler the first error; its last line only says that it has stopped."""
    said = _COMPILER_ERROR.search(str(error))
    reason = explain(error) if said is None else said.group(1).strip()
    if re.search(r"CUDA_HOME|\bcuda\w*\.h\b|-lcuda", reason) is None:
        return reason
    return f"{reason}: it needs a CUDA toolkit, which torch does not bring: install one, or name it in CUDA_HOME"


def _with_ports(network: Any, precision: Precision, target: str) -> tuple[Any, Any]:
    """A copy of the network that computes in `precision` on `target`, and the type that it takes and gives."""
    import copy

    import torch

    inner = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    outer = torch.float16 if precision == "fp16" else torch.float32

    class Ported(torch.nn.Module):
        """The network with its ports' type."""

        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network).eval().to(target, inner)

        def forward(self, tiles: Any) -> Any:
            return self.network(tiles.to(inner)).to(outer).contiguous()

    return Ported(), outer


def find_compiler() -> str | None:
    """The C++ compiler that torch will call; None where there is none."""
    named = os.environ.get("CXX")
    return next((found for name in (named, "g++", "clang++", "c++") if name and (found := shutil.which(name))), None)


def _forget_machine(package: Path) -> None:
    """Empty the generated sources, and blot out where this machine keeps its files: loading needs neither.

    Torch 2.11 looks for the sources' names to find the descriptions beside them, so the names stay.
    """
    import torch

    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
    places = {
        str(Path(torch.__file__).parents[1]),
        cache,
        sys.prefix,
        sys.base_prefix,
        str(Path.home()),
        str(Path.cwd()),
    }
    longest_first = sorted((p.encode() for p in places if len(p) > 1), key=len, reverse=True)
    with (
        replacing(package) as cleaned,
        zipfile.ZipFile(package) as old,
        zipfile.ZipFile(cleaned, "w", zipfile.ZIP_STORED) as new,
    ):
        for entry in old.infolist():
            if entry.filename.endswith((".h", ".o")):
                continue
            data = b"" if entry.filename.endswith(".cpp") else old.read(entry)
            if entry.filename.endswith((".so", ".cubin")):
                for place in longest_first:
                    data = data.replace(place, b"/".ljust(len(place), b"_"))  # of the same length: offsets hold
            new.writestr(entry, data)
