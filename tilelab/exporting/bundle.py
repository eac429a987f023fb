"""Build the files of a bundled model: NAME.onnx with its seams and its home, NAME.int8.xml where int8 is as good.

    python -m tilelab.exporting.bundle runs/superalloy/best.safetensors superalloy --data DATA/superalloy --drawn
    python -m tilelab.exporting.bundle superalloy.onnx superalloy --recipe superalloy --data DATA/superalloy --drawn
    python -m tilelab.exporting.bundle superalloy.onnx superalloy --describe --recipe superalloy --data DATA/superalloy

A checkpoint becomes both files.  A described .onnx is taken as it is and gets its int8 file; its recipe, which an .onnx
does not hold, says where in DATA the images are.  With --describe the networks stay, and learn anew what they know of
themselves: their home and their confidence.  In NAME.md, the card, the rows of precisions and of confidence are written
anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tilelab.engines.bundled import QUANTISED, bundled_folder
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import read_spec
from tilelab.errors import ModelError, TilelabError
from tilelab.exporting.calibration import Variation
from tilelab.exporting.describe import describe_model
from tilelab.exporting.export import Exported, Place, export_model
from tilelab.exporting.onnx_file import round_weights
from tilelab.exporting.parity import Parity, ParityError, Reference, Sample, check_parity
from tilelab.exporting.samples import planes_of, training_images, validation_samples
from tilelab.exporting.source import CheckpointSource, OnnxSource, open_network
from tilelab.exporting.write import Request
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.machine.disk import MARK, move_whole, remove_entry
from tilelab.sample import draw_superalloy
from tilelab.spec import ModelSpec
from tilelab.training.recipe import Recipe, load_recipe

MOST_CHANGED = 0.005
"""Share of the labels that int8 may change in a file that is taken unasked; the gate's own limit is wider."""
MOST_ROUNDED = 0.0005
"""Share of the labels that rounding the weights may change."""
MOST_BYTES = 40_000_000
"""Of all bundled models as a wheel packs them."""
_UNLIKE = 6  # images of a folder that say what another kind is like
_DRAWN = (range(100, 106), range(106, 112))  # seeds of micrographs that are home, and of others that are known


@dataclass(frozen=True, slots=True)
class Material:
    """What files are made and proved with.

    Attributes:
        samples: with truth, that files are compared on.
        trained: images of the training.
        known: others that the network is at home with.
        foreign: groups of images of other kinds.
        variation: of brightness and contrast in training.
    """

    samples: Sequence[Sample]
    trained: Sequence[Image]
    known: Sequence[Image] = ()
    foreign: Sequence[Sequence[Image]] = ()
    variation: Variation | None = None

    @classmethod
    def of(cls, recipe: Recipe, data: Path, *, drawn: bool = False, unlike: Sequence[Path] = ()) -> Material:
        """That of a recipe, with drawn superalloys where they are what the network is for, unlike what folders hold.

        Raises:
            InputError: the images are not there, or do not fit the recipe.
        """
        home, others = ([_draw(seed) for seed in seeds] if drawn else [] for seeds in _DRAWN)
        trained = recipe.augmentation
        return cls(
            validation_samples(recipe, data),
            [*training_images(recipe, data), *home],
            others,
            [planes_of(folder)[:_UNLIKE] for folder in unlike],
            Variation(trained.brightness, trained.contrast),
        )


