"""`tilelab convert SRC... DST`: rewrite any image, or many, as OME-Zarr or pyramidal TIFF."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tilelab.cli.main import EXIT_DONE, EXIT_INCOMPLETE, EXIT_USAGE
from tilelab.cli.many import Notes, are_many
from tilelab.cli.pace import follow
from tilelab.cli.run_arguments import (
    AXES_HELP,
    LEVEL_HELP,
    PIXEL_SIZE_HELP,
    SERIES_HELP,
    STACK_HELP,
    parse_region,
    parse_sizes,
)
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.errors import InputError, Interrupted, OutputError, Stopped, TilelabError
from tilelab.io.images.folders import gather_images, holds_images_quietly
from tilelab.io.images.formats import local_path
from tilelab.io.storage.claims import Write, claim
from tilelab.run.batch.names import choose_names
from tilelab.run.options import Options
from tilelab.text import format_bytes, size_text

_FORMATS = ("ome.zarr", "ome.tif")


EXAMPLES = (
    "tilelab convert big.tif big.ome.zarr",
    "tilelab convert em.h5::/raw raw.ome.tif    # for QuPath",
    "tilelab convert labels.tif cells.precomputed --labels",
    "tilelab convert micrographs/ converted/ --format ome.tif    # many",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.epilog = "Of many images the exit code is 0 when all are there, 4 when some failed, 2 when all did."
    add = parser.add_argument
    add(
        "sources",
        metavar="SRC",
        nargs="+",
        help="an image, a folder of slices; many: files, folders\nTIFF, OME-Zarr, Zarr, HDF5 (FILE.h5::/path), MRC, "
        "...; patterns",
    )
    add(
        "destination",
        metavar="DST",
        help="NAME.ome.zarr, NAME.ome.tif; of many a folder\nof labels NAME.precomputed, too",
    )
    add("--region", type=parse_region, metavar="Y0:Y1,X0:X1", help="this part alone; of stacks Z0:Z1,Y0:Y1,X0:X1\nan "
        "end may be left out, as in 100:")  # fmt: skip
    add("--labels", action=argparse.BooleanOptionalAction, help="SRC holds labels, or does not\nlevels of labels keep "
        "what is most frequent, whole numbers of any type stay")  # fmt: skip
    add("--format", choices=_FORMATS, metavar="KIND", help="in a folder: ome.zarr, or ome.tif (ome.zarr)")
    add("--pixel-size", type=parse_sizes, metavar="NM", help=PIXEL_SIZE_HELP)
    add("--overwrite", action="store_true", help="replace DST if it exists")
    add("--strict", action="store_true", help="refuse to assume anything of the image")
    add("-q", "--quiet", action="store_true", help="no progress, no summary")
    add("--stack", action=argparse.BooleanOptionalAction, help=STACK_HELP)
    add("--level", type=int, default=0, metavar="N", help=LEVEL_HELP)
    add("--series", metavar="N", help=SERIES_HELP)
    add("--channel", type=int, metavar="N", help="one channel of several, or one colour as it is")
    add("--timepoint", type=int, metavar="N", help="one time point of several")
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Rewrite an image, or many."""
    options = Options(stack=args.stack, axes=args.axes)
    if are_many(args.sources, args.destination, options, "FOLDER/ as DST"):
        return _convert_many(args, options)
    if args.format is not None:
        raise OutputError("--format is for many images, one was given: name DST by its kind, or a folder, FOLDER/")
    (source,) = args.sources
    if args.stack is False and holds_images_quietly(source):
        raise InputError(f"{source} is a folder, and --no-stack says that its images are their own: let DST be one")
    try:
        done = _convert(args, source, args.destination, say)
    except KeyboardInterrupt:
        raise Stopped(f"stopped: {args.destination} was not written") from None
    if not args.quiet:
        _say_done(done)
    return EXIT_DONE


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """What of an image is converted."""
    names = ("level", "series", "channel", "timepoint", "axes", "region", "allow_outside")
    return {name: getattr(args, name) for name in names}


def _convert(args: argparse.Namespace, source: str, destination: str, note: Callable[[str], None]) -> dict[str, Any]:
    from tilelab.io.convert import convert_image

    return convert_image(
        source,
        destination,
        **_chosen(args),
        pixel_size_nm=args.pixel_size,
        labels=args.labels,
        strict=args.strict,
        overwrite=args.overwrite,
        progress=None if args.quiet else follow("converting"),
        note=note,
    )


def _convert_many(args: argparse.Namespace, options: Options) -> int:
    """Rewrite each of many images into a folder; what is there of it stays, as it was written whole."""
    from tilelab.io.convert import made_of

    folder, suffix = Path(local_path(args.destination)), f".{args.format or 'ome.zarr'}"
    images, said = gather_images(args.sources, options.stack)
    claim({"the source": images}, [Write(folder, "DST", "into")])
    notes = Notes()
    for line in said:
        notes(line)
    done = there = 0
    failed: dict[str, str] = {}
    for image, name in choose_names(images, {}).items():
        target = folder / f"{name}{suffix}"
        try:
            if os.path.lexists(target) and not args.overwrite:
                if made_of(image, target, **_chosen(args)) is False:
                    raise OutputError(
                        f"{target} exists and was made of another image, or of this one when it was another or with "
                        "other options: choose another folder, or replace it with --overwrite"
                    )
                there += 1
                continue
            folder.mkdir(parents=True, exist_ok=True)
            found = _convert(args, image, str(target), lambda line, name=name: notes(f"{name}: {line}"))  # type: ignore[misc]
        except KeyboardInterrupt:
            raise Interrupted(f"stopped: {target} was not written; the same command continues") from None
        except TilelabError as error:
            failed[name] = str(error)
            continue
        done += 1
        if not args.quiet:
            _say_done(found)
    notes.end()
    for name, why in failed.items():
        say(f"failed: {name}: {why}")
    parts = [f"{done} of {len(images)} images written"]
    parts += [f"{there} were there already (--overwrite makes them anew)"] if there else []
    parts += [f"{len(failed)} failed"] if failed else []
    say(f"{', '.join(parts)}: {folder}")
    return EXIT_DONE if not failed else EXIT_INCOMPLETE if done or there else EXIT_USAGE


def _say_done(done: dict[str, Any]) -> None:
    size = f"{done['axes']} {size_text(done['shape'])}"
    say(
        f"{done['path']}: {done['format']}, {size} {done['dtype']}, {done['levels']} levels, "
        f"{format_bytes(done['bytes'])}, {done['seconds']:.1f} s"
    )
