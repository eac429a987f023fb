"""The training loop: crops in, a checkpoint out; killed at any moment, the same command ends with the same weights.

Nothing random has a state: the crops, the augmentation and the dropout of a step depend on the seed and the step's
number.  So the checkpoint of the last validation is all that is needed to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import nn

from tilelab.errors import OutputError, ResumeError
from tilelab.models.build import initialise
from tilelab.models.encoders import WeightsReport, load_encoder_weights
from tilelab.models.measure import measure_network
from tilelab.spec import ModelSpec, Normalization
from tilelab.training.checkpoint import (
    Checkpoint,
    Header,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from tilelab.training.data import CropSampler
from tilelab.training.engine import TorchEngine
from tilelab.training.log import TrainingLog
from tilelab.training.losses import weighted_sum
from tilelab.training.optimize import RunningAverage, build_optimizer
from tilelab.training.pairs import Pair, measure_normalization, open_pairs
from tilelab.training.parallel import Group, join
from tilelab.training.recipe import Recipe
from tilelab.training.schedule import rate_at
from tilelab.training.validate import validate

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
    report: Callable[[Progress], None] = lambda progress: None,  # noqa: ARG005
    note: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> Path:
    """Train as `recipe` says, or go on with what an interrupted call left in `output`.

    Args:
        recipe: what to train.
        root: the folder that the recipe's data paths are relative to.
        output: a folder for checkpoints and log; made if absent.
        restart: begin anew, even where `output` holds an unfinished training.
        report: called after every step, by the process that writes.
        note: called with one line for each thing the user should know.

    Returns:
        The checkpoint with the best validation score, ``output/best.safetensors``.

    Raises:
        InputError: the data is missing, or does not fit the recipe.
        ModelError: the network cannot be built, or its pre-trained weights do not fit.
        ResumeError: `output` holds the training of a different recipe; the differing keys are named.
        OutputError: `output` cannot be written.
    """
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    with join(recipe.run.device) as group:
        trainer = Trainer(recipe, root, output, group, restart=restart, note=note)
        trainer.run(report)
    return output / BEST


class Trainer:
    """One training: its data, network and optimiser, and the loop over them; arguments as `train`."""

    def __init__(
        self,
        recipe: Recipe,
        root: Path,
        output: Path,
        group: Group,
        *,
        restart: bool,
        note: Callable[[str], None],
    ):
        self.recipe, self.output, self.group = recipe, output, group
        classes, channels = len(recipe.classes), recipe.network.channels
        pairs = open_pairs(recipe.train, root, classes)
        self.validation = open_pairs(recipe.validation, root, classes)
        normalization = recipe.normalization or measure_normalization(pairs)
        self.sampler = _sampler(recipe, pairs, normalization)
        self.network = initialise(recipe.seed, recipe.network.architecture, channels, classes, **recipe.network.options)
        state = None if restart else group.tell(_unfinished(output, recipe) if group.first else None)
        if state is None:
            if recipe.network.weights:
                loaded: WeightsReport = load_encoder_weights(self.network, root / recipe.network.weights)
                note(f"{recipe.network.weights}: {loaded}")
            spec = describe(recipe, self.network, normalization)
            self.header = Header(recipe=recipe, spec=spec, step=0)
        else:
            self.header = state.header
            self.network.load_state_dict(state.part("model"))
            note(f"continuing after step {state.header.step}")
        self.network.to(group.device)
        cast("Any", self.network).to(memory_format=torch.channels_last)  # not in the types of torch before 2.14
        self.parallel = group.wrap(self.network)
        self.average = RunningAverage(self.network, recipe.run.average)
        self.optimizer = build_optimizer(self.network, recipe.optimizer)
        if state is not None:
            self.average.load(state.part("average"))
            restore_optimizer(self.optimizer, state.part("optimizer"))
        if group.first:
            self._claim(begin=state is None)

    def _claim(self, *, begin: bool) -> None:
        """Make the output folder; throw away what an earlier training left where this one begins."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if begin:
                for name in (BEST, LAST):
                    (self.output / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.output}: {error.strerror or error}") from error

    def run(self, report: Callable[[Progress], None]) -> None:
        """Train to the end."""
        recipe, group = self.recipe, self.group
        names = [info.name for info in recipe.classes]
        log = TrainingLog(self.output, names, after=self.header.step) if group.first and not self.header.ended else None
        mine = group.share(recipe.sampling.batch)
        losses: list[float] = []
        with ThreadPoolExecutor(1) as ahead:
            batch = ahead.submit(self.sampler.batch, self.header.step, mine)
            while not self.header.ended:
                step = self.header.step + len(losses)
                images, masks = batch.result()
                batch = ahead.submit(self.sampler.batch, step + 1, mine)
                rate = rate_at(step, recipe.run.steps, recipe.optimizer.rate, recipe.schedule, self.header.stage)
                loss = self._step(step, rate, images, masks)
                losses.append(loss)
                done, scores = step + 1, None
                self.average.update(self.network, done)
                if done % recipe.run.validate == 0 or done == recipe.run.steps:
                    scores = self._validate() if group.first else None
                    mean = group.mean(sum(losses) / len(losses))
                    if group.first and scores is not None and log is not None:
                        self._keep(done, scores)
                        log.write(done, mean, rate, scores)
                    self.header = group.tell(self.header)
                    losses = []
                if group.first:
                    report(Progress(done, recipe.run.steps, loss, rate, scores))
        if log is not None:
            log.close()

    def _step(self, step: int, rate: float, images: torch.Tensor, masks: torch.Tensor) -> float:
        """One optimiser step; returns the loss."""
        recipe, device = self.recipe, self.group.device
        torch.manual_seed((recipe.seed * 1_000_003 + step) * self.group.size + self.group.rank)  # dropout
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.parallel.train()
        images = images.expand(-1, recipe.network.channels, -1, -1)
        self.optimizer.zero_grad(set_to_none=True)
        total, pieces = 0.0, recipe.run.accumulate
        for part, truth in zip(images.chunk(pieces), masks.chunk(pieces), strict=True):
            x = part.to(device, memory_format=torch.channels_last)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.run.precision == "bf16"):
                out = self.parallel(x)
            # a network with side outputs returns several maps while training, all of them supervised
            maps = out if isinstance(out, tuple) else (out,)
            truth = truth.to(device)
            loss = torch.stack([weighted_sum(recipe.loss, logits, truth) for logits in maps]).sum() / pieces
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if recipe.optimizer.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.optimizer.clip)
        self.optimizer.step()
        return total

    def _validate(self) -> dict[str, Any]:
        network = self.average.network.eval()
        engine = TorchEngine(network, self.header.spec, precision=self.recipe.run.precision, device=self.group.device)
        scores = validate(engine, self.validation)
        self.network.train()
        return scores

    def _keep(self, step: int, scores: dict[str, Any]) -> None:
        """Write the best and the last checkpoint; the best first, so that a kill between them repeats, not skips."""
        scores = {**scores, "step": step}
        better = scores["mean_iou"] > self.header.best.get("mean_iou", -1.0)
        stale = 0 if better else self.header.stale + 1
        stage, ended = self.header.stage, step == self.recipe.run.steps
        schedule = self.recipe.schedule
        if schedule.kind == "plateau" and stale >= schedule.patience:
            stale, stage = 0, stage + 1
            ended = ended or stage > len(schedule.rates)
        if self.recipe.run.patience and stale >= self.recipe.run.patience:
            ended = True
        self.header = msgspec.structs.replace(
            self.header,
            step=step,
            scores=scores,
            best=scores if better else self.header.best,
            stale=stale,
            stage=stage,
            ended=ended,
        )
        kept = {f"model.{name}": value for name, value in self.average.network.state_dict().items()}
        if better:
            save_checkpoint(self.output / BEST, Checkpoint(self.header, kept))
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average.decay:
            tensors |= {f"average.{name[6:]}": value for name, value in kept.items()}
        save_checkpoint(self.output / LAST, Checkpoint(self.header, tensors))


def _sampler(recipe: Recipe, pairs: list[Pair], normalization: Normalization) -> CropSampler:
    return CropSampler(
        pairs,
        recipe.network.channels,
        len(recipe.classes),
        recipe.sampling,
        recipe.augmentation,
        normalization,
        recipe.seed,
    )


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


def describe(recipe: Recipe, network: nn.Module, normalization: Normalization) -> ModelSpec:
    """The model description that inference will read; stride and receptive field are measured."""
    facts = measure_network(network, recipe.network.channels, tile=recipe.inference.tile)
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
