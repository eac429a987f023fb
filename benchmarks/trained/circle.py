"""Look, correct, improve, look again: what five corrections of another microscope are worth, and what home pays.

    python -m benchmarks.trained.circle --data DATA --work DIR -o benchmarks/results/circle.md

The micrographs of a set are made foreign, as another microscope might give them.  Of one foreign training image the
five places of 256 px that `tilelab review` names are corrected, from its truth; some training images as they are, with
their truth, are `--home`.  Scores are those of the validation images, foreign and as they are (the mean over the images
of their mean IoU), which nothing was chosen by.
What lies in DIR is not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image as Pillow
from scipy import ndimage

from benchmarks.command import make_parser
from benchmarks.page.markdown import table
from tilelab.arrays import Float32, UInt8

SIDE, PLACES = 256, 5
MOST = 1024  # pixels of a side of an image of home


@dataclass(frozen=True)
class Foreign:
    """A set made foreign: its model's name, in words, a size, and what is done to grey values at that size."""

    model: str
    words: str
    scale: float
    change: Callable[[Float32], Float32]
    noise: float


def _soft(image: Float32) -> Float32:
    return np.asarray(255 * (ndimage.gaussian_filter(image, 1.5) / 255) ** 2.2, np.float32)


SETS = (
    Foreign("superalloy", "twice the size, blurred by 1.5 px, a gamma of 2.2, noise of 4", 2, _soft, 4),
    Foreign("coating", "0.6 of the size, a gamma of 0.5, half the contrast, noise of 10", 0.6,
            lambda x: np.asarray(255 * (x / 255) ** 0.5 * 0.5 + 20, np.float32), 10),
    Foreign("axon", "inverted, 0.6 of the contrast, noise of 8", 1,
            lambda x: np.asarray((127 - x) * 0.6 + 150, np.float32), 8),
)  # fmt: skip


def prepare(one: Foreign, data: Path, folder: Path) -> None:
    """Lay out a set: `new.tif` with its truth, `held` and `homeval` with theirs, `home`."""
    rng = np.random.default_rng(5)

    def write(pixels: UInt8, *parts: str) -> None:
        path = folder.joinpath(*parts).with_suffix(".tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, pixels)

    def read(path: Path) -> tuple[UInt8, UInt8]:
        mask = np.asarray(Pillow.open(path.parents[1] / "masks" / path.name))
        mask = (mask == 1).astype(np.uint8) if one.model == "coating" else mask
        return np.asarray(Pillow.open(path).convert("L")), mask

    def foreign(image: UInt8, mask: UInt8) -> tuple[UInt8, UInt8]:
        values = one.change(ndimage.zoom(image.astype(np.float32), one.scale, order=1))
        values = values + rng.normal(0, one.noise, values.shape)
        larger = np.kron(mask, np.ones((2, 2), np.uint8)) if one.scale == 2 else ndimage.zoom(mask, one.scale, order=0)
        return np.clip(values, 0, 255).astype(np.uint8), larger

    train, val = (sorted((data / one.model / part / "images").iterdir()) for part in ("train", "val"))
    image, mask = foreign(*read(train[2]))
    write(image, "new")
    write(mask, "new_truth")
    for path in val:
        image, mask = read(path)
        write(image, "homeval", "images", path.stem)
        write(mask, "homeval", "truth", path.stem)
        image, mask = foreign(image, mask)
        write(image, "held", "images", path.stem)
        write(mask, "held", "truth", path.stem)
    for path in train[4:8] if len(train) > 8 else train[3:]:
        image, mask = read(path)
        write(image[:MOST, :MOST], "home", "images", path.stem)
        write(mask[:MOST, :MOST], "home", "masks", path.stem)


def tilelab(folder: Path, *words: str) -> dict[str, Any]:
    """Run a command; what it said, with its seconds and those of the processor."""
    began, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, "-m", "tilelab", *words], cwd=folder, capture_output=True, text=True)
    after, wall = os.times(), time.perf_counter() - began
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{' '.join(words)}: {wall:.1f} s, {spent:.1f} s of processor", flush=True)
    return {"words": list(words), "code": done.returncode, "wall": wall, "processor": spent,
            "said": done.stdout + done.stderr}  # fmt: skip


def score(folder: Path, model: str, tag: str) -> dict[str, float]:
    """The mean over the images of their mean IoU, of foreign and of home."""
    found = {}
    for kind, part in (("foreign", "held"), ("home", "homeval")):
        output = f"{tag}-{kind}"
        words = ["infer", f"{part}/images", "--no-stack", "-m", model, "-o", output, "-q", "--precision", "fp32"]
        tilelab(folder, *words)
        said = tilelab(folder, "eval", output, f"{part}/truth", "--json")["said"]
        found[kind] = json.loads(said)["image_mean_iou"]
    return found


