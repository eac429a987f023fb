"""Measure tilelab: against the bare engine, against the machine, and against what users would pick instead.

    python -m benchmarks                           the short set: minutes
    python -m benchmarks run --scale full          everything at 9958 x 9959: about an hour
    python -m benchmarks run --scale full --minutes 30 --resume
                                                   go on, for so long: what takes longer is estimated, and said to be
    python -m benchmarks run limits scaling        these only; what was measured before is kept
    python -m benchmarks prepare --scale full      model and images, so that a run has nothing to do but measure
    python -m benchmarks install-peers             the peers, in an environment of their own
    python -m benchmarks page                      draw the page and the plots again
    python -m benchmarks readme                    put the headline table into README.md
    python -m benchmarks guard [--update]          compare ratios with those in the repository
    python -m benchmarks models                    every architecture from training to inference, one table
    python -m benchmarks recipes                   what every recipe does otherwise than its paper

Results lie in a folder of benchmarks/results for each kind of processor, or each scale but full: README.md,
results.json and the plots; benchmarks/results/README.md lists them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench.settings import CACHE, RESULTS, ROOT, SCALES
from benchmarks.command import make_parser
from tilelab.errors import TilelabError

if TYPE_CHECKING:
    from benchmarks.bench.workbench import Workbench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = _parse(sys.argv[1:] if argv is None else list(argv))
    try:
        return _run(args)
    except TilelabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(argv: list[str]) -> argparse.Namespace:
    from benchmarks.registry import SUITE

    parser = make_parser("benchmarks", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    names = "; ".join(f"{name}: {entry.title.lower()}" for name, entry in SUITE.items())
    run = commands.add_parser("run", help="measure", description=f"Measure. {names}.")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(SUITE)} (all)")
    prepare = commands.add_parser("prepare", help="make the model and the images")
    for command in (run, prepare):
        command.add_argument(
            "--scale", choices=tuple(SCALES), default="short", help="how large everything is (%(default)s)"
        )
        command.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="where model and images are kept")
        command.add_argument(
            "--checkpoint", type=Path, metavar="FILE", help="weights of a trained unet:resnet18 (trains some, briefly)"
        )
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="where the page goes (benchmarks/results/PROCESSOR or SCALE)"
    )
    run.add_argument("--minutes", type=float, metavar="N", help="estimate or leave out what would take longer")
    run.add_argument("--resume", action="store_true", help="go on with what an earlier run of this scale has measured")
    run.add_argument(
        "--contenders", default="", metavar="A,B", help="only those whose names begin so, e.g. tilelab,MONAI"
    )
    page = commands.add_parser("page", help="draw the page and the plots again")
    page.add_argument("--out", type=Path, metavar="DIR", help="where results.json is (that of this processor)")
    readme = commands.add_parser("readme", help="put the headline table into README.md")
    readme.add_argument("--out", type=Path, metavar="DIR", help="where results.json is (that of this processor)")
    readme.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    guard = commands.add_parser("guard", help="compare ratios with those in the repository")
    guard.add_argument("--update", action="store_true", help="keep the ratios of this machine instead")
    guard.add_argument("--quick", action="store_true", help="only those that take seconds")
    guard.add_argument("--instructions", action="store_true", help="count instructions instead (with valgrind)")
    models = commands.add_parser("models", help="every architecture from training to inference, one table")
    models.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where models.md goes")
    models.add_argument(
        "--only", default="", metavar="A,B", help="rows whose names begin so; the others stay as they are"
    )
    recipes = commands.add_parser("recipes", help="what every recipe does otherwise than its paper, one table")
    recipes.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where recipes.md goes")
    commands.add_parser("install-peers", help="install what users would pick instead (7 GB)")
    args = parser.parse_args(argv or ["run"])
    if args.command is None:
        parser.error("which command?")
    unknown = sorted(set(getattr(args, "names", ())) - set(SUITE))
    if unknown:
        run.error(f"no benchmark {unknown[0]!r}: choose among {', '.join(SUITE)}")
    return args


def _run(args: argparse.Namespace) -> int:
    if args.command == "run":
        from benchmarks.registry import SUITE
        from benchmarks.suite import run_suite

        out = args.out or (_own_folder() if args.scale == "full" else RESULTS / args.scale)
        ok = run_suite(args.names or list(SUITE), _workbench(args), out, print)
        print(f"{out / 'README.md'}")
        return 0 if ok else 1
    if args.command == "prepare":
        _workbench(args).prepare()
        return 0
    if args.command == "page":
        from benchmarks.suite import draw

        draw(args.out or _own_folder(), print)
    elif args.command == "readme":
        from benchmarks.page.headline import rewrite
        from benchmarks.suite import load_document

        rewrite(args.readme, load_document(args.out or _own_folder()))
    elif args.command == "guard":
        from benchmarks.measure import guard, instructions

        if args.instructions and args.update:
            instructions.update()
        elif args.instructions:
            return 0 if all(one.holds for one in instructions.check()) else 1
        elif args.update:
            guard.update()
        else:
            ratios = guard.check(guard.QUICK if args.quick else None)
            return 0 if all(ratio.holds for ratio in ratios) else 1
    elif args.command == "models":
        from benchmarks.trained.models import write_table

        write_table(args.out / "models.md", only=tuple(filter(None, args.only.split(","))), say=print)
    elif args.command == "recipes":
        from benchmarks.trained import recipes

        recipes.write_table(args.out / "recipes.md")
    else:
        from benchmarks.bench.contenders import install_peers

        install_peers(print)
    return 0


def _own_folder() -> Path:
    """Of the results of this kind of processor."""
    from benchmarks.bench.machine import cpu_kind

    return RESULTS / cpu_kind()


def _workbench(args: argparse.Namespace) -> Workbench:
    from benchmarks.bench.workbench import Workbench

    return Workbench(
        SCALES[args.scale],
        args.cache,
        lambda line: print(f"  {line}", flush=True),
        tuple(getattr(args, "contenders", "").split(",")),
        checkpoint=args.checkpoint,
        minutes=getattr(args, "minutes", None),
        resume=getattr(args, "resume", False),
    )


if __name__ == "__main__":
    sys.exit(main())
