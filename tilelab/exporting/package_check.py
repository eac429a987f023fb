"""Does a package of bioimage.io give here what its makers say?  Its test tensors tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.packages.bioimage import Tensor, open_package
from tilelab.engines.registry import load_engine, read_spec
from tilelab.errors import ModelError
from tilelab.spec import Normalization

_SLACK = 1e-3  # of the expected values' magnitude: what the format itself allows


@dataclass(frozen=True, slots=True)
class PackageCheck:
    """The greatest difference from the expected output, and the greatest magnitude of that."""

    difference: float
    magnitude: float

    @property
    def passed(self) -> bool:
        """Whether they agree."""
        return self.difference <= _SLACK * max(1.0, self.magnitude)

    def __str__(self) -> str:
        verdict = "as its makers say" if self.passed else "NOT what its makers say"
        return f"{verdict}: its test output within {self.difference:.2g} of {self.magnitude:.2g}"


def check_package(path: Path) -> PackageCheck:
    """Run a package on its test input and compare the first output.

    Raises:
        ModelError: it has no test tensors, or they do not fit its network.
    """
    package = open_package(path)
    source, target = package.inputs[0], package.outputs[0]
    if not (source.test and target.test):
        raise ModelError(f"{path} has no test tensors")
    given, expected = (_channels_first(np.load(package.file(tensor.test)), tensor) for tensor in (source, target))
    spec = read_spec(path)
    assert spec is not None  # noqa: S101 - a package describes itself
    engine = load_engine(path, tile=given.shape[1:], batch=1, precision="auto" if "int8" in spec.precisions else "fp32")
    try:
        spec = engine.spec
        tile = np.broadcast_to(_normalized(given, spec.normalization), (spec.channels, *given.shape[1:]))
        out = np.empty((1, spec.values, *spec.core), np.float32)
        engine.run(np.ascontiguousarray(tile[None], np.float32), out)
    finally:
        engine.close()
    made = out[0, : len(expected)]
    if made.shape != expected.shape:
        raise ModelError(f"{path} gives {made.shape} for its test input, its test output is {expected.shape}")
    if spec.classified:
        made = probabilities(made, spec.activation)
    return PackageCheck(float(np.abs(made - expected).max()), float(np.abs(expected).max()))


def probabilities(logits: Float32, activation: str, axis: int = 0) -> Float32:
    """Of the classes, which lie along `axis`."""
    with np.errstate(over="ignore"):
        if activation == "sigmoid":
            return (1 / (1 + np.exp(-logits))).astype(np.float32)
        powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    made: Float32 = (powers / powers.sum(axis=axis, keepdims=True)).astype(np.float32)
    return made


def _channels_first(array: Array, tensor: Tensor) -> Array:
    """``(c, *spatial)`` of the first in the batch."""
    letters = [axis.letter for axis in tensor.axes]
    if "b" in letters:
        array = array.take(0, axis=letters.index("b"))
        letters.remove("b")
    if "c" not in letters:
        return array[np.newaxis]
    return np.moveaxis(array, letters.index("c"), 0)


def _normalized(raw: Array, norm: Normalization) -> Array:
    """As a run normalises an image that is this tile."""
    values, axes = raw.astype(np.float64), tuple(range(1, raw.ndim))
    if norm.kind == "constants":
        mean, std = (np.asarray(v).reshape(-1, *(1 for _ in axes)) for v in (norm.mean, norm.std))
    elif norm.kind == "mean-std":
        mean, std = values.mean(axes, keepdims=True), values.std(axes, keepdims=True)
    else:
        ends = (norm.low, norm.high) if norm.kind == "percentile" else (0, 100)
        mean, high = np.percentile(values, ends, axis=axes, keepdims=True)
        std = high - mean
    made: Array = (values - mean) / np.where(std == 0, 1, std)
    return made if norm.clip is None else np.clip(made, *norm.clip)
