"""PyTorch packages (.pt2): archives of compiled machine code with our description in them; load only what you trust."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.errors import EngineError, ModelError
from tilelab.spec import METADATA_KEY, ModelSpec, Precision
from tilelab.text import explain

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
        outputs=(Port("logits", compiled.dtype, (compiled.batch, spec.values, *spec.tile)),),
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


_exact = threading.Lock()
_before: list[_Precisions] = []  # the settings as they were, once for everyone who is within


class _Precisions:
    """How torch multiplies fp32, as it is now.

    Since 2.9 there is a word for each kind of operator, beside the switches of old: both count, and where they
    disagree a switch cannot be read.
    """

    def __init__(self, torch: Any) -> None:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        operators: tuple[Any, ...] = (getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), matmul)
        self._words = [(place, place.fp32_precision) for place in operators if hasattr(place, "fp32_precision")]
        self._switches: list[tuple[Any, bool]] = []
        for place in (cudnn, matmul):
            with suppress(RuntimeError):
                self._switches.append((place, place.allow_tf32))
        self._places = cudnn, matmul

    def make_exact(self) -> None:
        """Have no bits left out."""
        for place in self._places:
            place.allow_tf32 = False
        for place, _ in self._words:
            place.fp32_precision = "ieee"

    def put_back(self) -> None:
        """Have everything as it was, words last: a switch sets them, too."""
        for place, allowed in self._switches:
            place.allow_tf32 = allowed
        for place, word in self._words:
            place.fp32_precision = word


@contextmanager
def exact_fp32(torch: Any) -> Iterator[None]:
    """Within it, torch multiplies fp32 as fp32: by itself its convolutions on a GPU keep 10 bits of 23 (TF32).

    Torch has one setting for all threads: it is put back when the last of those that are within leaves.
    """
    with _exact:
        _before.append(_before[0] if _before else _Precisions(torch))
        _before[0].make_exact()
    try:
        yield
    finally:
        with _exact:
            before = _before.pop()
            if not _before:
                before.put_back()


def load_compiled(path: Path, precision: Precision, device_index: int) -> tuple[Any, Any]:
    """Torch, and the compiled network of a package; `device_index` is the GPU's number, -1 for the CPU.

    On a GPU it is for one caller at a time: torch's other runner waits for its previous run at every call.

    Raises:
        EngineError: torch is missing or another one, the precision is another, or the code does not load.
    """
    compiled = read_compiled(path)
    try:
        import torch
        import torch._inductor
    except ImportError as error:
        raise EngineError(f"{path} needs torch {compiled.torch} ({explain(error)}): pip install torch") from error
    here = str(torch.__version__)
    if _minor(here) != _minor(compiled.torch):
        raise EngineError(f"{path} was compiled by torch {compiled.torch}, here is {here}: export it again")
    if compiled.precision != precision:
        raise EngineError(f"{path} was compiled for {compiled.precision}: it cannot run in {precision}")
    try:
        return torch, torch._inductor.aoti_load_package(
            str(path), run_single_threaded=device_index >= 0, device_index=device_index
        )
    except Exception as error:  # torch raises plain RuntimeError for everything
        raise EngineError(f"torch {here} cannot load {path}: {explain(error)}") from error


def read_compiled(path: Path) -> Compiled:
    """What a package was compiled for.

    Raises:
        ModelError: as `read_package`.
    """
    return _read_metadata(path)[1]


def _minor(torch_version: str) -> str:
    """``2.11`` of ``2.11.0+cu130``: compiled code is bound to it."""
    return ".".join(torch_version.split("+")[0].split(".")[:2])
