"""A TensorRT engine file: a plan behind a header that says what it is, for which GPU, and made by which version.

    offset 0   magic            16 bytes
           16  header length     8 bytes, little endian
           24  plan length       8 bytes, little endian
           32  header            JSON, see `PlanHeader`
               zeros             up to a multiple of 256
               plan              as TensorRT serialised it

A bare plan, as ``trtexec`` writes it, is read too, with its model's description in a ``.json`` file beside it.
"""

from __future__ import annotations

import hashlib
import mmap
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from tilelab.engines.files.ending import Ending
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.errors import EngineError, ModelError
from tilelab.machine.disk import replacing
from tilelab.spec import ModelSpec, Precision

MAGIC = b"tilelab plan 01\n"
_LENGTHS = struct.Struct("<QQ")
_ALIGNMENT = 256
_ENDINGS = {"Softmax": Ending(0, 1, unit=True, operator="Softmax"), "Sigmoid": Ending(0, 1, operator="Sigmoid")}
Compatibility = Literal["this", "capability", "ampere+"]


class PlanHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a plan does not say of itself.

    Attributes:
        spec: the model's description.
        tensorrt: version that built it.
        capability: of the GPU it was built on, (major, minor).
        compatibility: GPUs it runs on: ``this`` model and ``capability`` need the same capability, ``ampere+`` any
            from 8.0 on.
        gpu, driver: it was built on.
        system: operating system and processor, as `this_system` says it.
        precision, tf32: the arithmetic.
        batch: least, best and most tiles per run.
        input, output: name and type of the network's tensors.
        activation: that the network ends in, by the name of its ONNX operator; of other operators nothing is known.
        source, source_sha256: the ONNX file it was built from.
        plan_sha256: of the plan, to find damage.
        tilelab: version that wrote the file.
    """

    spec: ModelSpec
    tensorrt: str
    capability: tuple[int, int]
    compatibility: Compatibility = "this"
    gpu: str = ""
    driver: str = ""
    system: str = ""
    precision: Precision
    tf32: bool = False
    batch: tuple[int, int, int]
    input: tuple[str, str]
    output: tuple[str, str]
    activation: str = ""
    source: str = ""
    source_sha256: str = ""
    plan_sha256: str = ""
    tilelab: str = ""


def this_system() -> str:
    """Operating system and processor, e.g. ``linux x86_64``: a plan runs on no other."""
    return f"{sys.platform} {platform.machine().lower()}"


def write_plan(path: Path, header: PlanHeader, plan: bytes | memoryview) -> None:
    """Write an engine file; it appears under its name only when it is complete."""
    header = msgspec.structs.replace(header, plan_sha256=hashlib.sha256(plan).hexdigest())
    text = msgspec.json.encode(header, order="sorted")
    start = len(MAGIC) + _LENGTHS.size + len(text)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + _LENGTHS.pack(len(text), len(plan)) + text + bytes(-start % _ALIGNMENT))
        file.write(plan)


def read_header(path: Path) -> tuple[PlanHeader | None, int, int]:
    """Header of an engine file, and where its plan begins and ends; the header of a bare plan is None.

    Raises:
        ModelError: missing, empty, truncated, or its header is not valid.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(MAGIC) + _LENGTHS.size)
            if not head.startswith(MAGIC):
                if not size:
                    raise ModelError(f"{path} is empty: not a TensorRT engine")
                return None, 0, size
            if len(head) < len(MAGIC) + _LENGTHS.size:
                raise ModelError(f"{path} is truncated: export it again")
            header_bytes, plan_bytes = _LENGTHS.unpack(head[len(MAGIC) :])
            start = len(head) + header_bytes
            start += -start % _ALIGNMENT
            if start + plan_bytes != size:
                raise ModelError(
                    f"{path} is damaged: it has {size} bytes, its header says {start + plan_bytes}: export it again"
                )
            text = file.read(header_bytes)
    except OSError as error:
        raise ModelError(f"cannot read the engine {path}: {error.strerror or error}") from error
    try:
        return msgspec.json.decode(text, type=PlanHeader), start, size
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(f"{path} has a header that this tilelab cannot read ({error}): export it again") from error


