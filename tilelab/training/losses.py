"""Losses over logits ``(B, K, H, W)`` and class indices ``(B, H, W)``; pixels of `IGNORE` take no part.

With softmax the K outputs are the classes.  With sigmoid they are the classes but the background, each a yes or no of
its own: output k says whether a pixel is of class k + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from tilelab.evaluation.metrics.regions import label_regions
from tilelab.models.heads import Heads
from tilelab.spec import Activation
from tilelab.training.sections import IGNORE, LossTerm

EDGE_SURE = 0.8
"""Probability from which on an edge that the network sees is one (PIDNet's threshold)."""
CENTRES, WAYS = 200.0, 0.01
"""Weights of the losses of centres and of the ways to them (Panoptic-DeepLab)."""
HILL = 6
"""Standard deviation of the hill at an object's centre, px."""


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    pixels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy, averaged over pixels (by class weight, and by weights of the pixels, where given).

    It is 0 where no pixel counts: all are to be ignored, or of classes with a weight of 0.
    """
    if pixels is None:
        if not _any_counts(target, weight):
            return (logits * 0).sum()
        return functional.cross_entropy(logits, target, weight=weight, ignore_index=IGNORE)
    entropy = functional.cross_entropy(logits, target, weight=weight, ignore_index=IGNORE, reduction="none")
    known = target != IGNORE
    share = known * pixels if weight is None else weight[target.masked_fill(~known, 0)] * known * pixels
    return (entropy * pixels).sum() / share.sum().clamp(min=1e-12)


def _any_counts(target: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """Whether a mean over the pixels is one of anything."""
    known = target[target != IGNORE]
    return bool(known.numel() if weight is None else (weight[known] > 0).any())


def balanced_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, pixels: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy in which every class present in the batch weighs the same, however few its pixels."""
    counts = torch.bincount(target[target != IGNORE].flatten(), minlength=logits.shape[1]).to(logits.dtype)
    weight = torch.where(counts > 0, counts.sum() / counts.clamp(min=1), torch.zeros_like(counts))
    return cross_entropy(logits, target, weight, pixels)


def focal(
    logits: torch.Tensor,
    target: torch.Tensor,
    gamma: float = 2.0,
    weight: torch.Tensor | None = None,
    pixels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Focal loss (Lin 2017): cross-entropy scaled by ``(1 - p) ** gamma``, averaged over pixels (by their weights)."""
    log_probability = functional.log_softmax(logits, dim=1)
    entropy = functional.nll_loss(log_probability, target, weight=weight, ignore_index=IGNORE, reduction="none")
    chosen = log_probability.gather(1, target.masked_fill(target == IGNORE, 0)[:, None])[:, 0].exp()
    known = target != IGNORE
    share = known.sum().clamp(min=1) if pixels is None else (known * pixels).sum().clamp(min=1e-12)
    return ((1 - chosen) ** gamma * entropy * (1 if pixels is None else pixels)).sum() / share


def dice(probability: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice coefficient, averaged over the outputs; sums run over the whole batch.

    A class that is absent from the batch has no truth to overlap with; it counts only through what is predicted of it.

    Args:
        probability: of each output, ``(B, K, H, W)``.
        truth: 0 or 1, likewise.
        valid: where to look, bool ``(B, 1, H, W)``, or weights of the pixels.
    """
    probability, truth = probability * valid, truth * valid
    both = (probability * truth).sum(dim=(0, 2, 3))
    total = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    # one pixel in the numerator and denominator keeps an absent, unpredicted class at a loss of zero
    return (1 - (2 * both + 1) / (total + 1)).mean()


def binary_cross_entropy(
    logits: torch.Tensor,
    truth: torch.Tensor,
    valid: torch.Tensor,
    weight: torch.Tensor | None = None,
    gamma: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of each output's yes or no, averaged over pixels and outputs (by the outputs' weights).

    With a `gamma` it is the binary focal loss: scaled by ``(1 - p) ** gamma``, p the probability of what is true.
    Other arguments as `dice`.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    if gamma:
        entropy = (1 - torch.exp(-entropy)) ** gamma * entropy
    per_output = (entropy * valid).sum(dim=(0, 2, 3)) / valid.sum().clamp(min=1)
    return per_output.mean() if weight is None else (per_output * weight).sum() / weight.sum()


def balanced_binary_cross_entropy(logits: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in which the yes and the no of an output weigh the same, however few the pixels of one.

    An output all of whose pixels are the same in this batch is averaged plainly.  Arguments as `dice`.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    sides = torch.stack([truth * valid, (1 - truth) * valid])
    counts = sides.sum(dim=(1, 3, 4))  # (2, K)
    means = (entropy * sides).sum(dim=(1, 3, 4)) / counts.clamp(min=1)
    per_output: torch.Tensor = means.sum(dim=0) / (counts > 0).sum(dim=0).clamp(min=1)
    return per_output.mean()


def find_edges(target: torch.Tensor, reach: int = 1) -> torch.Tensor:
    """Where classes meet: bool ``(B, H, W)``, True within `reach` pixels of another class; what is ignored is none."""
    size = 2 * reach + 1
    labels = target.float()[:, None]
    known = (target != IGNORE)[:, None]
    highest = functional.max_pool2d(labels.masked_fill(~known, -1.0), size, 1, reach)
    lowest = -functional.max_pool2d((-labels).masked_fill(~known, -float(IGNORE)), size, 1, reach)
    return ((highest > lowest) & known)[:, 0]


def edge_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of an edge map ``(B, 1, H, W)`` in which edges and the rest weigh the same."""
    truth = find_edges(target)[:, None].to(logits.dtype)
    valid = (target != IGNORE)[:, None].to(logits.dtype)
    edges, rest = (truth * valid).sum(), ((1 - truth) * valid).sum()
    weight = valid * torch.where(truth > 0, rest, edges) / (edges + rest).clamp(min=1)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
    return entropy / valid.sum().clamp(min=1)


def instance_loss(maps: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of centres and the ways to them (Panoptic-DeepLab): squared and absolute errors, weighed as there.

    Objects are what of one class, the first one excepted, hangs together.
    """
    hills, ways, inside = object_targets(target)
    known = (target != IGNORE).to(maps.dtype)
    centres = ((maps[:, 0] - hills) ** 2 * known).sum() / known.sum().clamp(min=1)
    off = ((maps[:, 1:] - ways).abs() * inside[:, None]).sum() / inside.sum().clamp(min=1)
    return CENTRES * centres + WAYS * off


def object_targets(target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `instance_loss` compares with, float32.

    Returns:
        Hills at the objects' centres ``(B, H, W)``, 0 to 1; from each pixel the way to its object's centre, y and x in
        pixels, ``(B, 2, H, W)``; where there are objects, ``(B, H, W)``.
    """
    labels = target.cpu().numpy()
    columns, rows = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in labels.shape[:0:-1]))
    hills = np.zeros(labels.shape, np.float32)
    ways = np.zeros((labels.shape[0], 2, *labels.shape[1:]), np.float32)
    inside = np.zeros(labels.shape, np.float32)
    for image, plane in enumerate(labels):
        for value in set(np.unique(plane).tolist()) - {0, IGNORE}:
            numbers = label_regions(plane == value)
            sizes = np.bincount(numbers.ravel())
            middle = [np.bincount(numbers.ravel(), axis.ravel()) / np.maximum(sizes, 1) for axis in (rows, columns)]
            here = numbers > 0
            inside[image][here] = 1
            for axis, (centre, place) in enumerate(zip(middle, (rows, columns), strict=True)):
                ways[image, axis][here] = (centre[numbers] - place)[here]
            for y, x in zip(middle[0][1:], middle[1][1:], strict=True):
                top, left = max(0, int(y) - 3 * HILL), max(0, int(x) - 3 * HILL)
                window = (slice(top, int(y) + 3 * HILL + 1), slice(left, int(x) + 3 * HILL + 1))
                square = (rows[window] - y) ** 2 + (columns[window] - x) ** 2
                np.maximum(hills[image][window], np.exp(-square / (2 * HILL**2)), out=hills[image][window])
    found = (torch.from_numpy(array).to(target.device) for array in (hills, ways, inside))
    return next(found), next(found), next(found)


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def supervise(loss: Loss, out: torch.Tensor | tuple[torch.Tensor, ...] | Heads, target: torch.Tensor) -> torch.Tensor:
    """The loss of all that a network gives while it trains: one map, several of the same weight, or `Heads`."""
    if isinstance(out, torch.Tensor):
        return loss(out, target)
    if not isinstance(out, Heads):
        return torch.stack([loss(logits, target) for logits in out]).sum()
    parts = [weight * loss(logits, target) for logits, weight in zip(out.logits, out.weights, strict=True)]
    if out.edges is not None:
        parts.append(out.edge_weight * edge_loss(out.edges.float(), target))
        sure = target.masked_fill(out.edges.detach()[:, 0].sigmoid() <= EDGE_SURE, IGNORE)
        if (sure != IGNORE).any():
            parts.append(loss(out.logits[0], sure))
    if out.points is not None and out.places is not None:
        places = 2 * out.places[:, :, None] - 1
        there = functional.grid_sample(target[:, None].float(), places, mode="nearest", align_corners=False)
        parts.append(loss(out.points[..., None], there[:, 0].round().long()))
    if out.instances is not None:
        parts.append(instance_loss(out.instances.float(), target))
    return torch.stack(parts).sum()


def weighted_sum(
    terms: Sequence[LossTerm], logits: torch.Tensor, target: torch.Tensor, activation: Activation = "softmax"
) -> torch.Tensor:
    """The recipe's loss, a scalar."""
    logits = logits.float()
    valid = (target != IGNORE)[:, None]
    sigmoid = activation == "sigmoid"
    outputs = torch.arange(logits.shape[1], device=logits.device) + sigmoid
    truth = (target[:, None] == outputs[:, None, None]).to(logits.dtype)
    total = logits.new_zeros(())
    for term in terms:
        weight = logits.new_tensor(term.class_weights) if term.class_weights else None
        pixels = 1 + term.boundary * find_edges(target, term.reach).to(logits.dtype) if term.boundary else None
        seen = valid if pixels is None else valid * pixels[:, None]
        if term.kind == "dice":
            value = dice(logits.sigmoid() if sigmoid else logits.softmax(dim=1), truth, valid)
        elif term.kind == "cross-entropy":
            value = (
                binary_cross_entropy(logits, truth, seen, weight)
                if sigmoid
                else cross_entropy(logits, target, weight, pixels)
            )
        elif term.kind == "balanced-cross-entropy":
            value = (
                balanced_binary_cross_entropy(logits, truth, seen)
                if sigmoid
                else balanced_cross_entropy(logits, target, pixels)
            )
        elif sigmoid:
            value = binary_cross_entropy(logits, truth, seen, weight, term.gamma)
        else:
            value = focal(logits, target, term.gamma, weight, pixels)
        total = total + term.weight * value
    return total
