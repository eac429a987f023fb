"""What the numbers are that a network gives: logits, probabilities, labels, a map.

Everything behind an engine works on logits.  Probabilities that are taken for logits are all positive, and the whole
image becomes foreground without an error.  So the graph is read (`Ending`) and a trial batch is looked at, and where
both leave a doubt that could ruin a result, the model is refused until the user says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tilelab.arrays import Float32
from tilelab.assumptions import Assumption
from tilelab.engines.files.ending import Ending
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.errors import ModelError
from tilelab.spec import Activation, ModelSpec, OutputKind

FLAG = "--output-is"
_SLACK = 1e-3  # of bounds, for rounding
_SUM_SLACK = 0.02, 0.004  # of a sum over channels: in all, and for each of them when they were rounded to 8 bits
_MOST_LABELS = 256
_OVERSHOOT = 0.3  # of probabilities that were enlarged bicubically


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an output is, and how sure that is.

    Attributes:
        spec: of the model.
        path: of the model, for messages.
        kind: what it is taken for; None while that is not known.
        ending: what the graph tells; None where there is none to read.
        said: by the user; None where they said nothing.
        described: the model describes itself.
        warnings: one line each.
        assumptions: what had to be guessed.
    """

    spec: ModelSpec
    path: object
    kind: OutputKind | None
    ending: Ending | None
    said: OutputKind | None
    described: bool
    warnings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()

    @property
    def _name(self) -> str:
        """Of the model, not where it lies: results keep what is assumed of it."""
        return self.path.name if isinstance(self.path, Path) else str(self.path)

    @property
    def undo(self) -> Activation | None:
        """The activation to be undone, so that what is blended is logits."""
        return self.spec.activation if self.kind == "probabilities" else None

    def confirm(self, values: Float32) -> Meaning:
        """Compare with what a trial batch gave, ``(B, K, *tile)``, finite and as the network gives it.

        Raises:
            ModelError: it contradicts, or leaves a doubt that could ruin the result.
        """
        seen = _Seen.of(values)
        if self.kind == "map":
            return self
        if self.kind == "labels":
            return self._confirm_labels(seen)
        if not seen.varies:
            told = self.kind is not None or self.ending is not None or self.described
            if not told and self.spec.activation == "sigmoid" and seen.inside and seen.low > 0:  # as logits, all is yes
                raise self._doubt("every value of a trial batch is about the same, between 0 and 1")
            return self._settled("logits")
        if self.said is not None:
            return self._confirm_said(seen)
        if self.kind == "probabilities":
            if self.ending is None and not -_OVERSHOOT <= seen.low <= seen.high <= 1 + _OVERSHOOT:
                raise ModelError(
                    f"{self.path} gives values from {seen.low:.4g} to {seen.high:.4g} for a trial batch: those are no "
                    f"probabilities, as its description says they are: say {FLAG} logits or map"
                )
            self._check_sum(seen)
            return self._settled("probabilities")
        if seen.labels and not self.described:
            raise self._doubt("every value of a trial batch is a whole number, as of labels")
        if self.kind is None and self.ending is None:
            return self._by_values(seen)
        if self.ending is None or self.described:
            return self._settled("logits")
        one_sided = self.kind is None and not self.ending.bounded  # a ReLU: no activation of a classifier ends so
        if seen.inside and not one_sided and (self.spec.activation == "sigmoid" or seen.sums):
            sums = " and adds up to one over the channels" if seen.sums else ""
            raise self._doubt(f"every value of a trial batch lies in 0..1{sums}, as probabilities do")
        if self.kind == "logits":
            return self._settled("logits") if not seen.inside else self._assume(f"the network ends in {self._operator}")
        return self._unclear(seen)

    def _confirm_labels(self, seen: _Seen) -> Meaning:
        """Labels are whole numbers below the number of classes."""
        count = len(self.spec.classes)
        if not seen.labels or round(seen.high) >= count:
            raise ModelError(
                f"{self.path} gives values from {seen.low:.4g} to {seen.high:.4g} for a trial batch: those are no "
                f"labels of {count} classes, say how many with --classes, or {FLAG} logits, probabilities or map"
            )
        found = self._operator if self.said is None else f"{FLAG} says so"
        line = f"its output is labels ({found}): not blended, a pixel has that of the tile whose centre is nearest"
        return replace(self, warnings=(*self.warnings, line))

    def _by_values(self, seen: _Seen) -> Meaning:
        """Nothing but the values tells."""
        if not seen.inside:
            return self._settled("logits")
        if self.spec.activation == "softmax" and not seen.sums:
            raise self._doubt("every value of a trial batch lies in 0..1, but they do not add up to one")
        assumption = Assumption(
            what=f"the output of {self._name}",
            taken="probabilities",
            because="every value of a trial batch lies in 0..1",
            flag=FLAG,
        )
        return replace(self._settled("probabilities"), assumptions=(*self.assumptions, assumption))

    def _unclear(self, seen: _Seen) -> Meaning:
        """Neither unbounded nor in 0..1: fit for labels if it is on both sides of 0, or if the greatest is chosen."""
        ending = self.ending
        assert ending is not None  # noqa: S101 - see `confirm`
        what = f"its values are {ending.span} ({ending.operator})"
        if ending.low >= -_SLACK and ending.bounded:
            raise self._doubt(f"{what}: rescaled probabilities, it seems")
        if self.spec.activation == "sigmoid" and (seen.low > 0 or ending.high <= 0):
            raise self._doubt(f"{what}, so that as logits all pixels would be of one class")
        return self._assume(what)

    def _assume(self, because: str) -> Meaning:
        made = Assumption(what=f"the output of {self._name}", taken="logits", because=because, flag=FLAG)
        return replace(self._settled("logits"), assumptions=(*self.assumptions, made))

    def _confirm_said(self, seen: _Seen) -> Meaning:
        if self.said == "probabilities":
            if not seen.inside:
                raise ModelError(
                    f"{self.path} gives values from {seen.low:.4g} to {seen.high:.4g} for a trial batch: those are no "
                    f"probabilities, {FLAG} must be another"
                )
            self._check_sum(seen)
        warnings = self.warnings
        if self.said == "logits" and seen.inside:
            warnings += (f"{FLAG} logits: yet every value of a trial batch lies in 0..1, as probabilities do",)
        return replace(self._settled(self.said or "logits"), warnings=warnings)

    def _check_sum(self, seen: _Seen) -> None:
        """Probabilities of exclusive classes add up to one over the channels, others do not."""
        if self.spec.class_values == 1 or seen.sums == (self.spec.activation == "softmax"):
            return
        if seen.sums:
            raise ModelError(
                f"{self.path} gives {self.spec.class_values} probabilities that add up to one, as a softmax does: "
                f"say --activation softmax"
            )
        low, high = seen.sum_range
        axis = "its softmax is over another axis than the channels" if self.ending and self.ending.unit else "so"
        way = "export it with a softmax over the channels" if axis != "so" else "say --activation sigmoid"
        raise ModelError(
            f"{self.path} gives {self.spec.class_values} probabilities that add up to {low:.3g} to {high:.3g} "
            f"instead of 1, {axis if axis != 'so' else 'which is no softmax'}: {way}"
        )

    def _settled(self, kind: OutputKind) -> Meaning:
        kind = self.kind or kind
        if kind != "probabilities":
            return replace(self, kind=kind)
        found = f"the network ends in {self._operator}" if self.ending else "as a trial batch tells"
        line = f"its output is probabilities ({found}): their {self.spec.activation} is undone before tiles are blended"
        return replace(self, kind=kind, warnings=(*self.warnings, line))

    @property
    def _operator(self) -> str:
        return self.ending.operator if self.ending and self.ending.operator else "an operator that is not known here"

    def _doubt(self, why: str) -> ModelError:
        ends = f" although the network ends in {self._operator}" if self.ending and self.kind == "logits" else ""
        return ModelError(
            f"it is not clear what {self.path} gives: {why}{ends}: say {FLAG} probabilities, logits, labels or map"
        )


