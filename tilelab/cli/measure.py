"""`tilelab measure RESULT`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.assumptions import check_strict
from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.cli.main import EXIT_DONE, EXIT_INCOMPLETE
from tilelab.cli.pace import follow
from tilelab.cli.run_arguments import AXES_HELP, PIXEL_SIZE_HELP, SERIES_HELP, parse_count, parse_sizes
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.errors import InputError, OutputError
from tilelab.io.storage.claims import Write, claim
from tilelab.text import counted

if TYPE_CHECKING:
    from tilelab.measure.reading import Question
    from tilelab.measure.report import Summary
    from tilelab.measure.survey import Survey


EXAMPLES = (
    "tilelab measure big.superalloy.ome.zarr -o objects.csv --pictures look/",
    "tilelab measure cells.ome.zarr --class cell --min-size 200nm2 --image em.tif",
    "tilelab measure axons.ome.zarr --fibres axon,myelin -o fibres.csv",
    "tilelab measure coating.ome.zarr --layer oxide,crack --json",
    "tilelab measure cells.ome.zarr --plan                 # time, memory, bytes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.epilog = "Of several label images the exit code is 4 when some cannot be read; they are named and left out."
    add = parser.add_argument
    add("result", metavar="RESULT", help="a result of infer, a label image, a folder of them")
    add("-o", "--output", metavar="TABLE", help="the objects, one a row: NAME.csv, NAME.parquet\nParquet takes the "
        "extra [tables]")  # fmt: skip
    add("--objects", metavar="OUT", help="their numbers as an image: NAME.ome.zarr, ...\nNAME.ome.tif, "
        "NAME.precomputed; of many a folder")  # fmt: skip
    add("--geojson", metavar="FILE", help="their outlines as polygons, for QuPath\nof many a folder")
    add("--image", metavar="IMAGE", help="the micrograph: intensities under the objects\nor a folder of them")
    add("--pictures", metavar="DIR", help="draw how sizes, shapes and distances spread")
    add("--plan", action="store_true", help="say what it will take, and measure a few pieces alone")
    add_json(parser, "all but the objects, or the plan")
    add("--pixel-size", type=parse_sizes, metavar="NM", help=PIXEL_SIZE_HELP)
    add("--strict", action="store_true", help="refuse to assume anything, as the pixel size")
    add("--overwrite", action="store_true", help="replace what --objects names if it exists")
    add = parser.add_argument_group("what an object is").add_argument
    add(
        "--class", dest="only", action="append", default=[], metavar="NAME", help="objects of this class alone (repeat)"
    )
    add("--min-size", default="0", metavar="SIZE", help="smaller ones are none: 50px, 200nm2, 0.5um2")
    add("--fill-holes", action="store_true", help="holes of objects belong to them")
    add("--connectivity", type=int, default=1, metavar="N", help="pixels touch by faces (1), edges (2), corners "
        "(3)\n2: also diagonally in a plane")  # fmt: skip
    add("--part", type=float, nargs="?", const=1.0, metavar="PX", help="part touching ones at necks (of PX pixels or "
        "more)\nalong the watershed of the distance; PX is 1 where it is not given")  # fmt: skip
    add("--cells", metavar="CLASS", help="objects are what the walls of CLASS enclose\nwith --part: gaps close")
    add("--votes", metavar="HEAT,OFFSETS", help="by centres and offsets in maps of RESULT (MitoNet)")
    add("--affinities", metavar="MAP=Y,X", type=_pairs,
        help="by the mutex watershed of pairs of pixels\na map of RESULT: 'aff=0,1;1,0;0,9;9,0'")  # fmt: skip
    add("--numbered", action="store_true", help="values of RESULT are objects already")
    add = parser.add_argument_group("more than objects").add_argument
    add("--fibres", metavar="AXON,SHEATH", help="g-ratio and sheath of every axon: two classes")
    add("--layer", metavar="A,B,...", help="thickness of the layer of these classes\nan oxide and its cracks")
    add("--layer-profile", metavar="FILE", help="write its thickness along its way, as CSV")
    add("--opening", type=int, default=0, metavar="N", help="open it by a square of 2N + 1 pixels first")
    add = parser.add_argument_group("how it is read").add_argument
    add("--classes", metavar="A,B,...", help="class names, background first, where unknown")
    add("--label-map", metavar="MAP", help="classes of stored values: 255:1 or '#0000ff:1'\nas --truth-map of `tilelab "
        "eval`")  # fmt: skip
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--series", metavar="N", help=SERIES_HELP)
    add("--image-axes", metavar="LETTERS", help="as --axes, of IMAGE")
    add("--image-series", metavar="N", help="which of several images in IMAGE")
    add(
        "--workers",
        type=parse_count,
        metavar="N",
        help="processes that share the reading\nwith --scheduler: wait for N",
    )
    add("--scheduler", metavar="ADDRESS", help="a Dask scheduler whose workers do it\ne.g. tcp://10.0.0.1:8786")
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Measure areas and objects."""
    from tilelab.evaluation.label_map import LabelMap
    from tilelab.kernels.jit import tell_compiling
    from tilelab.measure.reading import Question
    from tilelab.measure.report import Summary
    from tilelab.measure.table import check_table, write_table

    question = Question(
        connectivity=args.connectivity,
        min_size=args.min_size,
        only=tuple(args.only),
        cells=args.cells,
        fill_holes=args.fill_holes,
        part=args.part,
        votes=_two(args.votes, "--votes", "the heat map of the centres and the offsets"),
        affinities=args.affinities,
        numbered=args.numbered,
        classes=_names(args.classes),
        layer=_names(args.layer),
        opening=args.opening,
        fibres=_two(args.fibres, "--fibres", "the class of the axons and that of the sheaths"),
        pixel_size_nm=args.pixel_size,
        label_map=LabelMap.parse(args.label_map) if args.label_map else None,
        axes=args.axes,
        series=args.series,
        image_axes=args.image_axes,
        image_series=args.image_series,
        allow_outside=args.allow_outside,
    )
    labels, images = _files(args)
    _claim(args, labels)
    for table in (args.output, args.layer_profile):
        if table is not None:
            check_table(Path(table))
    if args.layer_profile is not None and args.layer is None:
        raise InputError("--layer-profile was given: say which classes form the layer with --layer")
    if args.opening < 0:
        raise InputError(f"--opening {args.opening} was given: 0 or more pixels")
    if args.plan:
        return _plan(labels, images, question, args)
    summary = Summary()
    failed: dict[str, str] = {}
    with tell_compiling(say), _client(args) as client:
        rows = _measure_all(labels, images, question, args, client, summary, failed)
        if args.output is not None:
            write_table(Path(args.output), rows)
        else:
            for _ in rows:
                pass
    if args.layer_profile is not None:
        write_table(Path(args.layer_profile), summary.profiles())
    if not put_json(args.json, summary.to_json()):
        print(summary.markdown(), end="")
    if args.pictures is not None:
        from tilelab.measure.pictures import draw_distributions

        for picture in draw_distributions(summary, Path(args.pictures)):
            print(picture, file=sys.stderr)
    for name, why in failed.items():
        say(f"failed: {name}: {why}")
    return EXIT_INCOMPLETE if failed else EXIT_DONE


