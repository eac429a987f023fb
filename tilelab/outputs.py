"""The file or folder that a run writes: its name, whether it is there already, and its final form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tilelab.errors import InputError, OutputError
from tilelab.io.sink import partial_path
from tilelab.journal import FOLDER, Fingerprint, Journal, differences

SUFFIXES = (".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png")


def output_path(image: Any, out: str | Path | None) -> Path:
    """Where the result goes: `out`, or a name made from the image's, in the current folder.

    Raises:
        OutputError: the format is unknown, or the result would overwrite the image.
    """
    source = Path(str(image)) if isinstance(image, str | Path) else None
    if out is None:
        if source is None:
            raise OutputError("an array has no name to derive the output's from: give one")
        stem = source.name
        for suffix in (".ome.zarr", ".zarr", ".ome.tiff", ".ome.tif"):
            stem = stem.removesuffix(suffix)
        stem = stem.rpartition(".")[0] or stem
        target = Path(f"{stem}.ome.zarr")
        if source.resolve() == target.resolve():
            target = Path(f"{stem}.labels.ome.zarr")
        return target
    target = Path(out).expanduser()
    if not target.name.endswith(SUFFIXES):
        raise OutputError(
            f"{target} is of an unknown format: name it {', '.join(SUFFIXES[:1] + SUFFIXES[2:3])} or .png"
        )
    if source is not None and source.resolve() == target.resolve():
        raise OutputError(f"{target} is the input: choose another output")
    return target


def work_path(target: Path) -> Path:
    """Where the OME-Zarr result is made: `target` itself, or a hidden folder beside a file."""
    return target if target.name.endswith(".zarr") else target.with_name(f".{target.name}.work")


def finished(target: Path, work: Path, fingerprint: Fingerprint, restart: bool) -> bool:
    """Whether the result is there already; clears the way when it may.

    Raises:
        OutputError: something else is there.
    """
    for path in {target, work}:
        if not path.exists():
            continue
        known = _known_fingerprint(path)
        changed = None if known is None else differences(known, fingerprint)
        if changed == [] and not restart:
            Journal.remove(path)
            if path == target:
                return True
            continue
        if not restart:
            why = (
                "was not made by tilelab" if changed is None else f"is the result of another job ({'; '.join(changed)})"
            )
            raise OutputError(f"{path} exists and {why}: choose another output with -o, or replace it with --restart")
        if known is None and path.is_dir():
            raise OutputError(f"{path} was not made by tilelab and is not removed: choose another output with -o")
    if restart:
        unfinished = partial_path(work)
        if (unfinished / FOLDER).is_dir():
            with Journal.held(unfinished):
                shutil.rmtree(unfinished)
        if work != target and work.exists():
            shutil.rmtree(work)
    return False


def convert_result(work: Path, target: Path) -> None:
    """The finished OME-Zarr `work` as the file that was asked for."""
    if target.suffix == ".png":
        from tilelab.io.png_out import write_png

        write_png(work, target)
    else:
        from tilelab.io.tiff_out import write_tiff

        write_tiff(work, target)
    shutil.rmtree(work)


def begun_fingerprint(target: Path, work: Path) -> Fingerprint | None:
    """The fingerprint of what an earlier run left, finished or not."""
    for path in (target, work, partial_path(work)):
        if path.exists() and (known := _known_fingerprint(path)) is not None:
            return known
    return None


def _known_fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint in a finished result; None for anything else."""
    try:
        if path.is_dir():
            from tilelab.io.result import read_info

            metadata = read_info(path).metadata
        elif path.suffix == ".png":
            from tilelab.io.png_out import read_png_metadata

            metadata = read_png_metadata(path)
        else:
            from tilelab.io.tiff_out import read_tiff_metadata

            metadata = read_tiff_metadata(path)
    except InputError:
        return None
    fingerprint: Fingerprint | None = metadata.get("fingerprint")
    return fingerprint
