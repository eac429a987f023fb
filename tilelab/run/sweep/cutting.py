"""Raw pixels to the network's input: what is normalised by which numbers."""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Array, Float32, Int64
from tilelab.kernels import cpu as kernels
from tilelab.run.sweep.job import Job


def cut_tile(
    job: Job, raw: Array, indices: tuple[Int64, Int64, Int64], slices: Int64, target: Float32, *, slices_first: bool
) -> None:
    """One tile of `raw`, normalised, into `target`.

    Args:
        job: says how.
        raw: ``(C, A, B, X)``.
        indices: positions in it for every pixel of the tile, along each axis.
        slices: the slices of the image that lie behind the first of these axes, or behind the second.
        target: float32 ``(channels, *tile)``, written.
        slices_first: which of them.
    """
    first, second, cols = indices
    if job.mean.ndim == 1:
        kernels.cut(raw, first, second, cols, job.mean, job.gain, target)
    elif not slices_first and len(slices) == 1:
        z = slices[0]
        kernels.cut(raw, first, second, cols, job.mean[z], job.gain[z], target)
    else:
        one = np.empty((target.shape[0], 1, *target.shape[2:]), np.float32)
        for i, z in enumerate(slices):
            kernels.cut(raw, first[i : i + 1], second, cols, job.mean[z], job.gain[z], one)
            target[:, i] = one[:, 0]
    if job.clip is not None:
        np.clip(target, np.float32(job.clip[0]), np.float32(job.clip[1]), out=target)
