"""MONAI's `sliding_window_inference`, Gaussian importance."""

from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import torch
        from monai.inferers import sliding_window_inference

        network = load_unet(job)
        clock.loaded()
    with clock.phase("read"):
        image = torch.from_numpy(normalize(job, read_image(job)))[None, None]
    with clock.phase("infer"), torch.inference_mode():
        logits = sliding_window_inference(
            image,
            roi_size=(job.tile, job.tile),
            sw_batch_size=job.batch,
            predictor=network,
            overlap=job.overlap / job.tile,
            mode="gaussian",
        )
    return logits[0].numpy()


if __name__ == "__main__":
    main(predict, ("monai", "torch"), "sliding_window_inference, mode gaussian")
