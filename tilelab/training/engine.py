"""A torch network as an `Engine`, so that validation and the parity gate use the very sweep that infers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tilelab.arrays import Float32
from tilelab.engines.base import BaseEngine
from tilelab.spec import ModelSpec, Precision


class TorchEngine(BaseEngine):
    """Runs a network as it is.

    Args:
        network: in evaluation mode.
        spec: its description.
        precision: ``fp32``, or ``bf16`` for autocast.
        device: where the network is.
        model_digest: identifies the network, for fingerprints.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        *,
        precision: Precision = "fp32",
        device: str = "cpu",
        model_digest: str = "",
    ) -> None:
        super().__init__(spec, model_digest=model_digest)
        self.network = network
        self.precision = precision
        self.device = device
        self._threads = torch.get_num_threads()

    def run(self, tiles: Float32, out: Float32) -> None:
        """Compute the logits of `tiles` into `out`."""
        if torch.get_num_threads() != self._threads:  # a property of each thread that calls
            torch.set_num_threads(self._threads)
        kind = torch.device(self.device).type
        given = tiles if tiles.flags.writeable else tiles.copy()  # which torch warns of
        batch = torch.from_numpy(given).to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            torch.from_numpy(out).copy_(self.network(batch))

    def versions(self) -> Mapping[str, str]:
        """The version of torch."""
        return {"torch": str(torch.__version__)}  # a str of its own kind, which JSON encoders refuse
