"""Is a compiled engine right on this machine?  Asked of a drawn micrograph, blended as in use, against ONNX Runtime.

Compiled engines are known to give plausible nonsense (black images in fp16, NaN, wrong at every precision while each
layer passed alone), so whole blended images are compared, not layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilelab.arrays import Array, Float32, UInt8
from tilelab.engines.base import Engine
from tilelab.engines.files.tensorrt_plan import read_header
from tilelab.engines.registry import load_engine, read_model
from tilelab.errors import ModelError
from tilelab.geometry import Box
from tilelab.io.results.sink import Finished
from tilelab.run.options import Options
from tilelab.run.prepare import prepare
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.start import make_sweep
from tilelab.sample.superalloy import draw_superalloy
from tilelab.spec import ModelSpec, Precision

# How far an engine may be from ONNX Runtime in fp32: any logit, as a share of the greatest; pixels with another label.
LIMITS: dict[Precision, tuple[float, float]] = {
    "fp32": (1e-4, 1e-4),
    "fp16": (0.01, 0.002),
    "bf16": (0.1, 0.01),
    "int8": (0.5, 0.03),
}


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The outcome.

    Attributes:
        engine: what was checked, e.g. ``tensorrt fp16 on cuda:0``.
        reference: what it was compared with.
        shape: of the image.
        difference: greatest difference of a blended logit.
        scale: greatest magnitude of a blended logit of the reference.
        changed: share of pixels whose label differs.
        limits: most of `difference`, as a share of `scale`, and of `changed`.
        sweep: share of pixels where the sweep on the GPU and on the CPU differ with the same engine, at most 0; None
            when it was not compared.
    """

    engine: str
    reference: str
    shape: tuple[int, ...]
    difference: float
    scale: float
    changed: float
    limits: tuple[float, float]
    sweep: float | None

    @property
    def passed(self) -> bool:
        """Whether the engine may be trusted."""
        logit, changed = self.limits
        return self.difference <= logit * self.scale and self.changed <= changed and not self.sweep

    def __str__(self) -> str:
        words = (
            f"{self.engine}: {self.changed:.4%} of labels differ from {self.reference} on {self.shape} px "
            f"(at most {self.limits[1]:.2%}), logits by {self.difference / self.scale:.2%} of the greatest "
            f"(at most {self.limits[0]:.2%})"
        )
        if self.sweep is not None:
            words += f"; {self.sweep:.4%} differ between the sweep on the GPU and on the CPU"
        return f"{'passed' if self.passed else 'FAILED'}: {words}"


def self_check(
    path: str | Path,
    onnx: str | Path | None = None,
    *,
    device: str = "auto",
    batch: int | None = None,
    sweep: bool = True,
) -> SelfCheck:
    """Compare an engine file with ONNX Runtime on the CPU.

    Args:
        path: a TensorRT engine, an AOTInductor package or any model that a GPU engine runs.
        onnx: the ONNX file it was made from; by default the one beside it.
        device: where to run it.
        batch: tiles per run.
        sweep: compare the sweep on the GPU with that on the CPU, too.

    Raises:
        ModelError: the ONNX file is missing or another one.
        EngineError: the engine does not load.
    """
    path = Path(path)
    source = find_source(path, None if onnx is None else Path(onnx))
    engine = load_engine(path, device=device, batch=batch)
    quantised = read_model(source).precision == "int8"
    reference = load_engine(
        source, engine="onnxruntime", device="cpu", precision="int8" if quantised else "fp32", batch=1
    )
    try:
        image = _draw(engine.spec)
        labels, logits = _sweep(image, engine, on_gpu=False)
        expected, truth = _sweep(image, reference, on_gpu=False)
        differs = None
        if sweep and engine.device.startswith("cuda"):
            differs = float((_sweep(image, engine, on_gpu=True)[0] != labels).mean())
        return SelfCheck(
            engine=f"{engine.name} {engine.precision} on {engine.device}",
            reference=f"{reference.name} {reference.precision}",
            shape=image.shape,
            difference=float(np.abs(logits - truth).max()),
            scale=float(np.abs(truth).max()) or 1.0,
            changed=float((labels != expected).mean()),
            limits=LIMITS[engine.precision],
            sweep=differs,
        )
    finally:
        engine.close()
        reference.close()


def find_source(path: Path, onnx: Path | None) -> Path:
    """The ONNX file that an engine was made from.

    Raises:
        ModelError: it is missing, or it is not the one that the engine's header names.
    """
    header = read_header(path)[0] if path.suffix.lower() in (".engine", ".plan") else None
    beside = [path.with_suffix(".onnx")] if header is None else [path.parent / header.source, path.with_suffix(".onnx")]
    found = onnx if onnx is not None else next((p for p in beside if p.is_file()), None)
    if found is None:
        raise ModelError(f"the ONNX file behind {path} is needed to check it: put it beside, or name it")
    digest = read_model(found).digest()
    if header is not None and header.source_sha256 and digest != header.source_sha256:
        raise ModelError(f"{path} was built from {header.source}, but {found} is another file: give that one")
    return found


def _draw(spec: ModelSpec) -> UInt8:
    """A micrograph of about two and a half tiles each way, so that all kinds of overlaps are in it."""
    height, width = (max(t + 1, t * 5 // 2) for t in spec.tile[-2:])
    if spec.axes == "yx":
        return draw_superalloy((height, width), seed=1)[0]
    depth = spec.tile[0] * 3 // 2 + 1
    return np.stack([draw_superalloy((height, width), seed=z)[0] for z in range(depth)])


def _sweep(image: Array, engine: Engine, *, on_gpu: bool) -> tuple[UInt8, Float32]:
    """Blended labels and logits of a whole image."""
    options = Options(logits=True, probabilities=("none",), ignore_pixel_size=True)
    job = prepare(image, engine, options).job
    box = Box.whole(job.image.shape)
    result = _Result(job.image.shape, engine.spec.values, job.frame.sweep_axis)
    (make_sweep(job, engine, box) if on_gpu else HostSweep(job, engine, box)).run(result)
    return result.labels, result.logits


class _Result:
    """A writer that keeps everything."""

    def __init__(self, shape: tuple[int, ...], outputs: int, axis: int) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self.logits = np.zeros((outputs, *shape), np.float32)
        self._axis, self._at = axis, 0

    def write(self, rows: Finished, threads: int = 1) -> int:  # noqa: ARG002
        """Append rows along the sweep axis."""
        assert rows.labels is not None  # noqa: S101 - both were asked for
        assert rows.logits is not None  # noqa: S101
        count = rows.labels.shape[self._axis]
        where: list[slice] = [slice(None)] * 3
        where[self._axis] = slice(self._at, self._at + count)
        self.labels[tuple(where)] = rows.labels
        self.logits[(slice(None), *where)] = rows.logits
        self._at += count
        return self._at

    def close(self) -> None:
        """Nothing is open."""
