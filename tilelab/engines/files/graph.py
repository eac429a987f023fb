"""A network's graph as far as it must be known to tell what its outputs are: operators, and constants of few numbers.

Operators have ONNX's names, whichever format the graph was read from; attributes that are inputs in one version of an
operator and attributes in another are looked up by `Graph.option`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tilelab.arrays import Float64

MOST_NUMBERS = 4096  # of a constant that is kept

Attribute = float | str | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator: `inputs` and `outputs` are names of tensors, empty where an optional one is left out."""

    operator: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def input(self, index: int) -> str:
        """The name of an input, empty where there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass
class Graph:
    """All operators by the tensors they make, all small constants, and the shapes of those that are larger."""

    makers: dict[str, Operation] = field(default_factory=dict)
    constants: dict[str, Float64] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _first: dict[object, str] = field(default_factory=dict)
    _same: dict[str, str] = field(default_factory=dict)

    def add(self, operation: Operation) -> None:
        """Keep an operator; one that computes once more what another does becomes the other's identity."""
        inputs = tuple(self._same.get(name, name) for name in operation.inputs)
        operation = replace(operation, inputs=inputs)
        key = (operation.operator, inputs, tuple(sorted(operation.attributes.items(), key=str)))
        if inputs and len(operation.outputs) == 1 and () not in operation.attributes.values():
            name = operation.outputs[0]
            self._same[name] = self._first.setdefault(key, name)
            if self._same[name] != name:
                operation = Operation("Identity", (self._same[name],), (name,))
        for name in operation.outputs:
            if name:
                self.makers[name] = operation

    def option(self, operation: Operation, name: str, index: int) -> tuple[float, ...] | None:
        """Numbers that are an attribute or, in later versions, a constant input; None where they are not known."""
        value = operation.attributes.get(name)
        if value is not None and not isinstance(value, str):
            return value if isinstance(value, tuple) else (value,)
        constant = self.constants.get(operation.input(index))
        return None if constant is None else tuple(constant.reshape(-1).tolist())
