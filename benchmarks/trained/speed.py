"""How fast training is: images per processor second beside plain PyTorch, all in the same run, by turns.

    python -m benchmarks.trained.speed --data DATA/superalloy -o benchmarks/results/training-speed.md

Plain PyTorch is what one writes first: fp32, channels before rows, crops drawn when they are needed.  The rest adds one
thing after the other.  Every variant trains the same network on the same crops with the same optimiser, in one thread;
seconds of the processor are counted, not those of the clock, so that what else runs on the machine counts less.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.command import make_parser
from tilelab.machine.cpu import core_count
from tilelab.training.crops import Batches
from tilelab.training.loop import Trainer
from tilelab.training.losses import supervise
from tilelab.training.optimize import build_optimizer
from tilelab.training.parallel import join
from tilelab.training.recipe import Recipe, load_recipe
from tilelab.training.segmentation import Segmentation

NETWORKS = {
    "unet (16 to 192 wide)": ("superalloy", ()),
    "unet:resnet18": ("superalloy-resnet18", ()),
    "unet:tu-tf_efficientnet_lite0": ("superalloy-quick", ("network.weights=",)),
}
VARIANTS = ("plain PyTorch", "tilelab fp32", "tilelab bf16", "tilelab bf16, compiled")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    parser = make_parser("benchmarks.trained.speed", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="with train and val of the superalloy")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="of a turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--only", default="", metavar="A,B", help="networks whose names begin so")
    parser.add_argument("--crop", type=int, default=256, metavar="PX", help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="also compiled, which takes minutes")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    rows = []
    for title, (name, overrides) in NETWORKS.items():
        if not title.startswith(tuple(args.only.split(","))):
            continue
        crop = (f"sampling.crop={args.crop}", *overrides)
        rates = measure(name, crop, args.data, args.steps, args.turns, compiled=args.compile)
        print(title, {variant: round(rate, 2) for variant, rate in rates.items()}, flush=True)
        rows.append((title, rates))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(as_markdown(rows, args.crop, os.getloadavg()[0]))
    return 0


def measure(
    name: str, overrides: Sequence[str], data: Path, steps: int, turns: int, *, compiled: bool
) -> dict[str, float]:
    """Images per processor second of each variant: the median of its turns, which alternate with the others'."""

    def recipe(*more: str) -> Recipe:
        fixed = ("run.steps=1000000", "run.validate=1000000", "sampling.batch=8", "run.average=0")
        return load_recipe(name, [*overrides, *fixed, *more])

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, join("cpu") as group:
        steppers: dict[str, Callable[[int], None]] = {"plain PyTorch": plain(Segmentation(recipe(), data))}
        for variant, more in zip(VARIANTS[1:], (("fp32", "false"), ("bf16", "false"), ("bf16", "true")), strict=True):
            if more[1] == "true" and not compiled:
                continue
            task = Segmentation(recipe(f"run.precision={more[0]}", f"run.compile={more[1]}"), data)
            trainer = Trainer(task, Path(folder) / variant, group, restart=True, note=lambda _: None)
            steppers[variant] = whole(task, trainer)
        found: dict[str, list[float]] = {variant: [] for variant in steppers}
        for turn in range(turns + 1):
            for variant, step in steppers.items():
                began = time.process_time()
                step(steps)
                if turn:  # the first warms up
                    found[variant].append(8 * steps / (time.process_time() - began))
    return {variant: statistics.median(rates) for variant, rates in found.items()}


def plain(task: Segmentation) -> Callable[[int], None]:
    """Steps as one writes them first."""
    network: nn.Module = task.network.train()
    optimizer = build_optimizer(network, task.recipe.optimizer)
    done = 0

    def step(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            images, targets = task.sampler.batch(done)
            optimizer.zero_grad(set_to_none=True)
            supervise(task.loss, network(images), targets).backward()  # type: ignore[no-untyped-call]
            if task.recipe.optimizer.clip:
                nn.utils.clip_grad_norm_(network.parameters(), task.recipe.optimizer.clip)
            optimizer.step()
            done += 1

    return step


def whole(task: Segmentation, trainer: Trainer[object]) -> Callable[[int], None]:  # type: ignore[type-var]
    """Steps as `tilelab train` takes them: the next batch is drawn while one is learned from."""
    batches = Batches(task.draw, range(task.batch), 0)
    done = 0

    def step(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            trainer._step(done, task.recipe.optimizer.rate, *batches.take())
            done += 1

    return step


def as_markdown(rows: Sequence[tuple[str, dict[str, float]]], crop: int, load: float) -> str:
    """The page."""
    variants = [v for v in VARIANTS if any(v in rates for _, rates in rows)]

    def cell(rates: dict[str, float], variant: str) -> str:
        if variant not in rates:
            return "-"
        return f"{rates[variant]:.1f} ({rates[variant] / rates[VARIANTS[0]]:.2f} x)"

    return "\n".join(
        [
            "# Speed of training",
            "",
            f"Made by `python -m benchmarks.trained.speed`: images of {crop} px per second of one core, batch 8, data",
            f"included, and how many times plain PyTorch that is; by turns in one run. torch {torch.__version__};",
            f"{core_count()} cores, load while it ran: {load:.0f}"
            + (", so that the ratios count, not the figures." if load > core_count() else "."),
            "",
            f"| network | {' | '.join(variants)} |",
            "|---" * (1 + len(variants)) + "|",
            *(f"| {title} | {' | '.join(cell(rates, v) for v in variants)} |" for title, rates in rows),
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
