"""ONNX's operators in torch: those of networks that segment, with gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tilelab.errors import ModelError

Tensors = list[Any]
"""What goes into a node: tensors, and None for what is left out."""


def _numbers(value: Any) -> list[int]:
    return [int(v) for v in value.reshape(-1).tolist()]


def _pad(x: torch.Tensor, pads: list[int], value: float = 0.0, mode: str = "constant") -> torch.Tensor:
    """ONNX names all beginnings, then all ends; torch the last axis first, begin and end."""
    rank = len(pads) // 2
    flat = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[axis + rank])]
    if mode == "constant":
        return functional.pad(x, flat, value=value)
    while len(flat) > 2 and not any(flat[-2:]):
        flat = flat[:-2]
    return functional.pad(x, flat, mode={"edge": "replicate"}.get(mode, mode))


def _padding(x: torch.Tensor, kernel: list[int], attributes: dict[str, Any]) -> list[int]:
    """Of a convolution or pooling, as ONNX has it."""
    rank = len(kernel)
    how = attributes.get("auto_pad", "NOTSET")
    if how in ("NOTSET", "VALID"):
        return list(attributes.get("pads", [0] * 2 * rank)) if how == "NOTSET" else [0] * 2 * rank
    steps, spread = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    sizes = zip(x.shape[2:], kernel, steps, spread, strict=True)
    need = [max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n) for n, k, s, d in sizes]
    low = [n // 2 if how == "SAME_UPPER" else -(-n // 2) for n in need]
    return [*low, *(n - a for n, a in zip(need, low, strict=True))]


def _split_padding(
    x: torch.Tensor, kernel: list[int], attributes: dict[str, Any], fill: float = 0.0
) -> tuple[torch.Tensor, list[int]]:
    """The input, padded where its two ends differ, and the padding that is the same at both."""
    pads, rank = _padding(x, kernel, attributes), len(kernel)
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    return _pad(x, pads, fill), [0] * rank


def _conv(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    x, weight, bias = (*given, None)[:3]
    rank = weight.ndim - 2
    x, pads = _split_padding(x, list(weight.shape[2:]), attributes)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    strides, spread = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    return run(x, weight, bias, strides, pads, spread, attributes.get("group", 1))


def _conv_transpose(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    x, weight, bias = (*given, None)[:3]
    rank = weight.ndim - 2
    pads = _padding(x, list(weight.shape[2:]), attributes)
    if pads[:rank] != pads[rank:] or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ModelError("a transposed convolution with uneven padding cannot be trained on here")
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    extra, strides = attributes.get("output_padding", [0] * rank), attributes.get("strides", [1] * rank)
    return run(
        x,
        weight,
        bias,
        strides,
        pads[:rank],
        extra,
        attributes.get("group", 1),
        attributes.get("dilations", [1] * rank),
    )


def _pool(given: Tensors, attributes: dict[str, Any], *, mean: bool) -> torch.Tensor:
    kernel = list(attributes["kernel_shape"])
    rank, (x, *_) = len(kernel), given
    x, pads = _split_padding(x, kernel, attributes, 0.0 if mean else -torch.inf)
    strides, up = attributes.get("strides", [1] * rank), bool(attributes.get("ceil_mode", 0))
    if mean:
        average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
        return average(x, kernel, strides, pads, up, bool(attributes.get("count_include_pad", 0)))
    most = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    found: torch.Tensor = most(x, kernel, strides, pads, attributes.get("dilations", [1] * rank), up)
    return found


def _resize(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    x = given[0]
    scales = given[2] if len(given) > 2 else (given[1] if len(given) == 2 else None)
    sizes = given[3] if len(given) > 3 else None
    if sizes is not None:
        size = _numbers(sizes)[2:]
    else:
        assert scales is not None  # noqa: S101  # one of both is there
        size = [int(n * s) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    mode = attributes.get("mode", "nearest")
    place = attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounded = attributes.get("nearest_mode", "round_prefer_floor")
        whole = all(s % n == 0 for s, n in zip(size, x.shape[2:], strict=True))
        doubled = whole and all(s <= 2 * n for s, n in zip(size, x.shape[2:], strict=True))
        floors = rounded == "floor" or (rounded == "round_prefer_floor" and doubled)
        if not (floors if place == "asymmetric" else whole):
            raise ModelError(f"a resize of mode nearest, {place}, {rounded} cannot be trained on here")
        return functional.interpolate(x, size=size)
    if mode not in ("linear", "cubic") or place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise ModelError(f"a resize of mode {mode}, {place} cannot be trained on here")
    name = ("linear", "bilinear", "trilinear")[len(size) - 1] if mode == "linear" else "bicubic"
    return functional.interpolate(x, size=size, mode=name, align_corners=place == "align_corners")


def _reshape(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    x, shape = given[0], _numbers(given[1])
    keep = not attributes.get("allowzero", 0)
    found: torch.Tensor = x.reshape([x.shape[i] if n == 0 and keep else n for i, n in enumerate(shape)])
    return found


def _slice(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    if len(given) == 1:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = _numbers(given[1]), _numbers(given[2])
        axes = _numbers(given[3]) if len(given) > 3 and given[3] is not None else list(range(len(starts)))
        steps = _numbers(given[4]) if len(given) > 4 and given[4] is not None else [1] * len(starts)
    x = given[0]
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise ModelError("a slice that runs backwards cannot be trained on here")
        index[axis] = slice(start, end, step)
    found: torch.Tensor = x[tuple(index)]
    return found


def _axes(given: Tensors, attributes: dict[str, Any]) -> list[int]:
    return _numbers(given[1]) if len(given) > 1 and given[1] is not None else list(attributes.get("axes", []))


def _unsqueeze(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    x, axes = given[0], _axes(given, attributes)
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    found: torch.Tensor = x
    return found


def _squeeze(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    axes = _axes(given, attributes)
    found: torch.Tensor = given[0].squeeze(tuple(axes)) if axes else given[0].squeeze()
    return found


def _reduce(given: Tensors, attributes: dict[str, Any], how: Callable[..., Any]) -> torch.Tensor:
    axes = _axes(given, attributes)
    if not axes and attributes.get("noop_with_empty_axes", 0):
        found: torch.Tensor = given[0]
    else:
        found = how(given[0], dim=tuple(axes or range(given[0].ndim)), keepdim=bool(attributes.get("keepdims", 1)))
    return found


def _clip(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    low, high = ([*given, None, None][1:3]) if len(given) > 1 else (attributes.get("min"), attributes.get("max"))
    found: torch.Tensor = torch.clamp(given[0], low, high)
    return found


def _batch_norm(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    x, scale, bias, mean, variance = given
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _gemm(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    a, b, c = (*given, None)[:3]
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: torch.Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _cast(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64}
    if attributes["to"] not in kinds:
        raise ModelError(f"a cast to type {attributes['to']} cannot be trained on here")
    found: torch.Tensor = given[0].to(kinds[attributes["to"]])
    return found


def _split(given: Tensors, attributes: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    axis, x = attributes.get("axis", 0), given[0]
    parts = _numbers(given[1]) if len(given) > 1 and given[1] is not None else list(attributes.get("split", []))
    count = attributes.get("num_outputs", 2)
    return torch.split(x, parts or -(-x.shape[axis] // count), dim=axis)


def _concat(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    return torch.cat(given, dim=attributes["axis"])


def _shape(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(given[0].shape)[attributes.get("start", 0) : attributes.get("end", given[0].ndim)]


def _constant(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = attributes["value"]
    return found


def _gather(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    axis, (x, index) = attributes.get("axis", 0), given
    found = torch.index_select(x, axis, index.reshape(-1) % x.shape[axis])
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _divide(given: Tensors, attributes: dict[str, Any]) -> torch.Tensor:
    a, b = given
    found: torch.Tensor = a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
    return found


def _plain(run: Callable[..., Any]) -> Callable[[Tensors, dict[str, Any]], Any]:
    """An operator without attributes."""
    return lambda given, attributes: run(*given)


OPERATORS: dict[str, Callable[[Tensors, dict[str, Any]], Any]] = {
    "Add": _plain(torch.add),
    "AveragePool": lambda g, a: _pool(g, a, mean=True),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Dropout": lambda g, a: g[0],
    "Elu": lambda g, a: functional.elu(g[0], a.get("alpha", 1.0)),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": lambda g, a: g[0] * torch.ones(_numbers(g[1]), dtype=g[0].dtype, device=g[0].device),
    "Flatten": lambda g, a: g[0].flatten(a.get("axis", 1)),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda g, a: g[0].mean(dim=tuple(range(2, g[0].ndim)), keepdim=True),
    "HardSigmoid": lambda g, a: torch.clamp(a.get("alpha", 0.2) * g[0] + a.get("beta", 0.5), 0, 1),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "InstanceNormalization": lambda g, a: functional.instance_norm(
        g[0], weight=g[1], bias=g[2], eps=a.get("epsilon", 1e-5)
    ),
    "LayerNormalization": lambda g, a: functional.layer_norm(
        g[0], g[1].shape, g[1], g[2] if len(g) > 2 else None, a.get("epsilon", 1e-5)
    ),
    "LeakyRelu": lambda g, a: functional.leaky_relu(g[0], a.get("alpha", 0.01)),
    "MatMul": _plain(torch.matmul),
    "Max": lambda g, a: functools.reduce(torch.maximum, g),
    "MaxPool": lambda g, a: _pool(g, a, mean=False),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pad": lambda g, a: _pad(
        g[0], _numbers(g[1]), float(g[2]) if len(g) > 2 and g[2] is not None else 0.0, a.get("mode", "constant")
    ),
    "Pow": _plain(torch.pow),
    "PRelu": _plain(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "ReduceMax": lambda g, a: _reduce(g, a, torch.amax),
    "ReduceMean": lambda g, a: _reduce(g, a, torch.mean),
    "ReduceSum": lambda g, a: _reduce(g, a, torch.sum),
    "Relu": _plain(functional.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda g, a: torch.softmax(g[0], a.get("axis", -1)),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda g, a: g[0].permute(a.get("perm", list(reversed(range(g[0].ndim))))),
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
