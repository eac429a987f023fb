"""How soon a training is good enough: processor minutes to a mean IoU, from chance and from ImageNet's weights.

    python -m benchmarks.trained.time_to_score --data DATA/superalloy --runs runs/time-to-score -o FILE.md

Each training writes its curve as it goes and ends at the highest goal or its last step; the same command goes on where
it was stopped, and begins anew what was trained by another recipe.  The time is the processor's, of all threads,
without that of the validations: a step that ends in one counts as much as the median of the others.  The page has a
picture of the curves beside it, of whatever there is.
With ``--commands``, nothing else is trained: the two commands from images to an engine's file are timed as they are.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.command import make_parser
from benchmarks.page.markdown import table
from benchmarks.trained.runs import digest
from tilelab.machine.cpu import core_count
from tilelab.training.checkpoint import load_checkpoint
from tilelab.training.log import BEST, LAST
from tilelab.training.loop import StepReport
from tilelab.training.recipe import Recipe, load_recipe
from tilelab.training.segmentation import train

GOALS = (0.80, 0.85, 0.88, 0.90)
SEEDS = (1, 2)
CURVE, COMMANDS = "curve.json", "commands.json"


@dataclass(frozen=True)
class Beginning:
    """What is trained, by the name that the page gives it."""

    title: str
    recipe: str
    changes: tuple[str, ...]
    color: str


_QUICK = (
    "run.steps=200",
    "sampling={crop=256,batch=8,balance=0.6}",
    "normalization={mean=[150.0],std=[20.0]}",
    "augmentation={scale=[0.75,1.33],contrast=[0.6,1.7],brightness=0.25,gamma=[0.8,1.25],blur=0.8,sharpen=1.0,noise=0.012}",
)
_LONG = (
    "run.steps=600",
    "run.validate=20",
    "run.average=0.98",
    "schedule.warmup=20",
    "sampling.balance=0.6",
    "augmentation.blur=0.8",
)
BEGINNINGS = (
    Beginning("EfficientNet-Lite0, ImageNet's weights", "superalloy-quick", _QUICK, "#3b7dd8"),
    Beginning("EfficientNet-Lite0, from chance", "superalloy-quick", (*_QUICK, 'network.weights=""'), "#d1495b"),
    Beginning("the bundled U-Net, from chance", "superalloy", ("run.steps=400", "schedule.warmup=10"), "#f5a623"),
    Beginning("EfficientNet-Lite0, ImageNet's weights, to 0.90", "superalloy-quick", _LONG, "#2a9d8f"),
    Beginning(
        "the bundled U-Net, from chance, to 0.90",
        "superalloy-quick",
        (*_LONG, "run.steps=800", 'network={architecture="unet",options={widths=[16,32,64,128,192]}}'),
        "#7b4ea3",
    ),
)
_SETTINGS = ("run.validate=10", "run.threads=1", "run.precision=bf16", "run.average=0.9")


class Point(msgspec.Struct, frozen=True):
    """A validation: after how many steps and processor seconds, with which mean IoU."""

    step: int
    seconds: float
    score: float


class Curve(msgspec.Struct, frozen=True):
    """The validations of a training, and the digest of its recipe."""

    recipe: str
    points: list[Point]


class Commands(msgspec.Struct, frozen=True):
    """Wall seconds of two commands on so many cores, and the mean IoU of what they make."""

    train: float
    export: float
    cores: int
    score: float


Curves = dict[tuple[Beginning, int], list[Point]]
"""By what was trained and its seed."""


class Reached(Exception):
    """The highest goal is behind us: nothing more is to be learned here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing; write the page and the picture."""
    parser = make_parser("benchmarks.trained.time_to_score", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="with train and val of the superalloy")
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-score"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="begin no training after (%(default)s)")
    parser.add_argument("--commands", action="store_true", help="time train and export of superalloy-quick")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    until = time.monotonic() + 60 * args.minutes
    args.runs.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.commands:
        (args.runs / COMMANDS).write_bytes(msgspec.json.encode(time_commands(args.data)))
    curves: Curves = {}
    for seed in SEEDS:
        for beginning in BEGINNINGS:
            output, recipe = args.runs / f"{BEGINNINGS.index(beginning)}-{seed}", recipe_of(beginning, seed)
            if not args.commands and time.monotonic() < until:
                learn(recipe, args.data, output)
            if points := read_curve(output, recipe):
                curves[beginning, seed] = points
                picture = args.output.with_suffix(".png")
                args.output.write_text(as_markdown(curves, picture.name, read_commands(args.runs)))
                draw(curves, picture)
    return 0


def time_commands(data: Path) -> Commands:
    """Train and export as a user does, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = Path(folder) / "run", []
        for words in (
            ["train", "superalloy-quick", "--data", data, "-o", run],
            ["export", run / BEST, "-o", Path(folder) / "quick.onnx"],
        ):
            begin = time.monotonic()
            subprocess.run([sys.executable, "-m", "tilelab", *map(str, words)], check=True)
            seconds.append(round(time.monotonic() - begin, 1))
        score = float(load_checkpoint(run / BEST).header.scores["mean_iou"])
        return Commands(*seconds, core_count(), score)


def read_commands(runs: Path) -> Commands | None:
    """What was timed."""
    path = runs / COMMANDS
    return msgspec.json.decode(path.read_bytes(), type=Commands) if path.exists() else None


