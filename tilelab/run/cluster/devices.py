"""What ``--device`` and ``--workers`` mean: one entry per worker process of this machine."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field

from tilelab.errors import EngineError
from tilelab.machine.nvidia import missing_gpu
from tilelab.run.options import Options


@dataclass(frozen=True)
class Slot:
    """One worker process.

    device: what its engine is asked for.
    environment: of the process; a GPU worker sees its own GPU only, as number 0.
    """

    device: str
    environment: dict[str, str] = field(default_factory=dict)


def is_distributed(options: Options) -> bool:
    """Whether a run needs worker processes."""
    return options.scheduler is not None or len(worker_slots(options)) > 1


def worker_slots(options: Options) -> list[Slot]:
    """The worker processes that ``options.device`` and ``options.workers`` ask for; one when neither asks for more.

    ``cpu*2`` is two CPU workers, ``cuda:0,1`` one worker for each of two GPUs, ``all`` one for each GPU there is; a
    number of workers multiplies a single device.

    Raises:
        EngineError: they contradict each other, or there is no such GPU.
    """
    slots = _slots(options.device)
    if options.workers is None or options.workers == len(slots) or options.scheduler is not None:
        return slots
    if len(slots) == 1:
        return slots * options.workers
    raise EngineError(
        f"--device {options.device} means {len(slots)} workers, --workers {options.workers} was asked for: "
        "leave one of them out"
    )


def _slots(device: str) -> list[Slot]:
    name, star, count = device.partition("*")
    if star:
        if not count.isdecimal() or int(count) < 1 or "," in name:
            raise EngineError(f"device {device!r} is not DEVICE*N: write cpu*2, for example")
        return _slots(name) * int(count)
    if device == "all":
        gpus = list_gpus()
        if not gpus:
            raise EngineError("--device all means every NVIDIA GPU, but nvidia-smi finds none here")
        return [_gpu(gpu) for gpu in gpus]
    match = re.fullmatch(r"cuda:(\d+(?:,\d+)+)", device)
    if not match:
        return [Slot(device)]
    numbers = [int(number) for number in match[1].split(",")]
    if len(set(numbers)) < len(numbers):
        raise EngineError(f"--device {device} names a GPU twice: write cuda:0*2 for two workers on one GPU")
    visible = _visible()
    if visible is None:
        for number in numbers:
            if problem := missing_gpu(number):
                raise EngineError(f"--device {device} names GPU {number}, {problem}")
        return [_gpu(str(number)) for number in numbers]
    for number in numbers:
        if number >= len(visible):
            raise EngineError(
                f"--device {device} names GPU {number}, CUDA_VISIBLE_DEVICES={','.join(visible)} leaves {len(visible)}"
            )
    return [_gpu(visible[number]) for number in numbers]


def list_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = _visible()
    if visible is not None:
        return visible
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listing.splitlines() if line.strip()]


def _visible() -> list[str] | None:
    """CUDA_VISIBLE_DEVICES; None when it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else [word.strip() for word in value.split(",") if word.strip()]


def _gpu(identity: str) -> Slot:
    alone = {"CUDA_VISIBLE_DEVICES": identity}
    if _visible() is None and "CUDA_DEVICE_ORDER" not in os.environ:
        alone["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # numbers mean the GPUs of nvidia-smi; else those whom the user meant
    return Slot("cuda:0", alone)