def correct(folder: Path) -> None:
    """The places that were named, with their truth."""
    image, truth = (tifffile.imread(folder / f"{name}.tif") for name in ("new", "new_truth"))
    for kind in ("images", "labels"):
        (folder / "corrections" / kind).mkdir(parents=True)
    for number, place in enumerate(json.loads((folder / "unsure.geojson").read_text())[:PLACES]):
        x, y = np.min(place["geometry"]["coordinates"][0], axis=0).astype(int)
        y, x = (min(max(int(at), 0), n - SIDE) for at, n in zip((y, x), image.shape, strict=True))
        where = slice(y, y + SIDE), slice(x, x + SIDE)
        tifffile.imwrite(folder / "corrections/images" / f"p{number}.tif", image[where])
        tifffile.imwrite(folder / "corrections/labels" / f"p{number}.tif", truth[where])


def measure(one: Foreign, data: Path, folder: Path, minutes: str) -> dict[str, Any]:
    """The circle of one set."""
    prepare(one, data, folder)
    before = score(folder, one.model, "before")
    steps = [
        tilelab(folder, "infer", "new.tif", "--model", one.model, "-o", "new.ome.zarr", "--probabilities", "all"),
        tilelab(folder, "review", "new.ome.zarr", "--image", "new.tif", "--picture", "doubt.png", "--block", str(SIDE),
                "--count", str(PLACES), "--regions", "unsure.geojson"),
    ]  # fmt: skip
    correct(folder)
    words = ["improve", one.model, "--corrections", "corrections", "--home", "home", "-o", "mine.onnx"]
    words += ["--minutes", minutes]
    steps.append(tilelab(folder, *words))
    found: dict[str, Any] = {"before": before, "steps": steps}
    if steps[-1]["code"] == 0:
        steps.append(tilelab(folder, "infer", "new.tif", "--model", "mine.onnx", "-o", "better.ome.zarr"))
        found["after"] = score(folder, "mine.onnx", "after")
    return found


def to_markdown(known: dict[str, Any]) -> str:
    """The page."""
    rows, told = [], []
    for one in (one for one in SETS if one.model in known):
        found, improved = known[one.model], known[one.model]["steps"][2]
        wall, spent = (sum(step[key] for step in found["steps"]) for key in ("wall", "processor"))
        cells = [f"{found['before'][k]:.4f}" for k in ("foreign", "home")]
        share = "refused"
        if "after" in found:
            cells = [f"{c} -> {found['after'][k]:.4f}" for c, k in zip(cells, ("foreign", "home"), strict=True)]
            share = improved["said"].split(" of the new weights")[0].split()[-1]
        rows.append([f"`{one.model}`: {one.words}", *cells, share, f"{wall:.0f}", f"{spent:.0f}"])
        lines = [line for line in improved["said"].splitlines() if ": mean IoU" in line or "as before" in line
                 or "never worse" in line or " worse on " in line or "not get better" in line]  # fmt: skip
        told += [f"`{one.model}`:", "", "```", *(line for line in lines if "onnxruntime" not in line
                 and "openvino" not in line), "```", ""]  # fmt: skip
    text = (__doc__ or "").split("\n\n", 2)[2]
    command = "`python -m benchmarks.trained.circle --data DATA --work DIR -o circle.md`"
    header = ["micrographs", "foreign", "home", "share", "the circle, s", "of processor, s"]
    said = f"Made by {command}. {' '.join(text.split())}"
    return "\n".join(["# Look, correct, improve, look again", "", said, "", *table(header, rows), *told])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not known yet, and write the page."""
    parser = make_parser("benchmarks.trained.circle", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where everything is made")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md", help="the page")
    parser.add_argument("--models", default=",".join(one.model for one in SETS), metavar="A,B", help="(%(default)s)")
    parser.add_argument(
        "--minutes", default="10", metavar="M", help="of improve; more on a machine that is shared (10)"
    )
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "circle.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for one in SETS:
        if one.model in args.models.split(",") and one.model not in known:
            known[one.model] = measure(one, args.data.absolute(), args.work.absolute() / one.model, args.minutes)
            kept.write_text(json.dumps(known, indent=0) + "\n")
    args.output.write_text(to_markdown(known))
    return 0


if __name__ == "__main__":
    sys.exit(main())
