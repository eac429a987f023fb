"""What the adapters share: the job, the image, the network, and the clock that reports on one line of JSON.

    python -m benchmarks.peers.NAME JOB.json

A job is a JSON document: ``image`` (uint8 TIFF), ``weights`` (safetensors) and ``onnx`` (the same network),
``encoder``, ``channels``, ``classes``, ``mean``, ``std``, ``tile``, ``overlap``, ``batch``, ``precision`` (fp32,
bf16), ``out`` (a folder) and ``logits`` (whether to save them).  What an adapter leaves in ``out``: ``labels.npy``
uint8 ``(y, x)``, and ``logits.npy`` float32 ``(classes, y, x)`` when asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Predict = Callable[["PeerJob", "Stopwatch"], Any]


class PeerJob(dict[str, Any]):
    """The job's document, with its fields as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Stopwatch:
    """Seconds per phase, and the memory before the image was read and at its highest."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.before = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside; ``convert`` marks work that a user of the library would not have to do."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def loaded(self) -> None:
        """The network is ready: what memory comes on top is the tiling's."""
        self.before = memory("VmRSS")

    def report(self, packages: tuple[str, ...], settings: str) -> None:
        """Print everything as one line of JSON."""
        document = {
            "seconds": self.seconds | {"total": time.perf_counter() - self.began},
            "memory": {"before": self.before, "peak": memory("VmHWM")},
            "versions": {name: version(name) for name in packages},
            "settings": settings,
        }
        print(json.dumps(document))


def memory(field: str) -> int:
    """Bytes of memory of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status[field].split()[0]) * 1024


def main(predict: Predict, packages: tuple[str, ...], settings: str) -> None:
    """Run an adapter: `predict` gives logits ``(classes, y, x)``, or labels ``(y, x)`` where it has no logits left."""
    job = PeerJob(json.loads(Path(sys.argv[1]).read_text()))
    clock = Stopwatch()
    result = predict(job, clock)
    out = Path(job.out)
    with clock.phase("write"):
        result = np.asarray(result)
        labels = result.argmax(axis=0) if result.ndim == 3 else result
        np.save(out / "labels.npy", labels.astype(np.uint8))
        if job.logits:
            np.save(out / "logits.npy", result.astype(np.float32))
    clock.report(packages, settings)


def read_image(job: PeerJob) -> Any:
    """The whole image, uint8 ``(y, x)``."""
    import tifffile

    return tifffile.imread(job.image)


def normalize(job: PeerJob, image: Any) -> Any:
    """The network's input, float32, same shape."""
    return (image.astype(np.float32) - np.float32(job.mean)) / np.float32(job.std)


def load_unet(job: PeerJob) -> Any:
    """The U-Net in evaluation mode, with one tile's worth of work behind it.

    ``bf16`` is what torch's documentation recommends for CPUs: autocast, channels last.
    """
    import torch

    try:  # where tilelab is, its way of importing it: a torchvision that does not fit this torch is no obstacle
        from tilelab.models.smp import import_smp

        smp = import_smp()
    except ModuleNotFoundError:
        import segmentation_models_pytorch as smp
    from safetensors.torch import load_file

    network = smp.Unet(job.encoder, encoder_weights=None, in_channels=job.channels, classes=job.classes)
    network.load_state_dict(load_file(job.weights))
    network.eval()
    if job.precision == "bf16":
        network = LowPrecision(network.to(memory_format=torch.channels_last))
    with torch.inference_mode():
        network(torch.zeros(job.batch, job.channels, job.tile, job.tile))
    return network


def LowPrecision(network: Any) -> Any:  # noqa: N802 - a class, made here because torch is imported late
    """`network` under bf16 autocast, on channels-last inputs, with float32 logits."""
    import torch

    class Autocast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return self.network(x.contiguous(memory_format=torch.channels_last)).float()

    return Autocast()
