"""A model on disk: what any reader can tell of it without running it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tilelab.engines.files.ending import Ending
from tilelab.errors import ModelError
from tilelab.spec import ModelSpec, Precision


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: a dimension is a number where it is fixed, else its name (possibly empty)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(str(n) if n != '' else '?' for n in self.shape)})"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        path: the file.
        format: ``onnx``, ``openvino`` (an IR, .xml with .bin), ``tensorrt`` (a plan) or ``aotinductor`` (a .pt2).
        files: all it consists of: the file itself first, then those that hold its weights.
        inputs, outputs: of the network, weights excluded.
        precision: the arithmetic the file itself prescribes: int8 when its activations are quantised, otherwise the
            type of its weights.
        description: the JSON of its `ModelSpec`, or None.
        endings: for each output, what the graph tells of its values, where there is one to read.
        opset, producer: of the exporter, where known.
        device: ``cpu`` or ``cuda`` where the file was compiled for one of them.
    """

    path: Path
    format: Literal["onnx", "openvino", "tensorrt", "aotinductor"]
    files: tuple[Path, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    precision: Precision
    description: str | None
    endings: dict[str, Ending] = field(default_factory=dict)
    opset: int | None = None
    producer: str = ""
    device: str | None = None

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(path.stat().st_size for path in self.files)

    def digest(self) -> str:
        """SHA-256 of all its files, one after the other."""
        sha = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
        return sha.hexdigest()

    @property
    def spec(self) -> ModelSpec | None:
        """What the model says of itself, or None; raises `ModelError` when that is not valid."""
        if self.description is None:
            return None
        try:
            return ModelSpec.from_json(self.description)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from error
