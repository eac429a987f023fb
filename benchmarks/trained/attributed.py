"""The section of attributions on the page of what is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.trained.plain_measures import pixel_sizes, read_mask
from benchmarks.trained.results import UNSHOWN
from tilelab.evaluation.pairs import list_files
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.text import markdown_table
from tilelab.training.attribution import KINDS, SHARE, Attribution, summarise
from tilelab.training.attribution_pictures import draw_field, draw_kinds
from tilelab.training.checkpoint import load_checkpoint, load_network

CLASSES = {"membrane": ("membrane", 4.0)}
"""Of a set, the class that is asked about and its pixel size in nm; of others the last class, size by its folder."""
SIDE, PIXELS = 128, 4

_ABOUT = (
    f"`tilelab attribute IMAGE --model CHECKPOINT --at Y,X --class NAME --truth MASK --crop {SIDE} --pixels {PIXELS}`: "
    f"integrated gradients, a right Riemann sum of 100 steps from zeros of the network's input; S_k, k = {SHARE:g}, of "
    f"up to {PIXELS} pixels of each kind in the middle of the first held-out image. The U-RISC paper has 46,000 nm2 on "
    "its own images and 10,300 nm2 on ISBI 2012 (*membrane* here), of another network."
)


def section(data: Path, out: Path, attributed: dict[str, Path]) -> list[str]:
    """Heading, table and pictures of the networks of some sets."""
    rows, shown, trained = [], [], []
    for name, path in attributed.items():
        checkpoint = load_checkpoint(path)
        spec = checkpoint.header.spec
        images, masks = (list_files(data / name / "val" / what) for what in ("images", "masks"))
        key = next(iter(images))
        known, nm = CLASSES.get(name, (spec.classes[-1].name, pixel_sizes(data / name, [key])[0]))
        label = [info.name for info in spec.classes].index(known)
        area, unit = (1.0, "px2") if nm is None else (nm * nm, "nm2")
        truth = read_mask(masks[key])
        with open_image(images[key], bar=0) as image:
            volume = Volume(image)
            middle = volume.shape[1] // 2, volume.shape[2] // 2
            asked = Attribution(load_network(checkpoint), spec, volume, (0, *middle), side=SIDE)
            y, x = asked.origin
            samples = list(asked.sample(truth[y : y + SIDE, x : x + SIDE], label, PIXELS))
        told = summarise(samples, area)
        state = checkpoint.header
        of = f"{state.step} of {state.recipe.run.steps} steps of recipe {state.recipe.name}"
        score = state.scores.get("mean_iou", float("nan"))
        trained.append(f"{name}: {spec.architecture}, {of}, mean IoU {score:.3f} in its validation.")
        lack = float(np.median([abs(sample.field.residue) for sample in samples]))
        rows += [
            [f"{name}, {known}", kind, f"{told[kind]['pixels']:.0f}", f"{told[kind]['mean']:,.0f} {unit}",
             f"{told[kind]['sd']:,.0f}", f"{100 * lack:.1f} %"]
            for kind in KINDS if kind in told
        ]  # fmt: skip
        first = next(sample.field for sample in samples if sample.kind == "correct")
        title = f"{known} at {first.at[0]}, {first.at[1]}: S_{SHARE:g} = {first.pixels() * area:,.0f} {unit}"
        pictures = {"kinds": draw_kinds(samples, f"Pixels of {known}", area, unit)}
        if name not in UNSHOWN:
            pictures["field"] = draw_field(first, asked.grey, title, nm)
        for what, picture in pictures.items():
            file = f"{out.stem}-{name}-{what}.png"
            picture.save(out.parent / file)
            shown.append(f"![{name}: {what}]({file})")
    head = ["set and class", "pixels", "number", "mean S_k", "sd", "median gap of the sum"]
    return ["## Attributions", _ABOUT, *trained, markdown_table(head, rows), *shown]