def sidecar(path: Path) -> Path | None:
    """The description beside a bare plan: ``m.engine.json`` or ``m.json``."""
    for beside in (path.with_name(path.name + ".json"), path.with_suffix(".json")):
        if beside.is_file():
            return beside
    return None


def read_plan_file(path: Path) -> ModelFile:
    """What an engine file holds, without TensorRT.

    Raises:
        ModelError: missing, damaged, or a bare plan with no description beside it.
    """
    header, _, _ = read_header(path)
    if header is None:
        beside = sidecar(path)
        if beside is None:
            raise ModelError(
                f"{path} is a bare TensorRT plan and does not describe its model: put the description into "
                f"{path.name}.json beside it, or build it with `tilelab export`"
            )
        spec = ModelSpec.from_json(beside.read_bytes())
        precision = spec.precisions[0]
        names, batch, files = (("input", "float32"), ("output", "float32")), "batch", (path, beside)
        return _model_file(path, files, spec, precision, names, batch, "")
    least, _, most = header.batch
    batch_size: int | str = most if least == most else "batch"
    names = (header.input, header.output)
    return _model_file(path, (path,), header.spec, header.precision, names, batch_size, header.activation)


def _model_file(
    path: Path,
    files: tuple[Path, ...],
    spec: ModelSpec,
    precision: Precision,
    names: tuple[tuple[str, str], tuple[str, str]],
    batch: int | str,
    activation: str,
) -> ModelFile:
    (source, source_dtype), (target, target_dtype) = names
    return ModelFile(
        path=path,
        format="tensorrt",
        files=files,
        inputs=(Port(source, source_dtype, (batch, spec.channels, *spec.tile)),),
        outputs=(Port(target, target_dtype, (batch, spec.values, *spec.tile)),),
        precision=precision,
        description=spec.to_json(),
        endings={target: _ENDINGS[activation]} if activation in _ENDINGS else {},
        producer="TensorRT",
        device="cuda",
    )


def check_header(path: Path, header: PlanHeader, tensorrt: str, capability: tuple[int, int], gpu: str) -> None:
    """Refuse a plan that cannot run here, before TensorRT fails on it or worse.

    Raises:
        EngineError: another operating system, TensorRT major version or GPU architecture; the message says which.
    """
    again = "export it again here: tilelab export model.onnx -o model.engine"
    if header.system and header.system != this_system():
        raise EngineError(f"{path} was built for {header.system}, this is {this_system()}: {again}")
    if header.tensorrt.partition(".")[0] != tensorrt.partition(".")[0]:
        raise EngineError(f"{path} was built with TensorRT {header.tensorrt}, here is {tensorrt}: {again}")
    built, here = (".".join(map(str, c)) for c in (header.capability, capability))
    if header.compatibility == "ampere+":
        if capability < (8, 0):
            raise EngineError(f"{path} runs on GPUs of compute capability 8.0 or more, {gpu} has {here}: {again}")
    elif header.capability != capability:
        raise EngineError(
            f"{path} was built on {header.gpu or 'a GPU'} (compute capability {built}), {gpu} has {here}: {again}, "
            "or for all newer GPUs with --hardware-compatibility ampere+"
        )


@contextmanager
def open_plan(path: Path) -> Iterator[memoryview]:
    """The plan of an engine file, checked and not copied.

    Raises:
        ModelError: missing or damaged.
    """
    header, start, stop = read_header(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = memoryview(data)
        plan = whole[start:stop]
        try:
            if header is not None and hashlib.sha256(plan).hexdigest() != header.plan_sha256:
                raise ModelError(f"{path} is damaged: its plan has changed since it was written: export it again")
            yield plan
        finally:
            plan.release()
            whole.release()
