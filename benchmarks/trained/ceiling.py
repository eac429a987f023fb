"""How high a score can be: what the truth scores against itself a little moved, and where the models' errors lie.

    python -m benchmarks.trained.ceiling --data DATA -o benchmarks/results/ceiling.md

The bundled models in fp32, each on the whole validation images of its set.  Pictures of the axons go beside the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from benchmarks.command import make_parser
from benchmarks.page.markdown import table
from benchmarks.trained.home_abroad import MODELS, own_set
from tilelab.arrays import Bool, Float32, Int64, UInt8
from tilelab.engines.registry import load_engine
from tilelab.evaluation.metrics.confusion import count_confusion, mean_of_present, score_confusion
from tilelab.evaluation.metrics.tolerant import count_tolerant
from tilelab.evaluation.pictures import error_overlay
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.training.pairs import open_pairs
from tilelab.training.recipe import load_recipe
from tilelab.training.sections import IGNORE
from tilelab.training.validate import infer_logits, labels_of

SHOWN = "axon"
"""The model whose images have rows and pictures of their own: it is the farthest from its goal."""
REACHES = (1, 3)
"""Pixels from a border of the truth within which errors are counted."""
OFFSETS = np.arange(-1.5, 1.6, 0.5)
"""Added to the logits of two classes, to see what the best balance of an image would score."""
_SIDE, _ZOOM, _GAP, _TEXT = 260, 1.5, 6, 18


@dataclass(frozen=True)
class Seen:
    """A validation image: as it is, what is true, and what a model gives."""

    name: str
    image: UInt8
    truth: UInt8
    logits: Float32
    labels: UInt8


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every model, and write the page."""
    parser = make_parser("benchmarks.trained.ceiling", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md", help="the page")
    args = parser.parse_args(argv)
    rows, images, picture = [], [], args.output.with_name(f"{args.output.stem}-{SHOWN}.png")
    for model in MODELS:
        seen = list(look(model, args.data))
        rows.append([model, *profile(seen)])
        print(*rows[-1], sep="  ", flush=True)
        if model == SHOWN:
            images = [[one.name, *profile([one]), f"{best_balance(one):.3f}"] for one in seen]
            draw(seen, picture)
    args.output.write_text(as_markdown(rows, images, picture.name))
    return 0


def look(model: str, data: Path) -> Iterator[Seen]:
    """The validation images of a model's own set, inferred whole."""
    recipe = load_recipe(own_set(model))
    with closing(load_engine(model, device="cpu", precision="fp32")) as engine:
        for pair in open_pairs(recipe.validation, data / own_set(model), len(recipe.classes)):
            image, truth = pair.image[...], pair.mask.read(Box.whole(pair.shape))
            logits = infer_logits(engine, open_image(image, axes="yx"))
            yield Seen(pair.name, image, truth, logits, labels_of(logits, engine.spec))


def profile(seen: Sequence[Seen]) -> list[str]:
    """A row: scores of the model, of the moved truth, and where the wrong pixels lie; all images counted together."""

    def pooled(labels: Callable[[Seen], UInt8]) -> str:
        return f"{mean_iou(sum(count_confusion(labels(one), one.truth, ignore=IGNORE) for one in seen)):.3f}"

    wrong = [(one.labels != one.truth) & (one.truth != IGNORE) for one in seen]
    near = [distances(one.truth) for one in seen]

    def share(inside: Callable[[Float32], Bool]) -> str:
        found = sum(int((w & inside(d)).sum()) for w, d in zip(wrong, near, strict=True))
        return f"{found / max(1, sum(int(w.sum()) for w in wrong)):.0%}"

    forgiven = sum(tolerant(one) for one in seen)
    return [
        pooled(lambda one: one.labels),
        f"{mean_iou(forgiven):.3f}",
        pooled(lambda one: moved(one.truth, 0.5)),
        pooled(lambda one: moved(one.truth, 1.0)),
        *(share(lambda far, reach=reach: far <= reach) for reach in REACHES),  # type: ignore[misc]
        f"{np.concatenate([(d <= REACHES[0]).ravel() for d in near]).mean():.0%}",
    ]


def mean_iou(counts: Int64 | int) -> float:
    """Of the classes that occur."""
    return mean_of_present(score_confusion(np.asarray(counts)[:IGNORE, :IGNORE]).iou)


def tolerant(one: Seen) -> Int64:
    """Counts in which an outline that is a pixel off is right."""
    return count_tolerant(lambda y, v: (one.labels[y:v], one.truth[y:v]), one.truth.shape, 1.0, (IGNORE,))  # type: ignore[arg-type]


def moved(truth: UInt8, by: float) -> UInt8:
    """Labels moved by so many pixels along both axes: each class interpolated linearly, and the largest taken."""
    values = np.unique(truth)
    shares = [ndimage.shift((truth == value).astype(np.float32), by, order=1, mode="nearest") for value in values]
    return np.asarray(values[np.argmax(shares, axis=0)], np.uint8)


def borders(labels: UInt8) -> Bool:
    """Pixels beside one of another class, above, below, left or right."""
    found = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        differ = np.diff(labels.astype(np.int16), axis=axis) != 0
        ahead, behind = ([(0, 0), (0, 0)] for _ in range(2))
        ahead[axis], behind[axis] = (1, 0), (0, 1)
        found |= np.pad(differ, ahead) | np.pad(differ, behind)
    return found


def distances(truth: UInt8) -> Float32:
    """How far each pixel is from the border of a class: 1 for those that touch one, in pixels."""
    edge = borders(truth)
    far = ndimage.distance_transform_edt(~edge) + 1 if edge.any() else np.full(truth.shape, np.inf)
    return np.asarray(far, np.float32)


def best_balance(one: Seen) -> float:
    """The best mean IoU over constants added to the logits of two of three classes, chosen with the truth in hand.

    A constant moves all borders of a class a little outwards or inwards: this is what the model would score if it drew
    outlines in the manner of whoever drew the truth of this one image.
    """
    found = []
    for first in OFFSETS:
        for last in OFFSETS:
            logits = one.logits.copy()
            logits[0] += first
            logits[-1] += last
            labels = logits.argmax(axis=0).astype(np.uint8)
            found.append(mean_iou(count_confusion(labels, one.truth, ignore=IGNORE)))
    return max(found)


def draw(seen: Sequence[Seen], file: Path) -> None:
    """A row for each image: the middle of it, outlines of the truth, outlines of the model, and the errors."""
    side = round(_SIDE * _ZOOM)
    size = (4 * (side + _GAP), len(seen) * (side + _TEXT + _GAP))
    sheet, font = Pillow.new("RGB", size, "white"), ImageFont.load_default(12)
    pen = ImageDraw.Draw(sheet)
    for i, one in enumerate(seen):
        cut = tuple(slice(max(0, (n - _SIDE) // 2), max(0, (n - _SIDE) // 2) + _SIDE) for n in one.truth.shape)
        low, high = np.percentile(one.image[cut], (0.5, 99.5))
        grey = (np.clip((one.image[cut] - low) / max(1.0, high - low), 0, 1) * 255).astype(np.uint8)
        panels = [np.repeat(grey[..., None], 3, axis=-1) for _ in range(3)]
        for panel, labels, color in zip(
            panels[1:], (one.truth, one.labels), ((255, 220, 0), (0, 255, 120)), strict=True
        ):
            panel[borders(labels[cut])] = color
        panels.append(error_overlay(one.labels[cut], one.truth[cut], grey))
        for k, (panel, title) in enumerate(zip(panels, (one.name, "truth", "model", "errors"), strict=True)):
            at = (k * (side + _GAP), i * (side + _TEXT + _GAP))
            pen.text((at[0] + 2, at[1] + 1), title, fill="black", font=font)
            picture = Pillow.fromarray(panel).resize((side, side), Pillow.Resampling.NEAREST)
            sheet.paste(picture, (at[0], at[1] + _TEXT))
    sheet.quantize(48, dither=Pillow.Dither.NONE).save(file, optimize=True)


def as_markdown(rows: Sequence[Sequence[str]], images: Sequence[Sequence[str]], picture: str) -> str:
    """The page."""
    heads = ["mean IoU", "within 1 px", "truth, half a pixel off", "truth, a pixel off"]
    heads += [f"errors within {reach} px of a border" for reach in REACHES]
    heads.append("of all pixels, within 1 px")
    parts = [_ABOUT, *table(["model", *heads], rows), _MODELS, *table(["image", *heads, "best balance"], images)]
    parts += [f"![the middle of both images: micrograph, truth, model, errors]({picture})", "", _AXONS]
    return "\n".join(parts)


_ABOUT = """\
# How high a score can be

Made by `python -m benchmarks.trained.ceiling`: the bundled models in fp32 on their whole validation images, the
pixels of all images counted together. *Within 1 px*: as `tilelab eval --tolerance 1` scores, where an outline that is
a pixel off is right. *Truth, half a pixel off*: what the truth, moved by so much along both axes, scores against
itself. *Errors within 1 px of a border*: wrong pixels that touch a border of the truth, of all wrong pixels.
"""

_MODELS = """\
The models of the superalloy have come to where outlines end: moved by half a pixel, the truth scores hardly more than
the best of them, and most of what they do wrong is an outline a pixel off. Coating and particles are the other way
round: their outlines are worth next to nothing, what is wrong there is wrong as a whole. The axons have both.

## Axons, image by image

*Best balance*: with constants added to the logits of background and axon, chosen for this image with its truth in
hand. They move every outline a little, as another annotator would.
"""

_AXONS = """\
Errors: cyan too much, magenta missed, yellow axon for myelin or the reverse. What is seen there:

- Rims. In the lower image the truth draws fibres narrower than the model (thin cyan rims everywhere), in the upper
  one wider (magenta rims). Both are within a pixel, both are one annotator's manner throughout an image, and no model
  that does not know who draws can have both.
- Whole fibres, most of them in the upper image. Some have a sheath, if a dim one, and are left out of the truth (large
  cyan discs); some that the truth has are grey patches without an axon to be seen (large magenta ones).
- Sheaths that split or fold, and axons whose inside is as bright as myelin.

No one drew these images twice, so what two annotators would score against each other is not known. For orientation:
the network of the data's own makers has 85 % of the pixels of rat SEM right by its paper (AxonDeepSeg, Zaimi et al.
2018, on other images of this kind), the bundled model what [accuracy.md](accuracy.md) says.
"""

if __name__ == "__main__":
    raise SystemExit(main())
