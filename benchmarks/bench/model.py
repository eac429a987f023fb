"""What the benchmarks run on, made by the project itself: a U-Net with a ResNet-18 encoder, and large planes.

The network is trained briefly by `tilelab train` and exported by `tilelab export`, or is a given checkpoint of the same
architecture: its speed is that of any weights, its labels are those of a real segmentation.  All is made once and kept
under ``benchmarks/.cache``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow

from benchmarks.bench.mosaic import Mosaic, data_folder, load_micrographs, write_mosaic
from benchmarks.bench.processes import run_process
from benchmarks.bench.settings import ROOT, PlaneShape, Scale
from tilelab.engines.registry import read_spec
from tilelab.errors import InputError
from tilelab.sample import draw_superalloy
from tilelab.spec import ModelSpec

RECIPE = ROOT / "benchmarks" / "recipe.toml"
ENCODER = "resnet18"
ARCHITECTURE = f"unet:{ENCODER}"
TILE = 512  # of the recipe
SET = "superalloy"
_DRAWN = {"train": 4, "val": 2}  # micrographs per split


@dataclass(frozen=True)
class Model:
    """The benchmark's network.

    Attributes:
        onnx: the exported file.
        weights: the same weights as safetensors, under the names that segmentation_models_pytorch gives them.
        spec: its description.
        data: how it was trained, in words.
    """

    onnx: Path
    weights: Path
    spec: ModelSpec
    data: str

    def job(self) -> dict[str, object]:
        """What a peer has to know of it."""
        normalization = self.spec.normalization
        return {
            "weights": str(self.weights),
            "onnx": str(self.onnx),
            "encoder": ENCODER,
            "channels": self.spec.channels,
            "classes": self.spec.values,
            "mean": normalization.mean[0],
            "std": normalization.std[0],
            "tile": self.spec.tile[0],
            "overlap": self.spec.overlap[0],
        }


def model_name(scale: Scale, cache: Path, checkpoint: Path | None = None) -> str:
    """Of the weights that `prepare_model` gives for the same arguments; nothing is trained.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    if checkpoint is None:
        _, changes = _training(scale, cache)
        key = hashlib.sha256("\n".join([RECIPE.read_text(), *changes]).encode()).hexdigest()
        return f"free{scale.tile}-{key[:12]}"
    try:
        return f"free-given-{hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise InputError(f"cannot read {checkpoint}: {error.strerror}") from error


def prepare_model(scale: Scale, cache: Path, checkpoint: Path | None = None) -> Model:
    """Train and export the network, or find what an earlier call made.

    Args:
        scale: tile and overlap.
        cache: where the files are kept.
        checkpoint: weights to use instead of training some, of `ARCHITECTURE`.

    Raises:
        InputError: the checkpoint is of another architecture, tile or overlap.
        RuntimeError: training or export failed; its message is repeated.
    """
    folder = cache / "models" / model_name(scale, cache, checkpoint)
    onnx, weights = folder / "unet_r18.onnx", folder / "unet_r18.safetensors"
    data, changes = _training(scale, cache)
    if not (onnx.exists() and weights.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        root, run = micrographs(scale, cache), folder / "run"
        if checkpoint is None:
            _tilelab("train", RECIPE, "--data", root, "-o", run, *(word for c in changes for word in ("--set", c)))
        _export(checkpoint or run / "best.safetensors", root, scale, onnx, weights)
        shutil.rmtree(run, ignore_errors=True)
    spec = read_spec(onnx)
    assert spec is not None
    wanted = (ARCHITECTURE, 1, (scale.tile,) * 2, (scale.overlap,) * 2)
    if (spec.architecture, spec.channels, spec.tile, spec.overlap) != wanted:
        raise InputError(
            f"the network is {spec.architecture} with {spec.channels} channels, tile {spec.tile}, overlap "
            f"{spec.overlap}; the benchmarks compare {ARCHITECTURE} with 1, {wanted[2]}, {wanted[3]}"
        )
    words = f"trained briefly on {data}" if checkpoint is None else _history(spec)
    return Model(onnx, weights, spec, words)


def _training(scale: Scale, cache: Path) -> tuple[str, list[str]]:
    """What the network is trained on, in words, and what is different from the recipe."""
    root = micrographs(scale, cache)
    drawn = root.name.startswith("drawn")
    data = "drawn micrographs" if drawn else f"real micrographs (training images of {root.name})"
    changes = [f"provenance={{data = '{data}'}}"]
    if scale.tile != TILE:
        changes += [f"inference.tile={scale.tile}", f"inference.overlap={scale.overlap}"]
        changes += [f"sampling.crop={scale.tile}", "sampling.batch=2", "run.threads=1"]
        changes += [f"run.steps={scale.steps}", f"run.validate={scale.steps}", "schedule.warmup=0"]
    return data, changes


def _history(spec: ModelSpec) -> str:
    """How a network was trained, as its description tells."""
    told = spec.training
    words = f"trained for {told['steps']} steps" if "steps" in told else "trained"
    words += f" on {told['data']}" if "data" in told else ""
    score = told.get("validation", {}).get("mean_iou")
    return words + (f", mean IoU {score:.3f} in validation" if score else "")


def _tilelab(*words: str | Path) -> None:
    """A command that users have."""
    outcome = run_process([sys.executable, "-m", "tilelab", *words], cwd=ROOT)
    if not outcome.ok:
        raise RuntimeError(f"tilelab {words[0]} failed: {outcome.reason}")


def _export(checkpoint: Path, root: Path, scale: Scale, onnx: Path, weights: Path) -> None:
    """The network as ONNX, of any size, and its weights under segmentation_models_pytorch's names."""
    from safetensors.numpy import load_file, save_file

    size = ("--free-size", "--tile", str(scale.tile), "--overlap", str(scale.overlap))
    _tilelab("export", checkpoint, "-o", onnx, "--data", root, "--force", *size)
    tensors = load_file(checkpoint)
    part = "average." if any(name.startswith("average.") for name in tensors) else "model."
    save_file({name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)}, weights)


def micrographs(scale: Scale, cache: Path) -> Path:
    """The folder ``{train,val}/{images,masks}`` to train and test on: real ones where they are, else drawn ones."""
    real = data_folder() / SET
    if not scale.drawn and (real / "train" / "images").is_dir():
        return real
    side = min(512, 3 * scale.tile)
    drawn = cache / "images" / f"drawn{side}"
    seed = 0
    for split, count in _DRAWN.items():
        for index in range(count):
            image, truth = draw_superalloy((side, side), seed=seed)
            seed += 1
            for kind, plane in (("images", image), ("masks", truth)):
                path = drawn / split / kind / f"{index}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Pillow.fromarray(plane).save(path)
    return drawn


def plane(scale: Scale, cache: Path, shape: PlaneShape, truth: bool = False) -> Path:
    """A plane of validation micrographs as uncompressed tiled TIFF, or its truth; made when it is not there."""
    root = micrographs(scale, cache)
    name = f"{root.name}_{shape[0]}x{shape[1]}"
    image, labels = cache / "images" / f"{name}.tif", cache / "images" / f"{name}_truth.tif"
    if not (image.exists() and labels.exists()):
        image.parent.mkdir(parents=True, exist_ok=True)
        pairs = load_micrographs(root.parent, root.name, "val")
        for path, planes in ((image, [p for p, _ in pairs]), (labels, [t for _, t in pairs])):
            partial = path.with_suffix(".partial.tif")
            write_mosaic(Mosaic(shape, planes), partial)
            partial.replace(path)
    return labels if truth else image
