"""Segment a folder of micrographs with one model, and go on where one of them is broken.

python examples/many_images.py [FOLDER]
"""

import sys
from pathlib import Path

import tilelab
from tilelab.sample import write_superalloy

SHAPES = ((300, 420), (512, 384), (260, 300))


def main(folder: Path) -> None:
    """Draw micrographs, segment all of them, say what became of each."""
    images = folder / "micrographs"
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    images.mkdir(exist_ok=True)
    for i, shape in enumerate(SHAPES):
        write_superalloy(images / f"sample_{i}.tif", folder / "truth" / f"sample_{i}.tif", shape, seed=i)
    (images / "broken.tif").write_bytes(b"II*\0 and no more")

    done = []
    for outcome in tilelab.infer_many(images, "superalloy", folder / "results", pixel_size_nm=20.0):
        if outcome.error:
            print(f"{outcome.name} failed: {outcome.error}")
        else:
            done.append(outcome.row)
    for row in sorted(done, key=lambda row: row.name):
        areas = ", ".join(f"{name} {share:.1%}" for name, share in row.areas.items())
        print(f"{row.name}: {areas}")
    print(f"look at {folder / 'results' / 'summary.html'}; the table is summary.csv beside it")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
