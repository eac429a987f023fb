"""The training loop: examples in, a checkpoint out; killed at any moment, the same command ends with the same weights.

Nothing random has a state: the crops, the augmentation and the dropout of a step depend on the seed and the step's
number.  So the checkpoint of the last validation is all that is needed to go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
import torch
from torch import nn

from tilelab.errors import ModelError, OutputError, ResumeError
from tilelab.machine.allocator import keep_freed_memory
from tilelab.machine.disk import remove_entry, why_unwritten
from tilelab.training.arithmetic import arithmetic
from tilelab.training.checkpoint import (
    Checkpoint,
    State,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from tilelab.training.crops import Batches, Example
from tilelab.training.log import LAST, TrainingLog
from tilelab.training.losses import supervise
from tilelab.training.optimize import RunningAverage, build_optimizer, encoder_of
from tilelab.training.parallel import Group, group_size, join
from tilelab.training.recipe import BaseRecipe, RecipeError
from tilelab.training.schedule import rate_at

H = TypeVar("H", bound=State)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the loop reports after every step; `scores`, and `summary` of them in words, only after a validation."""

    step: int
    steps: int
    loss: float
    rate: float
    scores: dict[str, Any] | None
    summary: str = ""


Report = Callable[[StepReport], None]
Note = Callable[[str], None]


def ignore(_: object) -> None:
    """The default of what is called with progress and notes."""


class Task(Protocol[H]):
    """What is trained, on what, and how it is judged."""

    @property
    def recipe(self) -> BaseRecipe:
        """What was asked for."""
        ...

    @property
    def network(self) -> nn.Module:
        """Initialised by the recipe's seed, on the CPU."""
        ...

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        ...

    @property
    def batch(self) -> int:
        """Examples per step."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Names of the scores in the log; of the best weights, the first is the highest."""
        ...

    @property
    def best(self) -> str:
        """Name of the file with the best weights."""
        ...

    @property
    def about(self) -> str:
        """Classes and images, in words."""
        ...

    @property
    def header(self) -> type[H]:
        """What a checkpoint says beside its tensors."""
        ...

    def begin(self, note: Note) -> H:
        """Put pre-trained weights into the network; the header of step 0."""
        ...

    def resume(self, header: H) -> None:
        """Refuse to go on from a header where what is trained on has changed.

        Raises:
            ResumeError: it has.
        """
        ...

    def draw(self, step: int, index: int) -> Example:
        """Example `index` of a step, always the same."""
        ...

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        ...

    def validate(self, network: nn.Module, header: H, device: str) -> dict[str, Any]:
        """Scores of a network in evaluation mode, among them all of `columns`; may hold more."""
        ...

    def row(self, scores: dict[str, Any]) -> dict[str, float | None]:
        """The `columns` of scores."""
        ...

    def describe(self, scores: dict[str, Any]) -> str:
        """Scores in a line."""
        ...

    def keep(self, path: Path, header: H, network: nn.Module) -> None:
        """Write the best weights."""
        ...


def run_task(
    make: Callable[[], Task[H]],
    recipe: BaseRecipe,
    output: Path,
    *,
    restart: bool,
    report: Report,
    note: Note,
) -> Path:
    """Train, or go on with what an interrupted call left in `output`; returns the file of the best weights.

    Raises:
        ResumeError: `output` holds a training of another recipe.
        OutputError: `output` cannot be written.
        EngineError: a GPU was asked for and there is none.
        ModelError: the loss is not finite.
        RecipeError: there are more processes than crops in a batch.
    """
    keep_freed_memory()
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    batch, size = cast("Any", recipe).sampling.batch, group_size()  # both kinds of recipe have one
    if batch < size:  # before they meet: the first to refuse would take the others' store with it
        raise RecipeError(
            f"sampling.batch of {batch} cannot be shared by {size} processes, each takes one crop at least: "
            f"set it to {size} or more, or start {batch} (torchrun --nproc-per-node)"
        )
    with join(recipe.run.device) as group:
        task = make()
        trainer = Trainer(task, output, group, restart=restart, note=note)
        if not trainer.header.ended:
            trainer.run(report)
        return output / task.best


