"""What learns of a network: a factor for each of its features, or all its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call

from tilelab.models.graph import GraphNetwork

_FACTORS_RATE = 10.0  # times the rate of weights: of factors that are near 1


class Factors(nn.Module):
    """A network of which a factor for each feature is learned, and every number that each feature has one of."""

    rate = _FACTORS_RATE

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__()
        self._held = (network,)  # its own weights are no parameters of this one
        given = list(zip(network.weights, network.feature_axes, strict=True))
        sizes = [
            [n if i == axis % w.ndim else 1 for i, n in enumerate(w.shape)] if axis is not None else w.shape
            for w, axis in given
        ]
        self.learned = nn.ParameterList([nn.Parameter(torch.zeros(*size)) for size in sizes])

    def weights(self) -> list[torch.Tensor]:
        """Those of the network, as they are with what was learned."""
        (network,) = self._held
        given = zip(network.weights, network.feature_axes, self.learned, strict=True)
        return [w.detach() * (1 + z) if axis is not None else w.detach() + z for w, axis, z in given]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the network."""
        (network,) = self._held
        names = [name for name, _ in network.named_parameters()]
        logits: torch.Tensor = functional_call(network, dict(zip(names, self.weights(), strict=True)), (x,))
        return logits


class Whole(nn.Module):
    """A network of which all weights are learned."""

    rate = 1.0

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)

    def weights(self) -> list[torch.Tensor]:
        """As they are now."""
        return list(self.network.weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the network."""
        logits: torch.Tensor = self.network(x)
        return logits
