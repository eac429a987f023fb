"""What the benchmarks run on, made by the project itself: a U-Net with a ResNet-18 encoder, and large planes.

The network is trained briefly by `tilelab train` and exported by `tilelab export`: its speed is that of any weights,
its labels are those of a real segmentation.  Both are made once and kept under ``benchmarks/.cache``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from benchmarks.mosaic import Mosaic, data_folder, load_micrographs, write_mosaic
from benchmarks.processes import run_process
from benchmarks.settings import ROOT, Scale, Shape
from tilelab.sample import draw_superalloy
from tilelab.spec import ModelSpec

RECIPE = ROOT / "benchmarks" / "recipe.toml"
ENCODER = "resnet18"
TILE = 512  # of the recipe
SET = "superalloy"
_DRAWN = {"train": 4, "val": 2}  # micrographs per split

# As in the recipe: grey levels, and the range of the factor about a tile's mean.
_BRIGHTNESS, _CONTRAST = 64, (0.6, 1.7)

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Model:
    """The benchmark's network.

    Attributes:
        onnx: the exported file.
        weights: the same weights as safetensors, under the names that segmentation_models_pytorch gives them.
        spec: its description.
        data: what it was trained on, in words.
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
            "classes": self.spec.outputs,
            "mean": normalization.mean[0],
            "std": normalization.std[0],
            "tile": self.spec.tile[0],
            "overlap": self.spec.overlap[0],
        }


def prepare_model(scale: Scale, cache: Path) -> Model:
    """Train and export the network, or find what an earlier call made.

    Raises:
        RuntimeError: training or export failed; its message is repeated.
    """
    from tilelab.engines.registry import read_spec

    root = micrographs(scale, cache)
    drawn = root.name.startswith("drawn")
    data = "drawn micrographs" if drawn else f"real micrographs (training images of {root.name})"
    changes = [f"provenance={{data = '{data}'}}"]
    if scale.tile != TILE:
        changes += [f"inference.tile={scale.tile}", f"inference.overlap={scale.overlap}"]
        changes += [f"sampling.crop={scale.tile}", "sampling.batch=2", "run.threads=1"]
        changes += [f"run.steps={scale.steps}", f"run.validate={scale.steps}", "schedule.warmup=0"]
    key = hashlib.sha256("\n".join([RECIPE.read_text(), *changes]).encode()).hexdigest()[:12]
    folder = cache / "models" / f"{scale.tile}-{key}"
    onnx, weights = folder / "unet_r18.onnx", folder / "unet_r18.safetensors"
    if not (onnx.exists() and weights.exists()):
        _make(root, changes, folder, onnx, weights)
    spec = read_spec(onnx)
    assert spec is not None
    return Model(onnx, weights, spec, data)


def _make(root: Path, changes: list[str], folder: Path, onnx: Path, weights: Path) -> None:
    """By the commands that users have."""
    from safetensors.numpy import load_file, save_file

    run = folder / "run"
    sets = [word for change in changes for word in ("--set", change)]
    commands: list[list[str | Path]] = [
        ["train", RECIPE, "--data", root, "-o", run, *sets],
        ["export", run / "best.safetensors", "-o", onnx, "--data", root, "--force"],
    ]
    for words in commands:
        outcome = run_process([sys.executable, "-m", "tilelab", *words], cwd=ROOT)
        if not outcome.ok:
            raise RuntimeError(f"tilelab {words[0]} failed: {outcome.reason}")
    tensors = load_file(run / "best.safetensors")
    part = "average." if any(name.startswith("average.") for name in tensors) else "model."
    save_file({name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)}, weights)
    shutil.rmtree(run)


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


def plane(scale: Scale, cache: Path, shape: Shape, truth: bool = False) -> Path:
    """A plane of validation micrographs as uncompressed tiled TIFF, or its truth; made when it is not there."""
    root = micrographs(scale, cache)
    name = f"{root.name}_{shape[0]}x{shape[1]}"
    image, labels = cache / "images" / f"{name}.tif", cache / "images" / f"{name}_truth.tif"
    if not (image.exists() and labels.exists()):
        pairs = load_micrographs(root.parent, root.name, "val")
        for path, planes in ((image, [p for p, _ in pairs]), (labels, [t for _, t in pairs])):
            partial = path.with_suffix(".partial.tif")
            write_mosaic(Mosaic(shape, planes), partial)
            partial.replace(path)
    return labels if truth else image


def calibration_tiles(scale: Scale, cache: Path, spec: ModelSpec, count: int) -> list[npt.NDArray[np.float32]]:
    """Normalised training tiles ``(1, channels, *tile)`` for quantisation, always the same.

    Brightness and contrast vary as in training: a range measured on the training images alone would clip others.
    """
    root = micrographs(scale, cache)
    planes = [image for image, _ in load_micrographs(root.parent, root.name, "train")]
    rng = np.random.default_rng(0)
    mean, std = np.float32(spec.normalization.mean[0]), np.float32(spec.normalization.std[0])
    tiles = []
    for index in range(count):
        mosaic = Mosaic((4 * spec.tile[0], 4 * spec.tile[1]), [planes[index % len(planes)]])
        y, x = rng.integers(0, 3 * spec.tile[0], 2)
        raw = mosaic.rows(int(y), int(y) + spec.tile[0])[:, int(x) : int(x) + spec.tile[1]].astype(np.float32)
        shift, contrast = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS), np.exp(rng.uniform(*np.log(_CONTRAST)))
        raw = np.clip((raw - raw.mean()) * contrast + raw.mean() + shift, 0, 255).astype(np.float32)
        tile = ((raw - mean) / std)[None, None]
        tiles.append(np.ascontiguousarray(np.repeat(tile, spec.channels, axis=1)))
    return tiles