def build_bundle(
    source: CheckpointSource | OnnxSource,
    name: str,
    material: Material,
    folder: Path,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Path, ...]:
    """Write NAME.onnx and, where int8 is as good, NAME.int8.xml with its .bin; older files of that name go.

    Args:
        source: a checkpoint; or a described ONNX file, which is taken as it is.
        name: of the model.
        material: to make and to prove them with.
        folder: to write into; the files appear there when all is proved.
        report: called with one line for each check and file.

    Returns:
        The files.

    Raises:
        ModelError, ParityError, EngineError, OutputError: as `export_model`; nothing of the folder is changed.
    """
    with tempfile.TemporaryDirectory(prefix=".bundle-", suffix=MARK, dir=folder) as scratch:
        plain, quick = Path(scratch) / f"{name}.onnx", Path(scratch) / f"{name}{QUANTISED}"
        if isinstance(source, OnnxSource):
            shutil.copyfile(source.path, plain)
            _round(plain, source, material, report)
        else:
            rounded = Path(scratch) / "rounded.onnx"
            spec = source.place(free_size=source.spec.receptive_field is not None)
            source.write_onnx(spec, rounded)
            _round(rounded, source, material, report)
            export_model(
                OnnxSource(rounded), plain, material.samples, place=Place(free_size=not spec.tile_fixed),
                trained=material.trained, known=material.known, foreign=material.foreign, report=report,
            )  # fmt: skip
        proof = _quantise(plain, quick, material, report)
        files = [plain] if proof is None else [plain, quick.with_suffix(".bin"), quick]
        for stale in (folder / quick.name, folder / quick.with_suffix(".bin").name):
            remove_entry(stale)
        for file in files:
            move_whole(file, folder / file.name)
    bundled = read_spec(folder / plain.name)
    _write_row(folder / f"{name}.md", "precisions", _precisions(bundled, proof))
    _write_row(folder / f"{name}.md", "confidence", _confidence(bundled))
    return tuple(folder / file.name for file in files)


def describe_bundle(
    name: str, material: Material, folder: Path, report: Callable[[str], None] = lambda _: None
) -> tuple[Path, ...]:
    """Let the files of a bundled model learn anew what they know of themselves: home and confidence; networks stay.

    Returns:
        The files.

    Raises:
        ModelError, EngineError, InputError, OutputError: see `describe_model`.
    """
    source = OnnxSource(folder / f"{name}.onnx")
    confidence = Reference(source.reference, material.samples).confidence(source.spec)
    known = [*(sample.image for sample in material.samples), *material.known]
    files = [path for path in (source.path, folder / f"{name}{QUANTISED}") if path.is_file()]
    with tempfile.TemporaryDirectory(prefix=".bundle-", suffix=MARK, dir=folder) as scratch:
        for file in files:
            describe_model(
                file, Path(scratch) / file.name, SpecOverrides(), trained=material.trained, known=known,
                foreign=material.foreign, confidence=confidence, report=report,
            )  # fmt: skip
        for made in sorted(Path(scratch).iterdir()):
            move_whole(made, folder / made.name)
    _write_row(folder / f"{name}.md", "confidence", _confidence(read_spec(source.path)))
    return tuple(files)


def _round(
    path: Path, source: CheckpointSource | OnnxSource, material: Material, report: Callable[[str], None]
) -> None:
    """Round the weights of `path`, so that a wheel holds it in less bytes, where it stays what it was."""
    whole = path.read_bytes()
    round_weights(path)
    parity = check_parity(Reference(source.reference, material.samples), path, engine="onnxruntime", precision="fp32")
    report(f"weights rounded to 11 bits: {parity}")
    if not parity.changed <= MOST_ROUNDED:
        path.write_bytes(whole)
        report(f"they stay whole: at most {MOST_ROUNDED} of the labels may change")


def _quantise(plain: Path, quick: Path, material: Material, report: Callable[[str], None]) -> Exported | None:
    """Write the int8 file; None where it is not good enough, or the network is not of a kind that can be quantised."""
    source = OnnxSource(plain)
    request = Request(calibration=material.trained, variation=material.variation)
    try:
        done = export_model(
            source, quick, material.samples, precision="int8", request=request, trained=material.trained,
            known=material.known, foreign=material.foreign, report=report,
        )  # fmt: skip
        refused = max(done.checks, key=lambda check: check.changed)
        if refused.changed <= MOST_CHANGED:
            return done
        raise ParityError(f"{refused} where at most {MOST_CHANGED} of the labels may change")
    except (ParityError, ModelError) as error:
        report(f"no int8 beside {plain.name}: {error}")
        return None


