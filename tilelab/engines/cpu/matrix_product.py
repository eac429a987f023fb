"""The machine's own limit: how many operations per second its best matrix product reaches, per precision."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from tilelab.engines.cpu.openvino import HINTS, import_openvino, probe
from tilelab.machine.cpu import physical_core_count
from tilelab.spec import Precision

_SIDES = (1024, 2048)  # the larger one needs memory less often, the smaller one stays in the caches


def best_product(precision: Precision, seconds: float = 0.5) -> float | None:
    """Operations per second of products of square matrices, one on each core, the best that was seen.

    A multiplication and an addition are two.  The products are OpenVINO's, as most engines' convolutions are.

    Args:
        precision: of the multiplications.
        seconds: for each size.

    Returns:
        None where OpenVINO or this CPU does not compute in `precision`.
    """
    targets = {target.precision: target.reason for target in probe().targets}
    if targets.get(precision, "unknown"):
        return None
    return max(_rate(side, precision, seconds) for side in _SIDES)


def _rate(side: int, precision: Precision, seconds: float) -> float:
    openvino, count = import_openvino(), physical_core_count()
    config = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": count,
        "INFERENCE_NUM_THREADS": count,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(_product(side, quantized=precision == "int8"), "CPU", config)
    requests = [compiled.create_infer_request() for _ in range(count)]
    best, until = 0.0, time.perf_counter() + seconds
    for turn in range(1 << 20):
        began = time.perf_counter()
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        ended = time.perf_counter()
        if turn:  # the first one makes the kernels
            best = max(best, len(requests) * 2 * side**3 / (ended - began))
        if turn > 2 and ended > until:
            break
    return best


def _product(side: int, *, quantized: bool) -> Any:
    """A matrix that is given times one that is known, of which little is kept: writing is no part of a product."""
    openvino = import_openvino()
    ops: Any = openvino.opset13
    source = ops.parameter([side, side], np.float32, name="source")
    factor = ops.constant(np.random.default_rng(0).standard_normal((side, side), np.float32))
    left, right = (_eight_bits(ops, node, 256 - known) if quantized else node
                   for known, node in enumerate((source, factor)))  # fmt: skip
    return openvino.Model([ops.reduce_max(ops.matmul(left, right, False, True), 1)], [source])


def _eight_bits(ops: Any, node: Any, levels: int) -> Any:
    low, high = (ops.constant(np.float32(end)) for end in (-4.0, 4.0))
    return ops.fake_quantize(node, low, high, low, high, levels)
