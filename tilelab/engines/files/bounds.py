"""What a network's output is, told from its graph: the bounds of its values, and whether they are whole numbers.

Bounds are found by walking back from the output: operators that move or scale values pass bounds on, activations set
them, convolutions end the walk.  So a sigmoid is found whatever follows it and however it is written: 1 / (1 + exp(-x))
lies in 0..1 as much as (tanh(x / 2) + 1) / 2, a mean of two sigmoids, or their product does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tilelab.engines.files.ending import Ending
from tilelab.engines.files.graph import Graph, Operation

_INFINITE = math.inf
_DEPTH = 100  # of a walk; a network that is deeper without a convolution is told nothing of


def find_ending(graph: Graph, tensor: str) -> Ending:
    """What the graph tells of `tensor`: nothing if it makes no sense."""
    try:
        return _Walk(graph).of(tensor)
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return Ending()


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Operators that give the values they take, in another place, type or number; those of them that leave whole channels.
_KEEP_UNIT = _operators(
    "Identity Cast CastLike Transpose Reshape Squeeze Unsqueeze Flatten Resize Upsample Dropout Expand QuantizeLinear "
    "DequantizeLinear FakeQuantize AveragePool CenterCropPad Pad GridSample"
)
_MAY_KEEP_UNIT = _operators("Slice Gather GatherElements GatherND Split Compress")
_KEEP = (
    _KEEP_UNIT
    | _MAY_KEEP_UNIT
    | _operators(
        "DepthToSpace SpaceToDepth Tile MaxPool GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax ReduceMin "
        "ReverseSequence TopK DynamicQuantizeLinear Trilu Concat"
    )
)
_BETWEEN: dict[str, tuple[float, float]] = {
    "Sigmoid": (0, 1),
    "HardSigmoid": (0, 1),
    "Softmax": (0, 1),
    "Tanh": (-1, 1),
    "Erf": (-1, 1),
    "Softsign": (-1, 1),
    "Sin": (-1, 1),
    "Cos": (-1, 1),
    "Atan": (-math.pi / 2, math.pi / 2),
    "Softplus": (0, _INFINITE),
    "ReduceSumSquare": (0, _INFINITE),
    "ReduceL1": (0, _INFINITE),
    "ReduceL2": (0, _INFINITE),
    "ThresholdedRelu": (0, _INFINITE),
    "LogSoftmax": (-_INFINITE, 0),
}
_TRUTH = _operators("Greater GreaterOrEqual Less LessOrEqual Equal NotEqual Not And Or Xor IsNaN IsInf Hardmax OneHot")
_INDEX = _operators("ArgMax ArgMin NonZero Shape Size")
_ROUND = _operators("Round Floor Ceil Sign")
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))  # of TensorProto.DataType


def _times(a: float, b: float) -> float:
    return 0.0 if 0 in (a, b) else a * b


class _Walk:
    """Bounds of tensors, each found once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, Ending] = {}
        self._depth = 0

    def of(self, tensor: str) -> Ending:
        """What is known of a tensor."""
        if tensor not in self._known:
            self._known[tensor] = Ending()  # while it is being found
            self._depth += 1
            self._known[tensor] = self._find(tensor) if self._depth <= _DEPTH else Ending()
            self._depth -= 1
        return self._known[tensor]

    def _find(self, tensor: str) -> Ending:
        constant = self._graph.constants.get(tensor)
        if constant is not None:
            if not constant.size or not np.isfinite(constant).all():
                return Ending(operator="Constant")
            whole = bool((constant == np.rint(constant)).all())
            return Ending(float(constant.min()), float(constant.max()), whole, operator="Constant")
        made = self._graph.makers.get(tensor)
        if made is None:
            return Ending()
        name = made.operator
        if name in _KEEP:
            return self._kept(made, tensor)
        if name in _BETWEEN:
            low, high = _BETWEEN[name]
            log = name == "LogSoftmax"
            return Ending(low, high, unit=log or name == "Softmax", operator=name, log=log)
        if name in _TRUTH:
            return Ending(0, 1, whole=True, operator=name)
        if name in _INDEX:
            count = self._channels(made.input(0)) if name in ("ArgMax", "ArgMin") else None
            return Ending(0, _INFINITE if count is None else count - 1, whole=True, operator=name)
        rule = _RULES.get(name)
        found = Ending() if rule is None else rule(self, made)
        return found if found.operator else replace(found, operator=name)

    def _kept(self, made: Operation, tensor: str) -> Ending:
        name = made.operator
        if name == "TopK" and tensor == made.outputs[-1] and len(made.outputs) > 1:
            count = self._channels(made.input(0))
            return Ending(0, _INFINITE if count is None else count - 1, whole=True, operator=name)
        if name == "Concat":
            return self._joined(made)
        found = self.of(made.input(0))
        if name not in _KEEP_UNIT:
            found = replace(found, unit=self._unit_of_part(made, found) if name in _MAY_KEEP_UNIT else False)
        if name == "Pad":
            fill = self._graph.option(made, "value", 2) or (0.0,)
            if made.attributes.get("mode", "constant") == "constant":
                whole = found.whole and all(value == round(value) for value in fill)
                found = replace(found, low=min(found.low, *fill), high=max(found.high, *fill), whole=whole)
        if name == "GridSample":
            found = replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
        if name in ("Resize", "Upsample", "GridSample") and made.attributes.get("mode", "nearest") != "nearest":
            found = replace(found, whole=False)
        if name in ("ReduceMean", "AveragePool", "GlobalAveragePool"):
            found = replace(found, whole=False)
        if name == "Cast" and made.attributes.get("to") in _INTEGERS:
            found = replace(found, whole=True, unit=False)
        return found

    def _channels(self, tensor: str) -> int | None:
        """How many channels a tensor has, as the convolution tells that made it; None where none is found."""
        for _ in range(_DEPTH):
            made = self._graph.makers.get(tensor)
            if made is None:
                return None
            weights = self._graph.shapes.get(self._root(made.input(1)), ())
            if made.operator == "Conv" and len(weights) > 2:
                return weights[0]
            if made.operator == "ConvTranspose" and len(weights) > 2:
                return weights[1] * int((self._graph.option(made, "group", 99) or (1,))[0])
            if made.operator in ("Concat", "Split", "Slice", "Gather", "DepthToSpace", "SpaceToDepth", "MatMul"):
                return None
            constants = self._graph.constants
            tensor = next((name for name in made.inputs if name and name not in constants), "")
        return None

    def _unit_of_part(self, made: Operation, found: Ending) -> bool | None:
        """Whether what is cut out still adds up to one: a crop does, a choice of channels does not."""
        if not found.unit:
            return found.unit
        if made.operator == "Slice":
            axes = self._graph.option(made, "axes", 3)
        else:
            axis = made.attributes.get("axis", 0)
            axes = (axis,) if isinstance(axis, int | float) else None
        if axes is None:
            return None
        return False if 1 in axes else None if {-1, -3, -4} & set(axes) else True

    def _joined(self, made: Operation) -> Ending:
        parts = [self.of(name) for name in made.inputs]
        if len(parts) == 1:
            return parts[0]
        first = next((part for part in parts if part.operator != "Constant"), parts[0])
        unit = None
        if len(made.inputs) == 2 and self._complement(*made.inputs):
            unit = True
        return Ending(
            min(p.low for p in parts), max(p.high for p in parts), all(p.whole for p in parts), unit, first.operator
        )

    def _complement(self, a: str, b: str) -> bool:
        """Whether one is 1 - the other."""
        for one, other in ((a, b), (b, a)):
            made = self._maker(one)
            if made is not None and made.operator == "Sub":
                left = self.of(made.input(0))
                if (left.low, left.high) == (1, 1) and self._root(made.input(1)) == self._root(other):
                    return True
        return False

    def _root(self, tensor: str) -> str:
        """The tensor whose values these are, shape and type aside."""
        for _ in range(_DEPTH):
            made = self._graph.makers.get(tensor)
            if made is None or made.operator not in ("Identity", "Cast", "CastLike", "Expand", "Dropout", "Reshape"):
                break
            tensor = made.input(0)
        return tensor

    def _maker(self, tensor: str) -> Operation | None:
        return self._graph.makers.get(self._root(tensor))

    def add(self, made: Operation) -> Ending:
        """Also of more than two: Sum, Mean."""
        parts = [self.of(name) for name in made.inputs]
        scale = 1 / len(parts) if made.operator == "Mean" else 1
        whole = made.operator != "Mean" and all(part.whole for part in parts)
        shares = {part.unit for part in parts if part.operator != "Constant"}
        unit = shares.pop() if len(shares) == 1 and (made.operator == "Mean" or shares == {False}) else None
        return Ending(sum(p.low for p in parts) * scale, sum(p.high for p in parts) * scale, whole, unit, _name(parts))

    def subtract(self, made: Operation) -> Ending:
        """X - ReduceLogSumExp(x) is a logarithm of probabilities."""
        a, b = self.of(made.input(0)), self.of(made.input(1))
        taken = self._maker(made.input(1))
        if taken is not None:
            same = taken.operator == "ReduceLogSumExp" and self._root(taken.input(0)) == self._root(made.input(0))
            if same or (taken.operator == "Log" and self._sum_of(taken.input(0))):
                return Ending(-_INFINITE, 0, unit=True, operator="LogSoftmax", log=True)
        return Ending(a.low - b.high, a.high - b.low, a.whole and b.whole, False, _name((a, b)))

    def multiply(self, made: Operation) -> Ending:
        """A product with a reciprocal is a quotient."""
        for one, other in ((0, 1), (1, 0)):
            inverse = self._maker(made.input(other))
            if inverse is not None and self._is_reciprocal(inverse):
                return self._quotient(made.input(one), inverse.input(inverse.operator == "Div"))
        a, b = self.of(made.input(0)), self.of(made.input(1))
        ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        whole = a.whole and b.whole
        step = max([1.0, *(p.low * q.step for p, q in ((a, b), (b, a)) if whole and p.low == p.high > 0)])
        return Ending(min(ends), max(ends), whole, False, _name((a, b)), step=step)

    def _is_reciprocal(self, made: Operation) -> bool:
        if made.operator == "Div":
            above = self.of(made.input(0))
            return (above.low, above.high) == (1, 1)
        return made.operator == "Reciprocal" or (made.operator == "Pow" and self._graph.option(made, "", 1) == (-1.0,))

    def divide(self, made: Operation) -> Ending:
        """See `_quotient`."""
        return self._quotient(made.input(0), made.input(1))

    def reciprocal(self, made: Operation) -> Ending:
        """1 / x."""
        found = _divide(Ending(1, 1, operator="Constant"), self.of(made.input(0)))
        return replace(found, operator=self.of(made.input(0)).operator or made.operator)

    def _quotient(self, above: str, below: str) -> Ending:
        """A share of a sum of what is not negative lies in 0..1: exp(x) / sum exp(x), exp(x) / (1 + exp(x))."""
        a, b = self.of(above), self.of(below)
        if a.low >= 0:
            if self._sum_of(below) == self._root(above):
                return Ending(0, 1, unit=True, operator="Softmax")
            whole = self._maker(below)
            if whole is not None and whole.operator in ("Add", "Sum"):
                terms = [self._root(name) for name in whole.inputs]
                if self._root(above) in terms and all(self.of(name).low >= 0 for name in whole.inputs):
                    return Ending(0, 1, unit=False, operator="Sigmoid")
        return replace(_divide(a, b), operator=_name((a, b)))

    def _sum_of(self, tensor: str) -> str:
        """The tensor that is summed here, or here but for a small constant; empty for anything else."""
        made = self._maker(tensor)
        if made is not None and made.operator in ("Add", "Max", "Clip", "Sum"):
            made = next((m for name in made.inputs if (m := self._maker(name)) and m.operator == "ReduceSum"), None)
        return self._root(made.input(0)) if made is not None and made.operator == "ReduceSum" else ""

    def reduce_sum(self, made: Operation) -> Ending:
        """Of what is not negative it is not less than that."""
        found = self.of(made.input(0))
        low = max(0.0, found.low) if found.low >= 0 else -_INFINITE
        return Ending(low, _INFINITE, found.whole, False, found.operator)

    def clip(self, made: Operation) -> Ending:
        """Cut off at one end or both."""
        found = self.of(made.input(0))
        low = (self._graph.option(made, "min", 1) or (-_INFINITE,))[0]
        high = (self._graph.option(made, "max", 2) or (_INFINITE,))[0]
        same = low <= found.low and found.high <= high
        name = found.operator if same or found.bounded else made.operator
        ends = (max(low, min(found.low, high)), min(high, max(found.high, low)))
        whole = found.whole and all(end == round(end) for end in ends if math.isfinite(end))
        return Ending(*ends, whole, found.unit if same else None, name, found.log and same)

    def power(self, made: Operation) -> Ending:
        """Of constant exponent."""
        exponent = self._graph.option(made, "", 1)
        found = self.of(made.input(0))
        if exponent is None or len(set(exponent)) != 1:
            return Ending(operator=found.operator)
        if exponent[0] == -1:
            return replace(_divide(Ending(1, 1), found), operator=found.operator)
        if found.low >= 0 and exponent[0] > 0:
            return Ending(found.low ** exponent[0], found.high ** exponent[0], False, False, found.operator)
        return Ending(0 if exponent[0] % 2 == 0 else -_INFINITE, _INFINITE, False, False, found.operator)

    def choose(self, made: Operation) -> Ending:
        """Where: one or the other."""
        parts = [self.of(name) for name in made.inputs[1:3]]
        ends = min(p.low for p in parts), max(p.high for p in parts)
        return Ending(*ends, all(p.whole for p in parts), False, made.operator if _constant(parts) else _name(parts))

    def extreme(self, made: Operation) -> Ending:
        """Max and Min of several tensors."""
        parts = [self.of(name) for name in made.inputs]
        pick = max if made.operator == "Max" else min
        ends = pick(p.low for p in parts), pick(p.high for p in parts)
        return Ending(*ends, all(p.whole for p in parts), False, _name(parts))

    def convolve(self, made: Operation) -> Ending:
        """With a few constant weights of bounded values it is bounded, too: a smoothing after the activation."""
        found, weights = self.of(made.input(0)), self._graph.constants.get(made.input(1))
        bias = self._graph.constants.get(made.input(2)) if made.input(2) else np.zeros(1)
        if not found.bounded or weights is None or bias is None:
            return Ending(operator=made.operator)
        low, high = min(found.low, 0.0), max(found.high, 0.0)  # zeros are padded
        rows = weights.reshape(len(weights), -1)
        up, down = rows.clip(0).sum(1), rows.clip(max=0).sum(1)
        ends = float((up * low + down * high + bias).min()), float((up * high + down * low + bias).max())
        smooth = Ending(*ends, unit=None, operator=found.operator)
        return smooth if smooth.kind == "probabilities" else Ending(operator=made.operator)

    def monotone(self, rise: Callable[[float], float]) -> Callable[[Operation], Ending]:
        """An operator that rises with its only input."""

        def rule(made: Operation) -> Ending:
            found = self.of(made.input(0))
            return Ending(rise(found.low), rise(found.high), False, False, found.operator if found.bounded else "")

        return rule

    def logarithm(self, made: Operation) -> Ending:
        """Of probabilities it is at most 0."""
        found = self.of(made.input(0))
        low = math.log(found.low) if found.low > 0 else -_INFINITE
        high = math.log(found.high) if 0 < found.high < _INFINITE else _INFINITE
        log = found.kind == "probabilities"
        return Ending(low, high, False, found.unit if log else False, found.operator if log else made.operator, log)

    def exponential(self, made: Operation) -> Ending:
        """Of a logarithm of probabilities they are probabilities again."""
        found = self.of(made.input(0))
        ends = (_exp(found.low), _exp(found.high))
        return Ending(*ends, False, found.unit if found.log else False, found.operator if found.log else made.operator)

    def negative(self, made: Operation) -> Ending:
        """-x."""
        found = self.of(made.input(0))
        return Ending(-found.high, -found.low, found.whole, False, found.operator)

    def magnitude(self, made: Operation) -> Ending:
        """Abs."""
        found = self.of(made.input(0))
        least = 0.0 if found.low <= 0 <= found.high else min(abs(found.low), abs(found.high))
        return Ending(least, max(abs(found.low), abs(found.high)), found.whole, False, made.operator)

    def rounded(self, made: Operation) -> Ending:
        """To whole numbers."""
        found = self.of(made.input(0))
        if made.operator == "Sign":
            return Ending(-1, 1, whole=True, operator=made.operator)
        low = math.floor(found.low) if math.isfinite(found.low) else found.low
        high = math.ceil(found.high) if math.isfinite(found.high) else found.high
        return Ending(low, high, whole=True, operator=made.operator)


