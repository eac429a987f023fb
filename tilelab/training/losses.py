"""Losses over logits ``(B, K, H, W)`` and class indices ``(B, H, W)``; pixels of `IGNORE` take no part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from tilelab.training.recipe import IGNORE, LossTerm


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax cross-entropy, averaged over pixels (by class weight where given)."""
    return functional.cross_entropy(logits, target, weight=weight, ignore_index=IGNORE)


def balanced_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in which every class present in the batch weighs the same, however few its pixels."""
    counts = torch.bincount(target[target != IGNORE].flatten(), minlength=logits.shape[1]).to(logits.dtype)
    weight = torch.where(counts > 0, counts.sum() / counts.clamp(min=1), torch.zeros_like(counts))
    return cross_entropy(logits, target, weight)


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice coefficient, averaged over the classes; sums run over the whole batch.

    A class that is absent from the batch has no truth to overlap with; it counts only through what is predicted of it.
    """
    valid = (target != IGNORE)[:, None]
    truth = functional.one_hot(target.masked_fill(target == IGNORE, 0), logits.shape[1]).movedim(-1, 1) * valid
    probability = logits.softmax(dim=1) * valid
    both = (probability * truth).sum(dim=(0, 2, 3))
    total = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    # one pixel in the numerator and denominator keeps an absent, unpredicted class at a loss of zero
    return (1 - (2 * both + 1) / (total + 1)).mean()


def focal(
    logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Focal loss (Lin 2017): cross-entropy scaled by ``(1 - p) ** gamma``, averaged over pixels."""
    log_probability = functional.log_softmax(logits, dim=1)
    entropy = functional.nll_loss(log_probability, target, weight=weight, ignore_index=IGNORE, reduction="none")
    chosen = log_probability.gather(1, target.masked_fill(target == IGNORE, 0)[:, None])[:, 0].exp()
    return ((1 - chosen) ** gamma * entropy).sum() / (target != IGNORE).sum().clamp(min=1)


def weighted_sum(terms: Sequence[LossTerm], logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The recipe's loss, a scalar."""
    logits = logits.float()
    total = logits.new_zeros(())
    for term in terms:
        weight = logits.new_tensor(term.class_weights) if term.class_weights else None
        if term.kind == "cross-entropy":
            value = cross_entropy(logits, target, weight)
        elif term.kind == "balanced-cross-entropy":
            value = balanced_cross_entropy(logits, target)
        elif term.kind == "dice":
            value = dice(logits, target)
        else:
            value = focal(logits, target, term.gamma, weight)
        total = total + term.weight * value
    return total
