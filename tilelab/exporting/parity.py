"""The parity gate: an exported file must say what the network says, on real images, blended as in use.

Per-layer agreement proves little (engines have been known to pass that and fail on images); so whole images are
compared, by the difference of logits, the share of pixels whose label changed and, with truth, the change of score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tilelab.engines.base import Engine
from tilelab.engines.registry import load_engine
from tilelab.errors import EngineError
from tilelab.io.base import Image
from tilelab.metrics.confusion import count_confusion, mean_of_present, score_confusion
from tilelab.spec import Precision
from tilelab.training.engine import TorchEngine
from tilelab.training.recipe import IGNORE
from tilelab.training.validate import infer_logits


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
    truth: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """The outcome of one comparison.

    Attributes:
        engine, precision: what was compared with torch fp32.
        logit: greatest difference of a blended logit.
        scale: greatest magnitude of a blended logit of torch.
        changed: share of pixels whose label differs.
        iou_before, iou_after: mean IoU of torch and of the engine, pooled over the samples; None without truth.
        worst: where `logit` was found: sample name, class, y, x.
    """

    engine: str
    precision: Precision
    logit: float
    scale: float
    changed: float
    iou_before: float | None
    iou_after: float | None
    worst: tuple[str, int, int, int]

    def failure(self) -> str | None:
        """What is beyond tolerance, in words; None when all is within."""
        limit = TOLERANCES[self.precision]
        lost = 0.0 if self.iou_before is None or self.iou_after is None else self.iou_before - self.iou_after
        for what, value, most in (
            ("changes logits by up to", self.logit, limit.logit * self.scale),
            ("changes the label of a share of pixels of", self.changed, limit.changed),
            ("loses a mean IoU of", lost, limit.iou),
        ):
            if not value <= most:  # NaN fails
                name, label, y, x = self.worst
                return (
                    f"{self.engine} {self.precision} {what} {value:.3g}, at most {most:.3g} are allowed; "
                    f"worst at y={y} x={x} of {name}, class {label}"
                )
        return None

    def __str__(self) -> str:
        text = f"{self.engine} {self.precision}: logits within {self.logit:.2g} of {self.scale:.2g}, "
        text += f"labels changed {self.changed:.2e}"
        if self.iou_before is not None and self.iou_after is not None:
            text += f", mean IoU {self.iou_before:.4f} -> {self.iou_after:.4f}"
        return text


def check_parity(
    network: nn.Module,
    path: Path,
    samples: Sequence[Sample],
    *,
    engine: str,
    precision: Precision,
    tile: int | None = None,
) -> Parity:
    """Compare an exported file, run by `engine` at `precision`, with `network` in fp32.

    Args:
        network: in evaluation mode, on the CPU.
        path: the exported file, with its description.
        samples: at least one image.
        engine: name of an engine.
        precision: asked of the engine.
        tile: another tile than the model's, to prove that size is free.

    Raises:
        EngineError: the engine or precision is not to be had here.
        ModelError: the file cannot be loaded.
    """
    side = None if tile is None else (tile, tile)
    candidate = load_engine(
        path, engine=engine, precision=precision, batch=1, tile=side, threads=torch.get_num_threads()
    )
    try:
        return compare(TorchEngine(network, candidate.spec), candidate, samples)
    finally:
        candidate.close()


def compare(reference: Engine, candidate: Engine, samples: Sequence[Sample]) -> Parity:
    """Infer every sample with both, as `tilelab infer` does, and measure the differences of the blended logits."""
    worst, scale, place = -1.0, 0.0, ("", 0, 0, 0)
    changed = pixels = 0
    before, after = np.zeros((256, 256), np.int64), np.zeros((256, 256), np.int64)
    truths = 0
    for sample in samples:
        expected, got = (infer_logits(engine, sample.image) for engine in (reference, candidate))
        difference = np.abs(expected - got)
        difference[~np.isfinite(got)] = np.inf
        at = np.unravel_index(int(difference.argmax()), difference.shape)
        if difference[at] > worst:
            worst, place = float(difference[at]), (sample.name, int(at[0]), int(at[1]), int(at[2]))
        scale = max(scale, float(np.abs(expected).max()))
        labels = [logits.argmax(axis=0).astype(np.uint8) for logits in (expected, got)]
        changed += int((labels[0] != labels[1]).sum())
        pixels += labels[0].size
        if sample.truth is not None:
            truths += 1
            before += count_confusion(labels[0], sample.truth, ignore=IGNORE)
            after += count_confusion(labels[1], sample.truth, ignore=IGNORE)
    scores = [mean_of_present(score_confusion(c).iou) for c in (before, after)] if truths else [None, None]
    name, precision = candidate.name, candidate.precision
    return Parity(name, precision, worst, scale, changed / pixels, scores[0], scores[1], place)
