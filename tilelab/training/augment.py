"""Random changes of crops: the geometry while they are cut, the intensities after.

All draws come from a generator that belongs to one crop of one step, so a crop does not depend on what was drawn
before: interrupted training goes on with the crops it would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tilelab.training.recipe import Augmentation

Float32 = npt.NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One of the 8 symmetries of the square: `turns` quarter turns, then perhaps a mirror."""

    turns: int
    mirror: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Symmetry:
        """Each equally often."""
        return cls(int(rng.integers(4)), bool(rng.integers(2)))

    def apply(self, plane: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """Turn and mirror the last two axes."""
        turned = np.rot90(plane, self.turns, axes=(-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.mirror else turned)


def draw_scale(augmentation: Augmentation, rng: np.random.Generator) -> float:
    """A magnification within the range, evenly on a logarithmic axis; often 1, where the mask stays exact."""
    applied = rng.random() < augmentation.chance
    scale = _log_uniform(augmentation.scale, rng)
    return scale if applied else 1.0


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = bounds
    return low if low == high else float(math.exp(rng.uniform(math.log(low), math.log(high))))


def change_intensity(crop: Float32, augmentation: Augmentation, rng: np.random.Generator) -> Float32:
    """Contrast, brightness, gamma, blur, sharpening and noise, in that order.

    Args:
        crop: float32 ``(C, H, W)`` in units of full scale, so 0 to 1.
        augmentation: the strengths.
        rng: the crop's own generator.

    Returns:
        float32 ``(C, H, W)``, not clipped.
    """
    mean = crop.mean(dtype=np.float64)
    contrast = _log_uniform(augmentation.contrast, rng)
    shift = rng.uniform(-augmentation.brightness, augmentation.brightness)
    crop = ((crop - mean) * contrast + (mean + shift)).astype(np.float32)
    gamma = _log_uniform(augmentation.gamma, rng)
    if gamma != 1.0:
        crop = np.clip(crop, 0, None) ** np.float32(gamma)
    # every draw is made whether it is used or not: switching one effect off leaves the others as they were
    apply_blur, apply_sharpen, apply_noise = rng.random(3) < augmentation.chance
    sigma = rng.uniform(0, augmentation.blur)
    amount = rng.uniform(0, augmentation.sharpen)
    strength = rng.uniform(0, augmentation.noise)
    if augmentation.blur and apply_blur:
        crop = blur(crop, sigma)
    if augmentation.sharpen and apply_sharpen:
        crop = crop + np.float32(amount) * (crop - blur(crop, 1.0))
    if augmentation.noise and apply_noise:
        crop = crop + np.float32(strength) * rng.standard_normal(crop.shape, dtype=np.float32)
    return crop


def blur(crop: Float32, sigma: float) -> Float32:
    """Gaussian blur with reflected edges, cut at three standard deviations; `sigma` in pixels."""
    radius = max(1, math.ceil(3 * sigma))
    if sigma < 0.1:  # changes nothing that float32 can hold for long
        return crop
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel /= kernel.sum()
    planes = functional.pad(torch.from_numpy(crop)[:, None], (radius,) * 4, mode="reflect")
    planes = functional.conv2d(functional.conv2d(planes, kernel[None, None, None]), kernel[None, None, :, None])
    blurred: Float32 = planes[:, 0].numpy()
    return blurred
