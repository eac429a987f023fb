"""Random changes of crops: the geometry while they are cut, the intensities after.

All draws come from a generator that belongs to one crop of one step, so a crop does not depend on what was drawn
before: interrupted training goes on with the crops it would have seen.  kornia does the work, through its functions
(its augmentation modules draw from torch's global generator, which belongs to no crop), where it does what is meant:

- its gamma and its contrast about the mean cut off at 1, which would flatten bright crops and all of a floating point
  image beyond 1; the linear changes are made of two of its others, the power is torch's;
- its resize blurs too little before it shrinks: at 1.5 to 1, stripes with a period of 2.1 px come through as false
  ones at 0.51 of their contrast, with torch's triangle filter at 0.12, in the same time (0.5 ms for 256 px);
- it has no function for noise or quarter turns.

A 512 px crop is blurred in 1.7 ms, 256 px in 1.0 ms (torch.conv2d: 4.0 and 0.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from kornia.enhance import adjust_brightness, adjust_contrast
from kornia.filters import gaussian_blur2d, unsharp_mask
from kornia.geometry.transform import hflip
from kornia.geometry.transform import resize as resample
from torch.nn import functional

from tilelab.training.sections import Augmentation

_SHARPENED = 1.0
"""Standard deviation of the blur that sharpening takes away, px."""


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One of the 8 symmetries of the square: `turns` quarter turns, then perhaps a mirror."""

    turns: int
    mirror: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Symmetry:
        """Each equally often."""
        return cls(int(rng.integers(4)), bool(rng.integers(2)))

    @classmethod
    def draw_mirror(cls, axes: Literal["horizontal", "vertical", "both"], rng: np.random.Generator) -> Symmetry:
        """Mirrored along each of `axes` or not, with even chances."""
        across, down = (bool(value) for value in rng.integers(2, size=2))
        across, down = across and axes != "vertical", down and axes != "horizontal"
        return cls(2 if down else 0, across != down)  # half a turn mirrors both

    def apply(self, planes: torch.Tensor) -> torch.Tensor:
        """Turn and mirror the last two axes of a tensor of any type."""
        turned = torch.rot90(planes, self.turns, (-2, -1))
        changed: torch.Tensor = hflip(turned) if self.mirror else turned.contiguous()
        return changed


def draw_scale(augmentation: Augmentation, rng: np.random.Generator) -> float:
    """A magnification within the range, evenly on a logarithmic axis; often 1, where the mask stays exact."""
    applied = rng.random() < augmentation.chance
    scale = _log_uniform(augmentation.scale, rng)
    return scale if applied else 1.0


def draw_angle(augmentation: Augmentation, rng: np.random.Generator) -> float:
    """A turn in degrees, often none; nothing is drawn where the recipe asks for none."""
    if not augmentation.rotation:
        return 0.0
    applied = rng.random() < augmentation.chance
    angle = float(rng.uniform(-augmentation.rotation, augmentation.rotation))
    return angle if applied else 0.0


def room_to_turn(angle: float) -> float:
    """How much longer the side of a square must be for one turned by `angle` degrees to lie within."""
    radians = math.radians(angle)
    return abs(math.cos(radians)) + abs(math.sin(radians))


def turn(planes: torch.Tensor, angle: float, size: int) -> torch.Tensor:
    """The middle ``(size, size)`` of planes ``(C, H, W)`` turned by `angle` degrees.

    Floating point is interpolated linearly; of whole numbers, which are labels, the nearest are taken.
    """
    radians, height, width = math.radians(angle), planes.shape[-2], planes.shape[-1]
    cosine, sine = math.cos(radians), math.sin(radians)
    matrix = torch.tensor(
        [
            [cosine * size / width, -sine * size / width, 0.0],
            [sine * size / height, cosine * size / height, 0.0],
        ]
    )
    grid = functional.affine_grid(matrix[None], [1, 1, size, size], align_corners=False)
    mode = "bilinear" if planes.is_floating_point() else "nearest"
    turned = functional.grid_sample(
        planes[None].float(), grid, mode=mode, padding_mode="reflection", align_corners=False
    )
    return turned[0].to(planes.dtype)


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = bounds
    return low if low == high else float(math.exp(rng.uniform(math.log(low), math.log(high))))


def resize(image: torch.Tensor, size: int) -> torch.Tensor:
    """Resize float32 ``(C, H, W)`` to ``(C, size, size)``: bilinear, with averaging where it shrinks."""
    if image.shape[-2:] == (size, size):
        return image
    if size >= max(image.shape[-2:]):
        enlarged: torch.Tensor = resample(image, (size, size), "bilinear", align_corners=False)
        return enlarged
    return functional.interpolate(image[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[
        0
    ]


def resize_labels(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Resize uint8 ``(H, W)`` to ``(size, size)``; every value is that of the nearest pixel, so none is made up."""
    if mask.shape == (size, size):
        return mask
    resized: torch.Tensor = resample(mask.float(), (size, size), "nearest-exact").to(torch.uint8)
    return resized


def change_intensity(crop: torch.Tensor, augmentation: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Contrast, brightness, gamma, blur, sharpening and noise, in that order.

    Args:
        crop: float32 ``(C, H, W)`` in units of full scale, so 0 to 1.
        augmentation: the strengths.
        rng: the crop's own generator.

    Returns:
        float32 ``(C, H, W)``, not clipped.
    """
    mean = float(crop.mean(dtype=torch.float64))
    contrast = _log_uniform(augmentation.contrast, rng)
    shift = rng.uniform(-augmentation.brightness, augmentation.brightness)
    # every draw is made whether it is used or not: switching one effect off leaves the others as they were
    gamma = _log_uniform(augmentation.gamma, rng)
    apply_blur, apply_sharpen, apply_noise = rng.random(3) < augmentation.chance
    sigma = rng.uniform(0, augmentation.blur)
    amount = rng.uniform(0, augmentation.sharpen)
    strength = rng.uniform(0, augmentation.noise)
    crop = adjust_contrast(crop, contrast, clip_output=False)
    crop = adjust_brightness(crop, mean * (1 - contrast) + shift, clip_output=False)
    if gamma != 1.0:
        crop = crop.clamp(min=0) ** gamma
    if augmentation.blur and apply_blur:
        crop = blur(crop, sigma)
    if augmentation.sharpen and apply_sharpen:
        crop = sharpen(crop, amount)
    if augmentation.noise and apply_noise:
        noise = rng.standard_normal(tuple(crop.shape), dtype=np.float32)
        crop = crop + torch.from_numpy(noise) * strength
    return crop


def blur(crop: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of ``(C, H, W)`` with reflected edges, cut at three standard deviations; `sigma` in pixels."""
    if sigma < 0.1:  # changes nothing that float32 can hold for long
        return crop
    blurred: torch.Tensor = gaussian_blur2d(crop[None], _window(sigma), (sigma, sigma))[0]
    return blurred


def sharpen(crop: torch.Tensor, amount: float) -> torch.Tensor:
    """Unsharp masking of ``(C, H, W)``; an `amount` of 1 adds what a blur of 1 px takes away."""
    return torch.lerp(crop, unsharp_mask(crop[None], _window(_SHARPENED), (_SHARPENED, _SHARPENED))[0], amount)


def _window(sigma: float) -> tuple[int, int]:
    side = 2 * max(1, math.ceil(3 * sigma)) + 1
    return side, side
