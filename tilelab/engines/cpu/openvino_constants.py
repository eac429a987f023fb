"""What OpenVINO would compute of constants when it loads a network, computed before, the same for every stream.

Each stream makes a graph of its own, all at the same time, and they share what they compute of constants; one can go on
before another has written it (2026.4: what pools in a PmcaNet in int8 then had other weights from one load to the next,
and 3 % of the labels changed).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.cpu.openvino_rewriting import rewrite

_ARITHMETIC = {"Multiply": np.multiply, "Subtract": np.subtract}


def fold_constants(model: Any) -> int:
    """Store constant factors of matrix products, in place, as they are multiplied.

    Weights (right factors of two axes) are transposed, and stay quantised where what they multiply is; all others
    become floats.

    Args:
        model: an ``openvino.Model``.

    Returns:
        How many products were changed.
    """
    return rewrite(model, "MatMul", _fold)


def computed_constants(compiled: Any) -> list[str]:
    """Nodes of an ``openvino.CompiledModel`` that read constants alone, but those that only shape a stored one."""
    stored: dict[str, bool] = {}  # the constants
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        sources = [value.get_node().get_name() for value in node.input_values()]
        if kind == "Const":
            stored[node.get_name()] = True
        elif sources and all(source in stored for source in sources):
            stored[node.get_name()] = kind == "Reshape" and all(stored[source] for source in sources)
            if not stored[node.get_name()]:
                found.append(str(node.get_friendly_name()))
    return found


def _fold(product: Any) -> bool:
    """Fold the factors of one product, where they are constants that would be computed."""
    from openvino import opset13 as ops

    folded = False
    quantised = product.input_value(0).get_node().get_type_name() == "FakeQuantize"
    for port, factor in enumerate(product.input_values()):
        numbers = _numbers(factor)
        if numbers is None:
            continue
        weights = port == 1 and numbers.ndim == 2
        stored = factor.get_node().get_type_name() == "Constant" or (weights and quantised)
        if weights and not product.get_attributes()["transpose_b"]:
            factor = _transposed(factor) if quantised else ops.constant(np.ascontiguousarray(numbers.T)).output(0)
            product.set_attribute("transpose_b", True)
        elif not stored:
            factor = ops.constant(numbers).output(0)
        else:
            continue
        product.input(port).replace_source_output(factor)
        folded = True
    return folded


def _numbers(value: Any) -> Array | None:
    """A constant's, also those of one that is stored in fewer bits; None where it is something else."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return np.asarray(node.data)
    if kind != "Convert" and kind not in _ARITHMETIC:
        return None
    parts = [_numbers(source) for source in node.input_values()]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or node.get_output_element_type(0).get_type_name() != "f32":
        return None
    return _ARITHMETIC[kind](*known) if kind in _ARITHMETIC else known[0].astype(np.float32)


def _transposed(value: Any) -> Any:
    """The transpose of a matrix whose numbers are known, stored in the bits that it has."""
    from openvino import opset13 as ops

    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return ops.constant(np.ascontiguousarray(np.atleast_2d(node.data).T)).output(0)
    parts = [_transposed(source) for source in node.input_values()]
    made = ops.convert(parts[0], "f32") if kind == "Convert" else getattr(ops, kind.lower())(*parts)
    return made.output(0)
