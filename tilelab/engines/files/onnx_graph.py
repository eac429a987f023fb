"""Operators and small constants of an ONNX file, from its bytes; field numbers are those of ``onnx.proto``."""

from __future__ import annotations

import math
import struct

import numpy as np

from tilelab.arrays import Float64
from tilelab.engines.files.graph import MOST_NUMBERS, Attribute, Operation
from tilelab.engines.files.protobuf import Data, read_fields, read_text, read_varint

_NUMPY = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
_FLOAT16 = 10


def read_node(data: Data, start: int, stop: int) -> tuple[Operation, Float64 | None]:
    """A NodeProto, and its value where it is a constant of few numbers."""
    operator, inputs, outputs, constant = "", [], [], None
    attributes: dict[str, Attribute] = {}
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            inputs.append(read_text(data, a, b))
        elif number == 2:
            outputs.append(read_text(data, a, b))
        elif number == 4:
            operator = read_text(data, a, b)
        elif number == 5:
            name, value, tensor = _attribute(data, a, b)
            if tensor is not None:
                constant = few_numbers(data, *tensor)
            elif name.startswith("value_") and not isinstance(value, str):
                constant = np.atleast_1d(np.asarray(value, np.float64))
            attributes[name] = value
    return Operation(operator, tuple(inputs), tuple(outputs), attributes), constant if operator == "Constant" else None


def _attribute(data: Data, start: int, stop: int) -> tuple[str, Attribute, tuple[int, int] | None]:
    """An AttributeProto: name, value, and where its tensor lies if it has one."""
    name, tensor, numbers = "", None, list[float]()
    value: Attribute = ()
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            name = read_text(data, a, b)
        elif number == 2:
            (value,) = struct.unpack("<f", data[a:b])
        elif number == 3:
            value = float(_signed(a))
        elif number == 4:
            value = read_text(data, a, b)
        elif number == 5:
            tensor = (a, b)
        elif number in (7, 8):
            numbers += _numbers(data, a, b, "f" if number == 7 else "i")
    return name, tuple(numbers) or value, tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _numbers(data: Data, start: int, stop: int, kind: str) -> list[float]:
    """A repeated number: packed, or one of its entries; `kind` is ``f``, ``d`` (fixed bytes) or ``i`` (varints)."""
    if kind != "i":
        return list(struct.unpack(f"<{(stop - start) // struct.calcsize(kind)}{kind}", data[start:stop]))
    if not stop:  # not packed: the number itself
        return [_signed(start)]
    found = []
    while start < stop:
        value, start = read_varint(data, start, stop)
        found.append(float(_signed(value)))
    return found


def read_dims(data: Data, start: int, stop: int) -> tuple[int, ...]:
    """The shape of a TensorProto."""
    dims: list[float] = []
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            dims += _numbers(data, a, b, "i")
    return tuple(int(n) for n in dims)


def few_numbers(data: Data, start: int, stop: int) -> Float64 | None:
    """The values of a TensorProto that has few and holds them itself; None for others."""
    dims: list[float] = []
    numbers: list[float] = []
    dtype, raw = 0, b""
    if stop - start > 16 * MOST_NUMBERS:
        return None
    for number, a, b, _ in read_fields(data, start, stop):
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
