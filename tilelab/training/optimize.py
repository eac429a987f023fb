"""Optimisers, and the running average of the weights."""

from __future__ import annotations

import copy
from itertools import groupby

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tilelab.errors import ModelError
from tilelab.training.sections import Optimizer


def build_optimizer(network: nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay spares biases, normalisation and factors of channels, as is usual.

    Raises:
        ModelError: the encoder is to have a rate of its own, and there is none.
    """
    chosen = encoder_of(network, "optimizer.encoder") if wanted.encoder != 1 else None
    encoder = set() if chosen is None else {id(p) for p in chosen.parameters()}
    shrinks = _find_decayed(network)
    groups = []
    for inside, factor in ((False, 1.0), (True, wanted.encoder)):
        parameters = [p for p in network.parameters() if (id(p) in encoder) == inside]
        parameters.sort(key=lambda p: p.ndim < 2)  # the order that checkpoints know
        for decayed, some in groupby(parameters, lambda p: id(p) in shrinks):
            decay = wanted.weight_decay if decayed else 0.0
            groups.append({"params": [*some], "weight_decay": decay, "factor": factor})
    if wanted.kind == "sgd":
        return torch.optim.SGD(groups, lr=wanted.rate, momentum=wanted.momentum)
    if wanted.kind == "adam":
        return torch.optim.Adam(groups, lr=wanted.rate, betas=wanted.betas)
    return torch.optim.AdamW(groups, lr=wanted.rate, betas=wanted.betas)


def _find_decayed(network: nn.Module) -> set[int]:
    """Identities of the parameters that weight decay is for: what multiplies many values each.

    Of a layer that is known its weight says so, whatever its shape (that of a 1x1 convolution to one channel is one
    row); of others a shape with more than one side: ``(C, 1, 1)`` is a factor or a bias of each channel.
    """
    layers = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding)
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm)
    return {
        id(parameter)
        for module in network.modules()
        if not isinstance(module, norms)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim > 1 and (isinstance(module, layers) or sum(n > 1 for n in parameter.shape) > 1)
    }


def encoder_of(network: nn.Module, key: str) -> nn.Module:
    """The encoder of a network.

    Raises:
        ModelError: it has none, so the recipe's `key` has no meaning.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ModelError(f"{type(network).__name__} has no encoder: leave {key} out")
    return encoder


class RunningAverage:
    """An exponential average of a network's weights and statistics (Polyak), which generalises better than the last.

    The decay grows with the steps up to `decay`, so that the beginning is forgotten; 0 follows the network.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network) if decay else network

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the network's state after so many steps."""
        if not self.decay:
            return
        decay = min(self.decay, steps / (steps + 10))
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore from a checkpoint's tensors."""
        if self.decay:
            self.network.load_state_dict(tensors)
