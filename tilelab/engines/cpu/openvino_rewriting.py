"""OpenVINO graphs, rewritten node by node: what every rewriting does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilelab.arrays import Float32


def rewrite(model: Any, kind: str, change: Callable[[Any], bool]) -> int:
    """Change nodes of a graph, in place.

    Args:
        model: an ``openvino.Model``.
        kind: of the nodes.
        change: replaces one, or leaves it and says so.

    Returns:
        How many were changed.
    """
    changed = sum(change(node) for node in model.get_ordered_ops() if node.get_type_name() == kind)
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def take_place(new: Any, old: Any) -> None:
    """Let the node `new` be read by all that read the node `old`, each of one output."""
    for reader in list(old.output(0).get_target_inputs()):
        reader.replace_source_output(new.output(0))


def constant_of(value: Any) -> Float32 | None:
    """A constant of floats, also one that is stored as halves."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() not in ("f32", "f16"):
        return None
    return np.asarray(node.data, np.float32)
