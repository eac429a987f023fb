"""Train recipes on data sets, and collect what finished trainings score: tables, numbers and pictures.

    python -m benchmarks.trained.results train superalloy=superalloy --data DATA --runs RUNS --seeds 1,2
    python -m benchmarks.trained.results collect RUNS --data DATA -o benchmarks/results/accuracy.md

A job is RECIPE=SET: a recipe, and the folder in DATA that its paths are relative to.  Each training has a folder in
RUNS; one that was interrupted goes on, a finished one is left as it is.  `collect` takes every folder in RUNS that
holds a best.safetensors, infers the images it was validated on (or, with --split test, SET/test/images) by the sweep of
`tilelab infer`, in fp32, and scores the stitched labels as `tilelab eval` does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.bench.machine import commit, describe_machine
from benchmarks.command import make_parser
from benchmarks.trained.results_page import draw_example, to_markdown
from tilelab.errors import InputError, TilelabError
from tilelab.evaluation import Evaluation, Pair, evaluate
from tilelab.evaluation.report import to_json
from tilelab.evaluation.scoring import Question
from tilelab.geometry import Box
from tilelab.run.infer import infer
from tilelab.run.options import Options
from tilelab.training.checkpoint import load_checkpoint, load_network
from tilelab.training.engine import TorchEngine
from tilelab.training.log import BEST, LAST
from tilelab.training.loop import StepReport
from tilelab.training.pairs import MaskedPlane, open_pairs
from tilelab.training.recipe import IGNORE, Data, Recipe, load_recipe
from tilelab.training.segmentation import train

RECORD = "run.json"


@dataclass(frozen=True)
class ScoredRun:
    """What one training gave: a record for the table and the JSON, its evaluation, and where its results lie."""

    record: dict[str, Any]
    evaluation: Evaluation
    folder: Path


UNSHOWN = ("membrane",)
"""Data sets whose terms do not let their micrographs be passed on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = make_parser("benchmarks.trained.results", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    trains = commands.add_parser("train", help="train jobs one after the other")
    trains.add_argument("jobs", nargs="+", metavar="RECIPE=SET")
    trains.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="(%(default)s)")
    trains.add_argument("--seeds", default="1", metavar="A,B", help="a training for each (%(default)s)")
    trains.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    trains.add_argument("--name", default="", help="of the run, instead of the recipe's")
    collects = commands.add_parser("collect", help="score finished trainings")
    collects.add_argument("runs", type=Path, metavar="RUNS")
    collects.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md",
                          help="the page; FILE.json and pictures go beside it")  # fmt: skip
    collects.add_argument("--split", default="", help="folder of each set to score instead of what was validated on")
    collects.add_argument("--set-of", action="append", default=[], metavar="RUN=SET", help="which data set a run was "
                          "trained on, where its folder does not say")  # fmt: skip
    collects.add_argument("--lines", default="membrane", metavar="CLASS", help="class whose lines enclose regions: "
                          "models that have it get V_rand and V_info (%(default)s)")  # fmt: skip
    collects.add_argument("--add", action="store_true", help="runs of other names stay on the page")
    collects.add_argument("--no-pictures", action="store_true")
    for command in (trains, collects):
        command.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words)
    try:
        if args.command == "train":
            return _train(args, words)
        return _collect(args)
    except TilelabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(args: argparse.Namespace, words: Sequence[str]) -> int:
    for job in args.jobs:
        recipe_name, equals, dataset = job.partition("=")
        root = args.data / dataset
        if not equals or not root.is_dir():
            raise InputError(f"job {job!r} is not RECIPE=SET with a folder SET in {args.data}")
        for seed in args.seeds.split(","):
            recipe = load_recipe(recipe_name, [f"seed={int(seed)}", *args.overrides])
            output = args.runs / f"{args.name or recipe.name}-seed{seed}"
            print(f"{job} with seed {seed} -> {output}", flush=True)
            record: dict[str, Any] = {
                "dataset": dataset,
                "command": shlex.join(["python", "-m", "benchmarks.trained.results", *words]),
                "commit": commit(),
                "machine": describe_machine(),
            }
            run_job(recipe, root, output, record)
    return 0


