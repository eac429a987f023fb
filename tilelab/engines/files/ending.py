"""What is known of a network's output: the bounds of its values, whether they are whole numbers, add up to one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilelab.spec import OutputKind

_INFINITE = math.inf
_SLACK = 1e-3  # constants are rounded


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of a tensor's values.

    Attributes:
        low, high: bounds, infinite where there is none.
        whole: only whole numbers.
        unit: they add up to one over an axis, which is likely that of the channels; None where that is not known.
        operator: that says so, as ONNX calls it; empty for an unknown one.
        log: they are logarithms of probabilities.
        step: of whole numbers, of which all are multiples.
    """

    low: float = -_INFINITE
    high: float = _INFINITE
    whole: bool = False
    unit: bool | None = False
    operator: str = ""
    log: bool = False
    step: float = 1.0

    @property
    def bounded(self) -> bool:
        """Between two numbers."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def kind(self) -> OutputKind | None:
        """Logits, probabilities or labels; None where the graph does not decide."""
        if self.whole:
            return "labels"
        if self.low >= -_SLACK and self.high <= 1 + _SLACK:
            return "probabilities"
        if (self.low < -1 - _SLACK and self.high > 1 + _SLACK) or (self.log and self.unit):
            return "logits"
        return None

    @property
    def span(self) -> str:
        """The bounds in words."""
        if self.bounded:
            return f"between {self.low:.4g} and {self.high:.4g}"
        if math.isfinite(self.low):
            return f"{self.low:.4g} and more"
        return f"{self.high:.4g} and less" if math.isfinite(self.high) else "any number"
