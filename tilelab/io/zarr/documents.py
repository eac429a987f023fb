"""The documents that Zarr keeps beside its chunks, strictly typed: what is malformed is refused in one place."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from operator import itemgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

_Extent = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Chunk = Annotated[int, msgspec.Meta(ge=1, lt=2**62)]
_Separator = Literal["/", "."]
_Named = dict[str, Any]
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
WRITTEN = "tilelab_written"
"""Key of `Written` among the attributes of an array."""
LOST = f"copy it anew, or if another program left it out as it is all zeros now, take {WRITTEN} out of zarr.json"
"""What to do about a shard that was written and is not there: zarr-python removes one that becomes all zeros."""


class ArrayV2(msgspec.Struct):
    """``.zarray``."""

    zarr_format: Literal[2]
    shape: list[_Extent]
    chunks: list[_Chunk]
    dtype: str | list[Any]
    compressor: _Named | None = None
    fill_value: Any = None
    order: Literal["C", "F"] = "C"
    filters: list[_Named] | None = None
    dimension_separator: _Separator = "."


class _Shape(msgspec.Struct):
    chunk_shape: list[_Chunk]


class _Grid(msgspec.Struct):
    name: Literal["regular"]
    configuration: _Shape


class _KeyConfiguration(msgspec.Struct):
    separator: _Separator | None = None


class _KeyEncoding(msgspec.Struct):
    name: Literal["default", "v2"] = "default"
    configuration: _KeyConfiguration | None = None


class Codec(msgspec.Struct):
    """One step of what makes bytes of pixels."""

    name: str
    configuration: _Named | None = None


class Sharding(msgspec.Struct):
    """``configuration`` of ``sharding_indexed``."""

    chunk_shape: list[_Chunk]
    codecs: Annotated[list[Codec], msgspec.Meta(min_length=1)]
    index_codecs: Annotated[list[Codec], msgspec.Meta(min_length=1)]
    index_location: Literal["start", "end"] = "end"


class ArrayV3(msgspec.Struct):
    """``zarr.json`` of an array."""

    zarr_format: Literal[3]
    shape: list[_Extent]
    data_type: str | _Named
    chunk_grid: _Grid
    codecs: Annotated[list[Codec], msgspec.Meta(min_length=1)]
    chunk_key_encoding: _KeyEncoding = msgspec.field(default_factory=_KeyEncoding)
    fill_value: Any = None
    attributes: _Named | None = None
    storage_transformers: list[Any] | None = None
    dimension_names: list[str | None] | None = None
    node_type: Literal["array"] = "array"

    def __post_init__(self) -> None:
        if self.storage_transformers:
            raise ValueError(f"its storage_transformers are not known: {str(self.storage_transformers)[:80]}")

    @property
    def separator(self) -> str:
        """Between the numbers of a chunk's key."""
        encoding = self.chunk_key_encoding
        told = None if encoding.configuration is None else encoding.configuration.separator
        return told or ("/" if encoding.name == "default" else ".")


class Group(msgspec.Struct):
    """``.zgroup``, or ``zarr.json`` of a group."""

    zarr_format: Literal[2, 3]
    attributes: _Named | None = None


class Written(msgspec.Struct, frozen=True):
    """Which shards of an array were written: the others are all zeros, and have no file.

    Attributes:
        files: how many have one.
        bytes: of these files.
        zeros: the others, by their numbers in the grid in C order: first and one after the last of each run, rising;
            None where they are too many to be told.
    """

    files: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    bytes: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    zeros: list[tuple[int, int]] | None

    def counts(self, shards: int) -> bool:
        """Whether it may be of an array of so many: who copies an array with its attributes may cut it otherwise."""
        return self.zeros is None or self.files + sum(stop - start for start, stop in self.zeros) == shards

    def has_file(self, number: int) -> bool:
        """Whether a shard is known to have been written, by its number in the grid in C order."""
        if self.zeros is None:
            return False
        run = bisect_right(self.zeros, number, key=itemgetter(0)) - 1
        return run < 0 or number >= self.zeros[run][1]


for _type in (ArrayV2, ArrayV3, Sharding, Group, Written):  # known once, here: two threads that ask first crash msgspec
    msgspec.json.Decoder(_type)


def parse_json(document: bytes) -> Any:
    """The content of a JSON document, NaN and Infinity included, which Zarr 2 writes.

    Raises:
        ValueError: it is damaged, or nested too deeply.
    """
    try:
        return json.loads(document)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_extensions(document: dict[str, Any]) -> None:
    """Refuse what a version 3 array says beyond what is known here, unless it need not be understood.

    Raises:
        ValueError: it names the first such entry.
    """
    for key in document.keys() - {*ArrayV3.__struct_fields__}:
        value = document[key]
        if not isinstance(value, dict) or value.get("must_understand") is not False:
            raise ValueError(f"its entry {key!r} is not known and must be understood")


def fill_of(value: Any, dtype: np.dtype[Any]) -> Any:
    """A ``fill_value`` as a pixel; None where it is none of that type."""
    if dtype.kind not in "biuf":
        return None
    native = dtype.newbyteorder("=")
    if isinstance(value, str) and dtype.kind == "f":
        digits = value.removeprefix("0x")
        if digits != value and len(digits) == 2 * dtype.itemsize and all(c in "0123456789abcdefABCDEF" for c in digits):
            return np.frombuffer(bytes.fromhex(digits), native.newbyteorder(">"))[0].astype(native)
        value = _SPECIAL.get(value, value)
    if isinstance(value, bool) != (dtype.kind == "b") and value not in (0, 1):
        return None
    if not isinstance(value, int | float):
        return None
    with np.errstate(over="ignore"):
        try:
            pixel = native.type(value)
        except (OverflowError, ValueError):
            return None
    if dtype.kind == "f":
        return pixel if np.isfinite(pixel) == math.isfinite(value) else None
    return pixel if pixel == value else None