def read_meaning(file: ModelFile, output: Port, spec: ModelSpec, said: OutputKind | None = None) -> Meaning:
    """What an output is as far as file and user tell.

    Args:
        file: the model.
        output: the one that is used.
        spec: its full description.
        said: by the user.

    Raises:
        ModelError: it has an activation that contradicts the description.
    """
    ending = file.endings.get(output.name)
    kind = said or (ending.kind if ending is not None else None)
    stated = spec.outputs[0].kind
    if stated in ("labels", "map") or (stated is not None and said is None):
        kind = stated
    meaning = Meaning(spec, file.path, kind, ending, said, file.description is not None)
    if kind == "probabilities" and said is None and ending is not None:
        _check_activation(meaning, ending)
    return meaning


def _check_activation(meaning: Meaning, ending: Ending) -> None:
    spec, path = meaning.spec, meaning.path
    if ending.unit and spec.class_values == 1:
        raise ModelError(
            f"{path} ends in a softmax but has one output, so that it is 1 everywhere, or the softmax is over another "
            f"axis: export it with a sigmoid or with its logits"
        )
    if ending.unit and spec.activation == "sigmoid":
        raise ModelError(
            f"{path} ends in a softmax over its classes, --activation sigmoid contradicts that: say softmax, or leave "
            "it out"
        )
    if ending.unit is False and spec.class_values > 1 and spec.activation == "softmax":
        raise ModelError(
            f"{path} gives each of its {spec.class_values} outputs a probability of its own ({ending.operator}), "
            "--activation softmax contradicts that: say sigmoid, or leave it out"
        )


def ends_in_sigmoid(file: ModelFile, output: Port) -> bool:
    """Whether the graph gives each output a probability of its own."""
    ending = file.endings.get(output.name)
    return ending is not None and ending.kind == "probabilities" and ending.unit is False


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a trial batch looks like: extremes, whether it varies, lies in 0..1, adds up to one over the channels."""

    low: float
    high: float
    varies: bool
    inside: bool
    sums: bool
    sum_range: tuple[float, float]
    labels: bool

    @classmethod
    def of(cls, values: Float32) -> _Seen:
        low, high = float(values.min()), float(values.max())
        inside = low >= -_SLACK and high <= 1 + _SLACK
        near = low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT
        total = values.sum(axis=1)
        sum_range = float(total.min()), float(total.max())
        slack = _SUM_SLACK[0] + _SUM_SLACK[1] * values.shape[1]
        whole = low >= 0 and bool((values == np.rint(values)).all())
        return cls(
            low,
            high,
            high - low > _SLACK,
            inside,
            near and values.shape[1] > 1 and max(abs(end - 1) for end in sum_range) <= slack,
            sum_range,
            whole and high < _MOST_LABELS,
        )
