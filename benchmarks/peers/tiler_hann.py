"""tiler's `Tiler` and `Merger` with a Hann window, padded as its documentation says."""

from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import numpy as np
        import torch
        from tiler import Merger, Tiler

        network = load_unet(job)
        clock.loaded()
    with clock.phase("read"):
        image = normalize(job, read_image(job))
    with clock.phase("infer"), torch.inference_mode():
        tiles = Tiler(data_shape=image.shape, tile_shape=(job.tile, job.tile), overlap=job.overlap / job.tile)
        shape, padding = tiles.calculate_padding()
        tiles.recalculate(data_shape=shape)
        padded = np.pad(image, padding, mode="reflect")
        merger = Merger(tiles, window="hann", logits=job.classes, save_visits=False)
        for index, batch in tiles(padded, batch_size=job.batch):
            logits = network(torch.from_numpy(batch)[:, None]).numpy()
            merger.add_batch(index, job.batch, logits)
        return merger.merge(extra_padding=padding, dtype=np.float32)


if __name__ == "__main__":
    main(predict, ("tiler", "torch"), "Tiler and Merger, window hann, recommended padding, save_visits off")
