"""torch-em's `predict_with_halo`: no blending, each block's halo is cut off."""

from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import numpy as np
        from torch_em.util.prediction import predict_with_halo

        network = load_unet(job)
        clock.loaded()
    with clock.phase("read"):
        image = read_image(job)
    inner, halo = job.tile - job.overlap, job.overlap // 2
    with clock.phase("infer"):
        return predict_with_halo(
            image,
            network,
            gpu_ids=["cpu"],
            block_shape=(inner, inner),
            halo=(halo, halo),
            output=np.zeros((job.classes, *image.shape), np.float32),
            preprocess=lambda block: normalize(job, block),  # the default standardises each block by itself
            disable_tqdm=True,
        )


if __name__ == "__main__":
    main(predict, ("torch-em", "torch"), "predict_with_halo, halo of half the overlap, global normalisation")
