"""Train a tiny network on drawn micrographs, export it through the gate, segment with it, score it.

    python examples/train_and_export.py [FOLDER [STEPS]]

The commands `tilelab train`, `tilelab export`, `tilelab infer` and `tilelab eval` do the same from files.
"""

import sys
from pathlib import Path

from PIL import Image

import tilelab
from tilelab.evaluation import Pair, evaluate
from tilelab.exporting.export import export_model
from tilelab.exporting.samples import validation_samples
from tilelab.sample import CLASSES, draw_superalloy
from tilelab.training.loop import StepReport
from tilelab.training.recipe import Data, LossTerm, Network, Optimizer, Recipe, Sampling, Schedule, Steps
from tilelab.training.sections import Inference
from tilelab.training.segmentation import train


def draw(folder: Path, seeds: range, side: int = 320) -> Data:
    """Images and masks with the same names in two folders, as every training wants them."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        image, truth = draw_superalloy((side, side), seed)
        Image.fromarray(image).save(folder / "images" / f"{seed}.png")
        Image.fromarray(truth).save(folder / "masks" / f"{seed}.png")
    return Data(images=f"{folder.name}/images", masks=f"{folder.name}/masks")


def show(progress: StepReport) -> None:
    """One line for each validation."""
    if progress.scores is not None:
        print(f"step {progress.step} of {progress.steps}: {progress.summary}")


def main(folder: Path, steps: int = 60) -> None:
    """From drawn data to a score."""
    recipe = Recipe(
        name="tiny",
        classes=CLASSES,
        network=Network("unet", options={"widths": [8, 16, 24]}),
        train=draw(folder / "train", range(0, 8, 2)),
        validation=draw(folder / "validation", range(8, 10, 2)),
        sampling=Sampling(crop=96, batch=4),
        loss=(LossTerm("cross-entropy"), LossTerm("dice")),
        optimizer=Optimizer(rate=5e-3),
        schedule=Schedule(kind="cosine"),
        run=Steps(steps=steps, validate=max(1, steps // 2)),
        inference=Inference(tile=128, overlap=32),
    )
    best = train(recipe, folder, folder / "run", report=show, note=print)

    # The exported file is run on these images and compared with the network; what does not agree is not written.
    samples = validation_samples(recipe, folder)
    done = export_model(best, folder / "tiny.onnx", samples, force=True, report=print)
    print(f"{done.path}: {done.file.size_bytes / 1000:.0f} kB, permits {', '.join(done.spec.precisions)}")

    image, truth = (folder / "validation" / kind / "8.png" for kind in ("images", "masks"))
    run = tilelab.infer(image, done.path, folder / "tiny.ome.zarr", options=tilelab.Options(restart=True))
    scores = evaluate([Pair("held out", Path(str(run.path)), truth)]).pooled
    print(f"mean IoU of a held-out image: {scores.mean_iou:.3f}")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["example"]), *map(int, sys.argv[2:3]))