def _write_row(card: Path, name: str, text: str) -> None:
    """Put a row of a card's table, where there is one, before that of the data if it is new."""
    if not card.is_file():
        return
    lines = card.read_text().split("\n")
    old = next((i for i, line in enumerate(lines) if line.startswith(f"| {name} |")), None)
    if old is not None:
        lines[old : old + 1] = [f"| {name} | {text} |"] if text else []
    elif text and any(line.startswith("| data |") for line in lines):
        lines.insert(next(i for i, line in enumerate(lines) if line.startswith("| data |")), f"| {name} | {text} |")
    card.write_text("\n".join(lines))


def _precisions(spec: ModelSpec | None, quantised: Exported | None) -> str:
    """As they were proved."""
    words: list[str] = [] if spec is None else list(spec.precisions)
    if quantised is not None:
        words.append(f"int8 in a file of its own ({_proof(quantised.checks)})")
    return ", ".join(words)


def _confidence(spec: ModelSpec | None) -> str:
    """How probabilities are calibrated."""
    if spec is None or spec.confidence is None:
        return ""
    sure = spec.confidence
    text = f"logits over {sure.temperature:g}"
    if sure.ece:
        text += (
            f": expected calibration error {sure.ece[1]:.4f}, without {sure.ece[0]:.4f} "
            "(each validation image by what the others teach)"
        )
    return text


def _proof(checks: Sequence[Parity]) -> str:
    """The worst of some checks, in words, and the score of the first one, with the model's own tile."""
    text = f"at least {1 - max(check.changed for check in checks):.2%} of the labels of fp32"
    if checks[0].iou_before is not None and checks[0].iou_after is not None:
        text += f", mean IoU {checks[0].iou_before:.4f} to {checks[0].iou_after:.4f}"
    return text


def packed_bytes(folder: Path) -> int:
    """What the models of a folder take in a wheel, about."""
    files = [path for path in folder.iterdir() if path.suffix in (".onnx", ".xml", ".bin", ".md")]
    return sum(len(zlib.compress(path.read_bytes(), 6)) for path in files)


def _draw(seed: int) -> Image:
    return open_image(draw_superalloy((512, 512), seed=seed)[0], axes="yx")


def main(words: Sequence[str] | None = None) -> int:
    """Build the files of one model."""
    parser = argparse.ArgumentParser(prog="python -m tilelab.exporting.bundle", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a checkpoint, or a described .onnx")
    parser.add_argument("name", metavar="NAME", help="of the model")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder of the recipe")
    parser.add_argument("--recipe", metavar="R", help="of an .onnx (a checkpoint has its own)")
    parser.add_argument("--drawn", action="store_true", help="the network is at home in drawn superalloys, too")
    parser.add_argument("--unlike", type=Path, nargs="+", default=[], metavar="DIR", help="images of other kinds")
    parser.add_argument("--describe", action="store_true", help="of the files that are there: their networks stay")
    parser.add_argument("-o", "--folder", type=Path, default=bundled_folder(), metavar="DIR",
                        help="where the files go (the package's own)")  # fmt: skip
    args = parser.parse_args(words)
    say = partial(print, flush=True)
    try:
        source = open_network(args.source)
        recipe = load_recipe(args.recipe) if args.recipe else source.recipe
        if recipe is None:
            raise ModelError(f"{args.source} does not say what it was trained with: give --recipe")
        material = Material.of(recipe, args.data, drawn=args.drawn, unlike=args.unlike)
        files = (
            describe_bundle(args.name, material, args.folder, say)
            if args.describe
            else build_bundle(source, args.name, material, args.folder, say)
        )
        for file in files:
            say(f"wrote {file} ({file.stat().st_size / 1e6:.2f} MB)")
    except TilelabError as error:
        parser.exit(2, f"error: {error}\n")
    packed = packed_bytes(args.folder)
    say(f"the models of {args.folder} take {packed / 1e6:.1f} MB in a wheel, at most {MOST_BYTES / 1e6:.0f}")
    return 0 if packed <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
