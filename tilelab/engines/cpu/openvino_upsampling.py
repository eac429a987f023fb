"""Fewer multiplications for the same logits: OpenVINO graphs that enlarge by repetition and then convolve.

The decoders of U-Net and its kin repeat each pixel s x s times and convolve the result with k x k weights, so most taps
multiply the same value again. Summing those taps beforehand is exact: the pair is one transposed convolution with
(k + s - 1) x (k + s - 1) weights and stride s, which for k = 3 and s = 2 multiplies 4 times per pixel where 9 were
(the sub-pixel convolution of Shi et al., 2016, https://arxiv.org/abs/1609.05158, read backwards). Channels that join by
concatenation without being enlarged keep a convolution of their own, and the two are added.

Of a U-Net with a ResNet-18 encoder this saves one multiplication in six, and the enlarged maps are never in memory.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.cpu.openvino_rewriting import constant_of, rewrite, take_place

Weights = Float32


def fold_upsampling(model: Any) -> int:
    """Replace, in place, every convolution of a map enlarged by repetition; anything else stays as it is.

    Args:
        model: an ``openvino.Model`` whose spatial sizes are known.

    Returns:
        How many convolutions were replaced.
    """
    return rewrite(model, "Convolution", _fold)


def count_macs(model: Any) -> int:
    """Multiplications with weights that convolutions make, of an ``openvino.Model`` whose sizes are known."""
    found = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"):
            continue
        weights, backwards = _sizes(node.input_value(1)), "Backprop" in kind
        places = _sizes(node.input_value(0) if backwards else node.output(0))
        found += math.prod(weights) * math.prod(places[2:]) * places[0]
    return found


def _fold(convolution: Any) -> bool:
    """Replace one convolution, if part of what it reads is enlarged."""
    weights = constant_of(convolution.input_value(1))
    how = convolution.get_attributes()
    if weights is None or weights.shape[2:] == (1,) * (weights.ndim - 2):
        return False
    if how["auto_pad"] != "explicit" or {*how["strides"], *how["dilations"]} != {1}:
        return False
    kernel = weights.shape[2:]
    cropped = [[k - 1 - p for k, p in zip(kernel, how[pads], strict=True)] for pads in ("pads_begin", "pads_end")]
    readers = {i.get_node().get_type_name() for i in convolution.output(0).get_target_inputs()}
    if min(itertools.chain(*cropped)) < 0 or "Result" in readers:
        return False
    sources = _concatenated(convolution.input_value(0), axis=1)
    factors = [_repeats(source.get_node()) for source in sources]
    if not any(factors):
        return False

    from openvino import opset13 as ops

    ends = np.cumsum([_sizes(source)[1] for source in sources])[:-1]
    kept, terms = [], []
    for source, factor, part in zip(sources, factors, np.split(weights, ends, axis=1), strict=True):
        if factor:
            small = source.get_node().input_value(0)
            summed = ops.constant(transposed_weights(part, factor))
            terms.append(ops.convolution_backprop_data(small, summed, list(factor), None, *cropped))
        else:
            kept.append((source, part))
    if kept:
        whole = kept[0][0] if len(kept) == 1 else ops.concat([source for source, _ in kept], 1)
        part = ops.constant(np.ascontiguousarray(np.concatenate([part for _, part in kept], axis=1)))
        terms.insert(
            0, ops.convolution(whole, part, how["strides"], how["pads_begin"], how["pads_end"], how["dilations"])
        )
    total = terms[0]
    for term in terms[1:]:
        total = ops.add(total, term)
    total.set_friendly_name(convolution.get_friendly_name())
    take_place(total, convolution)
    return True


def transposed_weights(weights: Weights, factor: tuple[int, ...]) -> Weights:
    """The weights whose transposed convolution with stride `factor` equals repetition and convolution with `weights`.

    Args:
        weights: (outputs, inputs, *kernel), float32.
        factor: repetitions along each axis of the kernel.

    Returns:
        (inputs, outputs, *(kernel + factor - 1)), float32; to be cropped by ``kernel - 1 - padding`` at each side.
    """
    axes = tuple(range(2, weights.ndim))
    turned = np.flip(weights, axes)
    kernel = weights.shape[2:]
    summed = np.zeros((*weights.shape[:2], *(k + s - 1 for k, s in zip(kernel, factor, strict=True))), np.float64)
    for start in itertools.product(*map(range, factor)):
        window = (slice(None), slice(None), *(slice(a, a + k) for a, k in zip(start, kernel, strict=True)))
        summed[window] += turned
    return np.ascontiguousarray(np.swapaxes(summed, 0, 1), np.float32)


def _repeats(node: Any) -> tuple[int, ...]:
    """How often a node repeats each pixel along each spatial axis; empty for any other node."""
    if node.get_type_name() != "Interpolate":
        return ()
    how = node.get_attributes()
    way = (how.get("coordinate_transformation_mode"), how.get("nearest_mode"))
    if how["mode"] != "nearest" or any((*how["pads_begin"], *how["pads_end"])):
        return ()
    # the ways of numbering pixels in which the nearest to each of s new ones is the old one that they divide
    if way != ("asymmetric", "floor") and way not in itertools.product(
        ("half_pixel", "pytorch_half_pixel"), ("round_prefer_floor", "round_prefer_ceil")
    ):
        return ()
    before, after = _sizes(node.input_value(0)), _sizes(node.output(0))
    if before[1] == 0 or before[1] != after[1] or 0 in (*before[2:], *after[2:]):
        return ()
    factor = tuple(b // a for a, b in zip(before[2:], after[2:], strict=True))
    if any(s * a != b for s, a, b in zip(factor, before[2:], after[2:], strict=True)) or set(factor) == {1}:
        return ()
    if how["shape_calculation_mode"] == "scales":  # 2.03 gives these sizes too, and other pixels
        scales = constant_of(node.input_value(1))
        if scales is None or np.any(scales % 1):
            return ()
    return factor


def _concatenated(value: Any, axis: int) -> list[Any]:
    """What was joined along `axis` to make a value."""
    node = value.get_node()
    if node.get_type_name() != "Concat" or node.get_attributes()["axis"] not in (axis, axis - len(_sizes(value))):
        return [value]
    return list(node.input_values())


def _sizes(value: Any) -> tuple[int, ...]:
    """Of a value, 0 where unknown."""
    return tuple(int(n.get_length()) if n.is_static else 0 for n in value.get_partial_shape())