def _name(parts: object) -> str:
    """The operator that a combination is known by: that of its first part that is no constant, if all are bounded."""
    assert isinstance(parts, list | tuple)  # noqa: S101
    moving = [part for part in parts if part.operator != "Constant"] or list(parts)
    return moving[0].operator if all(part.bounded or part.low >= 0 for part in moving) else ""


def _constant(parts: list[Ending]) -> bool:
    return all(part.operator == "Constant" for part in parts)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else _INFINITE


def _divide(a: Ending, b: Ending) -> Ending:
    """Bounds of a quotient; none where the divisor may be 0 or of either sign."""
    if b.low < 0 < b.high or (b.low, b.high) == (0, 0) or (b.low < 0 and b.high == 0):
        return Ending()
    if b.low == 0:
        high = _INFINITE if a.high > 0 else a.high / b.high
        low = -_INFINITE if a.low < 0 else _times(a.low, 0.0 if b.high == _INFINITE else 1 / b.high)
        return Ending(low, high)
    inverse = [0.0 if math.isinf(end) else 1 / end for end in (b.low, b.high)]
    ends = [_times(x, y) for x in (a.low, a.high) for y in inverse]
    return Ending(min(ends), max(ends))


def _unary(rise: Callable[[float], float]) -> Callable[[_Walk, Operation], Ending]:
    return lambda walk, made: walk.monotone(rise)(made)


_RULES: dict[str, Callable[[_Walk, Operation], Ending]] = {
    "Add": _Walk.add,
    "Sum": _Walk.add,
    "Mean": _Walk.add,
    "Sub": _Walk.subtract,
    "Mul": _Walk.multiply,
    "Div": _Walk.divide,
    "Reciprocal": _Walk.reciprocal,
    "ReduceSum": _Walk.reduce_sum,
    "Clip": _Walk.clip,
    "Pow": _Walk.power,
    "Where": _Walk.choose,
    "Max": _Walk.extreme,
    "Min": _Walk.extreme,
    "Conv": _Walk.convolve,
    "Neg": _Walk.negative,
    "Abs": _Walk.magnitude,
    "Exp": _Walk.exponential,
    "Log": _Walk.logarithm,
    **dict.fromkeys(_ROUND, _Walk.rounded),
    "Relu": _unary(lambda x: max(0.0, x)),
    "LeakyRelu": _unary(lambda x: x),
    "Sqrt": _unary(lambda x: math.sqrt(max(0.0, x))),
}
