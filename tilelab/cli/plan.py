"""`tilelab plan IMAGE --model M`: what `infer` would do, before it does it."""

from __future__ import annotations

import argparse
import json

import msgspec

from tilelab.assumptions import Assumption, check_strict
from tilelab.cli.plan_document import as_text, examine_plan
from tilelab.cli.run_arguments import add_run_arguments, options_from_args
from tilelab.cli.screen import say
from tilelab.errors import PlanError
from tilelab.io.images.volume import Volume
from tilelab.run.idle import idle_flags, refuse_idle
from tilelab.run.intensities import glance
from tilelab.run.options import Options, load
from tilelab.run.plan.estimate import calibrate, sample_tiles, seconds_per_tile, stored_bytes
from tilelab.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("--no-calibration", action="store_true", help="do not run the engine to estimate the time")
    parser.add_argument(
        "--speed", type=_positive, metavar="MP/s", help="of one worker, as a report or `bench` says; loads no engine"
    )
    parser.add_argument("--price", type=_positive, metavar="X", help="of one worker for an hour, in any currency")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan; a plan over the memory limit is an error."""
    from tilelab.engines.registry import read_spec
    from tilelab.run.autotile import choose_tile
    from tilelab.run.opening import open_source
    from tilelab.run.prepare import expected_streams, plan_image

    options = options_from_args(args)
    (args.image,) = args.images
    if args.price is not None and args.no_calibration and args.speed is None:
        raise PlanError("--price needs a speed: give --speed, or leave --no-calibration out")
    if options.auto_tile:
        options = choose_tile(args.model, args.image, options, say)
    engine = load(args.model, options) if args.speed is None else None
    spec = read_spec(args.model, options.model) if engine is None else engine.spec
    assert spec is not None  # noqa: S101 - it is only None without overrides
    with open_source(args.image, options, spec) as opened:
        volume = Volume(opened.image)
        assumptions = opened.assumptions + (engine.assumptions if engine else ()) + _normalized(volume, spec, options)
        check_strict(assumptions, options.strict)
        streams = engine.streams if engine else expected_streams(options)
        plan = plan_image(
            opened.image,
            spec,
            options,
            engine.batch if engine else options.batch or 1,
            streams,
            engine.gpu_room if engine else None,
        )
        notes = list(opened.notes)
        if engine is not None:
            notes += [*engine.warnings, *idle_flags(options, engine, volume, plan)]
        if engine is None and streams > 1:
            notes.append(f"memory is that of {streams} batches at once, one for each core: no engine was loaded")
        per_tile = None if args.speed is None else seconds_per_tile(plan, args.speed)
        if engine is not None:
            if not args.no_calibration:
                per_tile = calibrate(engine) * plan.request.symmetries
            engine.close()
        document = examine_plan(
            plan,
            engine,
            per_tile,
            notes,
            assumptions,
            workers=options.workers or 1,
            price=args.price,
            stored=stored_bytes(opened.image),
            samples=sample_tiles(volume, plan),
        )
    print(json.dumps(msgspec.to_builtins(document), indent=1) if args.json else as_text(document))
    return 0


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
