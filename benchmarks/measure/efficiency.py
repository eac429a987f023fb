"""What tilelab costs on top of the bare engine: time and memory of the whole command against a bare loop.

    python -m benchmarks.measure.efficiency big.tif --model unet.onnx [--tall tall.tif] [--repeats 3] [--json out.json]
        [-- further flags of tilelab infer]

Each measurement is a process of its own; bare and tilelab take turns, and the ratio is that of the medians.

bare       import the engine's library, load the model with the same settings, run the same number of batches on noise
tilelab    `tilelab infer`, from the start of the process to the finished pyramid
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# The bare engine, as a careful user would write it: as many tiles at a time as tilelab has, with the same
# multiplications and telemetry silenced. Several tiles take turns. Prints seconds of loading, the most memory it had,
# and the median seconds per batch of each tile.
BARE = """
import sys, time
began = time.perf_counter()
import numpy as np
path, name, precision = sys.argv[1:4]
batch, channels, count, streams, rounds = map(int, sys.argv[4:9])
tiles = [tuple(map(int, word.split("x"))) for word in sys.argv[9:]]
if name == "openvino":
    from tilelab.engines.cpu.openvino import import_openvino  # as it is, less its telemetry
    from tilelab.engines.cpu.openvino_downsampling import fold_downsampling
    from tilelab.engines.cpu.openvino_upsampling import fold_upsampling
    openvino = import_openvino()
    core = openvino.Core()
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision]
    config = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams}
    config["ENABLE_CPU_PINNING"] = False
    def load(data):
        model = core.read_model(path)
        model.reshape(list(data.shape))
        fold_upsampling(model)
        fold_downsampling(model)
        queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", config), streams)
        for _ in range(streams):
            queue.start_async({0: openvino.Tensor(data, shared_memory=True)})
        queue.wait_all()
        return queue.start_async, queue.wait_all
else:
    from collections import deque
    from concurrent.futures import ThreadPoolExecutor
    from tilelab.engines.cpu.onnxruntime import import_onnxruntime
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    pool, under_way = ThreadPoolExecutor(streams), deque()
    def wait():
        while under_way:
            under_way.popleft().result()
    def load(data):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        key = session.get_inputs()[0].name
        def run():
            under_way.append(pool.submit(session.run, None, {key: data}))
            if len(under_way) > streams:
                under_way.popleft().result()
        return run, wait
