"""What made a network decide at one pixel: integrated gradients, and the area that they come from.

Attributions are those of Sundararajan et al. (ICML 2017) along the straight way from a baseline to the image, a right
Riemann sum of the gradient of one logit at one pixel, computed by captum.  Their sum is what the logit gained on the
way.  The attribution field of the U-RISC paper is where they exceed a share `k` of their greatest magnitude; its area
S_k says how far a network looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from tilelab.arrays import Array, Float32, Float64, UInt8
from tilelab.errors import EngineError, InputError, ModelError
from tilelab.geometry import Box, reflect
from tilelab.io.images.volume import Volume, network_input
from tilelab.run.normalize import normalization_constants
from tilelab.spec import ModelSpec
from tilelab.text import install_hint

STEPS, SHARE = 100, 0.01
"""Of the Riemann sum, and k of S_k; as in the U-RISC paper."""
Baseline = Literal["zero", "black"]
Kind = Literal["correct", "false positive", "false negative"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_BATCH_PIXELS = 2**20


@dataclass(frozen=True)
class Field:
    """Attributions of one pixel.

    Attributes:
        at: the pixel (y, x) in the image.
        label: class whose logit was taken.
        origin: of the crop (y, x) in the image; negative where the image is smaller than the crop and reflected.
        values: attributions, float32 ``(y, x)``, summed over the network's channels.
        logit, baseline_logit: at the pixel, of the image and of the baseline.
    """

    at: tuple[int, int]
    label: int
    origin: tuple[int, int]
    values: Float32 = field(repr=False)
    logit: float
    baseline_logit: float

    @property
    def residue(self) -> float:
        """What the attributions lack of the logit's gain, over the gain: the error of the Riemann sum."""
        gain = self.logit - self.baseline_logit
        return float(self.values.sum(dtype=np.float64) - gain) / gain if gain else 0.0

    @property
    def weights(self) -> Float32:
        """Attributions over their greatest magnitude, float32 ``(y, x)`` from -1 to 1."""
        most = float(np.abs(self.values).max())
        weights: Float32 = self.values / np.float32(most or 1.0)
        return weights

    def pixels(self, share: float = SHARE) -> int:
        """Pixels whose weight exceeds `share`: the attribution field; times the area of a pixel it is S_k."""
        return int((self.weights > share).sum())

    def magnitude_pixels(self, share: float = SHARE) -> int:
        """The same with those that spoke against the class."""
        return int((np.abs(self.weights) > share).sum())


@dataclass(frozen=True)
class Sample:
    """A pixel of one kind, and its field."""

    kind: Kind
    field: Field


