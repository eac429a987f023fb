"""MONAI's `PatchInferer` with `SlidingWindowSplitter` and `ZarrAvgMerger`: its way for images larger than memory."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Labels ``(y, x)`` of the job's image, or logits ``(classes, y, x)`` where they are to be saved."""
    with clock.phase("load"):
        import torch
        from monai.inferers import PatchInferer, SlidingWindowSplitter, ZarrAvgMerger

        network = load_unet(job)
        clock.loaded()
    with clock.phase("read"):
        image = torch.from_numpy(normalize(job, read_image(job)))[None, None]
    out = Path(job.out)
    inferer = PatchInferer(
        splitter=SlidingWindowSplitter(patch_size=(job.tile, job.tile), overlap=job.overlap / job.tile),
        merger_cls=ZarrAvgMerger,
        batch_size=job.batch,
        store=str(out / "merged.zarr"),
        value_store=str(out / "values.zarr"),
        count_store=str(out / "counts.zarr"),
        chunks=(1, job.classes, job.tile, job.tile),
    )
    with clock.phase("infer"), torch.inference_mode():
        merged = inferer(image, network)
    if job.logits:
        return np.asarray(merged[0])
    # row by row, so that reading the result back does not need what the merger saved
    height, width = merged.shape[-2:]
    labels = np.empty((height, width), np.uint8)
    for y in range(0, height, job.tile):
        labels[y : y + job.tile] = np.asarray(merged[0, :, y : y + job.tile]).argmax(axis=0)
    return labels


if __name__ == "__main__":
    main(predict, ("monai", "zarr", "torch"), "PatchInferer, SlidingWindowSplitter, ZarrAvgMerger (constant weights)")
