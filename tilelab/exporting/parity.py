"""The parity gate: an exported file must say what the network says, on real images, blended as in use.

Per-layer agreement proves little (engines have been known to pass that and fail on images); so whole images are
compared, by the difference of logits, the share of pixels whose label changed and, with truth, the change of score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilelab.arrays import Float32, UInt8
from tilelab.engines.base import Engine
from tilelab.engines.registry import load_engine, read_model
from tilelab.errors import EngineError
from tilelab.evaluation.metrics.confidence import Answers, calibrate
from tilelab.evaluation.metrics.confusion import count_confusion, mean_of_present, score_confusion
from tilelab.io.images.image import Image
from tilelab.kernels.reference import ACTIVATIONS
from tilelab.spec import Confidence, ModelSpec, Precision
from tilelab.training.recipe import IGNORE
from tilelab.training.validate import infer_logits, labels_of


class ParityError(EngineError):
    """An exported file does not reproduce its network."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a precision may change.

    logit    difference of any logit, as a share of the greatest logit's magnitude
    changed  share of pixels whose label changes
    iou      mean IoU lost
    """

    logit: float
    changed: float
    iou: float = 0.005


# fp32 differs by the order of sums only.  The others round every activation; what matters is the labels.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, 1e-4, 1e-4),
    "fp16": Tolerance(0.01, 0.002),
    "bf16": Tolerance(0.1, 0.01),
    "int8": Tolerance(0.5, 0.03),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A plane to compare on; `truth` holds its class indices, uint8 ``(y, x)``, where they are known."""

    name: str
    image: Image
    truth: UInt8 | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """The outcome of one comparison.

    Attributes:
        engine, precision: what was compared with the network in fp32.
        logit: greatest difference of a blended logit.
        scale: greatest magnitude of a blended logit of the network.
        changed: share of pixels whose label differs.
        iou_before, iou_after: mean IoU of the network and of the engine, pooled over the samples; None without truth.
        worst: where `logit` was found: sample name, class, y, x.
        file: the arithmetic that the file itself holds.
    """

    engine: str
    precision: Precision
    logit: float
    scale: float
    changed: float
    iou_before: float | None
    iou_after: float | None
    worst: tuple[str, int, int, int]
    file: Precision = "fp32"

    @property
    def tolerance(self) -> Tolerance:
        """That of the coarser of the file's and the engine's arithmetic."""
        return TOLERANCES[max(self.file, self.precision, key=list(TOLERANCES).index)]

    def failure(self) -> str | None:
        """What is beyond tolerance, in words; None when all is within."""
        limit = self.tolerance
        lost = 0.0 if self.iou_before is None or self.iou_after is None else self.iou_before - self.iou_after
        for what, value, most in (
            ("changes logits by up to", self.logit, limit.logit * self.scale),
            ("changes the label of a share of pixels of", self.changed, limit.changed),
            ("loses a mean IoU of", lost, limit.iou),
        ):
            if not value <= most:  # NaN fails
                name, label, y, x = self.worst
                return (
                    f"{self._label} {what} {value:.3g}, at most {most:.3g} are allowed; "
                    f"worst at y={y} x={x} of {name}, class {label}"
                )
        return None

    @property
    def _label(self) -> str:
        held = "" if self.file in (self.precision, "fp32") else f" on {self.file} weights"
        return f"{self.engine} {self.precision}{held}"

    def __str__(self) -> str:
        text = f"{self._label}: logits within {self.logit:.2g} of {self.scale:.2g}, "
        text += f"labels changed {self.changed:.2e}"
        if self.iou_before is not None and self.iou_after is not None:
            text += f", mean IoU {self.iou_before:.4f} -> {self.iou_after:.4f}"
        return text


