"""`tilelab plan IMAGE... --model M`: what `infer` would do, before it does it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec
import numpy as np

from tilelab.assumptions import Assumption, check_strict
from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.cli.main import EXIT_DONE, EXIT_INCOMPLETE, EXIT_USAGE
from tilelab.cli.many import name_many
from tilelab.cli.plan_document import PlanDocument, as_text, examine_plan, sum_plans
from tilelab.cli.run_arguments import add_image_and_model, add_run_arguments, options_from_args
from tilelab.cli.screen import say
from tilelab.engines.base import Engine
from tilelab.engines.registry import model_files
from tilelab.errors import InputError, PlanError, TilelabError
from tilelab.geometry import Box
from tilelab.io.images.folders import gather_images
from tilelab.io.images.foreground import find_foreground
from tilelab.io.images.volume import Volume
from tilelab.io.storage.claims import Write, claim
from tilelab.run.autotile import Choice, choose_work
from tilelab.run.idle import idle_flags, refuse_idle
from tilelab.run.intensities import glance
from tilelab.run.kind.suit import look_seconds
from tilelab.run.options import Options, load
from tilelab.run.plan.estimate import calibrate, overhead_seconds, sample_tiles, seconds_per_tile, stored_bytes
from tilelab.run.plan.plan import Plan
from tilelab.spec import ModelSpec

_MOST_TILES = 100_000  # that are looked at for the share of empty ones
_REFUSED = 16  # images that do not suit the model, before one that does: then it is the model


EXAMPLES = (
    "tilelab plan big.tif --model superalloy",
    "tilelab plan micrographs/ --model superalloy              # all of them",
    "tilelab plan big.tif -m superalloy --overview part.png --skip-empty",
    "tilelab plan s3://lab/em.zarr -m net.onnx --workers 64 --speed 5 --price 0.4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_image_and_model(parser)
    add = parser.add_argument
    add("--overview", metavar="FILE.png", help="draw the image, and what --skip-empty leaves out")
    add(
        "--speed",
        type=_positive,
        metavar="MP/s",
        help="of one worker: of a report, or `tilelab bench`\nloads no engine",
    )
    add("--price", type=_positive, metavar="X", help="of one worker for an hour, in any currency")
    add("--no-calibration", action="store_true", help="do not run the engine to estimate the time")
    add_json(parser, "the plan")
    add("--strict", action="store_true", help="refuse to assume anything of image or model")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan, of many images the sums of theirs; a plan over the memory limit is an error."""
    options = options_from_args(args)
    if args.price is not None and args.no_calibration and args.speed is None:
        raise PlanError("--price needs a speed: give --speed, or leave --no-calibration out")
    many = name_many(args.images, None, options)
    if args.overview is not None and many:
        raise PlanError("--overview draws one image: name one")
    claim(
        {"the image": args.images, "the model": model_files(args.model), "--mask": options.mask},
        [Write(args.overview, "--overview", "png"), Write(json_file(args.json), "--json", "json")],
    )
    images, notes = gather_images(args.images, options.stack) if many else (args.images, [])
    failed: dict[str, str] = {}
    choice = _choose(args, options, images, failed)
    if choice is None:
        return _say_many(args, {}, failed, notes)
    with _Planner.of(args, choice) as planner:
        if not many:
            document = planner.examine(images[0])
            if not put_json(args.json, json.dumps(msgspec.to_builtins(document), indent=1)):
                print(as_text(document))
            return EXIT_DONE
        plans: dict[str, PlanDocument] = {}
        for image in images:
            if image in failed:
                continue
            try:
                plans[image] = planner.examine(image)
            except TilelabError as error:
                failed[image] = str(error)
    return _say_many(args, plans, failed, notes)


def _choose(args: argparse.Namespace, options: Options, images: Sequence[str], failed: dict[str, str]) -> Choice | None:
    """The tiles that suit the first image that can be read and suits the model; those before it have `failed`.

    Raises:
        TilelabError: the only one does not, or the model is at fault.
    """
    refused: list[TilelabError] = []
    for image in images:
        try:
            return choose_work(args.model, image, options, say, measure=args.speed is None and not args.no_calibration)
        except TilelabError as error:
            refused += [] if isinstance(error, InputError) else [error]
            if len(images) == 1 or len(refused) in (_REFUSED, len(images)):
                raise (refused or [error])[0] from None
            failed[image] = str(error)
    return None


