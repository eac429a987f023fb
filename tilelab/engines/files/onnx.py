"""What an ONNX file holds, read from its bytes: no ONNX library, no weights touched, a few milliseconds.

An ONNX file is one protobuf message: a sequence of (field number, wire type, value), where a value is a varint, 4 or 8
fixed bytes, or a length and that many bytes (a string or a message of its own).  Weights are skipped by their length.
Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilelab.arrays import Float64
from tilelab.engines.files.ending import find_ending
from tilelab.engines.files.graph import MOST_NUMBERS, Attribute, Graph, Operation
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.errors import ModelError
from tilelab.machine.disk import replacing
from tilelab.spec import METADATA_KEY, ModelSpec, Precision

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_DTYPES |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}
_NUMPY = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
_FLOAT16 = 10
_METADATA_PROPS = 14  # field of ModelProto
_EXTERNAL = 1  # TensorProto.data_location


class _Malformed(Exception):
    """The bytes are not a protobuf message."""


def _varint(data: mmap.mmap | bytes, at: int, stop: int) -> tuple[int, int]:
    """The number at `at` and the position after it."""
    value = shift = 0
    while True:
        if at >= stop or shift > 63:
            raise _Malformed
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: mmap.mmap | bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of a message as (number, value or start, stop, position before its tag); stop is 0 for a number."""
    at = start
    while at < stop:
        before = at
        tag, at = _varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, stop)
            yield number, value, 0, before
        elif wire == 2:
            length, at = _varint(data, at, stop)
            if at + length > stop:
                raise _Malformed
            yield number, at, at + length, before
            at += length
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            if at + size > stop:
                raise _Malformed
            yield number, at, at + size, before
            at += size
        else:
            raise _Malformed


def _text(data: mmap.mmap | bytes, start: int, stop: int) -> str:
    return bytes(data[start:stop]).decode("utf-8", "replace")


def _pair(data: mmap.mmap | bytes, start: int, stop: int) -> tuple[str, str]:
    """A StringStringEntryProto."""
    key = value = ""
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            key = _text(data, a, b)
        elif number == 2:
            value = _text(data, a, b)
    return key, value


def _port(data: mmap.mmap | bytes, start: int, stop: int) -> Port:
    """A ValueInfoProto: name, element type and shape of an input or output."""
    name, dtype, shape = "", "", []
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            name = _text(data, a, b)
        elif number == 2:  # TypeProto
            for kind, c, d, _ in _fields(data, a, b):
                if kind != 1:  # not a tensor: a sequence, a map, an optional
                    continue
                for part, e, f, _ in _fields(data, c, d):
                    if part == 1:
                        dtype = _DTYPES.get(e, f"type {e}")
                    elif part == 2:
                        shape = [_dimension(data, g, h) for n, g, h, _ in _fields(data, e, f) if n == 1]
    return Port(name, dtype, tuple(shape))


def _dimension(data: mmap.mmap | bytes, start: int, stop: int) -> int | str:
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            return a
        if number == 2:
            return _text(data, a, b)
    return ""


@dataclass
class _Graph:
    """What a walk over a GraphProto gathers."""

    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    graph: Graph = field(default_factory=Graph)
    weights: Counter[str] = field(default_factory=Counter)
    """Element types of the initializers."""
    names: set[str] = field(default_factory=set)
    """Names of the initializers."""
    external: dict[str, int] = field(default_factory=dict)
    """Files beside the model and the least size each must have."""


def _walk_graph(data: mmap.mmap | bytes, start: int, stop: int) -> _Graph:
    graph = _Graph()
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            operation, constant = _node(data, a, b)
            graph.operators[operation.operator] += 1
            graph.graph.add(operation)
            if constant is not None and operation.outputs:
                graph.graph.constants[operation.outputs[0]] = constant
        elif number == 5:
            _walk_tensor(data, a, b, graph)
        elif number == 11:
            graph.inputs.append(_port(data, a, b))
        elif number == 12:
            graph.outputs.append(_port(data, a, b))
    return graph


