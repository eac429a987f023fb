"""TorchIO's `GridSampler` and `GridAggregator`, overlap mode hann; a plane is a volume one voxel deep."""

from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import torch
        import torchio as tio

        network = load_unet(job)
        clock.loaded()
    with clock.phase("read"):
        image = torch.from_numpy(normalize(job, read_image(job)))[None, :, :, None]
        subject = tio.Subject(image=tio.ScalarImage(tensor=image))
    with clock.phase("infer"), torch.inference_mode():
        sampler = tio.inference.GridSampler(subject, (job.tile, job.tile, 1), (job.overlap, job.overlap, 0))
        aggregator = tio.inference.GridAggregator(sampler, overlap_mode="hann")
        for patches in tio.SubjectsLoader(sampler, batch_size=job.batch):
            logits = network(patches["image"][tio.DATA][..., 0])
            aggregator.add_batch(logits[..., None], patches[tio.LOCATION])
        return aggregator.get_output_tensor()[..., 0].numpy()


if __name__ == "__main__":
    main(predict, ("torchio", "torch"), "GridSampler, GridAggregator, overlap mode hann")