def run_job(recipe: Recipe, root: Path, output: Path, record: dict[str, Any]) -> None:
    """Train, and keep `record` with the seconds that it took beside the checkpoints; resumed ones add up."""
    path = output / RECORD
    kept = json.loads(path.read_text()) if path.exists() else {}
    before, began = float(kept.get("seconds", 0.0)), time.perf_counter()

    def report(progress: StepReport) -> None:
        if progress.scores is not None:
            seconds = round(before + time.perf_counter() - began, 1)
            path.write_text(json.dumps(record | {"seconds": seconds}, indent=1) + "\n")
            print(f"  step {progress.step}/{progress.steps}  {progress.summary}", flush=True)

    train(recipe, root, output, report=report, note=print)


def _collect(args: argparse.Namespace) -> int:
    chosen = dict(entry.split("=", 1) for entry in args.set_of if "=" in entry)
    folders = sorted(path.parent for path in args.runs.rglob(BEST))
    if not folders:
        raise InputError(f"no {BEST} in any folder of {args.runs}")
    results: list[ScoredRun] = []
    with tempfile.TemporaryDirectory(prefix="tilelab-results-") as scratch:
        for folder in folders:
            name = str(folder.relative_to(args.runs)) if folder != args.runs else folder.name
            print(name, flush=True)
            result = score_run(
                folder,
                name,
                Path(scratch) / name,
                data=args.data,
                dataset=chosen.get(name, ""),
                split=args.split,
                lines=args.lines,
            )
            results.append(result)
            print(f"  mean IoU {result.record['mean_iou']:.4f}", flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        pictures = {} if args.no_pictures else draw_best(results, args.output)
    command = shlex.join(["python", "-m", "benchmarks.trained.results", "collect", "RUNS", "--data", "DATA",
                          *(["--split", args.split] if args.split else [])])  # fmt: skip
    records = [result.record for result in results]
    if args.add:
        names = {record["run"] for record in records}
        kept = args.output.with_suffix(".json")
        records += [old for old in (json.loads(kept.read_text()) if kept.exists() else []) if old["run"] not in names]
        drawn = {
            record["dataset"]: args.output.with_name(f"{args.output.stem}-{record['dataset']}.png")
            for record in records
        }
        pictures = {data: file.name for data, file in drawn.items() if file.exists()} | pictures
    args.output.write_text(to_markdown(records, pictures, command))
    args.output.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")
    print(args.output)
    return 0


def score_run(
    folder: Path, name: str, place: Path, *, data: Path, dataset: str = "", split: str = "", lines: str = ""
) -> ScoredRun:
    """Infer and score what a run's best checkpoint was validated on, or `split` of its data set.

    Args:
        folder: of the run.
        name: of the run.
        place: a new folder for what is inferred.
        data: folder of the data sets.
        dataset: which of them; told by the run where empty.
        split: folder in the data set to score; what was validated on where empty.
        lines: class whose lines enclose regions, if the model has it.

    Raises:
        InputError: the data set cannot be told, or its images cannot be read.
    """
    checkpoint = load_checkpoint(folder / BEST)
    recipe, header = checkpoint.header.recipe, checkpoint.header
    kept = json.loads((folder / RECORD).read_text()) if (folder / RECORD).exists() else {}
    if not (dataset := dataset or kept.get("dataset", "")):
        dataset = find_set(recipe.name, sorted(path.name for path in data.iterdir() if path.is_dir()))
    wanted = recipe.validation
    if split:
        wanted = Data(f"{split}/images", f"{split}/masks", recipe.validation.labels)
    pairs = open_pairs(wanted, data / dataset, len(recipe.classes))
    digest = hashlib.sha256((folder / BEST).read_bytes()).hexdigest()
    engine = TorchEngine(load_network(checkpoint), header.spec, model_digest=digest)
    began = time.perf_counter()
    found = infer_pairs(pairs, engine, place)
    seconds = time.perf_counter() - began
    names = [info.name for info in recipe.classes]
    evaluation = evaluate(found, Question(ignore=IGNORE, surfaces=True, lines=lines if lines in names else None))
    record = {
        "run": name,
        "dataset": dataset,
        "split": split or "validation",
        **_describe_recipe(recipe),
        "training_images": len(open_pairs(recipe.train, data / dataset, len(recipe.classes))),
        "parameters": header.spec.training.get("parameters"),
        "seed": recipe.seed,
        "steps": recipe.run.steps,
        "best_step": header.step,
        "training_seconds": kept.get("seconds") or seconds_of(folder),
        "images": len(pairs),
        "inference_seconds": round(seconds, 2),
        **_scores(evaluation),
        "mean_iou_while_training": None if split else header.scores.get("mean_iou"),
        "ended": load_checkpoint(folder / LAST).header.ended if (folder / LAST).exists() else None,
        "torch": str(torch.__version__),
        **{key: kept[key] for key in ("command", "commit", "machine") if key in kept},
    }
    return ScoredRun(record, evaluation, place)


def infer_pairs(pairs: Sequence[MaskedPlane], engine: TorchEngine, place: Path) -> list[Pair]:
    """Infer every image as `tilelab infer` does; what is to be compared lies in `place` then."""
    place.mkdir(parents=True)
    found = []
    for number, pair in enumerate(pairs):
        result, truth = place / f"{number}.ome.zarr", place / f"{number}.truth.npy"
        infer(pair.image, engine, result, options=Options(ignore_pixel_size=True))
        np.save(truth, pair.mask.read(Box.whole(pair.shape)))
        image = place / f"{number}.image.npy"
        np.save(image, pair.image[...])
        found.append(Pair(pair.name, result, truth, image))
    return found


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a run is an instance of; `same` is shared by runs that differ by their seed alone."""
    experiment = {key: value for key, value in msgspec.to_builtins(recipe).items() if key != "seed"}
    return {
        "recipe": recipe.name,
        "same": hashlib.sha256(msgspec.json.encode(experiment, order="sorted")).hexdigest()[:12],
        "architecture": recipe.network.architecture,
        "options": recipe.network.options,
        "weights": Path(recipe.network.weights).name,
    }


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    scores = json.loads(to_json(evaluation))["all"]
    return {
        **{key: scores[key] for key in ("pixel_accuracy", "mean_iou", "iou", "precision", "recall", "f1")},
        **{key: scores[key] for key in ("foreground_f1", "mean_dice", "assd_px")},
        "image_mean_iou": evaluation.image_mean_iou,
        "isbi": scores.get("isbi"),
    }


def find_set(recipe: str, sets: Sequence[str]) -> str:
    """The data set that a recipe's name begins with.

    Raises:
        InputError: there is none.
    """
    fitting = [name for name in sets if recipe == name or recipe.startswith(f"{name}-")]
    if not fitting:
        raise InputError(f"which data set is {recipe} for? say so with --set-of RUN=SET, one of {', '.join(sets)}")
    return max(fitting, key=len)


def seconds_of(folder: Path) -> float | None:
    """How long a training took, from the names and times of its TensorBoard files; None where there are none."""
    seconds = 0.0
    for path in folder.glob("tensorboard/events.out.tfevents.*"):
        began = path.name.split(".")[3]
        if began.isdigit():
            seconds += max(0.0, path.stat().st_mtime - int(began))
    return round(seconds, 1) or None


def draw_best(results: Sequence[ScoredRun], page: Path) -> dict[str, str]:
    """A picture of the best run of each data set that may be shown; returns their names by data set."""
    best: dict[str, ScoredRun] = {}
    for result in results:
        dataset = result.record["dataset"]
        if dataset in UNSHOWN:
            continue
        if dataset not in best or result.record["mean_iou"] > best[dataset].record["mean_iou"]:
            best[dataset] = result
    names = {}
    for dataset, result in best.items():
        # neither its best image nor its worst
        middle = sorted(result.evaluation.pairs, key=lambda pair: pair.scores.mean_iou)[
            len(result.evaluation.pairs) // 2
        ]
        file = page.with_name(f"{page.stem}-{dataset}.png")
        caption = f"{result.record['run']}: {middle.pair.name}, mean IoU {middle.scores.mean_iou:.3f}"
        draw_example(middle.pair, result.evaluation.classes, file, caption, ignore=IGNORE)
        names[dataset] = file.name
    return names


if __name__ == "__main__":
    sys.exit(main())
