"""The whole command on the GPU: a TIFF in, OME-Zarr out, through a network trained for a moment and compiled."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.basics import Finding, Sizes
from benchmarks.gpu.networks import build_network


def time_product(sizes: Sizes) -> Iterator[Finding]:
    """Train, compile with AOTInductor for fp16 and for fp32, and segment a plane three times with each."""
    import tifffile

    from tilelab.engines.builders.aotinductor import compile_package
    from tilelab.engines.registry import load_engine
    from tilelab.sample.superalloy import draw_superalloy
    from tilelab.spec import ClassInfo, ModelSpec, Normalization

    colors = ("#000000", "#3b7dd8", "#f5a623")
    spec = ModelSpec(
        name="unet-resnet18",
        classes=tuple(ClassInfo(f"class {k}", color) for k, color in enumerate(colors)),
        normalization=Normalization(mean=(150.0,), std=(20.0,)),
        tile=(sizes.tile, sizes.tile),
        overlap=(sizes.overlap, sizes.overlap),
        precisions=("fp32", "fp16"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = _train(build_network("unet-resnet18", 1, 3))
        drawn = draw_superalloy((1536, 1536), seed=1)[0]
        plane = np.tile(drawn, (-(-sizes.height // 1536), -(-sizes.width // 1536)))[: sizes.height, : sizes.width]
        tifffile.imwrite(folder / "plane.tif", plane, tile=(512, 512))
        for precision in ("fp16", "fp32"):
            path = compile_package(network, spec, folder / f"{precision}.pt2", batch=sizes.batch, precision=precision)
            engine = load_engine(path, device="cuda:0")
            yield from _segment(engine, folder, plane.size, f"product {precision}")
            engine.close()


def _train(network: Any, steps: int = 150) -> Any:
    """A few seconds on drawn micrographs: labels of random weights are noise, and say nothing of agreement."""
    import torch

    from tilelab.sample.superalloy import draw_superalloy

    drawn = [draw_superalloy((1024, 1024), seed=seed)[:2] for seed in range(4)]
    images = torch.stack([torch.from_numpy(image.astype(np.float32)) for image, _ in drawn]).cuda().sub(150).div(20)
    truths = torch.stack([torch.from_numpy(truth.astype(np.int64)) for _, truth in drawn]).cuda()
    network = network.cuda().train()
    optimizer, rng = torch.optim.AdamW(network.parameters(), 1e-3), np.random.default_rng(0)
    for _ in range(steps):
        at = [(rng.integers(len(drawn)), *rng.integers(0, 768, 2)) for _ in range(16)]
        tiles = torch.stack([images[n, None, y : y + 256, x : x + 256] for n, y, x in at])
        truth = torch.stack([truths[n, y : y + 256, x : x + 256] for n, y, x in at])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(tiles), truth).backward()
        optimizer.step()
    return network.eval()


def _segment(engine: Any, folder: Path, pixels: int, title: str) -> Iterator[Finding]:
    import tilelab

    digests = set()
    for turn in ("first", "warm", "warm again"):
        out = folder / "out.ome.zarr"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        run = tilelab.infer(folder / "plane.tif", engine, out)
        took = time.perf_counter() - began
        waited = ", ".join(f"{name} {value:.2f}" for name, value in run.report["seconds"].items())
        speed = pixels / took / 1e6
        yield Finding(f"{title}: {turn}", f"{took:.2f} s, {speed:.0f} MP/s ({waited})", "below 1 s", speed)
        digests.add(_digest(out))
    yield Finding(f"{title}: bytes run to run", "the same" if len(digests) == 1 else "DIFFERENT", "the same")


def _digest(result: Path) -> str:
    """Of all files but descriptions."""
    total = hashlib.sha256()
    for file in sorted(p for p in result.rglob("*") if p.is_file() and p.name != "zarr.json"):
        total.update(file.read_bytes())
    return total.hexdigest()