works, kept = [], []
for height, width in tiles:
    data = np.random.default_rng(0).normal(size=(batch, channels, height, width)).astype(np.float32)
    kept.append(data)  # requests of OpenVINO share it, and do not keep it
    works.append((*load(data), max(2 * streams, count * tiles[0][0] * tiles[0][1] // (height * width)), []))
    works[-1][0]()
    works[-1][1]()
loaded = time.perf_counter()
for _ in range(rounds):
    for run, wait, batches, times in works:
        began_round = time.perf_counter()
        for _ in range(batches):
            run()
        wait()
        times.append((time.perf_counter() - began_round) / batches)
fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(loaded - began, int(fields["VmHWM"].split()[0]) * 1024, *(sorted(times)[len(times) // 2] for *_, times in works))
"""


def run_bare(model: Path, engine: dict[str, Any], tile: list[int], channels: int, batches: int) -> dict[str, float]:
    """One bare process, on tiles of this height and width."""
    began = time.perf_counter()
    load, memory, each = _bare(model, engine, [tile], channels, batches, 1)
    return {"wall": time.perf_counter() - began, "load": load, "loop": each * batches, "memory": memory}


def bare_rates(
    model: Path, engine: dict[str, Any], tiles: list[list[int]], channels: int, batches: int, rounds: int
) -> list[float]:
    """Pixels per second of the engine alone at each of some tiles, which take turns in one process.

    What else a machine does meets all of them alike: a limit that is the best of several lucky moments is none.

    Args:
        model, engine, channels: as a run has them.
        tiles: heights and widths.
        batches: of the first tile in a round; of the others as many as have as many pixels.
        rounds: of which the median counts.
    """
    _, _, *times = _bare(model, engine, tiles, channels, batches, rounds)
    return [engine["batch"] * math.prod(tile) / seconds for tile, seconds in zip(tiles, times, strict=True)]


def _bare(
    model: Path, engine: dict[str, Any], tiles: list[list[int]], channels: int, batches: int, rounds: int
) -> list[float]:
    """Seconds of loading, most memory, and seconds per batch of each tile."""
    numbers = [engine["batch"], channels, batches, engine["streams"], rounds]
    words = [model, engine["name"], engine["precision"], *numbers, *("x".join(map(str, tile)) for tile in tiles)]
    done = subprocess.run([sys.executable, "-c", BARE, *map(str, words)], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def run_tilelab(image: Path, model: Path, words: list[str]) -> dict[str, Any]:
    """One `tilelab infer` process, from start to end, and its report."""
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        report = Path(folder) / "report.json"
        out = Path(folder) / "out.ome.zarr"
        command = [sys.executable, "-m", "tilelab", "infer", image, "--model", model, "-o", out, "--report", report]
        began = time.perf_counter()
        subprocess.run([*map(str, command), "--quiet", *words], check=True)
        wall = time.perf_counter() - began
        result: dict[str, Any] = json.loads(report.read_text()) | {"process": wall}
        shutil.rmtree(out)
    return result


def computed_per_pixel(report: dict[str, Any]) -> float:
    """Pixels that the engine computed for each one of the image."""
    return float(report["tiles"]["inferred"] * math.prod(report["tile"]) / (report["megapixels"] * 1e6))


def measure(image: Path, model: Path, words: list[str], repeats: int) -> dict[str, Any]:
    """Bare and tilelab in turns."""
    from tilelab.engines.registry import read_spec

    spec = read_spec(model)
    assert spec is not None
    ours = [run_tilelab(image, model, words)]
    report = ours[0]
    batches = -(-report["tiles"]["inferred"] // report["engine"]["batch"])
    bare = []
    for turn in range(repeats):
        bare.append(run_bare(model, report["engine"], list(report["tile"]), spec.channels, batches))
        if turn + 1 < repeats:
            ours.append(run_tilelab(image, model, words))

    def median(rows: list[Any], pick: Any) -> float:
        return statistics.median(pick(row) for row in rows)

    walls = {
        "tilelab": median(ours, lambda r: r["process"]),
        "bare": median(bare, lambda r: r["wall"]),
        "tilelab_sweep": median(ours, lambda r: r["seconds"]["sweep"]),
        "bare_loop": median(bare, lambda r: r["loop"]),
    }
    return {
        "image": report["shape"],
        "engine": report["engine"],
        "tiles": report["tiles"],
        "computed": computed_per_pixel(report),
        "seconds": walls,
        "ratio": walls["tilelab"] / walls["bare"],
        "ratio_without_start": walls["tilelab_sweep"] / walls["bare_loop"],
        "megapixels_per_s": report["megapixels"] / walls["tilelab"],
        "waits": {k: median(ours, lambda r, k=k: r["seconds"][k]) for k in report["seconds"] if k.startswith("waited")},
        "engine_seconds": median(ours, lambda r: r["seconds"]["engine"]),
        "memory_above_engine": max(r["memory"]["peak"] - r["memory"]["before"] for r in ours),
        "memory_above_bare": max(r["memory"]["peak"] for r in ours) - max(row["memory"] for row in bare),
        "runs": {"tilelab": [r["process"] for r in ours], "bare": [row["wall"] for row in bare]},
    }


def as_text(found: dict[str, Any]) -> str:
    """The figures for people."""
    seconds, engine = found["seconds"], found["engine"]
    sweep = seconds["tilelab_sweep"]
    above_engine, above_bare = found["memory_above_engine"] / 2**20, found["memory_above_bare"] / 2**20
    lines = [
        f"image {found['image']}, {found['tiles']['inferred']} tiles, {engine['name']} {engine['precision']}",
        f"whole command   {seconds['tilelab']:.2f} s against bare {seconds['bare']:.2f} s: {found['ratio']:.3f}",
        f"start-up aside  {sweep:.2f} s against {seconds['bare_loop']:.2f} s: {found['ratio_without_start']:.3f}",
        f"engine busy     {found['engine_seconds']:.2f} s, waits {found['waits']}",
        f"memory          {above_engine:.0f} MiB above the loaded engine, {above_bare:.0f} MiB above the bare process",
    ]
    if "tall" in found:
        lines.append(f"tall            {found['tall']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measure.efficiency", description=__doc__.splitlines()[0]
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tall", type=Path, help="a plane several times as tall: memory must be the same")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    args, words = parser.parse_args(given[:end]), given[end + 1 :]
    found = measure(args.image, args.model, words, args.repeats)
    if args.tall is not None:
        tall = run_tilelab(args.tall, args.model, words)
        found["tall"] = {
            "image": tall["shape"],
            "seconds": tall["process"],
            "megapixels_per_s": tall["megapixels"] / tall["process"],
            "memory_above_engine": tall["memory"]["peak"] - tall["memory"]["before"],
        }
    print(as_text(found))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