class Attribution:
    """A network that is asked about the pixels of one crop of a plane.

    Attributes:
        origin: of the crop (y, x) in the image.
        side: of the crop, in pixels.
        grey: the crop's intensities as they are stored, channel 0, ``(y, x)``.
        labels: the classes that the network gives it, uint8 ``(y, x)``.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        volume: Volume,
        at: tuple[int, int, int],
        *,
        side: int | None = None,
        steps: int = STEPS,
        baseline: Baseline = "zero",
    ) -> None:
        """Read the crop around a pixel, and segment it.

        Args:
            network: in evaluation mode.
            spec: its description.
            volume: the image.
            at: the pixel (z, y, x).
            side: of the crop; by default all that the pixel sees, at most the model's tile.
            steps: of the Riemann sum.
            baseline: ``zero`` for zeros of the network's input (where that is normalised, a plane of mean grey), or
                ``black`` for intensities of 0.

        Raises:
            InputError: the pixel lies outside of the image.
            ModelError: the network is of a kind that cannot be asked, or the side does not fit it.
            EngineError: captum is not installed.
        """
        if spec.axes != "yx" or not spec.classified or not spec.plain:
            raise ModelError("attributions are of 2-D networks whose one output is logits of classes")
        if not all(0 <= a < n for a, n in zip(at, volume.shape, strict=True)):
            raise InputError(f"pixel {at} lies outside of {volume.image.uri}, {volume.shape} pixels (z, y, x)")
        self.side = _seen(spec) if side is None else side
        if self.side < 1 or self.side % spec.stride:
            raise ModelError(
                f"a crop of {self.side} pixels: its side is a multiple of the network's stride {spec.stride}"
            )
        if spec.receptive_field is None and self.side != spec.tile[0]:
            raise ModelError(
                f"{spec.architecture} sees its whole tile of {spec.tile[0]} pixels: leave the crop that size"
            )
        self._spec, self._network, self._steps, self._z = spec, network, steps, at[0]
        self.origin = (self._begin(at[1], volume.shape[1]), self._begin(at[2], volume.shape[2]))
        whole = network_input(volume, spec)
        stored = self._read(whole)
        self.grey: Array = stored[0]
        mean, gain, _ = normalization_constants(volume, spec.normalization, spec.channels, neighbours=spec.neighbours)
        mean, gain = (table[self._z] if table.ndim == 2 else table for table in (mean, gain))
        self._input = self._normalise(stored, mean, gain)
        zero = np.zeros_like(stored)
        self._baseline = torch.zeros_like(self._input) if baseline == "zero" else self._normalise(zero, mean, gain)
        with torch.inference_mode():
            self.labels = self._classify(self._network(self._input)[0])
        self._method = _integrated_gradients()

    def explain(self, at: tuple[int, int], label: int | None = None) -> Field:
        """The field of a pixel (y, x) of the image that lies in the crop.

        Args:
            at: the pixel.
            label: class whose logit is taken; the network's own by default.

        Raises:
            ModelError: there is no such class.
        """
        inside = (at[0] - self.origin[0], at[1] - self.origin[1])
        chosen = int(self.labels[inside]) if label is None else label
        if not 0 <= chosen < len(self._spec.classes):
            raise ModelError(f"class {chosen}: the model has 0 to {len(self._spec.classes) - 1}")

        def logit(batch: torch.Tensor) -> torch.Tensor:
            return self._logit(self._network(batch)[:, :, inside[0], inside[1]], chosen)

        found = self._method(logit).attribute(
            self._input,
            baselines=self._baseline,
            n_steps=self._steps,
            method="riemann_right",
            internal_batch_size=max(1, _BATCH_PIXELS // self.side**2),
        )
        with torch.inference_mode():
            ends = [float(logit(batch)[0]) for batch in (self._input, self._baseline)]
        values: Float32 = found[0].sum(0).to(torch.float32).numpy()
        return Field(at, chosen, self.origin, values, *ends)

    def sample(self, truth: UInt8, label: int, count: int, seed: int = 0) -> Iterator[Sample]:
        """Fields of pixels that are right or wrong about a class, from the middle half of the crop.

        Args:
            truth: classes of the crop, uint8 ``(y, x)``.
            label: the class.
            count: pixels of each kind, or all where there are fewer; which ones depends on `seed` alone.
            seed: of the choice.
        """
        quarter = self.side // 4
        middle = np.zeros(truth.shape, np.bool_)
        middle[quarter : self.side - quarter, quarter : self.side - quarter] = True
        for kind, where in kinds(self.labels, truth, label).items():
            places = np.argwhere(where & middle)
            chosen = np.random.default_rng(seed).permutation(len(places))[:count]
            for y, x in places[np.sort(chosen)].tolist():
                yield Sample(kind, self.explain((y + self.origin[0], x + self.origin[1]), label))

    def region(self, shape: tuple[int, int, int]) -> tuple[Array, Array]:
        """Rows and columns of an image of `shape` that the crop shows, reflected where it is smaller."""
        rows, columns = (reflect(np.arange(o, o + self.side), n) for o, n in zip(self.origin, shape[1:], strict=True))
        return rows, columns

    def _begin(self, at: int, size: int) -> int:
        """Where the crop begins on an axis: around the pixel, and in the image where that is large enough."""
        if size < self.side:
            return -((self.side - size) // 2)
        return min(max(0, at - self.side // 2), size - self.side)

    def _read(self, volume: Volume) -> Array:
        """The crop with all channels, ``(c, y, x)``."""
        rows, columns = self.region(volume.shape)
        low, high = (self._z, rows.min(), columns.min()), (self._z + 1, rows.max() + 1, columns.max() + 1)
        block = volume.read(Box(tuple(map(int, low)), tuple(map(int, high))))[:, 0]
        crop: Array = block[:, (rows - rows.min())[:, None], columns - columns.min()]
        return crop

    def _normalise(self, stored: Array, mean: Float32, gain: Float32) -> torch.Tensor:
        """What the network takes, float32 ``(1, C, y, x)``."""
        scaled = (stored.astype(np.float32) - mean[:, None, None]) * gain[:, None, None]  # grey is repeated
        clip = self._spec.normalization.clip
        return torch.from_numpy(np.ascontiguousarray(scaled if clip is None else np.clip(scaled, *clip))[None])

    def _logit(self, logits: torch.Tensor, label: int) -> torch.Tensor:
        """Of a class, from ``(B, K)``; of the first class of a sigmoid, how far all others are below 0."""
        if self._spec.activation == "softmax":
            return logits[:, label]
        return logits[:, label - 1] if label else -logits.max(1).values

    def _classify(self, logits: torch.Tensor) -> UInt8:
        values = logits.numpy()
        best = values.argmax(0)
        if self._spec.activation == "sigmoid":
            best = np.where(values.max(0) < 0, 0, best + 1)
        labels: UInt8 = best.astype(np.uint8)
        return labels


def kinds(labels: UInt8, truth: UInt8, label: int) -> dict[Kind, Array]:
    """Where a class is found rightly, where wrongly, and where it is missed; bool, same shape."""
    found, true = labels == label, truth == label
    return {"correct": found & true, "false positive": found & ~true, "false negative": ~found & true}


def summarise(samples: list[Sample], area: float, share: float = SHARE) -> dict[str, dict[str, float]]:
    """S_k of each kind of pixels: number, mean, standard deviation and median.

    Args:
        samples: of all kinds.
        area: of a pixel, in the unit that is wanted.
        share: k.
    """
    told: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        areas: Float64 = np.array([s.field.pixels(share) * area for s in samples if s.kind == kind])
        if len(areas):
            told[kind] = {
                "pixels": float(len(areas)),
                "mean": float(areas.mean()),
                "sd": float(areas.std(ddof=1)) if len(areas) > 1 else 0.0,
                "median": float(np.median(areas)),
            }
    return told


def mean_field(samples: list[Sample], kind: Kind, side: int) -> Float64:
    """The mean of the weights of one kind around their pixels, float64 ``(side, side)``; 0 beyond the crops."""
    total, half = np.zeros((side, side)), side // 2
    chosen = [s.field for s in samples if s.kind == kind]
    for one in chosen:
        y, x = one.at[0] - one.origin[0], one.at[1] - one.origin[1]
        padded = np.pad(one.weights, half)
        total += padded[y : y + side, x : x + side]
    return total / max(1, len(chosen))


def _seen(spec: ModelSpec) -> int:
    """The side of a crop that holds what a pixel of its middle sees, at most the model's tile."""
    field = spec.receptive_field
    return spec.tile[0] if field is None else min(spec.tile[0], (-(-field // spec.stride) + 1) * spec.stride)


def _integrated_gradients() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise EngineError(f"attributions need captum: {install_hint('attribute')}") from None
    return IntegratedGradients