def recipe_of(beginning: Beginning, seed: int) -> Recipe:
    """One training."""
    return load_recipe(beginning.recipe, [*_SETTINGS, *beginning.changes, f"seed={seed}"])


def read_curve(output: Path, recipe: Recipe) -> list[Point]:
    """The validations so far; none where they are of a training by another recipe."""
    path = output / CURVE
    curve = msgspec.json.decode(path.read_bytes(), type=Curve) if path.exists() else None
    return curve.points if curve is not None and curve.recipe == digest(recipe) else []


def is_finished(points: Sequence[Point], recipe: Recipe) -> bool:
    """Whether the curve ends because there is nothing more to learn."""
    return bool(points) and (points[-1].step >= recipe.run.steps or points[-1].score >= GOALS[-1])


def learn(recipe: Recipe, data: Path, output: Path) -> None:
    """Train to the highest goal or the last step, or go on where a kill left it."""
    points = read_curve(output, recipe)
    if is_finished(points, recipe):
        return
    watch = Stopwatch(output, digest(recipe), points if (output / LAST).exists() else [])
    try:
        train(recipe, data, output, restart=not watch.points, report=watch.report)
    except Reached:
        return


class Stopwatch:
    """Writes a training's curve, with the digest of its recipe; `points` are those before an interruption."""

    def __init__(self, output: Path, recipe: str, points: list[Point]):
        self.output, self.recipe, self.points = output, recipe, points
        self._steps: list[float] = []
        self._last: float | None = None

    def report(self, step: StepReport) -> None:
        """Time a step; after a validation, keep the point and see whether the goal is reached."""
        now = time.process_time()
        if step.scores is None and self._last is not None:
            self._steps.append(now - self._last)
        self._last = now
        if step.scores is None:
            return
        before = [p for p in self.points if p.step < step.step]
        done = step.step - (before[-1].step if before else 0)
        seconds = (before[-1].seconds if before else 0.0) + statistics.median(self._steps) * done
        self.points = [*before, Point(step.step, round(seconds, 2), float(step.scores["mean_iou"]))]
        self._steps = []
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / CURVE).write_bytes(msgspec.json.encode(Curve(self.recipe, self.points)))
        print(f"{self.output.name}: {self.points[-1]}", flush=True)
        if self.points[-1].score >= GOALS[-1]:
            raise Reached


def reached(points: Sequence[Point], goal: float) -> Point | None:
    """The first validation at or above a goal."""
    return next((point for point in points if point.score >= goal), None)


def as_markdown(curves: Curves, picture: str, commands: Commands | None = None) -> str:
    """The page."""

    def cell(points: Sequence[Point], goal: float) -> str:
        point = reached(points, goal)
        return "-" if point is None else f"{point.seconds / 60:.1f} ({point.step})"

    rows = [
        [
            beginning.title,
            str(seed),
            *(cell(points, goal) for goal in GOALS),
            f"{max(p.score for p in points):.3f}",
            f"{points[-1].step} of {recipe_of(beginning, seed).run.steps}",
            f"{points[-1].seconds / points[-1].step:.2f}",
        ]
        for (beginning, seed), points in sorted(curves.items(), key=lambda entry: BEGINNINGS.index(entry[0][0]))
    ]
    timed = (
        []
        if commands is None
        else [
            f"From images to an engine's file, on {commands.cores} cores: `tilelab train superalloy-quick`",
            f"{commands.train:.0f} s, `tilelab export` with its gate {commands.export:.0f} s; mean IoU",
            f"{commands.score:.3f} (measured with priority on a shared machine).",
            "",
        ]
    )
    heads = ["training", "seed", *(f"{goal:.2f}" for goal in GOALS), "best", "steps", "seconds a step"]
    return "\n".join(
        [
            "# Time to a score",
            "",
            "Made by `python -m benchmarks.trained.time_to_score`: processor minutes (and steps) until the mean IoU",
            "on the four validation images of the superalloy first reaches a goal, in bf16 with one thread, validated",
            "every 10 steps, validations not counted. A dash: not within the steps that were trained, of those of the",
            "recipe, over which its rate falls to nothing. Batches of 8 crops of 256 px. What is trained *to 0.90* is",
            "validated every 20 steps and ends there; its batches are of 4, and as in recipe `superalloy-quick` every",
            "micrograph is normalised by its own mean and deviation and changed less in scale and contrast. The other",
            "rows of EfficientNet-Lite0 were measured when depthwise convolutions were still computed in bf16:",
            "a step takes a third less now.",
            "",
            *table(heads, rows),
            *timed,
            f"![curves; dashed: the second seed]({picture})",
            "",
        ]
    )


def draw(curves: Curves, path: Path) -> None:
    """Mean IoU over processor minutes, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (beginning, seed), points in curves.items():
        axes.plot(
            [p.seconds / 60 for p in points],
            [p.score for p in points],
            color=beginning.color,
            linestyle="-" if seed == SEEDS[0] else "--",
            label=beginning.title if seed == SEEDS[0] else None,
        )
    for goal in GOALS:
        axes.axhline(goal, color="#999999", linewidth=0.6, linestyle=":")
    axes.set(xlabel="processor minutes", ylabel="mean IoU, validation", ylim=(0.2, 0.95))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
