"""PmcaNet against the networks that its paper compares it with, and what its parts are worth: on equal budgets.

    python -m benchmarks.trained.compare --data DATA --runs runs/compare -o benchmarks/results/compare.md --minutes 30

DATA holds ``superalloy`` and ``membrane``, each with train and val.  Every training has the same crops, steps, loss and
rate.  Finished trainings are kept: the same command goes on where it was stopped, and ends by itself after so many
minutes; the page shows what there is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from benchmarks.command import make_parser
from benchmarks.page.markdown import table
from benchmarks.trained.runs import is_trained, train_once
from tilelab.models.build import count_parameters, initialise
from tilelab.training.recipe import Recipe, load_recipe

SETS = {"superalloy": "superalloy-pmcanet", "membrane": "membrane"}
"""Folder of the data, and the recipe whose classes, augmentation and normalisation are taken."""
SMALL = "depth = 4, width = 32, low_width = 16, low_stride = 2"


@dataclass(frozen=True)
class Variant:
    """A network, by the name that the page gives it; `loss` weighs cross-entropy and Dice."""

    title: str
    architecture: str
    options: str = ""
    loss: tuple[float, float] = (1.0, 1.0)


NETWORKS = (
    Variant("PmcaNet", "pmcanet:resnet18", SMALL),
    Variant("U-Net", "unet:resnet18"),
    Variant("DeepLabV3+", "deeplabv3+:resnet18"),
    Variant("PSPNet", "pspnet:resnet18"),
    Variant("PIDNet-S", "pidnet"),
)
ABLATIONS = (
    Variant("CBAM in place of LACA", "pmcanet:resnet18", SMALL + ', attention = "cbam"'),
    Variant("bin 1", "pmcanet:resnet18", SMALL + ", bins = [1]"),
    Variant("bins 1, 2", "pmcanet:resnet18", SMALL + ", bins = [1, 2]"),
    Variant("bins 1, 2, 3", "pmcanet:resnet18", SMALL + ", bins = [1, 2, 3]"),
    Variant("cross-entropy alone", "pmcanet:resnet18", SMALL, (1.0, 0.0)),
    Variant("Dice alone", "pmcanet:resnet18", SMALL, (0.0, 1.0)),
    Variant("1 cross-entropy + 0.5 Dice", "pmcanet:resnet18", SMALL, (1.0, 0.5)),
    Variant("0.5 cross-entropy + 1 Dice", "pmcanet:resnet18", SMALL, (0.5, 1.0)),
)
SEEDS = (1, 2, 3)
_SETTINGS = (
    "run.steps=150",
    "run.validate=150",
    "run.average=0.95",
    "run.threads=1",
    "run.precision=bf16",
    "optimizer.kind=adamw",
    "optimizer.rate=2e-3",
    "schedule.warmup=15",
    "sampling.crop=128",
    "sampling.batch=8",
    "sampling.balance=0.5",
    "inference.tile=128",
    "inference.overlap=32",
)

Found = Mapping[tuple[str, str], Mapping[int, tuple[float, float]]]
"""Mean IoU and pixel accuracy of every finished seed, by data set and title."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, and write the page."""
    parser = make_parser("benchmarks.trained.compare", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"with {' and '.join(SETS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="begin no training after (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    until = time.monotonic() + 60 * args.minutes
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for data, chosen, seed in wanted():
        recipe, output = variant(data, chosen, seed), args.runs / data / _folder(chosen) / str(seed)
        if time.monotonic() > until and not is_trained(output, recipe):
            continue
        scores = train_once(recipe, args.data / data, output)
        print(f"{data:10} {chosen.title:28} seed {seed}: {scores['mean_iou']:.4f}", flush=True)
        pair = (float(scores["mean_iou"]), float(scores["pixel_accuracy"]))
        found.setdefault((data, chosen.title), {})[seed] = pair
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(as_markdown(found))
    return 0


def wanted() -> Iterator[tuple[str, Variant, int]]:
    """Every training, seed by seed, so that whatever was stopped compares what can be compared."""
    for seed in SEEDS:
        for data in SETS:
            for chosen in NETWORKS:
                yield data, chosen, seed
    for seed in SEEDS:
        for chosen in ABLATIONS:
            yield "superalloy", chosen, seed


def variant(data: str, chosen: Variant, seed: int) -> Recipe:
    """The recipe of one training."""
    recipe = load_recipe(
        SETS[data],
        [
            *_SETTINGS,
            f"seed={seed}",
            f"network.architecture={chosen.architecture}",
            f"network.options={{ {chosen.options} }}",
        ],
    )
    terms = [msgspec.structs.replace(t, weight=w) for t, w in zip(recipe.loss, chosen.loss, strict=True) if w]
    return msgspec.structs.replace(recipe, loss=tuple(terms))


def _folder(chosen: Variant) -> str:
    return "".join(c if c.isalnum() else "-" for c in chosen.title.lower())


def _parameters(chosen: Variant) -> str:
    recipe = variant("superalloy", chosen, 1)
    with torch.device("meta"):
        network = initialise(1, chosen.architecture, 1, recipe.outputs, **recipe.network.options)
    return f"{count_parameters(network) / 1e6:.2f}"


def as_markdown(found: Found) -> str:
    """The page: mean and range of every cell, and what each differs by from PmcaNet on the same seeds."""

    def score(data: str, title: str, which: int) -> str:
        return _range([pair[which] for pair in found.get((data, title), {}).values()], ".4f")

    def apart(data: str, title: str) -> str:
        own, known = found.get((data, NETWORKS[0].title), {}), found.get((data, title), {})
        differences = [known[seed][0] - own[seed][0] for seed in known if seed in own]
        return "" if title == NETWORKS[0].title else _range(differences, "+.4f")

    rows = [
        [v.title, _parameters(v)]
        + [cell for d in SETS for cell in (score(d, v.title, 0), apart(d, v.title), score(d, v.title, 1))]
        for v in NETWORKS
    ]
    whole = NETWORKS[0].title
    parts = [["as above (LACA, bins 1, 2, 3, 6, 1 + 1)", score("superalloy", whole, 0), ""]]
    parts += [[v.title, score("superalloy", v.title, 0), apart("superalloy", v.title)] for v in ABLATIONS]
    beside = f"beside {whole}, seed by seed"
    heads = [head for data in SETS for head in (f"{data}: mean IoU", beside, f"{data}: accuracy")]
    return "\n".join(
        [
            "# PmcaNet beside others, on equal budgets",
            "",
            "Made by `python -m benchmarks.trained.compare`: scores on the validation images, mean and range over",
            f"{len(SEEDS)} seeds (or as many as the brackets say), after 150 steps of 8 crops of 128 px, AdamW at",
            "2e-3, cross-entropy + Dice, all from scratch; encoders are ResNet-18. Of one seed all see the same crops,",
            "so that *seed by seed* tells more than ranges. Small trainings: they show what learns quickly, not the",
            "paper's table; a difference that not every seed has says nothing, and one of a single seed little.",
            "",
            *table(["network", "parameters, M", *heads], rows),
            "What was left out of [the ablation](ablation.md), on the superalloy:",
            "",
            *table(["PmcaNet", "mean IoU", "beside it, seed by seed"], parts),
        ]
    )


def _range(values: Sequence[float], shape: str) -> str:
    """Mean, smallest and largest, and how many there are where that is not all."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:{shape}} (one seed)"
    few = f", {len(values)} seeds" if len(values) < len(SEEDS) else ""
    return f"{statistics.mean(values):{shape}} ({min(values):{shape}} to {max(values):{shape}}{few})"


if __name__ == "__main__":
    raise SystemExit(main())
