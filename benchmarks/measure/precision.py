"""Efficiency and the precision ladder: what each engine and precision costs, bare and tiled, and what it changes."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench.quality import compare_labels, labels_of
from benchmarks.bench.workbench import Workbench
from benchmarks.measure.efficiency import bare_rates, computed_per_pixel, measure, run_tilelab
from tilelab.cli.bench import macs_per_pixel
from tilelab.engines.cpu.matrix_product import best_product
from tilelab.engines.registry import load_engine
from tilelab.io.images.open import open_image

LIMIT_TILES = (256, 384, 512, 768, 1024)
"""Sides, px, among which the bare engine's best is the limit of a machine."""

LADDER = (
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
)


def measure_efficiency(bench: Workbench) -> dict[str, Any]:
    """The whole command against a bare loop over the same batches, and its memory on a plane several times as tall."""
    scale = bench.scale
    image, model = bench.image(scale.main), bench.model.onnx
    words = ["--engine", "openvino", "--precision", fast_precision()]
    tall = () if scale.tall is None else ("--tall", bench.image(scale.tall))
    own: list[str | Path] = [image, "--model", model, *tall, "--repeats", str(scale.repeats), "--", *words]
    bench.note([sys.executable, "-m", "benchmarks.measure.efficiency", *own])
    found = measure(image, model, words, scale.repeats)
    if scale.tall is not None:
        report = run_tilelab(bench.image(scale.tall), model, words)
        found["tall"] = {
            "image": report["shape"],
            "seconds": report["process"],
            "megapixels_per_s": report["megapixels"] / report["process"],
            "memory_above_engine": report["memory"]["peak"] - report["memory"]["before"],
        }
    return found


def measure_precisions(bench: Workbench) -> dict[str, Any]:
    """Every engine and precision: speed, agreement of labels with the first one's, which is fp32, score, stages."""
    rows: list[dict[str, Any]] = []
    shape, classes = bench.scale.main, len(bench.model.spec.classes)
    truth = open_image(bench.truth(shape))
    with bench.folder() as folder:
        first: Path | None = None
        for engine, precision in LADDER:
            row: dict[str, Any] = {"engine": engine, "precision": precision}
            rows.append(row)
            model = bench.model.onnx if precision != "int8" else bench.quantized.get(engine)
            if model is None:
                row["missing"] = "no quantiser for it is installed"
                continue
            bench.say(f"{engine} {precision}")
            out = folder / f"{engine}-{precision}.ome.zarr"
            run = bench.infer(shape, out, "--engine", engine, "--precision", precision, model=model)
            if not run.outcome.ok:
                row["missing"] = run.outcome.reason
                continue
            report = run.report
            first = first or out
            labels = labels_of(out)
            row |= {
                "seconds": report["seconds"] | {"process": run.outcome.seconds},
                "megapixels_per_s": report["megapixels"] / run.outcome.seconds,
                "computed": computed_per_pixel(report),
                **_measure_bare(bench, model, report),
                "agreement": compare_labels(labels, labels_of(first), classes)["agreement"],
                "mean_iou": compare_labels(labels, truth, classes)["mean_iou"],
                "memory_growth": run.memory_growth,
            }
            if out != first:
                shutil.rmtree(out)
    return {"image": list(shape), "classes": classes, "data": bench.model.data, "rows": rows}


def _measure_bare(bench: Workbench, model: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The engine alone: on the run's tiles, at its best tile, and that against the machine's best matrix product.

    What the best tile gives, each pixel computed once, is the limit; `sweep_of_limit` is the share of it that the run
    reaches, start-up aside.
    """
    sides = LIMIT_TILES if bench.scale.tile > 64 else (bench.scale.tile,)
    tiles = [list(report["tile"]), *([n, n] for n in sides if [n, n] != report["tile"])]
    least = 2 * report["engine"]["streams"]  # as all others get: the last batches of a round leave streams idle
    batches = max(least, round(8 * bench.scale.seconds * bench.scale.tile**2 / math.prod(tiles[0])))
    found = bare_rates(model, report["engine"], tiles, bench.model.spec.channels, batches, rounds=5)
    rates = {" x ".join(map(str, tile)): rate / 1e6 for tile, rate in zip(tiles, found, strict=True)}
    best = max(rates, key=lambda name: rates[name])
    engine = load_engine(model, engine=report["engine"]["name"], precision=report["engine"]["precision"], trial=False)
    work = macs_per_pixel(engine)
    engine.close()
    precision = report["engine"]["precision"]
    product = (
        bench.once(f"product in {precision}", lambda: best_product(precision, bench.scale.seconds)) if work else None
    )
    needed = report["megapixels"] / rates[best]
    return {
        "bare_megapixels_per_s": found[0] / 1e6,
        "limit_megapixels_per_s": rates[best],
        "limit_tile": best,
        "rates": rates,
        "sweep_of_limit": needed / report["seconds"]["sweep"],
        "of_product": 2e6 * work * rates[best] / product if work and product else None,
    }


def fast_precision() -> str:
    """bf16 where the processor computes it, else fp32."""
    from tilelab.engines.cpu.openvino import probe

    found = {target.precision: target.reason for target in probe().targets}
    return "fp32" if found.get("bf16", "unknown") else "bf16"
