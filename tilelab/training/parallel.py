"""Several processes that train one network, as `torchrun` starts them; alone without it.

    torchrun --nproc-per-node 2 -m tilelab train RECIPE.toml

Each process takes its share of every batch; gradients are averaged (DDP).  The first writes, logs and validates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import nn

from tilelab.errors import EngineError

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)
"""How long the others wait while the first validates: NCCL would give up after ten minutes; `torchrun` ends them all
where one fails."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of one training.

    rank: of this process, counted from 0.
    size: how many there are.
    device: of this process, ``cpu`` or ``cuda:I``.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The crops of a batch that are this process's."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` with its gradients averaged over the group."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def mean(self, value: float) -> float:
        """The mean of `value` over the group."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(shared)
        return float(shared) / self.size

    def tell(self, value: T) -> T:
        """What the first process has, to all."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]


def group_size() -> int:
    """How many processes the environment describes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join(device: str) -> Iterator[Group]:
    """Join the group that the environment describes; `device` is ``auto``, ``cpu`` or ``cuda``.

    Raises:
        EngineError: a GPU was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("the recipe asks for a GPU (run.device = 'cuda') and torch finds none: use cpu or auto")
    gpu = device != "cpu" and torch.cuda.is_available()
    size = group_size()
    here = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"
    if size == 1:
        yield Group(device=here)
        return
    if gpu:
        torch.cuda.set_device(here)  # what NCCL takes of each process where nothing says it
    torch.distributed.init_process_group("nccl" if gpu else "gloo", timeout=_PATIENCE)
    try:
        yield Group(torch.distributed.get_rank(), size, here)
    finally:
        torch.distributed.destroy_process_group()
