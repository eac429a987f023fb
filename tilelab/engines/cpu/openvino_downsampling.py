"""The first convolution of a quantised network, read in blocks of pixels: OpenVINO graphs of one or two input channels.

Products of bytes are made four neighbouring channels at a time, so of a single channel three in four are of nothing.
With the s x s pixels that a stride of s steps over as s * s channels, the same weights make a convolution of stride 1
whose channels are full (the stem of TResNet, Ridnik et al., 2020, https://arxiv.org/abs/2003.13630, without other
weights).  Sums of integers are exact: the logits are the same bytes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.cpu.openvino_rewriting import rewrite, take_place

_JOINED = 4  # channels whose products are made at a time, of bytes


def fold_downsampling(model: Any) -> int:
    """Let quantised strided convolutions of few channels read blocks of pixels as channels, in place.

    Args:
        model: an ``openvino.Model`` whose spatial sizes are known.

    Returns:
        How many convolutions were replaced.
    """
    return rewrite(model, "Convolution", _fold)


def _fold(convolution: Any) -> bool:
    """Replace one convolution, if it multiplies bytes and its channels would be fuller."""
    how = convolution.get_attributes()
    strides, begin = how["strides"], how["pads_begin"]
    stride, quantize = strides[0], convolution.input_value(0).get_node()
    found = _quantised(convolution.input_value(1))
    if found is None or how["auto_pad"] != "explicit" or {*strides} != {stride} or stride == 1:
        return False
    if {*how["dilations"]} != {1} or quantize.get_type_name() != "FakeQuantize":
        return False
    source, *limits = quantize.input_values()
    if not source.get_partial_shape().is_static or any(math.prod(limit.get_shape()) != 1 for limit in limits):
        return False
    sides, ends = tuple(source.get_shape())[2:], tuple(convolution.get_output_shape(0))[2:]
    if any(side % stride for side in sides):
        return False
    weights, scales = found
    blocks, before = blocked_weights(weights, stride, begin)
    after = [n - 1 - s // stride - b + k for n, s, b, k in zip(ends, sides, before, blocks.shape[2:], strict=True)]
    if min(after) < 0 or 3 * _products(blocks) > 2 * _products(weights):
        return False

    from openvino import opset13 as ops

    joined = ops.space_to_depth(source, "blocks_first", stride)
    joined = ops.fake_quantize(joined, *limits, quantize.get_attributes()["levels"])
    scaled = ops.multiply(ops.convert(ops.constant(blocks), "f32"), scales)
    ones = [1] * len(sides)
    made = ops.convolution(joined, scaled, ones, before, after, ones)
    made.set_friendly_name(convolution.get_friendly_name())
    take_place(made, convolution)
    return True


def blocked_weights(weights: Array, stride: int, pads: list[int]) -> tuple[Array, list[int]]:
    """The weights that do to blocks of stride x stride pixels, as channels, what `weights` do to pixels.

    Args:
        weights: (outputs, inputs, *kernel).
        stride: along each axis of the kernel.
        pads: before the image, along each.

    Returns:
        (outputs, stride ** axes * inputs, *smaller kernel), a block's pixels in raster order, and the pads before it.
    """
    before = [-(-pad // stride) for pad in pads]
    kernel = [(k - 1 - p) // stride + b + 1 for k, p, b in zip(weights.shape[2:], pads, before, strict=True)]
    blocks = np.zeros((len(weights), *[stride] * len(pads), weights.shape[1], *kernel), weights.dtype)
    for tap in itertools.product(*map(range, weights.shape[2:])):
        at = [divmod(t - p, stride) for t, p in zip(tap, pads, strict=True)]
        pixel, block = (inside for _, inside in at), (n + b for (n, _), b in zip(at, before, strict=True))
        every: Any = slice(None)
        blocks[(every, *pixel, every, *block)] = weights[(every, every, *tap)]
    return blocks.reshape(len(weights), -1, *kernel), before


def _products(weights: Array) -> int:
    """Multiplications of bytes for one place of one output."""
    full = math.ceil(weights.shape[1] / _JOINED) * _JOINED
    return int(full * math.prod(weights.shape[2:]))


def _quantised(value: Any) -> tuple[Array, Any] | None:
    """The bytes and the scales of weights that are bytes times scales, one for each output."""
    node = value.get_node()
    if node.get_type_name() != "Multiply":
        return None
    convert, scales = node.input_value(0).get_node(), node.input_value(1)
    if convert.get_type_name() != "Convert":
        return None
    constant = convert.input_value(0).get_node()
    if constant.get_type_name() != "Constant" or constant.get_element_type().get_type_name() != "i8":
        return None
    if any(n != 1 for n in tuple(scales.get_shape())[1:]):
        return None
    return np.asarray(constant.data, np.int8), scales
