"""Segment a Dask array lazily: nothing is computed before it is asked for, and then no more than it needs.

    python examples/map_tiles_in_dask.py [FOLDER]

The blocks of the result may be cut anywhere: it has the bytes that `tilelab.infer` writes.
"""

import sys
from pathlib import Path

import dask.array as da
import numpy as np

import tilelab
from tilelab.sample import draw_superalloy

SIDE = 512


def main(folder: Path) -> None:
    """Draw three micrographs as a stack, and look at them through their segmentation."""
    stack = da.from_array(
        np.stack([draw_superalloy((SIDE, SIDE), seed)[0] for seed in (0, 2, 4)]), chunks=(1, 256, 256)
    )

    labels = tilelab.map_tiles(stack, "superalloy", chunks=(1, SIDE, SIDE))
    probabilities = tilelab.map_tiles(
        stack, "superalloy", output="probabilities", options=tilelab.Options(probabilities=("all",))
    )
    print(f"labels {labels}\nprobabilities {probabilities}")

    corner = labels[1, :200, :300].compute()  # segments the second slice alone
    print(f"corner of slice 1: {corner.shape}, classes {np.unique(corner).tolist()}")

    # Both are arrays like others, and go into whatever is made of arrays.
    dark = labels > 0
    share = dark.mean(axis=(1, 2))
    contrast = da.where(dark, 0, stack).sum() / (~dark).sum() - da.where(dark, stack, 0).sum() / dark.sum()
    unsure = (probabilities.max(axis=0) < 128).mean()
    share, contrast, unsure = da.compute(share, contrast, unsure)  # together: what they share is computed once
    print(f"precipitates in each slice: {', '.join(f'{part:.1%}' for part in share)}")
    print(f"the matrix is {contrast:.1f} grey levels brighter; {unsure:.2%} of the pixels are unsure")

    folder.mkdir(parents=True, exist_ok=True)
    labels.to_zarr(folder / "labels.zarr", overwrite=True)


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["example"]))
