"""The bundled models at home and abroad: what they score, how sure they are, and whether they notice.

    python -m benchmarks.trained.home_abroad --data DATA -o benchmarks/results/home-abroad.md

Each model sees the validation images it was made for, as they are and changed (inverted, at twice and half the size,
noisy), and those of the other sets, whose classes it does not know.  What was measured lies in FILE.json, and a run
that was stopped goes on there; pictures go beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from benchmarks.command import make_parser
from benchmarks.trained.home_abroad_page import Panel, draw_page, to_markdown
from tilelab.arrays import Float32, UInt8
from tilelab.engines.base import Engine
from tilelab.engines.registry import load_engine
from tilelab.evaluation.metrics.confidence import Answers, calibration_error
from tilelab.evaluation.metrics.confusion import count_confusion, mean_of_present, score_confusion
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.results.sink import Finished
from tilelab.kernels.reference import ACTIVATIONS, to_probabilities
from tilelab.run.kind.suit import look_at_kind
from tilelab.run.options import Options
from tilelab.run.prepare import prepare
from tilelab.training.pairs import open_pairs
from tilelab.training.recipe import IGNORE, load_recipe
from tilelab.training.validate import labels_of, sweep_prepared

MODELS = ("superalloy", "coating", "axon", "particles", "superalloy-unet", "superalloy-pmcanet")
SETS = ("superalloy", "coating", "axon", "particles", "meltpool", "membrane")
SHOWN = ("superalloy", "coating", "axon", "particles")
"""Models in the picture; the micrographs are of sets whose licence lets them be shown."""
CHANGES = ("as they are", "inverted", "twice the size", "half the size", "noisy")
TILE, FEW = 64, 0.05  # pixels of a side of the tiles that are ranked, and their share
LARGEST = 1024  # pixels of a side, from the middle


def changed(image: UInt8, change: str) -> UInt8:
    """An image as another microscope might give it; the noise is as strong as the image itself."""
    height, width = image.shape
    if change == "inverted":
        return 255 - image
    if change == "noisy":
        noise = np.random.default_rng(0).normal(0, float(image.std()), image.shape)
        return np.asarray(np.clip(np.rint(image + noise), 0, 255), np.uint8)
    if change == "twice the size":
        return np.asarray(Pillow.fromarray(image).resize((2 * width, 2 * height), Pillow.Resampling.BICUBIC))
    if change == "half the size":
        return np.asarray(Pillow.fromarray(image).resize((width // 2, height // 2), Pillow.Resampling.BOX))
    return image


def own_set(model: str) -> str:
    """The data set that a model was made for, which is also the name of its recipe."""
    return model.partition("-")[0]


def images_of(data: Path, name: str) -> Iterator[tuple[str, UInt8, UInt8]]:
    """The validation images of a set with their masks, of large ones the middle."""
    recipe = load_recipe(name)
    for pair in open_pairs(recipe.validation, data / name, len(recipe.classes)):
        cut = tuple(slice(max(0, (n - LARGEST) // 2), max(0, (n - LARGEST) // 2) + LARGEST) for n in pair.shape)
        yield pair.name, pair.image[...][cut], pair.mask.read(Box.whole(pair.shape))[cut]


def infer_logits(engine: Engine, image: UInt8, fit: bool) -> tuple[Float32, str]:
    """Blended logits, and what ``--fit`` did."""
    options = Options(labels=False, logits=True, probabilities=("none",), ignore_pixel_size=True, fit=fit)
    prepared = prepare(open_image(image, axes="yx"), engine, options)
    result = np.empty((engine.spec.values, *prepared.image.shape[-2:]), np.float32)

    def take(box: Box, rows: Finished) -> None:
        assert rows.logits is not None  # asked for
        result[(slice(None), *box.slices[1:])] = rows.logits[:, 0]

    sweep_prepared(prepared, take)
    return result, str(prepared.normalization.get("fitted", ""))


def alarmed(engine: Engine, image: UInt8) -> bool:
    """Whether `tilelab infer` would say that the image is unlike those of the training."""
    options = Options(ignore_pixel_size=True, labels=True, probabilities=("none",))
    prepared = prepare(open_image(image, axes="yx"), engine, options)
    return bool(look_at_kind(prepared.image, engine, options, prepared.job.mean, prepared.job.gain))


def score(engine: Engine, image: UInt8, truth: UInt8, fit: bool) -> dict[str, Any]:
    """Confusion counts and calibration error at the size of the truth, whatever the size that was inferred."""
    logits, fitted = infer_logits(engine, image, fit)
    rows, columns = (np.arange(n) * m // n for n, m in zip(truth.shape, logits.shape[1:], strict=True))
    logits = logits[:, rows][:, :, columns]
    classes = len(engine.spec.classes)
    counts = count_confusion(labels_of(logits, engine.spec), truth, ignore=IGNORE)[:classes, :classes]
    answers, kind = Answers.of(logits, truth, ignore=IGNORE), ACTIVATIONS[engine.spec.activation]
    error = calibration_error(answers, kind, 1 / engine.spec.sharpness)
    chances = np.clip(to_probabilities(logits, kind, engine.spec.sharpness), 1e-9, 1)
    entropy = -(chances * np.log2(chances)).sum(axis=0)
    wrong = (labels_of(logits, engine.spec) != truth) & (truth != IGNORE)
    tiles = np.stack([tile_sums(wrong), tile_sums(entropy)], axis=-1).reshape(-1, 2)
    return {
        "counts": counts.tolist(),
        "ece": error,
        "pixels": int(truth.size),
        "fitted": fitted,
        "tiles": tiles.round(1).tolist(),
    }


def tile_sums(values: Any) -> Any:
    """Sums over squares of `TILE` px; what is left at the end is left out."""
    rows, columns = (n // TILE for n in values.shape)
    return values[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE).sum(axis=(1, 3), dtype=float)


def ranked(tiles: Any) -> tuple[float, float]:
    """Shares of the wrong pixels in `FEW` of the tiles ``(n, 2)``: those of most entropy, and those of most errors."""
    wrong, entropy = np.array(tiles).T
    count = max(1, round(FEW * len(wrong)))
    first = np.argsort(-entropy, kind="stable")[:count]
    return tuple(float(found.sum() / max(1, wrong.sum())) for found in (wrong[first], np.sort(wrong)[-count:]))


def measure(model: str, data: Path, known: dict[str, Any], keep: Any) -> None:
    """Fill in what of a model is not known yet; `keep` is called after each image."""
    own = own_set(model)
    with closing(load_engine(model, device="cpu", precision="fp32")) as engine:
        for name in SETS:
            try:
                images = list(images_of(data, name)) if name != "meltpool" else list(plain_images(data, name))
            except OSError:
                images = []
            for stem, image, truth in images:
                for change in CHANGES if name == own else CHANGES[:1]:
                    key = "/".join((model, name, change, stem))
                    if key in known:
                        continue
                    seen = changed(image, change)
                    found: dict[str, Any] = {"alarm": alarmed(engine, seen)}
                    if name == own:
                        found["plain"] = score(engine, seen, truth, False)
                        found["fit"] = score(engine, seen, truth, True) if found["alarm"] else found["plain"]
                    known[key] = found
                    keep()
                    print(key, "ALARM" if found["alarm"] else "", flush=True)


def plain_images(data: Path, name: str) -> Iterator[tuple[str, UInt8, UInt8]]:
    """Those of a set that no recipe is for; the masks are empty."""
    for path in sorted((data / name / "val" / "images").glob("*.png")):
        image = np.asarray(Pillow.open(path).convert("L"))
        cut = tuple(slice(max(0, (n - LARGEST) // 2), max(0, (n - LARGEST) // 2) + LARGEST) for n in image.shape)
        yield path.stem, np.ascontiguousarray(image[cut]), np.zeros(image[cut].shape, np.uint8)


def rows_of(known: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each model and kind of image, pooled over the images."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for key, found in known.items():
        model, name, change, _ = key.split("/")
        groups.setdefault((model, name, change), []).append(found)
    rows = []
    for (model, name, change), found in groups.items():
        row: dict[str, Any] = {
            "model": model,
            "set": name,
            "change": change,
            "images": len(found),
            "alarms": sum(one["alarm"] for one in found),
        }
        for way in ("plain", "fit"):
            if way in found[0]:
                counts = np.sum([one[way]["counts"] for one in found], axis=0)
                pixels = [one[way]["pixels"] for one in found]
                row[f"{way}_iou"] = mean_of_present(score_confusion(counts).iou)
                if way == "plain":
                    row["ranked"] = ranked([tile for one in found for tile in one[way]["tiles"]])
                row[f"{way}_ece"] = float(np.average([one[way]["ece"] for one in found], weights=pixels))
        row["fitted"] = sorted({one["fit"]["fitted"] for one in found if "fit" in one} - {""})
        rows.append(row)
    return rows


def panels_of(model: str, data: Path) -> list[Panel]:
    """Its first image as it is; inverted and at half the size, without and with ``--fit``; and one of another set."""
    other = SHOWN[SHOWN.index(model) - 1]
    _, image, _ = next(images_of(data, model))
    _, foreign, _ = next(images_of(data, other))
    ways = [(f"{model}: as it is", image, False)]
    for change in ("inverted", "half the size"):
        ways += [(change, changed(image, change), False), (f"{change} --fit", changed(image, change), True)]
    with closing(load_engine(model, device="cpu", precision="fp32")) as engine:
        colors = [list(bytes.fromhex(info.color[1:])) for info in engine.spec.classes]
        return [
            Panel(
                title,
                not fit and alarmed(engine, seen),
                seen,
                labels_of(infer_logits(engine, seen, fit)[0], engine.spec),
                colors,
            )
            for title, seen, fit in [*ways, (f"of {other}", foreign, False)]
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = make_parser("benchmarks.trained.home_abroad", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md", help="the page")
    parser.add_argument("--models", default=",".join(MODELS), metavar="A,B", help="(%(default)s)")
    parser.add_argument("--page", action="store_true", help="write page and pictures of what was measured before")
    parser.add_argument("--no-picture", action="store_true", help="leave the picture as it is")
    args = parser.parse_args(argv)
    kept = args.output.with_suffix(".json")
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if not args.page:
        for model in args.models.split(","):
            measure(model, args.data, known, lambda: kept.write_text(json.dumps(known, indent=0) + "\n"))
    picture = args.output.with_suffix(".png")
    if not args.no_picture:
        draw_page([panels_of(model, args.data) for model in SHOWN], picture)
    args.output.write_text(to_markdown(rows_of(known), picture.name))
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
