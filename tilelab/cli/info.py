"""`tilelab info PATH...`: describe images, models and results without computing anything."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tilelab.cli.info_image import image_rows
from tilelab.cli.info_model import examine_model, model_rows
from tilelab.cli.info_network import (
    CHECKPOINT,
    architecture_rows,
    checkpoint_rows,
    examine_architecture,
    examine_checkpoint,
    is_architecture,
)
from tilelab.cli.info_result import examine_result, result_rows
from tilelab.cli.info_words import Rows
from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.cli.run_arguments import AXES_HELP, SERIES_HELP
from tilelab.cli.terminal import drawn, printable
from tilelab.cli.trust_words import OUTSIDE_HELP, TRUST_HELP
from tilelab.errors import InputError, ModelError, TilelabError
from tilelab.io.storage.claims import Write, claim
from tilelab.io.storage.remote_access import clean_uri

_MODEL_SUFFIXES = (".onnx", ".xml", ".engine", ".plan", ".pt2", ".czann")


EXAMPLES = (
    "tilelab info big.tif",
    "tilelab info superalloy big.superalloy.ome.zarr",
    "tilelab info em.h5::/raw --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command."""
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="an image, a result, a model\na file or the name of a bundled model; "
        "a checkpoint; the name of an architecture (pmcanet:resnet50)")  # fmt: skip
    add_json(parser, "a list of documents")
    add("--series", metavar="N", help=SERIES_HELP)
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--check", action="store_true", help="run a package of bioimage.io on its test tensors")
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    add("--trust", action="store_true", help=TRUST_HELP)


def run(args: argparse.Namespace) -> int:
    """Describe every path that can be; the first that cannot is the error."""
    claim({"PATH": args.paths}, [Write(json_file(args.json), "--json", "json")])
    documents: list[dict[str, Any]] = []
    failures: list[TilelabError] = []
    for path in args.paths:
        try:
            document = examine(path, args.axes, args.series, allow_outside=args.allow_outside, trust=args.trust)
            documents.append(document | _checked(path, document["kind"]) if args.check else document)
        except TilelabError as error:
            failures.append(error)
            documents.append({"path": clean_uri(path), "kind": "error", "error": str(error)})
    if not put_json(args.json, json.dumps(documents, indent=1)):
        show([document for document in documents if document["kind"] != "error"])
        for failure in failures[1:]:
            print(f"tilelab: error: {failure}", file=sys.stderr)
    if failures:
        raise failures[0]
    return 0


def examine(
    path: str, axes: str | None = None, series: str | None = None, *, allow_outside: bool = False, trust: bool = False
) -> dict[str, Any]:
    """What there is to know about one path, as a document.

    Its ``kind`` is ``image``, ``model``, ``result``, ``checkpoint`` or ``architecture``.  A result of which axes or a
    series are asked for is an image like others.

    Raises:
        TilelabError: it is none of these, broken, or no image and `axes` or `series` were given.
    """
    document = _examine(path, axes, series, allow_outside=allow_outside, trust=trust)
    for flag, value in (("--axes", axes), ("--series", series)):
        if value is not None and document["kind"] != "image":
            raise InputError(f"{flag} {value} was asked for, {clean_uri(path)} is no image: leave it out")
    return document


def _examine(path: str, axes: str | None, series: str | None, *, allow_outside: bool, trust: bool) -> dict[str, Any]:
    """See `examine`, which checks what was asked for."""
    from tilelab.engines.bundled import bundled_models
    from tilelab.engines.packages.bioimage import is_package
    from tilelab.io.images.open import describe
    from tilelab.io.images.stated import described_by_bigdataviewer
    from tilelab.io.storage.place import as_place, remote_place

    told: dict[str, Any] = {"axes": axes, "series": series, "allow_outside": allow_outside}
    if _is_model_address(path):
        return {"path": clean_uri(path), "kind": "model", **examine_model(path)}
    plain = axes is None and series is None
    if (place := remote_place(path)) is not None:
        if plain:
            with contextlib.suppress(InputError):
                return {"path": str(place), "kind": "result", **examine_result(place)}
        return {"path": str(place), "kind": "image", **describe(path, **told)}
    here = Path(path)
    named = not here.exists() and (path in bundled_models() or path.partition(":")[0] == "identity")
    stored = here.suffix.lower() in _MODEL_SUFFIXES and described_by_bigdataviewer(here) is None
    if named or stored or is_package(here):
        return {"path": path, "kind": "model", **examine_model(path)}
    if here.suffix == CHECKPOINT and here.is_file():
        return {"path": path, "kind": "checkpoint", **examine_checkpoint(here, trust)}
    if is_architecture(path) and not here.exists():
        return {"path": path, "kind": "architecture", **examine_architecture(path, trust)}
    if plain and here.is_dir() and (here / "zarr.json").is_file():
        try:
            return {"path": path, "kind": "result", **examine_result(as_place(path))}
        except InputError:
            pass  # a Zarr that tilelab did not write: an image like others
    return {
        "path": clean_uri(path),
        "kind": "image",
        **describe(path, **told),
    }


def _checked(path: str, kind: str) -> dict[str, Any]:
    """The outcome of a package's test.

    Raises:
        InputError: it is no package.
        ModelError: it has no test tensors, or does not give what its makers say.
    """
    from tilelab.engines.packages.bioimage import is_package
    from tilelab.exporting.package_check import check_package

    if kind != "model" or not is_package(Path(path)):
        raise InputError(f"--check is for packages of bioimage.io, {path} is none: leave it out")
    check = check_package(Path(path))
    if not check.passed:
        raise ModelError(f"{path} gives {check}")
    return {"check": str(check)}


def _is_model_address(path: str) -> bool:
    """Whether an address leads to a model, by its name."""
    from tilelab.engines.packages.address import is_address

    name = path.partition("#")[0].partition("?")[0]
    return is_address(path) and name.lower().endswith((*_MODEL_SUFFIXES, ".zip"))


def show(documents: list[dict[str, Any]]) -> None:
    """Print documents for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=drawn(sys.stdout), highlight=False)
    tellers = {
        "image": image_rows,
        "model": model_rows,
        "result": result_rows,
        "checkpoint": _checkpoint_rows,
        "architecture": architecture_rows,
    }
    for i, document in enumerate(documents):
        if i:
            console.print()
        console.print(Text.assemble((printable(document["path"]), "bold"), f"  {document['kind']}"), soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for name, value in tellers[document["kind"]](document):
            if value is not None and value != "":
                table.add_row(f"  {name}", value if isinstance(value, Text) else Text(printable(str(value))))
        console.print(table)


def _checkpoint_rows(checkpoint: dict[str, Any]) -> Rows:
    own = checkpoint_rows(checkpoint)
    said = {name for name, _ in own}
    use = model_rows(checkpoint | {"file": None})
    return own + [(name, value) for name, value in use if name not in {*said, "precisions", "macs per pixel"}]
