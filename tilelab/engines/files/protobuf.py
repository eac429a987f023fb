"""Protobuf messages, read and written field by field: no library, nothing decoded that is not asked for.

A message is a sequence of (field number, wire type, value), where a value is a varint, 4 or 8 fixed bytes, or a length
and that many bytes (a string or a message of its own).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Data = mmap.mmap | bytes


class Malformed(Exception):
    """The bytes are not a protobuf message."""


def read_varint(data: Data, at: int, stop: int) -> tuple[int, int]:
    """The number at `at` and the position after it."""
    value = shift = 0
    while True:
        if at >= stop or shift > 63:
            raise Malformed
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def read_fields(data: Data, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of a message as (number, value or start, stop, position before its tag); stop is 0 for a number."""
    at = start
    while at < stop:
        before = at
        tag, at = read_varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(data, at, stop)
            yield number, value, 0, before
        elif wire == 2:
            length, at = read_varint(data, at, stop)
            if at + length > stop:
                raise Malformed
            yield number, at, at + length, before
            at += length
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            if at + size > stop:
                raise Malformed
            yield number, at, at + size, before
            at += size
        else:
            raise Malformed


def read_text(data: Data, start: int, stop: int) -> str:
    """A string."""
    return bytes(data[start:stop]).decode("utf-8", "replace")


def payload_field(number: int, payload: bytes) -> bytes:
    """A protobuf field that holds bytes: a string or a message."""
    return encode_varint(number << 3 | 2) + encode_varint(len(payload)) + payload


def number_field(number: int, value: int) -> bytes:
    """A protobuf field that holds a number."""
    return encode_varint(number << 3) + encode_varint(value)


def encode_varint(value: int) -> bytes:
    """A number as its varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
