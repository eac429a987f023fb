"""The training loop: crops in, a checkpoint out; killed at any moment, the same command ends with the same weights.

Nothing random has a state: the crops, the augmentation and the dropout of a step depend on the seed and the step's
number.  So the checkpoint of the last validation is all that is needed to go on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tilelab.errors import OutputError, ResumeError
from tilelab.models.build import initialise
from tilelab.models.measure import measure_network
from tilelab.spec import ModelSpec
from tilelab.training.checkpoint import (
    Checkpoint,
    Header,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from tilelab.training.data import CropSampler, measure_normalization, open_pairs
from tilelab.training.log import TrainingLog
from tilelab.training.losses import weighted_sum
from tilelab.training.recipe import Optimizer, Recipe
from tilelab.training.schedule import rate_at
from tilelab.training.validate import torch_runner, validate

BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """What the loop reports after every step; `scores` only after a validation."""

    step: int
    steps: int
    loss: float
    rate: float
    scores: dict[str, Any] | None


def train(
    recipe: Recipe,
    root: Path,
    output: Path,
    *,
    restart: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train as `recipe` says, or go on with what an interrupted call left in `output`.

    Args:
        recipe: what to train.
        root: the folder that the recipe's data paths are relative to.
        output: a folder for checkpoints and log; made if absent.
        restart: begin anew, even where `output` holds an unfinished training.
        report: called after every step.

    Returns:
        The checkpoint with the best validation score, ``output/best.safetensors``.

    Raises:
        InputError: the data is missing, or does not fit the recipe.
        ResumeError: `output` holds the training of a different recipe; the differing keys are named.
        OutputError: `output` cannot be written.
    """
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    classes = len(recipe.classes)
    pairs = open_pairs(recipe.train, root, classes)
    validation = open_pairs(recipe.validation, root, classes)
    normalization = recipe.normalization or measure_normalization(pairs)
    sampler = CropSampler(pairs, classes, recipe.sampling, recipe.augmentation, normalization, recipe.seed)

    network = initialise(
        recipe.seed, recipe.network.architecture, recipe.network.channels, classes, **recipe.network.options
    ).to(memory_format=torch.channels_last)
    average = RunningAverage(network, recipe.run.average)
    optimizer = build_optimizer(network, recipe.optimizer)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {output}: {error}") from error

    state = None if restart else _unfinished(output, recipe)
    if state is None:
        for name in (BEST, LAST):
            (output / name).unlink(missing_ok=True)
        spec = describe(recipe, network, normalization)
        header = Header(recipe=recipe, spec=spec, step=0)
    else:
        header, spec = state.header, state.header.spec
        network.load_state_dict(state.part("model"))
        average.load(state.part("average"))
        restore_optimizer(optimizer, state.part("optimizer"))

    log = TrainingLog(output, [info.name for info in recipe.classes], after=header.step)
    with ThreadPoolExecutor(1) as ahead:
        batch = ahead.submit(sampler.batch, header.step)
        losses: list[float] = []
        for step in range(header.step, recipe.run.steps):
            images, masks = batch.result()
            if step + 1 < recipe.run.steps:
                batch = ahead.submit(sampler.batch, step + 1)
            rate = rate_at(step, recipe.run.steps, recipe.optimizer.rate, recipe.schedule)
            losses.append(_step(network, optimizer, recipe, step, rate, images, masks))
            done = step + 1
            average.update(network, done)
            scores = None
            if done % recipe.run.validate == 0 or done == recipe.run.steps:
                run = torch_runner(average.network.eval(), spec.channels, precision=recipe.run.precision)
                scores = validate(run, validation, spec)
                scores["step"] = done
                header = _keep(output, header, done, scores, network, average, optimizer)
                log.write(done, sum(losses) / len(losses), rate, scores)
                losses = []
            report(Progress(done, recipe.run.steps, losses[-1] if losses else math.nan, rate, scores))
    return output / BEST


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    step: int,
    rate: float,
    images: torch.Tensor,
    masks: torch.Tensor,
) -> float:
    """One optimiser step; returns the loss."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout
    for group in optimizer.param_groups:
        group["lr"] = rate
    network.train()
    images = images.expand(-1, recipe.network.channels, -1, -1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.run.precision == "bf16"):
        logits = network(images)
    loss = weighted_sum(recipe.loss, logits, masks)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.optimizer.clip:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.optimizer.clip)
    optimizer.step()
    return loss.item()


def _keep(
    output: Path,
    header: Header,
    step: int,
    scores: dict[str, Any],
    network: nn.Module,
    average: RunningAverage,
    optimizer: torch.optim.Optimizer,
) -> Header:
    """Write the best and the last checkpoint; the best first, so that a kill between them repeats rather than skips."""
    better = scores["mean_iou"] > header.best.get("mean_iou", -1.0)
    header = msgspec.structs.replace(header, step=step, scores=scores, best=scores if better else header.best)
    kept = {f"model.{name}": value for name, value in average.network.state_dict().items()}
    if better:
        save_checkpoint(output / BEST, Checkpoint(header, kept))
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}
    if average.decay:
        tensors |= {f"average.{name[6:]}": value for name, value in kept.items()}
    save_checkpoint(output / LAST, Checkpoint(header, tensors))
    return header


def _unfinished(output: Path, recipe: Recipe) -> Checkpoint | None:
    """The last checkpoint in `output`, if it is of the same recipe; None when there is none."""
    path = output / LAST
    if not path.exists():
        return None
    state = load_checkpoint(path)
    before, now = (msgspec.to_builtins(r) for r in (state.header.recipe, recipe))
    differing = sorted(key for key in now if now[key] != before[key])
    if differing:
        raise ResumeError(
            f"{output} holds a training with another {', '.join(differing)}: give another output or --restart"
        )
    return state


def describe(recipe: Recipe, network: nn.Module, normalization: Any) -> ModelSpec:
    """The model description that inference will read; stride and receptive field are measured."""
    facts = measure_network(network, recipe.network.channels)
    use = recipe.inference
    return ModelSpec(
        name=recipe.name,
        architecture=recipe.network.architecture,
        axes="yx",
        channels=recipe.network.channels,
        classes=recipe.classes,
        activation=use.activation,
        normalization=normalization,
        tile=(use.tile, use.tile),
        overlap=(use.overlap, use.overlap),
        window=use.window,
        stride=facts.stride,
        receptive_field=facts.receptive_field,
        pixel_size_nm=None if recipe.pixel_size_nm is None else (recipe.pixel_size_nm, recipe.pixel_size_nm),
        training={**recipe.provenance, "parameters": facts.parameters, "macs_per_pixel": round(facts.macs_per_pixel)},
    )


def build_optimizer(network: nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay spares biases and normalisation, as is usual."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    spared = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": wanted.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if wanted.kind == "sgd":
        return torch.optim.SGD(groups, lr=wanted.rate, momentum=wanted.momentum)
    if wanted.kind == "adam":
        return torch.optim.Adam(groups, lr=wanted.rate, betas=wanted.betas)
    return torch.optim.AdamW(groups, lr=wanted.rate, betas=wanted.betas)


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