def _node(data: mmap.mmap | bytes, start: int, stop: int) -> tuple[Operation, Float64 | None]:
    """A NodeProto, and its value where it is a constant of few numbers."""
    operator, inputs, outputs, constant = "", [], [], None
    attributes: dict[str, Attribute] = {}
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            inputs.append(_text(data, a, b))
        elif number == 2:
            outputs.append(_text(data, a, b))
        elif number == 4:
            operator = _text(data, a, b)
        elif number == 5:
            name, value, tensor = _attribute(data, a, b)
            if tensor is not None:
                constant = _few_numbers(data, *tensor)
            elif name.startswith("value_") and not isinstance(value, str):
                constant = np.atleast_1d(np.asarray(value, np.float64))
            attributes[name] = value
    return Operation(operator, tuple(inputs), tuple(outputs), attributes), constant if operator == "Constant" else None


def _attribute(data: mmap.mmap | bytes, start: int, stop: int) -> tuple[str, Attribute, tuple[int, int] | None]:
    """An AttributeProto: name, value, and where its tensor lies if it has one."""
    name, tensor, numbers = "", None, list[float]()
    value: Attribute = ()
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            name = _text(data, a, b)
        elif number == 2:
            (value,) = struct.unpack("<f", data[a:b])
        elif number == 3:
            value = float(_signed(a))
        elif number == 4:
            value = _text(data, a, b)
        elif number == 5:
            tensor = (a, b)
        elif number in (7, 8):
            numbers += _numbers(data, a, b, "f" if number == 7 else "i")
    return name, tuple(numbers) or value, tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _numbers(data: mmap.mmap | bytes, start: int, stop: int, kind: str) -> list[float]:
    """A repeated number: packed, or one of its entries; `kind` is ``f``, ``d`` (fixed bytes) or ``i`` (varints)."""
    if kind != "i":
        return list(struct.unpack(f"<{(stop - start) // struct.calcsize(kind)}{kind}", data[start:stop]))
    if not stop:  # not packed: the number itself
        return [_signed(start)]
    found = []
    while start < stop:
        value, start = _varint(data, start, stop)
        found.append(float(_signed(value)))
    return found


def _few_numbers(data: mmap.mmap | bytes, start: int, stop: int) -> Float64 | None:
    """The values of a TensorProto that has few and holds them itself; None for others."""
    dims: list[float] = []
    numbers: list[float] = []
    dtype, raw = 0, b""
    if stop - start > 16 * MOST_NUMBERS:
        return None
    for number, a, b, _ in _fields(data, start, stop):
        if number == 1:
            dims += _numbers(data, a, b, "i")
        elif number == 2:
            dtype = a
        elif number in (4, 10):
            numbers += _numbers(data, a, b, "f" if number == 4 else "d")
        elif number in (5, 7):
            numbers += _numbers(data, a, b, "i")
        elif number == 9:
            raw = bytes(data[a:b])
    kind = _NUMPY.get(dtype)
    if kind is None:
        return None
    if raw:
        with np.errstate(all="ignore"):  # a damaged file may hold signalling NaN
            values = np.frombuffer(raw, kind).astype(np.float64)
    elif dtype == _FLOAT16:  # its bits, as whole numbers
        values = np.array(numbers, np.uint16).view(np.float16).astype(np.float64)
    else:
        values = np.array(numbers, np.float64)
    shape = tuple(int(n) for n in dims)
    return values.reshape(shape) if 0 < values.size <= MOST_NUMBERS and values.size == math.prod(shape) else None


def _walk_tensor(data: mmap.mmap | bytes, start: int, stop: int, graph: _Graph) -> None:
    where: dict[str, str] = {}
    external, name = False, ""
    for number, a, b, _ in _fields(data, start, stop):
        if number == 2:
            graph.weights[_DTYPES.get(a, f"type {a}")] += 1
        elif number == 8:
            name = _text(data, a, b)
            graph.names.add(name)
        elif number == 13:
            key, value = _pair(data, a, b)
            where[key] = value
        elif number == 14:
            external = a == _EXTERNAL
    if not external and (values := _few_numbers(data, start, stop)) is not None:
        graph.graph.constants[name] = values
    if external and "location" in where:
        end = int(where.get("offset") or 0) + int(where.get("length") or 0)
        graph.external[where["location"]] = max(end, graph.external.get(where["location"], 0))


