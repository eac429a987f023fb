"""No tiling: the whole image through the network at once, which is what all others should agree with."""

from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image

STRIDE = 32


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import numpy as np
        import torch

        network = load_unet(job)
        clock.loaded()
    with clock.phase("read"):
        image = normalize(job, read_image(job))
        height, width = image.shape
        image = np.pad(image, ((0, -height % STRIDE), (0, -width % STRIDE)), mode="reflect")
    with clock.phase("infer"), torch.inference_mode():
        logits = network(torch.from_numpy(image)[None, None])
    return logits[0, :, :height, :width].numpy()


if __name__ == "__main__":
    main(predict, ("torch",), "the whole image as one tile")
