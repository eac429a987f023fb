"""A trained network learns from a few corrections and keeps what it knew.

Four things keep it. Its batch statistics are folded away and cannot drift. What it learns is a factor for each feature
of each layer, and an offset: few numbers, which cannot serve what is shown and spoil what is like it (after the affine
parameters of batch normalisation, Frankle et al., 2020, arXiv 2003.00152); all weights learn only where that does not
do. Half of every batch are images of what it knew, on which it is held to what it said before. And its weights are a
mean of the old and the new ones (WiSE-FT, Wortsman et al., 2022, arXiv 2109.01903), with as little of the new ones as
gives nearly all of what was gained, and never so much that it is worse on what it knew.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call

from tilelab.errors import ModelError
from tilelab.machine.cpu import core_count, has_cpu_feature
from tilelab.models.graph import GraphNetwork
from tilelab.spec import ModelSpec
from tilelab.training.allocator import keep_freed_memory
from tilelab.training.crops import stack
from tilelab.training.data import CropSampler
from tilelab.training.judge import Judge, Judged, Planes
from tilelab.training.loop import Report, StepReport, ignore
from tilelab.training.losses import weighted_sum
from tilelab.training.optimize import build_optimizer
from tilelab.training.schedule import rate_at
from tilelab.training.sections import IGNORE, Augmentation, LossTerm, Optimizer, Sampling, Schedule

SHARES = (1.0, 0.8, 0.6, 0.45, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
"""Of the new weights in the mean."""
_ENOUGH = 0.95  # of the gain: no more of the new weights than for this
_LEAST_GAIN = 0.02  # of mean IoU on what it learned from: less is not worth the risk
_KEEPING = 4.0  # weight of what it is held to, against what it learns
_LOSS = (LossTerm("cross-entropy"), LossTerm("dice"))
_FACTORS_RATE = 10.0  # times the rate of weights: of factors that are near 1
_TRIED = 3  # steps after which it is known what one takes
_PLAIN = Augmentation()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is done.

    Attributes:
        steps: of the optimiser; fewer where they would take longer than `minutes`.
        minutes: for training, about.
        rate: of learning, at its highest.
        crop: pixels per side.
        batch: crops of either kind in a step.
        seed: of everything drawn.
    """

    steps: int = 240
    minutes: float = 10.0
    rate: float = 1e-3
    crop: int = 192
    batch: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Improved:
    """The network as it is now.

    Attributes:
        network: with its new weights.
        share: of them in the mean with the old ones.
        steps, seconds: that it learned.
        abroad: on the corrections, which it learned from.
        home: on each set of what it knew that it was not held to.
    """

    network: nn.Module
    share: float
    steps: int
    seconds: float
    abroad: Judged
    home: tuple[Judged, ...]


def improve(
    network: GraphNetwork,
    spec: ModelSpec,
    corrected: Planes,
    kept: Sequence[Planes],
    checks: Sequence[Planes],
    effort: Effort | None = None,
    report: Report = ignore,
) -> Improved:
    """Learn from `corrected`, be held to `kept`, be judged by `checks`.

    Args:
        network: in evaluation mode, on the CPU; it is not changed.
        spec: of it.
        corrected: what somebody drew.
        kept: of what it knew, to be reminded by.
        checks: of what it knew, other planes where there are some.
        effort: how much is done.
        report: called after every step.

    Raises:
        ModelError: it would be worse on what it knew whatever the share, or is no better on the corrections.
    """
    largest = max(side for plane in corrected.planes for side in plane.shape)
    effort = _fit(effort or Effort(), spec, largest)
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, core_count()))
    try:
        fast = bool(has_cpu_feature("avx512_bf16", "amx_bf16"))
        # without its cache, which would keep the first weights until the end
        with torch.autocast("cpu", torch.bfloat16, enabled=fast, cache_enabled=False):
            return _improve(network, spec, corrected, kept, checks, effort, report)
    finally:
        torch.set_num_threads(threads)