class Reference:
    """Blended logits of the network itself, in fp32, on the samples; computed once for each way of tiling.

    Args:
        make: the network as an engine for a description.
        samples: at least one image.
    """

    def __init__(self, make: Callable[[ModelSpec], Engine], samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)
        self._make = make
        self._known: dict[tuple[object, ...], list[Float32]] = {}

    def logits(self, spec: ModelSpec) -> list[Float32]:
        """Of every sample, float32 ``(K, y, x)``, tiled as `spec` says."""
        key = (spec.tile, spec.overlap, spec.window)
        if key not in self._known:
            engine = self._make(spec)
            try:
                self._known[key] = [infer_logits(engine, sample.image) for sample in self.samples]
            finally:
                engine.close()
        return self._known[key]

    def confidence(self, spec: ModelSpec) -> Confidence | None:
        """What calibrates its probabilities, by the samples whose truth is known; else what `spec` says."""
        if not (spec.plain and spec.classified) or spec.outputs[0].thresholds:
            return spec.confidence
        answers = [
            Answers.of(logits, sample.truth, ignore=IGNORE)
            for sample, logits in zip(self.samples, self.logits(spec), strict=True)
            if sample.truth is not None
        ]
        return calibrate(answers, ACTIVATIONS[spec.activation]) or spec.confidence


def check_parity(
    reference: Reference,
    path: Path,
    *,
    engine: str = "auto",
    precision: Precision | None = None,
    device: str = "auto",
    tile: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
) -> Parity:
    """Compare an exported file, run by `engine` at `precision`, with its network in fp32.

    Args:
        reference: the network on the samples.
        path: the exported file, with its description.
        engine: name of an engine.
        precision: asked of the engine; None is that of the file.
        device: asked of the engine.
        tile: another tile than the model's, to prove that size is free.
        batch: tiles per run; None is the engine's choice.
        threads: of the engine.

    Raises:
        EngineError: the engine or precision is not to be had here.
        ModelError: the file cannot be loaded.
    """
    held = read_model(path).precision
    side = None if tile is None else (tile, tile)
    candidate = load_engine(  # without a trial: what is wrong with it, and where, is for the comparison to say
        path,
        engine=engine,
        device=device,
        precision=precision or held,
        batch=batch,
        tile=side,
        threads=threads,
        trial=False,
    )
    try:
        return compare(reference, candidate, file=held)
    finally:
        candidate.close()


def compare(
    reference: Reference,
    candidate: Engine,
    *,
    file: Precision = "fp32",
    name: str | None = None,
    precision: Precision | None = None,
) -> Parity:
    """Infer every sample, as `tilelab infer` does, and measure the differences of the blended logits.

    Args:
        reference: the network on the samples.
        candidate: what is compared with it.
        file: the arithmetic that the candidate's file holds.
        name, precision: of the outcome; by default the candidate's.
    """
    worst, scale, place = -1.0, 0.0, ("", 0, 0, 0)
    changed = pixels = truths = 0
    before, after = np.zeros((256, 256), np.int64), np.zeros((256, 256), np.int64)
    for sample, expected in zip(reference.samples, reference.logits(candidate.spec), strict=True):
        got = infer_logits(candidate, sample.image)
        difference = np.abs(expected - got)
        difference[~np.isfinite(difference)] = np.inf
        at = np.unravel_index(int(difference.argmax()), difference.shape)
        if difference[at] > worst:
            worst, place = float(difference[at]), (sample.name, int(at[0]), int(at[1]), int(at[2]))
        scale = max(scale, float(np.abs(expected).max()))
        labels = [labels_of(logits, candidate.spec) for logits in (expected, got)]
        changed += int((labels[0] != labels[1]).sum())
        pixels += labels[0].size
        if sample.truth is not None:
            truths += 1
            before += count_confusion(labels[0], sample.truth, ignore=IGNORE)
            after += count_confusion(labels[1], sample.truth, ignore=IGNORE)
    scores = [mean_of_present(score_confusion(c).iou) for c in (before, after)] if truths else [None, None]
    return Parity(
        name or candidate.name,
        precision or candidate.precision,
        worst,
        scale,
        changed / pixels,
        scores[0],
        scores[1],
        place,
        file,
    )