def _plan(labels: dict[str, Path], images: dict[str, Any], question: Question, args: argparse.Namespace) -> int:
    """Say what measuring each will take."""
    from tilelab.cli.measure_plan import as_json, as_text
    from tilelab.kernels.jit import tell_compiling
    from tilelab.measure.forecast import foresee

    wanted = {"numbers": args.objects is not None, "outlines": args.geojson is not None}
    with tell_compiling(say):
        plans = {name: foresee(path, question, image=images.get(name), **wanted) for name, path in labels.items()}
    for plan in plans.values():
        check_strict(plan.assumptions, args.strict)
    if not put_json(args.json, as_json(plans)):
        print("\n\n".join((f"{name}\n" if len(plans) > 1 else "") + as_text(plan) for name, plan in plans.items()))
    return EXIT_DONE


def _measure_all(
    labels: dict[str, Path],
    images: dict[str, Any],
    question: Question,
    args: argparse.Namespace,
    client: Any,
    summary: Summary,
    failed: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """The rows of every label image on their way to table and summary; of several, one that cannot be read fails alone.

    Raises:
        InputError: none of them can be read.
    """
    from tilelab.measure.survey import measure

    said: set[str] = set()
    for name, path in labels.items():
        chosen = {"image": images.get(name), "progress": follow("measuring"), "client": client}
        try:
            survey = measure(path, question, **chosen)
        except InputError as error:
            failed[name] = str(error)
            if len(failed) == len(labels):
                raise
            continue
        with closing(survey):
            try:
                summary.check(survey)
            except InputError as error:
                failed[name] = str(error)
                continue
            check_strict(survey.assumptions, args.strict)
            for line in map(str, survey.assumptions):
                if line not in said:
                    say(line)
                said.add(line)
            yield from summary.rows(survey)
            if args.objects is not None:
                _write_objects(survey, _path_of(args.objects, name, ".ome.zarr", len(labels) > 1), args.overwrite)
            if args.geojson is not None:
                _write_outlines(survey, _path_of(args.geojson, name, ".geojson", len(labels) > 1))


@contextmanager
def _client(args: argparse.Namespace) -> Iterator[Any]:
    """A Dask client where workers were asked for."""
    if args.scheduler is None and (args.workers or 1) == 1:
        yield None
        return
    from tilelab.run.cluster.start import start_client
    from tilelab.run.options import Options

    options = Options(workers=args.workers or 1, scheduler=args.scheduler, device="cpu")
    with start_client(options) as (client, _):
        yield client


def _pairs(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A map and the offsets of its channels, for argparse."""
    name, _, rest = text.partition("=")
    try:
        found = [tuple(int(number) for number in pair.split(",")) for pair in rest.split(";")]
        return name, tuple((y, x) for y, x in found)
    except ValueError:
        message = f"{text!r} is not MAP=Y,X;Y,X;...: an offset for each channel of the map"
        raise argparse.ArgumentTypeError(message) from None


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _two(text: str | None, flag: str, what: str) -> tuple[str, str] | None:
    """The two names of a flag.

    Raises:
        InputError: they are not two.
    """
    names = _names(text)
    if names and len(names) != 2:
        raise InputError(f"{flag} {text}: name two, {what}")
    return (names[0], names[1]) if names else None


def _files(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, Any]]:
    """The label images by name, and the micrographs that belong to them."""
    from tilelab.evaluation.pairs import is_file, list_files, match_names, name_of

    result = Path(args.result)
    labels = {name_of(result): result} if is_file(result) else list_files(result)
    if args.image is None:
        return labels, {}
    image = Path(args.image)
    if is_file(image):
        if len(labels) > 1:
            raise InputError(f"{result} holds {len(labels)} label images, --image {image} is one: give a folder")
        return labels, dict.fromkeys(labels, image)
    images = match_names(set(labels), list_files(image), results=True)
    if lacking := sorted(set(labels) - set(images)):
        raise InputError(f"{image} has no image of {lacking[0]} ({len(lacking)} lack theirs)")
    return labels, dict(images)


def _path_of(wanted: str, name: str, suffix: str, many: bool) -> Path:
    return Path(wanted) / f"{name}{suffix}" if many else Path(wanted)


def _write_objects(survey: Survey, path: Path, overwrite: bool) -> None:
    """The second pass: every object painted with its number."""
    from tilelab.io.convert import convert_image

    path.parent.mkdir(parents=True, exist_ok=True)
    done = convert_image(survey.objects_image(), path, labels=True, overwrite=overwrite)
    objects = counted(survey.objects.count, "object")
    say(f"{path}: {objects}, {done['dtype']}, {done['levels']} levels, {done['seconds']:.1f} s")


def _write_outlines(survey: Survey, path: Path) -> None:
    """Another pass: the outline of every object."""
    from tilelab.measure.outlines import write_geojson

    path.parent.mkdir(parents=True, exist_ok=True)
    part = "" if survey.labels.result is None else survey.labels.result.info.metadata.get("region", "")
    where = f", counted from the first pixel of {survey.path}, which is the region {part} of its image" if part else ""
    say(f"{path}: {write_geojson(survey, path):,} polygons{where}")


def _claim(args: argparse.Namespace, names: Collection[str]) -> None:
    """Refuse what could not be written, or would overwrite what is measured, before anything is read.

    Raises:
        OutputError: it names both.
    """
    many, objects = len(names) > 1, None if args.objects is None else str(args.objects)
    if objects is not None and not many and not objects.lower().endswith((".zarr", ".tif", ".tiff", ".precomputed")):
        raise OutputError(
            f"--objects {objects} is of no kind that can be written: name it NAME.ome.zarr, .ome.tif or .precomputed"
        )
    claim(
        {"RESULT": args.result, "--image": args.image},
        [
            Write(args.output, "-o", "text" if str(args.output).lower().endswith(".csv") else "any"),
            Write(objects, "--objects", "into" if many else "folder"),
            Write(args.layer_profile, "--layer-profile", "text"),
            Write(args.geojson, "--geojson", "into" if many else "json"),
            Write(json_file(args.json), "--json", "json"),
            Write(args.pictures, "--pictures", "into"),
        ],
    )
    if objects is None or args.overwrite or args.plan:
        return
    for path in (_path_of(objects, name, ".ome.zarr", many) for name in names):
        if os.path.lexists(path):
            raise OutputError(f"--objects {path} exists: choose another place, or replace it with --overwrite")
