"""The whole command on the GPU, a TIFF in, OME-Zarr out, with a network trained for a moment and compiled; and torch.

What is made is kept in a folder, where the next step finds it.  In the simulator the compiled engines are the CPU's.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.basics import Finding, Sizes, put, seconds
from benchmarks.gpu.networks import build_network, export_onnx
from tilelab.kernels import device

PRECISIONS = ("fp16", "fp32")
PLACE = "cpu" if device.SIMULATED else "cuda"


def _spec(sizes: Sizes) -> Any:
    from tilelab.spec import ClassInfo, ModelSpec, Normalization

    return ModelSpec(
        name="unet-resnet18",
        classes=tuple(ClassInfo(f"class {k}", c) for k, c in enumerate(("#000000", "#3b7dd8", "#f5a623"))),
        normalization=Normalization(mean=(150.0,), std=(20.0,)),
        tile=(sizes.tile, sizes.tile),
        overlap=(sizes.overlap, sizes.overlap),
        precisions=PRECISIONS,
    )


def _network(name: str = "unet-resnet18") -> Any:
    return build_network("small" if device.SIMULATED else name, 1, 3)


def make_files(sizes: Sizes, files: Path) -> Iterator[Finding]:
    """Train, compile with AOTInductor for fp16 and for fp32, and write a plane; what is there is left alone."""
    import tifffile
    import torch

    from tilelab.engines.builders.aotinductor import compile_package
    from tilelab.sample.superalloy import draw_superalloy

    files.mkdir(parents=True, exist_ok=True)
    if not (files / "plane.tif").exists():
        side = min(1536, sizes.height)
        drawn = draw_superalloy((side, side), seed=1)[0]
        plane = np.tile(drawn, (-(-sizes.height // side), -(-sizes.width // side)))[: sizes.height, : sizes.width]
        tifffile.imwrite(files / "plane.tif", plane, tile=(512, 512))
    network, spec = _network(), _spec(sizes)
    if (files / "net.pt").exists():
        network.load_state_dict(torch.load(files / "net.pt", map_location="cpu", weights_only=True))
    else:
        began = time.perf_counter()
        network = _train(network, *((2, 16) if device.SIMULATED else (150, 256)))
        torch.save(network.state_dict(), files / "net.pt")
        yield Finding("trained for a moment", f"{time.perf_counter() - began:.1f} s")
    network.cpu()
    if not (files / "net.onnx").exists():
        began = time.perf_counter()
        export_onnx(network, spec, 1, files / "net.onnx")  # for ONNX Runtime on the CPU
        yield Finding("exported to ONNX", f"{time.perf_counter() - began:.1f} s")
    for precision in PRECISIONS:
        path = files / f"{precision}.pt2"
        if not path.exists():
            began = time.perf_counter()
            # a CPU's half precision is another matter, and takes minutes to compile
            inner = "fp32" if device.SIMULATED else precision
            compile_package(network, spec, path, batch=sizes.batch, precision=inner, target=PLACE)
            yield Finding(f"compiled for {precision}", f"{time.perf_counter() - began:.1f} s")


def time_product(sizes: Sizes, files: Path) -> Iterator[Finding]:
    """Segment a plane three times with each engine."""
    from tilelab.engines.registry import load_engine

    yield from make_files(sizes, files)
    pixels = sizes.height * sizes.width
    for precision in PRECISIONS:
        engine = load_engine(files / f"{precision}.pt2", device="cpu" if device.SIMULATED else "cuda:0")
        title = f"product {precision}"
        bare = None if device.SIMULATED else _bare(engine, sizes)
        if bare:
            yield Finding(f"{title}: bare engine", f"{sizes.tile**2 / bare / 1e6:.0f} MP/s of tile pixels")
        yield from _segment(engine, files, pixels, title, bare)
        engine.close()


def _bare(engine: Any, sizes: Sizes) -> float:
    """Seconds per tile of the engine alone."""
    shape = (sizes.batch, 1, sizes.tile, sizes.tile)
    tiles = put(np.random.default_rng(0).normal(size=shape).astype(engine.tiles_dtype), engine.stream)
    logits = device.empty((sizes.batch, engine.spec.values, *shape[2:]), engine.logits_dtype)
    return seconds(lambda: engine.enqueue(tiles, logits), engine.stream, sizes.repeats) / sizes.batch


def _train(network: Any, steps: int, side: int) -> Any:
    """A few seconds on drawn micrographs: labels of random weights are noise, and say nothing of agreement."""
    import torch

    from tilelab.sample.superalloy import draw_superalloy

    drawn = [draw_superalloy((4 * side, 4 * side), seed=seed)[:2] for seed in range(4)]
    images = torch.stack([torch.from_numpy(image.astype(np.float32)) for image, _ in drawn]).to(PLACE).sub(150).div(20)
    truths = torch.stack([torch.from_numpy(truth.astype(np.int64)) for _, truth in drawn]).to(PLACE)
    network = network.to(PLACE).train()
    optimizer, rng = torch.optim.AdamW(network.parameters(), 1e-3), np.random.default_rng(0)
    for _ in range(steps):
        at = [(rng.integers(len(drawn)), *rng.integers(0, 3 * side, 2)) for _ in range(16)]
        tiles = torch.stack([images[n, None, y : y + side, x : x + side] for n, y, x in at])
        truth = torch.stack([truths[n, y : y + side, x : x + side] for n, y, x in at])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(tiles), truth).backward()
        optimizer.step()
    return network.eval()


def _segment(engine: Any, files: Path, pixels: int, title: str, bare: float | None) -> Iterator[Finding]:
    import tilelab

    digests, out = set(), files / "out.ome.zarr"
    for turn in ("first", "warm", "warm again"):
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        with _memory() as most:
            run = tilelab.infer(files / "plane.tif", engine, out)
        took = time.perf_counter() - began
        waited = ", ".join(f"{name} {value:.2f}" for name, value in run.report["seconds"].items())
        speed = pixels / took / 1e6
        words = f"{took:.2f} s, {speed:.0f} MP/s"
        if bare:
            words += f", {run.report['tiles']['inferred'] * bare / took:.2f} of the bare engine"
        yield Finding(
            f"{title}: {turn}", f"{words} ({waited})", "below 1 s, then 0.25 s; 0.95 of the bare engine", speed
        )
        digests.add(_digest(out))
    if most:
        yield Finding(f"{title}: GPU memory", f"{max(most) / 2**20:.0f} MiB more than before the run", "as planned")
    yield Finding(f"{title}: bytes run to run", "the same" if len(digests) == 1 else "DIFFERENT", "the same")


@contextmanager
def _memory() -> Iterator[list[int]]:
    """What is taken of the GPU's memory within it, in bytes, looked at every 5 ms."""
    taken: list[int] = []
    if device.SIMULATED:
        yield taken
        return
    free, ended = device.select(0).free_bytes, threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            taken.append(free - device.select(0).free_bytes)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()