def _native_precision(graph: _Graph) -> Precision:
    """The arithmetic the file itself prescribes: quantised activations make int8, the weights' type the rest."""
    if any(o == "QuantizeLinear" or o.startswith("QLinear") or o.endswith("Integer") for o in graph.operators):
        return "int8"
    floats = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    counts: list[tuple[int, Precision]] = [(graph.weights[d], p) for d, p in floats.items()]  # type: ignore[misc]
    return max(counts, key=lambda pair: pair[0])[1]


def read_onnx(path: Path) -> ModelFile:
    """Inputs, outputs, metadata and precision of an ONNX file.

    Raises:
        ModelError: missing, empty, not ONNX, truncated, or its external weights are missing or too short.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty: not an ONNX model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                model = _walk_model(path, data)
    except (_Malformed, ValueError, OverflowError, struct.error) as error:
        raise ModelError(f"{path} is not an ONNX model, or it is truncated or corrupt") from error
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    return model


def _walk_model(path: Path, data: mmap.mmap) -> ModelFile:
    graph: _Graph | None = None
    metadata: dict[str, str] = {}
    opset, producer = None, ""
    for number, a, b, _ in _fields(data, 0, len(data)):
        if number == 2:
            producer = _text(data, a, b)
        elif number == 7:
            graph = _walk_graph(data, a, b)
        elif number == 8:
            entry = {n: (c, d) for n, c, d, _ in _fields(data, a, b)}
            domain = _text(data, *entry[1]) if 1 in entry else ""
            if domain in ("", "ai.onnx") and 2 in entry:
                opset = entry[2][0]
        elif number == _METADATA_PROPS:
            key, value = _pair(data, a, b)
            metadata[key] = value
    if graph is None or not (graph.operators or graph.inputs or graph.outputs):
        raise _Malformed
    for name, least in graph.external.items():
        beside = path.parent / name
        if not beside.is_file():
            raise ModelError(f"{path} keeps its weights in {name}, which is missing: put it beside the model")
        if beside.stat().st_size < least:
            raise ModelError(f"{beside} is truncated: {path.name} needs {least} bytes of it")
    return ModelFile(
        path=path,
        format="onnx",
        files=(path, *(path.parent / name for name in sorted(graph.external))),
        inputs=tuple(port for port in graph.inputs if port.name not in graph.names),
        outputs=tuple(graph.outputs),
        precision=_native_precision(graph),
        description=metadata.get(METADATA_KEY),
        endings={port.name: find_ending(graph.graph, port.name) for port in graph.outputs},
        opset=opset,
        producer=producer,
    )


def embed_spec(path: str | Path, spec: ModelSpec) -> None:
    """Store `spec` in an ONNX file, replacing an earlier one; everything else keeps its bytes.

    The file is replaced atomically.

    Raises:
        ModelError: the file is not an ONNX model.
    """
    path = Path(path)
    read_onnx(path)
    key, value = METADATA_KEY.encode(), spec.to_json().encode()
    entry = payload_field(1, key) + payload_field(2, value)
    with replacing(path) as temporary, path.open("rb") as file, temporary.open("wb") as out:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            kept = 0  # everything before this position is in `out` or dropped
            for number, a, b, before in _fields(data, 0, len(data)):
                if number == _METADATA_PROPS and _pair(data, a, b)[0] == METADATA_KEY:
                    out.write(data[kept:before])
                    kept = b
            out.write(data[kept:])
        out.write(payload_field(_METADATA_PROPS, entry))


def payload_field(number: int, payload: bytes) -> bytes:
    """A protobuf field that holds bytes: a string or a message."""
    return _encode_varint(number << 3 | 2) + _encode_varint(len(payload)) + payload


def number_field(number: int, value: int) -> bytes:
    """A protobuf field that holds a number."""
    return _encode_varint(number << 3) + _encode_varint(value)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