def _size_of(network: nn.Module) -> str:
    count = sum(p.numel() for p in network.parameters())
    return f"{count / 1e6:.2f} M" if count >= 10_000 else str(count)


def _device_text(device: str) -> str:
    """A GPU by its name; of CPUs, how many threads."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


class Trainer(Generic[H]):
    """One training: its task, network and optimiser, and the loop over them."""

    def __init__(self, task: Task[H], output: Path, group: Group, *, restart: bool, note: Note):
        self.task, self.output, self.group = task, output, group
        self.network = task.network
        found = None if restart else group.tell(_find(output / LAST, task) if group.first else None)
        # both ways the network's weights are set before it is moved and copied
        self.header = task.begin(note) if found is None else found.header
        if found is not None:
            task.resume(found.header)
            self.network.load_state_dict(found.part("model"))
            note(_where(found.header, task.recipe))
        if group.first:
            note(f"{task.about}; {_size_of(self.network)} parameters on {_device_text(group.device)}")
        self.network.to(group.device)
        cast("Any", self.network).to(memory_format=torch.channels_last)  # not in the types of torch before 2.14
        self.parallel = self._wrap(frozen=self.header.step < task.recipe.run.frozen)
        self.average = RunningAverage(self.network, task.recipe.run.average)
        self.optimizer = build_optimizer(self.network, task.recipe.optimizer)
        if found is not None:
            self.average.load(found.part("average"))
            restore_optimizer(self.optimizer, found.part("optimizer"))
        if group.first:
            self._claim(begin=found is None, restart=restart)

    def _wrap(self, *, frozen: bool) -> nn.Module:
        """The network as it learns now: with a frozen encoder there are other gradients to share."""
        if self.task.recipe.run.frozen:
            encoder_of(self.network, "run.frozen").requires_grad_(not frozen)
        wrapped = self.group.wrap(self.network)
        return cast("nn.Module", torch.compile(wrapped)) if self.task.recipe.run.compile else wrapped

    def _claim(self, *, begin: bool, restart: bool) -> None:
        """Make the output folder; throw away what an earlier training left where this one begins."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if begin:
                for name in (self.task.best, LAST):
                    if not restart:
                        self._spare(self.output / name)
                    remove_entry(self.output / name)
        except OSError as error:
            raise OutputError(f"cannot write to {self.output}: {why_unwritten(error)}") from error

    def _spare(self, path: Path) -> None:
        """Refuse to replace the weights of a training that cannot be continued, but what a kill left of this one."""
        if not path.exists():
            return
        header: Any = read_checkpoint(path, self.task.header).header
        if _differing(header.recipe, self.task.recipe) or header.step > self.task.recipe.run.validate:
            raise OutputError(
                f"{path} holds the weights of a training that cannot be continued, {LAST} is missing: give another "
                "output, or --restart to replace them"
            )
        self.task.resume(header)  # the same recipe on other data is another training

    def run(self, report: Report) -> None:
        """Train to the end."""
        task, group, run = self.task, self.group, self.task.recipe.run
        log = TrainingLog(self.output, task.columns, after=self.header.step) if group.first else None
        losses: list[float] = []
        with Batches(task.draw, group.share(task.batch), self.header.step) as batches:
            while not self.header.ended:
                step = self.header.step + len(losses)
                images, targets = batches.take()
                rate = rate_at(step, run.steps, task.recipe.optimizer.rate, task.recipe.schedule, self.header.stage)
                loss = self._step(step, rate, images, targets)
                losses.append(loss)
                done, scores = step + 1, None
                self.average.update(self.network, done)
                if done % run.validate == 0 or done == run.steps:
                    scores = self._validate() if group.first else None
                    mean = group.mean(sum(losses) / len(losses))
                    if scores is not None and log is not None:
                        self._keep(done, scores)
                        log.write(done, mean, rate, task.row(scores))
                    self.header = group.tell(self.header)
                    losses = []
                if group.first:
                    report(StepReport(done, run.steps, loss, rate, scores, task.describe(scores) if scores else ""))
        if log is not None:
            log.close()

    def _step(self, step: int, rate: float, images: torch.Tensor, targets: torch.Tensor) -> float:
        """One optimiser step; returns the loss."""
        recipe, device = self.task.recipe, self.group.device
        torch.manual_seed((recipe.seed * 1_000_003 + step) * self.group.size + self.group.rank)  # dropout
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["factor"]
        if step and step == recipe.run.frozen:
            self.parallel = self._wrap(frozen=False)
        self.parallel.train()
        if step < recipe.run.frozen:
            encoder_of(self.network, "run.frozen").eval()  # its statistics stay, too
        images = images.expand(-1, self.task.channels, -1, -1)
        self.optimizer.zero_grad(set_to_none=True)
        pieces = images.chunk(recipe.run.accumulate)  # of a process's share of the batch there may be fewer
        total = 0.0
        for part, target in zip(pieces, targets.chunk(recipe.run.accumulate), strict=True):
            x = part.to(device, memory_format=torch.channels_last)
            with arithmetic(device, recipe.run.precision == "bf16", whole=recipe.run.compile):
                out = self._answer(x)
            loss = supervise(self.task.loss, out, target.to(device)) / len(pieces)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            raise ModelError(
                f"the loss is {total} at step {step + 1}: lower optimizer.rate ({recipe.optimizer.rate:g}), or set "
                "optimizer.clip or schedule.warmup"
            )
        if recipe.optimizer.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.optimizer.clip)
        self.optimizer.step()
        return total

    def _answer(self, x: torch.Tensor) -> Any:
        """What the network makes of a piece of a batch.

        Raises:
            ModelError: the piece is too small for the network's batch normalisation.
        """
        try:
            return self.parallel(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count = x.shape[0]
            raise ModelError(
                f"batch normalisation needs several values of each feature, and {count} crop{'s' * (count > 1)} of "
                f"{x.shape[-1]} px at a time leave one: raise sampling.batch or sampling.crop, or lower run.accumulate"
            ) from error

    def _validate(self) -> dict[str, Any]:
        scores = self.task.validate(self.average.network.eval(), self.header, self.group.device)
        self.network.train()
        return scores

    def _keep(self, step: int, scores: dict[str, Any]) -> None:
        """Write the best and the last checkpoint; the best first, so that a kill between them repeats, not skips."""
        recipe, decisive = self.task.recipe, self.task.columns[0]
        scores = {**scores, "step": step}
        better = scores[decisive] > self.header.best.get(decisive, -1.0)
        stale = 0 if better else self.header.stale + 1
        stage, ended = self.header.stage, step == recipe.run.steps
        if recipe.schedule.kind == "plateau" and stale >= recipe.schedule.patience:
            stale, stage = 0, stage + 1
            ended = ended or stage > len(recipe.schedule.rates)
        if recipe.run.patience and stale >= recipe.run.patience:
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
        if better:
            self.task.keep(self.output / self.task.best, self.header, self.average.network)
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average.decay:
            tensors |= {f"average.{name}": value for name, value in self.average.network.state_dict().items()}
        save_checkpoint(self.output / LAST, Checkpoint(self.header, tensors))


def _find(path: Path, task: Task[H]) -> Checkpoint[H] | None:
    """The last checkpoint, if it is of the same recipe; None when there is none."""
    if not path.exists():
        return None
    found = read_checkpoint(path, task.header)
    if differing := _differing(cast("Any", found.header).recipe, task.recipe):
        raise ResumeError(
            f"{path.parent} holds a training with another {', '.join(differing)}: give another output or --restart"
        )
    return found


def _where(header: State, recipe: BaseRecipe) -> str:
    """Where a training goes on, or that there is nothing to go on with."""
    if not header.ended:
        return f"continuing after step {header.step}"
    return f"ended before, with step {header.step} of {recipe.run.steps}: --restart trains anew"


def _differing(one: Any, other: Any) -> list[str]:
    """The keys in which two recipes differ, as ``--set`` names them."""
    before, now = msgspec.to_builtins(one), msgspec.to_builtins(other)
    found: list[str] = []
    for key in (key for key in now if now[key] != before[key]):
        if isinstance(now[key], dict) and isinstance(before[key], dict):
            inner = sorted({*now[key], *before[key]})
            found += [f"{key}.{k}" for k in inner if now[key].get(k) != before[key].get(k)]
        else:
            found.append(key)
    return sorted(found)
