"""`tilelab bench`: what this machine can do, each part by itself, so that one sees what would hold a run up."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.engines.base import Engine
from tilelab.engines.cpu.matrix_product import best_product
from tilelab.errors import TilelabError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.cpu import core_count
from tilelab.run.plan.estimate import calibrate
from tilelab.spec import Precision
from tilelab.text import size_text

WIDTH, TILE, CLASSES = 8192, 512, 3


EXAMPLES = (
    "tilelab bench                             # a minute",
    "tilelab bench --model mine.onnx --json bench.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--model", "-m", default="superalloy", metavar="M", help="model to time (superalloy)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="how long each part is measured (1)")
    add_json(parser, "the table")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    claim({}, [Write(json_file(args.json), "--json", "json")])
    rows = [*measure_kernels(args.seconds), *measure_codec(args.seconds), *measure_engines(args.model, args.seconds)]
    if not put_json(args.json, json.dumps(rows, indent=1)):
        width = max(len(row["part"]) for row in rows)
        print(f"{'part':<{width}}  {'MP/s':>8}  {'GB/s':>6}  remark")
        for row in rows:
            speed = "-" if row["megapixels_per_s"] is None else f"{row['megapixels_per_s']:.1f}"
            bandwidth = "" if row["gigabytes_per_s"] is None else f"{row['gigabytes_per_s']:.1f}"
            print(f"{row['part']:<{width}}  {speed:>8}  {bandwidth:>6}  {row['remark']}")
    return 0


def measure_kernels(seconds: float) -> list[dict[str, Any]]:
    """Cut, blend and finish on one core, beside a plain copy: each moves 8 bytes per logit."""
    from tilelab.kernels import cpu

    rng = np.random.default_rng(0)
    big = rng.random(1 << 24, np.float32)
    copy = np.empty_like(big)
    canvas = np.zeros((CLASSES, TILE, 1, WIDTH), np.float32)
    logits = rng.normal(size=(CLASSES, TILE, 1, TILE)).astype(np.float32)
    share, one = rng.random(TILE, np.float32), np.ones(1, np.float32)
    band = rng.integers(0, 256, (1, TILE, 1, WIDTH), np.uint8)
    at, zero = np.arange(TILE), np.zeros(1, np.int64)
    tile = np.empty((1, TILE, 1, TILE), np.float32)
    labels = np.empty((TILE, 1, WIDTH), np.uint8)
    probabilities = np.empty((CLASSES - 1, TILE, 1, WIDTH), np.uint8)
    channels, none = np.arange(1, CLASSES), np.empty((0, 0, 0, 0), np.float32)
    mean, gain = np.zeros(1, np.float32), np.ones(1, np.float32)
    sums, held = np.empty_like(logits), (np.empty((CLASSES, TILE, 1, 0), np.float32),) * 3
    reach, line = (0, 0, TILE, TILE, 0), (0, 0, 1, 1, 0)

    def blend_row() -> None:
        for _ in range(0, WIDTH, TILE):
            cpu.blend(sums, logits, (share, one, share), held, (0, TILE), reach, line, reach)

    def cut_row() -> None:
        for col in range(0, WIDTH, TILE):
            cpu.cut(band, at, zero, at + col, mean, gain, tile)

    def finish_rows() -> None:
        cpu.finish(canvas, 0, cpu.SOFTMAX, labels, probabilities, channels, none)

    pixels = TILE * WIDTH
    parts: list[tuple[str, Callable[[], None], int | None, int, str]] = [
        ("copy", lambda: np.copyto(copy, big), None, 8 * big.size, "float32, one core: the machine's own limit"),
        ("cut", cut_row, pixels, 5 * pixels, f"uint8 to normalised tiles of {TILE}"),
        ("blend", blend_row, pixels, 8 * CLASSES * pixels, f"{CLASSES} classes, float32"),
        ("finish", finish_rows, pixels, (8 * CLASSES + 1 + CLASSES - 1) * pixels, "labels and softmax probabilities"),
    ]
    return [_row(name, _best(work, seconds), count, moved, remark) for name, work, count, moved, remark in parts]


def measure_codec(seconds: float) -> list[dict[str, Any]]:
    """What writing costs: zstd on a drawn label plane and probability plane, in chunks as results have them."""
    from numcodecs import Zstd

    from tilelab.sample import draw_superalloy

    image, truth = draw_superalloy((1024, 1024), seed=0)
    rows = []
    for name, plane in (("zstd labels", truth), ("zstd grey values", image)):
        chunks = [
            np.ascontiguousarray(plane[y : y + 256, x : x + 256])
            for y in range(0, 1024, 256)
            for x in range(0, 1024, 256)
        ]
        codec = Zstd(level=1)
        packed = sum(len(codec.encode(chunk)) for chunk in chunks)
        took = _best(lambda chunks=chunks, codec=codec: [codec.encode(chunk) for chunk in chunks], seconds)  # type: ignore[misc]
        rows.append(_row(name, took, plane.size, plane.size, f"level 1, to {packed / plane.size:.1%}"))
    return rows


def measure_engines(model: str, seconds: float) -> list[dict[str, Any]]:
    """Every engine and precision that can run `model` here, in megapixels of tiles; overlap costs come on top.

    Beside it what share that is of the machine's best matrix product in the same precision.
    """
    from tilelab.engines.registry import ENGINES, load_engine
    from tilelab.spec import PRECISIONS

    rows = []
    limits: dict[Precision, float | None] = {}
    for name in ENGINES:
        for precision in PRECISIONS:
            try:
                engine = load_engine(model, engine=name, precision=precision)
            except TilelabError as error:
                rows.append(_row(f"{name} {precision}", None, None, None, str(error)))
                continue
            per_tile = calibrate(engine, seconds)
            pixels = int(np.prod(engine.tile))
            said = _roofline(engine, precision, pixels / per_tile, limits, seconds)
            said += "".join(f"; {warning}" for warning in engine.warnings)
            rows.append(
                _row(
                    f"{name} {precision}",
                    per_tile,
                    pixels,
                    None,
                    f"{model}, tile {size_text(engine.tile)}, {core_count()} cores{said}",
                )
            )
            engine.close()
    return rows


def _roofline(
    engine: Engine, precision: Precision, pixels_per_s: float, limits: dict[Precision, float | None], seconds: float
) -> str:
    """The share of the machine's best matrix product, in words; nothing where the work of the network is not known.

    limits: operations per second that were measured already.
    """
    work = macs_per_pixel(engine)
    if engine.device != "cpu" or work is None:
        return ""
    if precision not in limits:
        limits[precision] = best_product(precision, seconds / 2)
    limit = limits[precision]
    return f"; {2 * work * pixels_per_s / limit:.0%} of the best product's {limit / 1e9:.0f} GFLOP/s" if limit else ""


def macs_per_pixel(engine: Engine) -> float | None:
    """Multiplications that an engine makes for each pixel of a tile: its own count, else that of the training."""
    if engine.macs is not None:
        return engine.macs / math.prod(engine.tile)
    known = engine.spec.training.get("macs_per_pixel")
    return float(known) if isinstance(known, int | float) else None


def _best(work: Callable[[], object], seconds: float) -> float:
    """Least time of one call, over about `seconds` of calls: the machine may be busy with other things too."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _row(part: str, took: float | None, pixels: int | None, moved: int | None, remark: str) -> dict[str, Any]:
    return {
        "part": part,
        "megapixels_per_s": pixels / took / 1e6 if took and pixels else None,
        "gigabytes_per_s": moved / took / 1e9 if took and moved else None,
        "remark": remark,
    }
