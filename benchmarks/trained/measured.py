"""What `tilelab measure`, `sharpness` and `attribute` find on real micrographs, and what a segmentation adds: one page.

    python -m benchmarks.trained.measured --data DATA -o benchmarks/results/measured.md
    python -m benchmarks.trained.measured --data DATA -o PAGE.md --attribute membrane=runs/membrane/best.safetensors

Hand-drawn masks of held-out images are measured as if they were results, by the commands' own code and by plain SciPy
on whole arrays; then what bundled models make of the images.  Without --attribute there is no section of attributions.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.bench.machine import commit
from benchmarks.command import make_parser
from benchmarks.trained import plain_measures as plain
from tilelab.arrays import Array, Float64
from tilelab.engines.registry import bundled_models
from tilelab.errors import InputError, TilelabError
from tilelab.evaluation.pairs import list_files
from tilelab.io.images.open import open_image
from tilelab.measure import measure
from tilelab.measure.report import Summary
from tilelab.measure.sharpness import MEASURES, measure_sharpness
from tilelab.run.infer import infer
from tilelab.text import markdown_table

Found = dict[str, float]
"""Measures by their names, with the unit at the end."""


@dataclass(frozen=True)
class Subject:
    """A set of micrographs, and how it is measured.

    classes: of its masks, background first.
    model: bundled, that segments it.
    plainly: the measures of masks with their pixel sizes in nm (or 1), by SciPy.
    wishes: of `measure`.
    told: from what `measure` told of all images to the same measures.
    segmented: wishes that are others for what the model makes.
    """

    classes: tuple[str, ...]
    model: str
    plainly: Callable[[list[Array], list[float]], Found]
    wishes: dict[str, object]
    told: Callable[[Summary], Found]
    segmented: dict[str, object] = field(default_factory=dict)


def _precipitates_plainly(masks: list[Array], _: list[float]) -> Found:
    found: Found = {}
    for label, name in ((1, "secondary"), (2, "tertiary")):
        areas = np.concatenate([plain.objects(mask, label)[1] for mask in masks])
        spread = plain.diameters(areas)
        found[f"{name} precipitates, share, %"] = 100 * float(np.mean([np.mean(mask == label) for mask in masks]))
        found[f"{name} precipitates, number"] = len(areas)
        found[f"{name} precipitates, mean diameter, px"] = float(spread.mean())
        found[f"{name} precipitates, median diameter, px"] = float(np.median(spread))
    return found


def _precipitates_told(summary: Summary) -> Found:
    found: Found = {}
    for name in ("secondary", "tertiary"):
        _, spread = summary.values(f"{name} precipitate", "equivalent_diameter")
        found[f"{name} precipitates, share, %"] = 100 * _share(summary, f"{name} precipitate")
        found[f"{name} precipitates, number"] = len(spread)
        found[f"{name} precipitates, mean diameter, px"] = float(spread.mean())
        found[f"{name} precipitates, median diameter, px"] = float(np.median(spread))
    return found


def _axons_plainly(masks: list[Array], sizes: list[float]) -> Found:
    inner = np.concatenate([plain.diameters(plain.objects(m, 2)[1], s) for m, s in zip(masks, sizes, strict=True)])
    parts = [plain.fibres(m, 2, 1, s) for m, s in zip(masks, sizes, strict=True)]
    outer, sheath, ratio = (np.concatenate(column) for column in zip(*parts, strict=True))
    pixels = np.array([mask.size for mask in masks], np.float64)
    share = np.average([np.mean(mask == 2) for mask in masks], weights=pixels)
    return _axon_row(float(share), inner, outer, sheath, ratio)


def _axons_told(summary: Summary) -> Found:
    columns = ("equivalent_diameter", "fibre_diameter", "sheath_thickness", "g_ratio")
    return _axon_row(_share(summary, "axon"), *(summary.values("axon", column)[1] for column in columns))


def _axon_row(share: float, inner: Float64, outer: Float64, sheath: Float64, ratio: Float64) -> Found:
    return {
        "axons, share, %": 100 * share, "axons, number": len(inner), "axons, mean diameter, nm": float(inner.mean()),
        "whole fibres, number": len(outer), "whole fibres, mean diameter, nm": float(outer.mean()),
        "myelin, mean thickness, nm": float(sheath.mean()), "g-ratio, mean": float(ratio.mean()),
    }  # fmt: skip


def _oxides_plainly(masks: list[Array], _: list[float]) -> Found:
    found: Found = {}
    for i, mask in enumerate(masks, 1):
        thickness, length, mean = plain.layer(mask, (1, 2), 3)
        found[f"oxide {i}, mean thickness, px"] = mean
        found[f"oxide {i}, spread of the thickness, px"] = float(
            np.sqrt(np.average((thickness - mean) ** 2, weights=length))
        )
    return found


def _oxides_told(summary: Summary) -> Found:
    found: Found = {}
    for i, survey in enumerate(summary.surveys, 1):
        assert survey.layer is not None
        found[f"oxide {i}, mean thickness, px"] = survey.layer.mean
        found[f"oxide {i}, spread of the thickness, px"] = survey.layer.spread
    return found


def _share(summary: Summary, name: str) -> float:
    """Of all pixels of all images."""
    label = [info.name for info in summary.surveys[0].classes].index(name)
    pixels = sum(survey.fractions[label].pixels for survey in summary.surveys)
    return pixels / sum(int(np.prod(survey.shape)) for survey in summary.surveys)


_LEAST = f"{plain.LEAST_PX}px"
SUBJECTS = {
    "superalloy": Subject(
        ("matrix", "secondary precipitate", "tertiary precipitate"), "superalloy",
        _precipitates_plainly, {"min_size": _LEAST}, _precipitates_told,
    ),
    "axon": Subject(
        ("background", "myelin", "axon"), "axon",
        _axons_plainly, {"min_size": _LEAST, "fibres": ("axon", "myelin"), "only": ("axon",)}, _axons_told,
    ),
    "coating": Subject(
        ("background", "oxide", "crack"), "coating",
        _oxides_plainly, {"min_size": _LEAST, "layer": ("oxide", "crack"), "opening": 3}, _oxides_told,
        {"layer": ("oxide",)},  # the model takes cracks for background
    ),
}  # fmt: skip


def measure_all(paths: Sequence[Path], subject: Subject, sizes: Sequence[float | None]) -> Found:
    """The measures of label images, by tilelab."""
    summary = Summary()
    for path, size in zip(paths, sizes, strict=True):
        known = {} if size is None else {"pixel_size_nm": (size, size)}
        classes = {} if path.suffix == ".zarr" else {"classes": subject.classes}
        wishes = subject.wishes | (subject.segmented if path.suffix == ".zarr" else {})
        with closing(measure(path, **wishes, **known, **classes)) as survey:
            for _ in summary.rows(survey):
                pass
    return subject.told(summary)


def measure_subject(name: str, data: Path, scratch: Path) -> tuple[Found, Found, Found | None]:
    """The measures of a set: of its masks by tilelab and plainly, and of what a bundled model makes."""
    subject, folder = SUBJECTS[name], data / name
    masks, images = (list_files(folder / "val" / what) for what in ("masks", "images"))
    sizes = plain.pixel_sizes(folder, list(masks))
    told = measure_all(list(masks.values()), subject, sizes)
    plainly = subject.plainly([plain.read_mask(path) for path in masks.values()], [size or 1.0 for size in sizes])
    if subject.model not in bundled_models():
        return told, plainly, None
    results = [scratch / name / f"{i}.ome.zarr" for i in range(len(masks))]
    for image, result in zip((images[key] for key in masks), results, strict=True):
        result.parent.mkdir(parents=True, exist_ok=True)
        infer(image, subject.model, result, precision="fp32", bar=0)
    return told, plainly, measure_all(results, subject, sizes)


def page(data: Path, out: Path, attributed: dict[str, Path], command: str) -> str:
    """The page; pictures of attributions go beside it."""
    parts = ["# What is measured", _ABOUT.format(command=command, commit=commit())]
    with tempfile.TemporaryDirectory() as scratch:
        for name in [name for name in SUBJECTS if (data / name).is_dir()]:
            parts += [f"## {name}", _table(*measure_subject(name, data, Path(scratch)))]
            if SUBJECTS[name].model not in bundled_models():
                parts[-1] += "\n\nNo model of this set is bundled."
            if name == "coating":
                parts.append(_other_view(data))
    sets = [path.name for path in sorted(data.iterdir()) if (path / "val" / "images").is_dir()]
    parts += ["## Sharpness", _SHARPNESS, _sharpness_table(data, sets)]
    if attributed:
        from benchmarks.trained.attributed import section

        parts += section(data, out, attributed)
    return "\n\n".join(parts) + "\n"


def _table(told: Found, plainly: Found, segmented: Found | None) -> str:
    head = ["measure", "masks", "by SciPy", "differs"] + ([] if segmented is None else ["segmentation", "error"])
    rows = []
    for key, value in told.items():
        row = [key, _number(value), _number(plainly[key]), _percent(value, plainly[key])]
        rows.append(row + ([] if segmented is None else [_number(segmented[key]), _percent(segmented[key], value)]))
    return markdown_table(head, rows)


def _other_view(data: Path) -> str:
    """Inscribed discs instead of lines across."""
    masks = list_files(data / "coating" / "val" / "masks").values()
    views = ", ".join(_number(plain.inscribed(plain.read_mask(path), (1, 2))) for path in masks)
    return (
        f"By the largest discs that fit into the oxides (another notion of thickness, less at every dent): {views} px."
    )


def _sharpness_table(data: Path, sets: Sequence[str]) -> str:
    """Of the held-out images of each set, as they are and made smaller by means of pixels."""
    rows = []
    for name in sets:
        for shrink in (1, 2, 4):
            found = []
            for path in list_files(data / name / "val" / "images").values():
                with open_image(path) as image:
                    found.append(measure_sharpness(image, shrink=shrink).values)
            means = [float(np.mean([one[which] for one in found])) for which in MEASURES]
            rows.append([name, f"1/{shrink}" if shrink > 1 else "as it is", *map(_number, means)])
    return markdown_table(["set", "size", *MEASURES], rows)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _percent(value: float, other: float) -> str:
    return f"{100 * (value / other - 1):+.2f} %"


_ABOUT = (
    "Made by `{command}` (commit {commit}). Held-out images of each set. *Masks*: the hand-drawn masks, measured as if "
    "they were results; *by SciPy*: the same by plain code on whole arrays (`benchmarks/trained/plain_measures.py`); "
    "*segmentation*: what the bundled model makes of the images, in fp32, so that its *error* is the segmentation's. "
    "Objects have 10 pixels or more; whole fibres are those that the frame does not cut, as are myelin and g-ratio."
)
_SHARPNESS = (
    "`tilelab sharpness IMAGES --shrink 1,2,4`: each over the number of pixels, in squares of the intensities, mean "
    "over the held-out images. The U-RISC paper compares its images, made smaller, with the originals: where one "
    "is smooth at its own scale, the smaller copy has steeper steps from pixel to pixel; where it is noisy, less steep."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = make_parser("benchmarks.trained.measured", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PAGE.md")
    parser.add_argument("--attribute", action="append", default=[], metavar="SET=CHECKPOINT")
    args = parser.parse_args(argv)
    attributed = {name: Path(path) for name, _, path in (one.partition("=") for one in args.attribute)}
    words = "".join(f" --attribute {name}=runs/{name}/best.safetensors" for name in attributed)
    command = f"python -m benchmarks.trained.measured --data DATA -o {args.output.name}{words}"
    try:
        if not args.data.is_dir():
            raise InputError(f"no folder {args.data}")
        args.output.write_text(page(args.data, args.output, attributed, command))
    except TilelabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