def _digest(result: Path) -> str:
    """Of all files but descriptions."""
    total = hashlib.sha256()
    for file in sorted(p for p in result.rglob("*") if p.is_file() and p.name != "zarr.json"):
        total.update(file.read_bytes())
    return total.hexdigest()


def check_agreement(sizes: Sizes, files: Path) -> Iterator[Finding]:
    """The compiled engines against ONNX Runtime on the CPU, and the sweep on the GPU against that on the CPU."""
    from tilelab.run.self_check import self_check

    yield from make_files(sizes, files)
    for precision in PRECISIONS:
        yield Finding(
            f"agreement {precision}", str(self_check(files / f"{precision}.pt2", files / "net.onnx")), "passed"
        )


def time_baselines(sizes: Sizes, files: Path) -> Iterator[Finding]:
    """Torch itself on the same tiles: eager, channels last, compiled; fp32 without TF32."""
    import torch

    yield from make_files(sizes, files)
    for precision, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
        dtype = torch.float32 if device.SIMULATED else dtype
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        network = _network()
        network.load_state_dict(torch.load(files / "net.pt", map_location="cpu", weights_only=True))
        network = network.to(PLACE, dtype).eval()
        tiles = torch.randn((sizes.batch, 1, sizes.tile, sizes.tile), device=PLACE, dtype=dtype)
        last = tiles.contiguous(memory_format=torch.channels_last)
        yield _timed(f"torch {precision}: eager", network, tiles, sizes)
        network = network.to(memory_format=torch.channels_last)
        yield _timed(f"torch {precision}: eager, channels last", network, last, sizes)
        if not device.SIMULATED:
            yield _timed(f"torch {precision}: torch.compile, channels last", torch.compile(network), last, sizes)


def _timed(name: str, call: Callable[[Any], Any], tiles: Any, sizes: Sizes) -> Finding:
    import torch

    def wait() -> None:
        if not device.SIMULATED:
            torch.cuda.synchronize()

    times = []
    with torch.inference_mode():
        for _ in range(3):
            call(tiles)
        for _ in range(sizes.repeats):
            wait()
            began = time.perf_counter()
            call(tiles)
            wait()
            times.append(time.perf_counter() - began)
    speed = tiles.numel() / statistics.median(times) / 1e6
    return Finding(name, f"{speed:.0f} MP/s of tile pixels, batch {sizes.batch}")
