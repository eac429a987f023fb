"""The micrograph in a finished result, so that whatever opens OME-Zarr shows the labels over it.

    RESULT.ome.zarr/image/0, 1, ...    its pixels as they were segmented (a region, without info bar), halved to means
    RESULT.ome.zarr/zarr.json          names them as its first image, probabilities or classes as the second

The copy is made beside and renamed, then the root is replaced: after a kill in between it is made anew, the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilelab.errors import OutputError
from tilelab.io.images.image import Image
from tilelab.io.results.image_pyramid import write_pyramid
from tilelab.io.storage.place import Place
from tilelab.io.zarr.documents import parse_json
from tilelab.io.zarr.sharded_array import output_error, replace_file
from tilelab.machine.disk import flush_tree, give_name

IMAGE = "image"
_UNFINISHED = ".image"


def add_image(result: Place, image: Image) -> bool:
    """Put the image that was segmented into its finished local result; False where it is there already.

    Raises:
        InputError: the image cannot be read.
        OutputError: the disk is full or the folder is unwritable.
    """
    try:
        document = parse_json((result / "zarr.json").read_bytes())
        ome = document["attributes"]["ome"]
        known = _names_image(ome)
        for left in (_UNFINISHED, *(() if known else (IMAGE,))):
            if (result / left).exists():
                (result / left).remove_tree()
        if known:
            return False
        whole = result / _UNFINISHED
        write_pyramid(image, whole, ome["multiscales"][0]["name"])
        told = parse_json((whole / "zarr.json").read_bytes())["attributes"]["ome"]
        flush_tree(Path(str(whole)))
        give_name(Path(str(whole)), Path(str(result / IMAGE)))
        (scales,) = told["multiscales"]
        for dataset in scales["datasets"]:
            dataset["path"] = f"{IMAGE}/{dataset['path']}"
        ome["multiscales"].insert(0, scales)
        ome["omero"] = told["omero"]
        whole.mkdir(parents=True, exist_ok=True)
        replace_file(result / "zarr.json", [json.dumps(document, indent=1).encode()], whole)
        whole.remove_tree()
    except OSError as error:
        raise output_error(result, error) from error
    return True


def check_place(result: Place) -> None:
    """Refuse a result that could not hold its image.

    Raises:
        OutputError: it is a file, or in a store.
    """
    if result.suffix != ".zarr":
        raise OutputError(f"{result} cannot hold the image: leave --with-image out, or name it .ome.zarr")
    if not result.renames:
        raise OutputError(f"{result} is in a store, where the image is not copied: leave --with-image out")


def holds_image(result: Place) -> bool:
    """Whether a result holds its image."""
    try:
        return _names_image(parse_json((result / "zarr.json").read_bytes())["attributes"]["ome"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _names_image(ome: dict[str, Any]) -> bool:
    return bool(ome["multiscales"][0]["datasets"][0]["path"] == f"{IMAGE}/0")
