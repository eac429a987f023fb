"""A plain NumPy loop over ONNX Runtime, as one writes it in an afternoon: float32 sums, a Gaussian, a division."""

from itertools import product
from typing import Any

import numpy as np

from benchmarks.peers.common import PeerJob, Stopwatch, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import onnxruntime

        session = onnxruntime.InferenceSession(job.onnx, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        session.run(None, {name: np.zeros((1, job.channels, job.tile, job.tile), np.float32)})
        clock.loaded()
    with clock.phase("read"):
        image = normalize(job, read_image(job))
    tile = job.tile
    with clock.phase("infer"):
        height, width = (max(n, tile) for n in image.shape)
        padded = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1])), mode="reflect")
        profile = np.exp(-0.5 * (((np.arange(tile) + 0.5) / tile - 0.5) * 8) ** 2).astype(np.float32)
        window = np.outer(profile, profile)
        total = np.zeros((job.classes, height, width), np.float32)
        weight = np.zeros((height, width), np.float32)
        starts = [[*range(0, n - tile, tile - job.overlap), n - tile] for n in (height, width)]
        for y, x in product(*starts):
            region = (slice(y, y + tile), slice(x, x + tile))
            logits = session.run(None, {name: padded[None, None, *region]})[0][0]
            total[(slice(None), *region)] += logits * window
            weight[region] += window
        total /= weight
    return total[:, : image.shape[0], : image.shape[1]]


if __name__ == "__main__":
    main(predict, ("onnxruntime", "numpy"), "ONNX Runtime defaults, one tile at a time, Gaussian")