def _fit(effort: Effort, spec: ModelSpec, largest: int) -> Effort:
    """With crops that the network takes, no larger than what there is."""
    if spec.tile_fixed:
        return replace(effort, crop=spec.tile[0])
    least, stride = max(16, *(spec.tile_min or (1,))), spec.stride
    return replace(effort, crop=-(-max(least, min(effort.crop, largest)) // stride) * stride)


def _improve(
    network: GraphNetwork,
    spec: ModelSpec,
    corrected: Planes,
    kept: Sequence[Planes],
    checks: Sequence[Planes],
    effort: Effort,
    report: Report,
) -> Improved:
    old = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    judges = [Judge(planes, spec, effort.crop, old) for planes in (corrected, *checks)]
    before = [judge.score(old) for judge in judges]
    began, steps = time.perf_counter(), 0
    first, new = [p.detach() for p in old.parameters()], copy.deepcopy(old)
    for make in (Factors, Whole):
        learner = make(old)
        left = replace(effort, minutes=max(0.0, effort.minutes - (time.perf_counter() - began) / 60))
        steps += _learn(old, learner, spec, corrected, kept, left, report)
        last = learner.weights()
        found = []
        for share in SHARES:
            _blend(new, first, last, share)
            judged = [
                Judged(judge.name, b, judge.score(new), judge.tolerance, judge.told)
                for judge, b in zip(judges, before, strict=True)
            ]
            found.append((share, judged[0], tuple(judged[1:])))
        try:
            share, abroad, home = _choose(found, spec)
            break
        except ModelError:
            if make is Whole:
                raise
    seconds = time.perf_counter() - began
    _blend(new, first, last, share)
    return Improved(new, share, steps, seconds, abroad, home)


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


def _choose(
    found: Sequence[tuple[float, Judged, tuple[Judged, ...]]], spec: ModelSpec
) -> tuple[float, Judged, tuple[Judged, ...]]:
    """As little of the new weights as gives nearly all of what can be gained.

    Raises:
        ModelError: nothing can.
    """
    allowed = [one for one in found if all(judged.kept for judged in one[2])]
    if not allowed:
        least = min(found, key=lambda one: one[0])
        worst = min(least[2], key=lambda judged: judged.after - judged.before)
        raise ModelError(
            f"{spec.name} would be worse on what it knew with {least[0]:.0%} of the new weights ({worst}): name images "
            "that it must keep (--home), or correct more; nothing was written"
        )
    gain = max(abroad.after - abroad.before for _, abroad, _ in allowed)
    if not gain >= _LEAST_GAIN:
        worse = "without being worse on what it knew " if len(allowed) < len(found) else ""
        raise ModelError(
            f"{spec.name} does not get better on the corrections {worse}(mean IoU {found[0][1].before:.4f}): "
            "correct more places, or more of each; nothing was written"
        )
    return min(one for one in allowed if one[1].after - one[1].before >= _ENOUGH * gain)


@torch.no_grad()
def _blend(network: nn.Module, old: Sequence[torch.Tensor], new: Sequence[torch.Tensor], share: float) -> None:
    for parameter, a, b in zip(network.parameters(), old, new, strict=True):
        parameter.copy_(torch.lerp(a, b, share))


def _learn(
    old: nn.Module,
    new: Factors | Whole,
    spec: ModelSpec,
    corrected: Planes,
    kept: Sequence[Planes],
    effort: Effort,
    report: Report,
) -> int:
    """Train `new`; returns the steps that were taken."""
    learned = _sampler(corrected, spec, effort, 1.0, _varied(corrected, spec))
    others = [_sampler(planes, spec, effort, 0.0, _PLAIN) for planes in kept]
    highest = new.rate * effort.rate
    optimizer = build_optimizer(new, Optimizer(rate=highest))
    schedule = Schedule(kind="cosine", warmup=min(10, effort.steps // 4), least=highest / 100)
    steps, done, began = effort.steps, 0, time.perf_counter()
    while done < steps:
        if done == _TRIED:
            each = (time.perf_counter() - began) / done
            steps = max(done, min(steps, int(60 * effort.minutes / each)))
        rate = rate_at(done, steps, highest, schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, truth = learned.batch(done)
        examples = [others[i % len(others)].crop(done, i) for i in range(effort.batch)] if others else []
        if examples:
            reminding, known = stack(examples)
            images = torch.cat([images, reminding])
        images = images.expand(-1, spec.channels, -1, -1).contiguous(memory_format=torch.channels_last)
        out = new(images).float()
        loss = weighted_sum(_LOSS, out[: effort.batch], truth, spec.activation)
        if examples:
            with torch.no_grad():
                told = old(images[effort.batch :]).float()
            loss = loss + _KEEPING * _departure(out[effort.batch :], told, spec)
            if bool((known != IGNORE).any()):
                loss = loss + weighted_sum(_LOSS, out[effort.batch :], known, spec.activation)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(new.parameters(), 5.0)
        optimizer.step()
        done += 1
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is not finite at step {done}: lower --rate ({effort.rate:g})")
        report(StepReport(done, steps, loss.item(), rate, None))
    return done


def _departure(now: torch.Tensor, before: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """How far the answers are from what they were: the Kullback-Leibler divergence, a mean over the pixels."""
    if spec.activation == "sigmoid":
        told = before.sigmoid()
        least = nn.functional.binary_cross_entropy_with_logits(before, told)
        return nn.functional.binary_cross_entropy_with_logits(now, told) - least
    told = before.log_softmax(1)
    return (told.exp() * (told - now.log_softmax(1))).sum(dim=1).mean()


def _varied(planes: Planes, spec: ModelSpec) -> Augmentation:
    """Turned, and with other brightness, contrast and size, as the next image may be."""
    floats = any(plane.image.dtype.kind == "f" for plane in planes.planes)
    resized = (1.0, 1.0) if spec.tile_fixed else (0.85, 1.2)
    if floats:  # their full scale is not known
        return Augmentation(scale=resized, contrast=(0.8, 1.25))
    return Augmentation(scale=resized, contrast=(0.8, 1.25), brightness=0.05)


def _sampler(
    planes: Planes, spec: ModelSpec, effort: Effort, balance: float, augmentation: Augmentation
) -> CropSampler:
    return CropSampler(
        planes.planes,
        spec.channels,
        len(spec.classes),
        Sampling(effort.crop, effort.batch, balance),
        augmentation,
        planes.normalizations,
        effort.seed,
    )