def _say_many(
    args: argparse.Namespace, plans: dict[str, PlanDocument], failed: dict[str, str], notes: list[str]
) -> int:
    """Print the sums; returns the exit code."""
    totals = sum_plans(plans, failed, notes)
    if not put_json(args.json, json.dumps(msgspec.to_builtins(totals), indent=1)):
        print(totals.as_text())
    return EXIT_DONE if not failed else EXIT_INCOMPLETE if plans else EXIT_USAGE


@dataclass
class _Planner:
    """Plans images for one engine, which is loaded and timed once; a context that closes it."""

    args: argparse.Namespace
    choice: Choice
    engine: Engine | None
    spec: ModelSpec
    load_seconds: float
    seconds: float | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, choice: Choice) -> _Planner:
        """Load the engine, where that was not made needless."""
        from tilelab.engines.registry import read_spec

        options = choice.options
        began = time.perf_counter()
        engine = load(args.model, options) if args.speed is None else None
        load_seconds = time.perf_counter() - began
        spec = read_spec(args.model, options.model) if engine is None else engine.spec
        assert spec is not None  # noqa: S101 - it is only None without overrides
        return cls(args, choice, engine, spec, load_seconds)

    def __enter__(self) -> _Planner:
        return self

    def __exit__(self, *_: object) -> None:
        if self.engine is not None:
            self.engine.close()

    def examine(self, image: str) -> PlanDocument:
        """The plan of one image.

        Raises:
            TilelabError: it cannot be read, or does not fit model and limits.
        """
        from tilelab.run.opening import open_source
        from tilelab.run.prepare import expected_streams, plan_image

        args, options, engine, spec = self.args, self.choice.options, self.engine, self.spec
        with open_source(image, options, spec) as opened:
            volume = Volume(opened.image)
            assumptions = (
                opened.assumptions + (engine.assumptions if engine else ()) + _normalized(volume, spec, options)
            )
            check_strict(assumptions, options.strict)
            streams = engine.streams if engine else expected_streams(options)
            batch, room = (engine.batch, engine.gpu_room) if engine else (options.batch or 1, None)
            plan = plan_image(opened.image, spec, options, batch, streams, room)
            plan = plan if engine is None else plan.on(engine)
            notes = list(opened.notes)
            wanted = self._wanted(volume, plan, notes)
            if engine is not None:
                notes += [*engine.warnings, *idle_flags(options, engine, volume, plan)]
            elif streams > 1:
                notes.append(f"memory is that of {streams} batches at once, one for each core: no engine was loaded")
            per_tile = None if args.speed is None else seconds_per_tile(plan, args.speed)
            if engine is not None and not args.no_calibration:
                if self.seconds is None:
                    self.seconds = calibrate(engine)
                per_tile = self.seconds * plan.request.symmetries
            overhead, workers = 0.0, options.workers or 1
            if per_tile is not None:
                per_tile *= wanted
                if engine is not None:
                    overhead = overhead_seconds(plan, engine, per_tile, self.load_seconds, workers)
                    overhead += look_seconds(opened.image, engine, per_tile)
            return examine_plan(
                plan,
                engine,
                per_tile,
                notes,
                assumptions,
                workers=workers,
                overhead=overhead,
                price=args.price,
                stored=stored_bytes(opened.image),
                samples=sample_tiles(volume, plan),
                candidates=self.choice.candidates,
            )

    def _wanted(self, volume: Volume, plan: Plan, notes: list[str]) -> float:
        """The share of tiles that are not empty; says what is left out, and draws it."""
        foreground = find_foreground(volume) if self.choice.options.skip_empty else None
        if foreground is not None:
            notes.append(str(foreground))
        if self.args.overview is not None:
            from tilelab.io.results.overview import write_left_out

            write_left_out(volume.image, foreground, self.args.overview)
        if foreground is None or not foreground.share:
            return 1.0
        mask, whole = Volume(foreground), Box.whole(volume.shape)
        tiles = (plan.lattice[index].intersect(whole) for index in np.ndindex(*plan.lattice.shape))
        wanted = sum(bool(mask.read(tile).any()) for tile in islice(tiles, _MOST_TILES))
        return wanted / min(len(plan.lattice), _MOST_TILES)


def _normalized(volume: Volume, spec: ModelSpec, options: Options) -> tuple[Assumption, ...]:
    """What has to be assumed of the intensities, as far as that takes no look at the whole image."""
    from tilelab.run.normalize import normalization_constants

    refuse_idle(options, spec)
    if spec.normalization.kind != "constants":
        return ()
    mean, gain, _ = normalization_constants(volume, spec.normalization, spec.channels, options.intensity_range)
    return glance(volume, spec, mean, gain)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value
