"""What a network needs and sees, measured rather than declared: parameters, work, total stride, receptive field.

The receptive field is found by poison: an input column of NaN turns exactly those output columns into NaN that depend
on it, whatever the weights are.  (Gradients miss what a max pooling happens not to choose.)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tilelab.errors import ModelError

_STRIDES = (1, 2, 4, 8, 16, 32, 64)
_LEAST = 128  # px; some networks go down to an eighth of their encoder's coarsest features
_LARGEST_WIDTH = 8192
_HEIGHTS = (2, 4, 8, 16)  # strides; a pyramid of poolings needs more rows than a plain decoder


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """Measured properties of a 2-D segmentation network.

    Attributes:
        parameters: trainable and frozen parameters.
        macs_per_pixel: multiply-accumulates of one forward pass, per input pixel.
        stride: sizes must be multiples of it, and shifting the input by it shifts the output by as much.
        receptive_field: pixels along one axis that one output pixel depends on; None when it is the whole tile.
    """

    parameters: int
    macs_per_pixel: float
    stride: int
    receptive_field: int | None


def measure_network(model: nn.Module, channels: int, *, tile: int = 256) -> NetworkFacts:
    """Measure `model`, which takes ``(B, channels, H, W)``; it is left in the mode (train or eval) it was in.

    Args:
        model: any network with square symmetry, on the CPU.
        channels: input channels.
        tile: size at which work is counted, a multiple of the total stride.

    Raises:
        ModelError: the network accepts not every multiple of 64 from 128 on, or fails.
    """
    training = model.training
    model.eval()
    try:
        stride = total_stride(model, channels)
        return NetworkFacts(
            parameters=sum(p.numel() for p in model.parameters()),
            macs_per_pixel=macs_per_pixel(model, channels, -(-tile // stride) * stride),
            stride=stride,
            receptive_field=receptive_field(model, channels, stride),
        )
    except ModelError:
        raise
    except Exception as error:  # a network of another library, or the user's own
        line = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"the network cannot be measured: {type(error).__name__}: {line}") from error
    finally:
        model.train(training)


def macs_per_pixel(model: nn.Module, channels: int, tile: int) -> float:
    """Multiply-accumulates per input pixel of one square tile, counted without computing (meta tensors)."""
    counter = FlopCounterMode(display=False)
    hollow = copy.deepcopy(model).to("meta")
    with torch.no_grad(), counter:
        hollow(torch.zeros(1, channels, tile, tile, device="meta"))
    return counter.get_total_flops() / 2 / tile**2


def total_stride(model: nn.Module, channels: int) -> int:
    """The least power of two such that every multiple of it is a size that the network maps to itself.

    A decoder that resizes to fit takes any size, yet moves its output with its input only by multiples of the
    encoder's stride: so it is no less than what an encoder of segmentation_models_pytorch says of itself.
    """
    encoder = getattr(getattr(model, "encoder", None), "output_stride", 1)
    for stride in _STRIDES:
        if stride < encoder:
            continue
        # three sizes, of which one is not a multiple of twice the stride
        sizes = [stride * k for k in range(_LEAST // stride, _LEAST // stride + 3)]
        if all(_keeps_size(model, channels, size) for size in sizes):
            return stride
    raise ModelError(f"the network maps no multiple of {_STRIDES[-1]} px to its own size: it cannot be tiled")


def _keeps_size(model: nn.Module, channels: int, size: int) -> bool:
    try:
        with torch.no_grad():
            return tuple(model(torch.zeros(1, channels, size, size)).shape[-2:]) == (size, size)
    except Exception:  # noqa: BLE001 - shapes that do not concatenate, or the network's own check, of whatever kind
        return False


def receptive_field(model: nn.Module, channels: int, stride: int) -> int | None:
    """Pixels along one axis that one output pixel depends on, the most over all phases of the stride; None: all."""
    width = 256
    height = next((k * stride for k in _HEIGHTS if _takes(model, channels, k * stride, width)), _LEAST)
    while width <= _LARGEST_WIDTH:
        width = -(-width // stride) * stride
        spread = _poison(model, channels, stride, (height, width))
        if spread is not None:
            reach = 0
            for phase in range(stride):  # of the output pixel
                # input column x touches outputs x + low[x % stride] .. x + high[x % stride]
                touching = [
                    x
                    for x in range(phase - width, phase + width)
                    if spread[x % stride][0] <= phase - x <= spread[x % stride][1]
                ]
                reach = max(reach, touching[-1] - touching[0] + 1)
            return reach
        width *= 2
    return None


def _takes(model: nn.Module, channels: int, height: int, width: int) -> bool:
    """Whether the network runs on a strip of so many rows."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, channels, height, width))
    except Exception:  # noqa: BLE001 - too few rows for some pooling
        return False
    return True


def _poison(model: nn.Module, channels: int, stride: int, size: tuple[int, int]) -> list[tuple[int, int]] | None:
    """Per phase of the stride, the relative output columns that one input column touches; None: it met an edge."""
    height, width = size
    centre = width // 2 // stride * stride
    spread = []
    for phase in range(stride):
        x = torch.zeros(1, channels, height, width)
        x[..., centre + phase] = torch.nan
        with torch.no_grad():
            touched = model(x).isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
        if touched.numel() == 0:
            raise ModelError("the network's output does not depend on its input")
        low, high = int(touched[0]), int(touched[-1])
        if low == 0 or high == width - 1:
            return None
        spread.append((low - centre - phase, high - centre - phase))
    return spread
