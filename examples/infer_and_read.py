"""Segment a micrograph, read the result piece by piece, and measure the area of each class.

python examples/infer_and_read.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np

import tilelab
from tilelab.sample import write_superalloy

ROWS = 256  # read at a time: the result may be larger than memory
PIXEL_NM = 20.0


def main(folder: Path) -> None:
    """Draw a micrograph, segment it, print a table."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "micrograph.tif"
    if not image.exists():
        write_superalloy(image, folder / "truth.tif", (900, 1000))

    # Options say what the command's flags say; here the pixel size, which this file does not hold.
    options = tilelab.Options(pixel_size_nm=(PIXEL_NM,), probabilities=("all",))
    run = tilelab.infer(image, "superalloy", folder / "micrograph.ome.zarr", options=options, note=print)
    print(f"{run.path}: {'was there' if run.already_finished else 'made'} by {run.report['engine']['name']}")

    result = tilelab.read_result(run.path)
    labels, probabilities = result.labels[0], result.probabilities[0]  # of full resolution; lazy
    classes = result.info.classes
    pixels = np.zeros(len(classes), np.int64)
    certainty = np.zeros(len(classes))  # sums of the chosen class's probability
    for y in range(0, labels.shape[0], ROWS):
        band = labels[y : y + ROWS]  # a NumPy array, uint8 (rows, columns)
        pixels += np.bincount(band.ravel(), minlength=len(classes))
        best = probabilities[:, y : y + ROWS].max(axis=0) / 255
        certainty += np.bincount(band.ravel(), best.ravel(), minlength=len(classes))

    assert labels.pixel_size_nm is not None  # as it was said above
    pixel_um2 = np.prod(labels.pixel_size_nm) / 1e6
    means = certainty / np.maximum(pixels, 1)
    for info, count, mean in zip(classes, pixels, means, strict=True):
        print(f"{info.name:24}{count * pixel_um2:9.2f} um2{count / pixels.sum():8.1%}   mean probability {mean:.2f}")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["example"]))
