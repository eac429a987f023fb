"""Measure the precipitates of a segmentation: shares with their intervals, sizes of every object, a picture of numbers.

python examples/measure_objects.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np

import tilelab
from tilelab.measure import measure
from tilelab.sample import write_superalloy

PIXEL_NM = 20.0


def main(folder: Path) -> None:
    """Draw a micrograph with its true classes, measure these, print a table, and write every object's number."""
    folder.mkdir(parents=True, exist_ok=True)
    image, labels = folder / "micrograph.tif", folder / "truth.tif"
    if not image.exists():
        write_superalloy(image, labels, (900, 1000))

    survey = measure(
        labels,  # a result of tilelab.infer would know its classes and pixel size itself
        image=image,
        classes=("matrix", "secondary", "tertiary"),
        pixel_size_nm=(PIXEL_NM,),
        min_size="2000nm2",
    )
    for info, share in zip(survey.classes, survey.fractions, strict=True):
        print(f"{info.name:12}{share.share:8.2%}   95 % interval {share.low:.2%} to {share.high:.2%}")

    table = survey.table()  # NumPy arrays; survey.columns() gives it piece by piece
    for name in ("secondary", "tertiary"):
        whole = (table["class"] == name) & ~table["touches_border"]
        diameters, grey = table["equivalent_diameter_nm"][whole], table["mean_intensity"][whole]
        print(f"{name:12}{whole.sum():6} whole ones, {np.median(diameters):6.0f} nm, grey {grey.mean():.0f}")

    numbers = survey.objects_image()  # a lazy image, which convert_image writes with all levels
    largest = int(np.argmax(table["area_px"])) + 1
    assert (numbers[:, :] == largest).sum() == table["area_px"].max()
    out = folder / "objects.ome.zarr"
    tilelab.io.convert_image(numbers, out, labels=True, overwrite=True)
    print(f"{survey.objects.count} objects in {out}")
    survey.close()


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["example"]))
