"""PmcaNet's ablation in small: attention of the pyramid x fusion of its levels, over several seeds.

    python -m benchmarks.trained.ablation --data DATA/superalloy --runs runs/ablation -o benchmarks/results/ablation.md

Each training is 150 steps of 8 crops of 128 px, so the table shows which variants learn faster rather than which end
higher.  Finished trainings are kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.command import make_parser
from benchmarks.trained.runs import train_once
from tilelab.training.recipe import Recipe, load_recipe

ATTENTIONS = ("laca", "se", "eca")
FUSIONS = ("add", "multiply", "maf")
WITHOUT = ("none", "maf")  # without a pyramid there is nothing to fuse
_SETTINGS = (
    "run.steps=150",
    "run.validate=75",
    "run.average=0.95",
    "run.threads=1",
    "schedule.warmup=15",
    "sampling.crop=128",
    "inference.tile=128",
    "inference.overlap=32",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, and write the table."""
    parser = make_parser("benchmarks.trained.ablation", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="with train and val of the superalloy")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--seeds", default="1,2,3", metavar="A,B", help="(%(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in [int(text) for text in args.seeds.split(",")]:
        for attention, fusion in [*((a, f) for a in ATTENTIONS for f in FUSIONS), WITHOUT]:
            recipe = variant(attention, fusion, seed)
            output = args.runs / f"{attention}-{fusion}-{seed}"
            score = float(train_once(recipe, args.data, output)["mean_iou"])
            print(f"{attention:5} {fusion:9} seed {seed}: {score:.4f}", flush=True)
            found.setdefault((attention, fusion), []).append(score)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(as_markdown(found))
    return 0


def variant(attention: str, fusion: str, seed: int) -> Recipe:
    """The recipe of one training."""
    options = f'depth = 4, width = 32, low_width = 16, attention = "{attention}", fusion = "{fusion}"'
    return load_recipe("superalloy-pmcanet", [*_SETTINGS, f"seed={seed}", f"network.options={{ {options} }}"])


def as_markdown(found: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """Mean and spread of every cell."""

    def cell(attention: str, fusion: str) -> str:
        scores = found[attention, fusion]
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        return f"{statistics.mean(scores):.4f} ± {spread:.4f}"

    rows = [f"| {a.upper()} | {' | '.join(cell(a, f) for f in FUSIONS)} |" for a in ATTENTIONS]
    seeds = len(found[WITHOUT])
    return "\n".join(
        [
            "# PmcaNet: attention and fusion",
            "",
            "Made by `python -m benchmarks.trained.ablation`: mean IoU on the validation images of the superalloy,",
            f"mean and standard deviation over {seeds} seeds, after 150 steps of 8 crops of 128 px (ResNet-18 to its",
            "third stage, decoder 32 wide, low-level features of stride 4). Short trainings: differences below twice",
            "the spread say nothing.",
            "",
            f"| attention | {' | '.join(FUSIONS)} |",
            "|---" * (1 + len(FUSIONS)) + "|",
            *rows,
            "",
            f"Without the pyramid: {cell(*WITHOUT)}.",
            "",
            "CBAM, the bins of the pyramid and the weights of the loss: [compare.md](compare.md).",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
