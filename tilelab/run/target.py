"""The file or folder that a run writes: its name, whether it is there already, and its final form."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tilelab.engines.registry import members_of
from tilelab.errors import InputError, OutputError
from tilelab.io.images.formats import local_path
from tilelab.io.images.slices import is_pattern
from tilelab.io.results.result import find_loss
from tilelab.io.results.sink import partial_path
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import Address, Place, remote_place
from tilelab.io.storage.remote_path import RemotePath
from tilelab.machine.disk import discard_folder, is_ours, remove_ours, sweep_leftovers, try_lock, why_unwritten
from tilelab.run.journal.fingerprint import FOLDER, Fingerprint, KnownFingerprint, differences
from tilelab.run.journal.local import Journal
from tilelab.run.journal.open import held
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan

SUFFIXES = (".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png", ".precomputed")


_ANYONE = ("best", "last", "model", "weights", "rdf", "bioimageio")
"""What files of models are called whose folder has the name."""


def output_path(image: Any, out: Address | None, model: object = None) -> Place:
    """Where the result goes: `out`, or ``IMAGE.MODEL.ome.zarr``, named after both, in the current folder.

    Raises:
        OutputError: the format is unknown, or cannot be written there, or the result would overwrite the image.
    """
    source: Place | None = None
    if isinstance(image, str | Path | RemotePath):
        source = remote_place(image) or LocalPath(split_member(str(image))[0])
    if out is None:
        if source is None:
            raise OutputError("an array has no name to derive the output's from: give one")
        stem = source.name if source.name not in ("", "..") else source.resolve().name
        if is_pattern(str(source)):
            stem = re.split(r"[*?\[]", stem)[0].strip("_-. ") or source.parent.resolve().name
        kind = next((s for s in (".ome.zarr", ".ome.tiff", ".ome.tif") if stem.lower().endswith(s)), Path(stem).suffix)
        return LocalPath(f"{stem[: len(stem) - len(kind)] or stem}.{model_name(model)}.ome.zarr")
    if (remote := remote_place(out)) is not None:
        return _check_remote(remote, source)
    target: Place = LocalPath(local_path(str(out))).expanduser()
    if not target.name.endswith(SUFFIXES):
        raise OutputError(f"{target} is of an unknown format: name it .ome.zarr, .ome.tif, .png or .precomputed")
    if source is not None and source.resolve() == target.resolve():
        raise OutputError(f"{target} is the input: choose another output")
    return target


def begun_before(target: Place, model: object) -> Place | None:
    """The result, begun and not finished, that an earlier version gave the name of the image alone."""
    earlier = target.with_name(f"{target.name.removesuffix(f'.{model_name(model)}.ome.zarr')}.ome.zarr")
    return earlier if (partial_path(earlier) / FOLDER).is_dir() else None


def model_name(model: object) -> str:
    """What a model is called in the names of results: its file without suffix; a function's or an engine's own name."""
    if len(several := members_of(model)) > 1:
        return "+".join(map(model_name, several))[:60]
    if isinstance(model, str | Path):
        words = str(model).partition("?")[0].partition("#")[0].replace("\\", "/").rstrip("/").split("/")
        name = PurePosixPath(words[-1]).stem
        if name.lower() in _ANYONE and len(words) > 1 and words[-2] not in ("", ".", ".."):
            name = words[-2]
    else:
        spec = getattr(model, "spec", None)
        name = getattr(spec, "name", "") or getattr(model, "__name__", "") or type(model).__name__
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:60] or "model"


def _check_remote(target: Place, source: Place | None) -> Place:
    if not target.writable:
        raise OutputError(f"{target} cannot be written, web servers are read only: choose s3://, gs:// or a local path")
    if not target.name.endswith(".zarr"):
        raise OutputError(
            f"{target}: results in remote stores are OME-Zarr; write NAME.ome.zarr there and convert it afterwards"
        )
    if source is not None and (source == target or source in target.parents or target in source.parents):
        raise OutputError(f"{target} is the input, or holds it, or lies inside: choose another output")
    return target


def work_path(target: Place) -> Place:
    """Where the OME-Zarr result is made: `target` itself, or a hidden folder beside a file."""
    return target if not target.renames or target.name.endswith(".zarr") else target.with_name(f".{target.name}.work")


def present(path: Place) -> bool:
    """Whether something has the final name; a remote result has it from the start, so there it must be finished.

    Raises:
        OutputError: a store does not say.
    """
    if path.renames:
        return path.exists()
    try:
        return (path / "zarr.json").is_file()
    except OSError as error:
        raise OutputError(f"cannot use {path}: {error.strerror}") from None


def is_finished(target: Place, work: Place, fingerprint: Fingerprint, restart: bool) -> bool:
    """Whether the result of this very job is there already.

    Raises:
        OutputError: something else is there that would be lost, or that `restart` does not allow to replace.
    """
    for path in (target, work):
        if not present(path):
            continue
        known = _known_fingerprint(path)
        changed = None if known is None else differences(known, fingerprint)
        if changed == [] and not restart:
            _check_whole(path)
            if path == target:
                return True
        elif not restart:
            why = (
                "was not made by tilelab" if changed is None else f"is the result of another job ({'; '.join(changed)})"
            )
            raise OutputError(f"{path} exists and {why}: choose another output with -o, or replace it with --restart")
        elif known is None and path.is_dir():
            raise OutputError(f"{path} was not made by tilelab and is not removed: choose another output with -o")
    if not work.renames:
        with _store_errors(work):
            if not (work / FOLDER).is_dir() and not present(work) and work.is_dir():
                raise OutputError(f"{work} holds objects that tilelab did not write: choose another output with -o")
    return False


def _check_whole(path: Place) -> None:
    """Refuse to call a Zarr finished of which files are gone since.

    Raises:
        OutputError: some are.
    """
    if path.is_dir() and (path / "zarr.json").is_file() and (loss := find_loss(path)) is not None:
        raise OutputError(f"{path} was finished, but has {loss}: make it anew with --restart")


def clear_way(target: Place, work: Place, fingerprint: Fingerprint, restart: bool) -> None:
    """Remove what is in the way of a run that `is_finished` has allowed.

    That is what a kill between two renames left of a finished one, its journal or the Zarr that a file was made of; and
    with `restart` all that earlier runs left unfinished.
    A remote result goes before the work begins, a local one when the new one is ready.

    Raises:
        OutputError: another run is at it, or it cannot be removed.
    """
    if not restart:
        for path in {target, work}:
            if present(path):
                Journal.remove(path)
        if target != work and present(target) and present(work) and _known_fingerprint(work) == fingerprint.document():
            with held_work(target, work):
                _discard(work, target)
        if target.renames and present(target):
            with contextlib.suppress(OSError):
                sweep_leftovers(Path(str(target)))
                left = Path(str(target.with_name(f"{target.name}.partial")))
                if target.suffix == ".precomputed" and is_ours(left) and not (left / "volume").exists():
                    remove_ours(left)  # its volume has got its name
    elif not work.renames:
        with _store_errors(work):
            if (work / FOLDER).is_dir() or present(work):
                with held(work):
                    (work / "zarr.json").delete_file()  # without it nobody takes the rest for a result
                    work.remove_tree()
    else:
        unfinished = partial_path(work)
        if (unfinished / FOLDER).is_dir():
            with held(unfinished):
                unfinished.remove_tree()
        if work != target and work.exists():
            with held_work(target, work) if (work / "zarr.json").is_file() else contextlib.nullcontext():
                work.remove_tree()


@contextlib.contextmanager
def held_work(target: Place, work: Place) -> Iterator[None]:
    """Hold the finished Zarr that the file `target` is made of; nothing where that is the Zarr itself.

    Another run would make the same file of it and take it away meanwhile, and what is gone of a Zarr reads as 0.

    Raises:
        OutputError: another run holds it, or has just taken it away.
    """
    if work == target or os.name == "nt":  # there an open file keeps its folder from being renamed
        yield
        return
    try:
        file = _hold(Path(str(work / "zarr.json")))
    except OSError as error:
        raise OutputError(f"cannot use {work}: {why_unwritten(error)}") from error
    if file is None:
        raise OutputError(f"{target} is being written by another run: wait for it or choose another output")
    with file:
        yield


def _hold(root: Path) -> IO[bytes] | None:
    """The file, open and locked; None where another process has it, or has just taken it away."""
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as failing:
        file = failing.enter_context(root.open("r+b"))
        if try_lock(file, strict=True) and os.path.samestat(os.fstat(file.fileno()), root.stat()):
            failing.pop_all()
            return file
    return None


@contextlib.contextmanager
def _store_errors(result: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot use {result}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Format:
    """What a kind of file can hold of a result; `labels`: it cannot be without them."""

    suffixes: tuple[str, ...]
    labels: bool = False
    probabilities: bool = True
    logits: bool = True


FORMATS = (
    Format((".zarr",)),
    Format((".tif", ".tiff"), logits=False),
    Format((".png",), labels=True, probabilities=False, logits=False),
    Format((".precomputed",), labels=True, probabilities=False, logits=False),
)


def asks_for_probabilities(options: Options) -> bool:
    """Whether probabilities were named; a file of labels has them only then."""
    return options.probabilities not in (None, ("none",))


def check_options(target: Place, options: Options) -> None:
    """Refuse what was asked for and would not be in `target`, before anything runs.

    Raises:
        OutputError: the message names the flag.
    """
    if options.with_image:
        from tilelab.io.results.with_image import check_place

        check_place(target)
    (kind,) = (known for known in FORMATS if target.suffix in known.suffixes)
    other = "name it .ome.zarr"
    if kind.labels and not options.labels:
        raise OutputError(f"{target} would hold the labels: leave --no-labels out, or {other}")
    if not kind.probabilities and asks_for_probabilities(options):
        raise OutputError(f"{target} cannot hold probabilities: leave --probabilities out, or {other}, or .ome.tif")
    if not kind.logits and options.logits:
        raise OutputError(f"{target} cannot hold logits: leave --logits out, or {other}")


def check_format(target: Place, plan: Plan, overview: object = None) -> None:
    """Refuse an image that the format of `target` could not hold, and what the model gives that it could not.

    Raises:
        OutputError: it cannot, or there would be nothing to draw as `overview`.
    """
    written = plan.request.written
    names = ", ".join(name for name, _ in written.maps)
    classes = written.labels or bool(written.probabilities)
    if target.suffix != ".zarr" and written.maps:
        tiff = target.suffix in (".tif", ".tiff")
        if classes or not tiff or len(written.maps) > 1:
            way = "name it .ome.zarr, or choose one output with --model-output" + ("" if tiff else " (a map: .ome.tif)")
            raise OutputError(
                f"{target} cannot hold the map{'s' * (len(written.maps) > 1)} {names}{_beside(classes)}: {way}"
            )
    if overview is not None and not classes:
        raise OutputError(f"--overview {overview} draws classes, this run has none: leave it out")
    if target.suffix == ".png":
        from tilelab.io.results.png import check_png

        check_png(plan.source.shape, str(target))


def _beside(classes: bool) -> str:
    return " beside labels" if classes else ""


def convert_result(work: Place, target: Place, options: Options) -> None:
    """The finished OME-Zarr `work` as the file or volume that was asked for."""
    if target.suffix == ".png":
        from tilelab.io.results.png import write_png

        write_png(work, str(target))
    elif target.suffix == ".precomputed":
        from tilelab.io.results.precomputed import write_precomputed

        write_precomputed(work, str(target))
    else:
        from tilelab.io.results.tiff import write_tiff

        write_tiff(work, str(target), probabilities=asks_for_probabilities(options))
    _discard(work, target)


def _discard(work: Place, target: Place) -> None:
    """Remove the Zarr that `target` was made of, so that a kill leaves nothing that looks like a result."""
    try:
        discard_folder(Path(str(work)), Path(str(target)))
    except OSError as error:
        raise OutputError(f"{work} cannot be removed: {error.strerror or error}") from error


def left_behind(target: Place, work: Place) -> Place | None:
    """What a run that stops now goes on from: units that are on disk, or the Zarr that is to become a file.

    Raises:
        OSError, OutputError: a store does not say.
    """
    unfinished = partial_path(work)
    if (unfinished / FOLDER).is_dir():
        return unfinished
    return work if work != target and present(work) else None


def begun_fingerprint(target: Place, work: Place) -> KnownFingerprint | None:
    """The fingerprint of what an earlier run left, finished or not."""
    for path in (target, work, partial_path(work)):
        if (known := _known_fingerprint(path)) is not None:
            return known
    return None


def _known_fingerprint(path: Place) -> KnownFingerprint | None:
    """The fingerprint in a finished result; None for anything else."""
    try:
        if not path.renames:
            from tilelab.io.results.result import UNFINISHED, read_info

            metadata = read_info(path, "zarr.json" if present(path) else UNFINISHED).metadata
        elif path.is_dir() and path.suffix != ".precomputed":
            from tilelab.io.results.result import read_info

            metadata = read_info(path).metadata
        else:
            from tilelab.io.results.made_of import read_made_of

            info = read_made_of(str(path))
            metadata = {} if info is None else info.metadata
    except InputError:
        return None
    fingerprint: KnownFingerprint | None = metadata.get("fingerprint")
    return fingerprint
