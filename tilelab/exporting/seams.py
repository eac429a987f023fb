"""How far tiles are from the whole image at once, measured on the gate's images: by this curve overlaps are chosen.

python -m tilelab.exporting.seams MODEL.onnx IMAGES     # measures a described model anew and keeps the curve in it
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tilelab.arrays import Float32, Float64
from tilelab.engines.base import Engine
from tilelab.engines.files.onnx import embed_spec
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine, read_spec
from tilelab.exporting.parity import Sample
from tilelab.exporting.samples import user_samples
from tilelab.geometry import AxisTiling
from tilelab.io.images.image import Image
from tilelab.io.images.region import crop
from tilelab.spec import ModelSpec, Seams
from tilelab.training.validate import infer_logits, labels_of

LARGEST = 1024
"""Side of the part, px, that is taken from the middle of a larger image."""
MOST = 6
"""Images that are measured on."""
_STEPS = (0, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384)
_FAR = 0.01  # of the first overlap's differences: where no more are left, larger overlaps need no look

Load = Callable[[tuple[int, ...], tuple[int, ...]], Engine]
"""Makes an engine for a tile and an overlap."""


def measure_file(path: Path, samples: Sequence[Sample], threads: int | None = None) -> Seams | None:
    """The curve of a model file, in fp32 or what it holds; see `measure_seams`."""
    spec = read_spec(path)
    assert spec is not None  # noqa: S101 - it is described
    precision = "int8" if "int8" in spec.precisions else "fp32"

    def load(tile: tuple[int, ...], overlap: tuple[int, ...]) -> Engine:
        given = SpecOverrides(tile=None if spec.tile_fixed else tile, overlap=overlap)
        return load_engine(
            path, device="cpu", precision=precision, batch=1, threads=threads, spec_overrides=given, trial=False
        )

    return measure_seams(load, samples, spec)


def measure_seams(load: Load, samples: Sequence[Sample], spec: ModelSpec) -> Seams | None:
    """The curve of a model, from as many of the samples as it takes; None where they are too small to have seams.

    A model that takes any size is compared with itself on the whole image; one whose tile is fixed with itself on tiles
    that lie half a step further.

    Args:
        load: the model as an engine for a tile and an overlap.
        samples: real images.
        spec: of the model.
    """
    planes = [_middle(sample.image) for sample in samples[:MOST]]
    if spec.tile_fixed:
        shares = [share for plane in planes if (share := _shifted(load, plane, spec)) is not None]
        return Seams(shifted=_rounded(float(np.mean(shares)))) if shares else None
    whole: dict[int, Float32] = {}
    seen: dict[int, list[tuple[float, float]]] = {}
    for overlap in _overlaps(spec):
        for number, plane in enumerate(planes):
            size = plane.shape[-2:]
            tile = tuple(_tile(n, overlap, spec.stride) for n in size)
            if min(tile) < max(spec.tile_min or (1,)) or any(t < 2 * overlap for t in tile):
                continue
            if number not in whole:
                whole[number] = _infer(load, plane, tuple(-(-n // spec.stride) * spec.stride for n in size), 0)
            seen.setdefault(overlap, []).append(
                _compare(_infer(load, plane, tile, overlap), whole[number], tile, overlap, spec)
            )
        if overlap and overlap in seen and _share(seen[overlap]) < _FAR * _share(seen[min(seen)]):
            break
    return _curve(seen) if seen else None


def _overlaps(spec: ModelSpec) -> list[int]:
    """Those that are measured, up to what an output pixel sees."""
    field = spec.receptive_field or 2 * max(spec.overlap)
    return sorted({-(-step // spec.stride) * spec.stride for step in (*(s for s in _STEPS if s < field), field)})


def _tile(size: int, overlap: int, stride: int) -> int:
    """A tile of which three cover an axis, or two where the overlap is large."""
    padded = -(-size // stride) * stride
    three, two = (-(-(padded + (n - 1) * overlap) // n // stride) * stride for n in (3, 2))
    return three if three >= 3 * overlap else two


def _compare(
    tiled: Float32, whole: Float32, tile: tuple[int, ...], overlap: int, spec: ModelSpec
) -> tuple[float, float]:
    """Labels that differ for each pixel of the seams, and the greatest difference of a probability."""
    size = whole.shape[-2:]
    seams = [len(AxisTiling(n, t, overlap, spec.stride)) - 1 for n, t in zip(size, tile, strict=True)]
    length = seams[0] * size[1] + seams[1] * size[0]
    wrong = int((labels_of(tiled, spec) != labels_of(whole, spec)).sum())
    off = np.abs(_probabilities(tiled, spec) - _probabilities(whole, spec)).max()
    return wrong / max(1, length), float(off)


def _curve(seen: dict[int, list[tuple[float, float]]]) -> Seams:
    """The mean over the images and what it may be off by; falling, which noise need not."""
    overlaps = sorted(seen)
    labels: list[float] = []
    for overlap in overlaps:
        shares = np.array([share for share, _ in seen[overlap]])
        doubt = shares.std(ddof=1) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
        labels.append(float(shares.mean() + doubt))
    offs = [max(off for _, off in seen[overlap]) for overlap in overlaps]
    return Seams(overlap=tuple(overlaps), labels=_falling(labels), probabilities=_falling(offs))


def _share(seen: Sequence[tuple[float, float]]) -> float:
    return float(np.mean([share for share, _ in seen]))


def _falling(values: Sequence[float]) -> tuple[float, ...]:
    """No value below one that follows it."""
    return tuple(_rounded(max(values[i:])) for i in range(len(values)))


def _shifted(load: Load, plane: Image, spec: ModelSpec) -> float | None:
    """Share of labels that change when the tiles of a model that pins their size lie half a step further."""
    steps = [(t - o) // 2 // spec.stride * spec.stride for t, o in zip(spec.tile, spec.overlap, strict=True)]
    size = plane.shape[-2:]
    if any(n < t + s for n, t, s in zip(size, spec.tile, steps, strict=True)):
        return None
    engine = load(spec.tile, spec.overlap)
    try:
        first = labels_of(infer_logits(engine, plane), spec)
        moved = crop(plane, tuple((s, n) for s, n in zip(steps, size, strict=True)))
        second = labels_of(infer_logits(engine, moved), spec)
    finally:
        engine.close()
    margin = [max(spec.overlap) + s for s in steps]  # where the edge itself makes a difference
    inner = tuple(slice(m, n - m) for m, n in zip(margin, size, strict=True))
    beside = tuple(slice(m - s, n - m - s) for m, s, n in zip(margin, steps, size, strict=True))
    differ = first[inner] != second[beside]
    return float(differ.mean()) if differ.size else None


def _infer(load: Load, plane: Image, tile: tuple[int, ...], overlap: int) -> Float32:
    engine = load(tile, (overlap,) * len(tile))
    try:
        return infer_logits(engine, plane)
    finally:
        engine.close()


def _probabilities(logits: Float32, spec: ModelSpec) -> Float64:
    values = logits.astype(np.float64)
    if spec.activation == "sigmoid":
        return 1 / (1 + np.exp(-values))
    raised = np.exp(values - values.max(axis=0))
    result: Float64 = raised / raised.sum(axis=0)
    return result


def _middle(image: Image) -> Image:
    starts = [max(0, (n - LARGEST) // 2) for n in image.shape[-2:]]
    if not any(starts):
        return image
    part = crop(image, tuple((a, min(n, a + LARGEST)) for a, n in zip(starts, image.shape[-2:], strict=True)))
    part.neighbours = image.neighbours
    return part


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def main(words: Sequence[str]) -> int:
    """Measure a model on images, keep the curve in its file."""
    path, images = map(Path, words)
    spec = read_spec(path)
    assert spec is not None  # noqa: S101 - an ONNX file of tilelab's
    seams = measure_file(path, user_samples(images, None, "", spec))
    embed_spec(path, msgspec.structs.replace(spec, seams=seams))
    sys.stdout.write(f"{seams}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
