"""A trained network learns from a few corrections and keeps what it knew.

Four things keep it. Its batch statistics are folded away and cannot drift. What it learns is a factor for each feature
of each layer, and an offset: few numbers, which cannot serve what is shown and spoil what is like it (after the affine
parameters of batch normalisation, Frankle et al., 2020, arXiv 2003.00152); all weights learn only where that does not
do. Half of every batch are images of what it knew, on which it is held to what it said before. And its weights are a
mean of the old and the new ones (WiSE-FT, Wortsman et al., 2022, arXiv 2109.01903), see `tilelab.training.course`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.machine.allocator import keep_freed_memory
from tilelab.machine.cpu import core_count, has_cpu_feature
from tilelab.models.graph import GraphNetwork
from tilelab.spec import ModelSpec
from tilelab.training.arithmetic import arithmetic
from tilelab.training.course import Course, halves
from tilelab.training.crops import stack
from tilelab.training.data import CropSampler
from tilelab.training.judge import Judge, Judged, Planes
from tilelab.training.learners import Factors, Whole
from tilelab.training.loop import Report, StepReport, ignore
from tilelab.training.losses import weighted_sum
from tilelab.training.optimize import build_optimizer
from tilelab.training.schedule import rate_at
from tilelab.training.sections import IGNORE, Augmentation, LossTerm, Optimizer, Sampling, Schedule

_KEEPING = 4.0  # weight of what it is held to, against what it learns
_LOSS = (LossTerm("cross-entropy"), LossTerm("dice"))
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
        steps: that it learned.
        seconds: that learning and choosing took.
        abroad: on the corrections, which it learned from.
        held: on each half of them, what the other half taught; None of a single one.
        home: on each set of what it knew that it was not held to.
    """

    network: nn.Module
    share: float
    steps: int
    seconds: float
    abroad: Judged
    held: Judged | None
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
        ModelError: it would be worse on what it knew whatever the share, or is no better on corrections.
    """
    largest = max(side for plane in corrected.planes for side in plane.shape)
    effort = _fit(effort or Effort(), spec, largest)
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, core_count()))
    try:
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
    judge, *others = [Judge(planes, spec, effort.crop, old) for planes in (corrected, *checks)]
    held = [(rest, Judge(part, spec, effort.crop, old)) for rest, part in halves(corrected)]
    course = Course(old, [one for _, one in held] or [judge], others)
    began = time.perf_counter()
    teachers = [corrected, *(rest for rest, _ in held)]
    for make in (Factors, Whole):
        left = replace(effort, minutes=max(0.0, effort.minutes - (time.perf_counter() - began) / 60))
        ends, steps = _teach(old, make, spec, teachers, kept, left, report)
        try:
            found = course.choose(ends[0], ends[1:] or ends, spec.name)
            break
        except ModelError:
            if make is Whole:
                raise
    new = course.at(ends[0], found.share)
    abroad = judge.compare(judge.count(old), judge.count(new))
    seconds = time.perf_counter() - began
    return Improved(new, found.share, steps, seconds, abroad, found.gain if held else None, found.home)


def _teach(
    old: GraphNetwork,
    make: type[Factors] | type[Whole],
    spec: ModelSpec,
    teachers: Sequence[Planes],
    kept: Sequence[Planes],
    effort: Effort,
    report: Report,
) -> tuple[list[list[torch.Tensor]], int]:
    """Weights that learned from each of some corrections, every plane as often; and the steps of the first."""
    counts = [len(planes.planes) for planes in teachers]
    planned = [max(1, round(effort.steps * count / counts[0])) for count in counts]
    ends: list[list[torch.Tensor]] = []
    taken: list[int] = []

    def tell(progress: StepReport) -> None:
        gone, later = sum(taken), sum(planned[len(taken) + 1 :])
        report(replace(progress, step=gone + progress.step, steps=gone + progress.steps + later))

    for planes, steps in zip(teachers, planned, strict=True):
        learner, minutes = make(old), effort.minutes * steps / sum(planned)
        mine = replace(effort, steps=steps, minutes=minutes)
        taken.append(_learn(old, learner, spec, planes, kept, mine, tell))
        ends.append(learner.weights())
    return ends, taken[0]


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
    fast = bool(has_cpu_feature("avx512_bf16", "amx_bf16"))
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
        with arithmetic("cpu", fast):
            out = new(images).float()
            with torch.no_grad():
                told = old(images[effort.batch :]).float() if examples else None
        loss = weighted_sum(_LOSS, out[: effort.batch], truth, spec.activation)
        if told is not None:
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
