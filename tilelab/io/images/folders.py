"""Whether a folder, or a pattern of file names, is one stack of slices or images of their own.

A stack is what was said to be one, or what evidently is: names that count without a gap, one size and type, and
neighbours that show the same thing.
"""

from __future__ import annotations

import fnmatch
import glob
import os

from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.io.images.alike import ALIKE, likeness
from tilelab.io.images.formats import ZARR_PARTS, find_reader, local_path
from tilelab.io.images.open import open_image
from tilelab.io.images.series import SUFFIXES, are_counted, leave_out
from tilelab.io.images.slices import is_pattern, split_pattern
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import remote_place

FLAGS = "--stack or --no-stack"
_VOLUMES = (".mrc", ".mrcs", ".rec", ".st", ".map", ".h5", ".hdf5", ".btf", ".svs", ".ndpi", ".scn")
_MAKERS = (".dm3", ".dm4", ".ser", ".emi", ".emd", ".czi", ".ims", ".ozx", ".oir", ".nd2", ".lif", ".bif", ".eer")
_KNOWN = (*SUFFIXES, *_VOLUMES, *_MAKERS)


def holds_images(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a local folder of image files, or a pattern of their names, and no store of its own."""
    if remote_place(path) is not None:
        return False
    name = local_path(path)
    return find_reader(name) is None if os.path.isdir(name) or is_pattern(name) else False  # noqa: PTH112


def assume_stack(path: str | os.PathLike[str]) -> tuple[Assumption, ...]:
    """That a folder of several images is one stack, as their names say.

    Raises:
        InputError: it holds images of their own, by their names.
    """
    if not holds_images(path):
        return ()
    folder, names, _ = list_images(local_path(path))
    if len(names) < 2:
        return ()
    if not are_counted(names):
        raise InputError(
            f"{path} holds {len(names)} images whose names do not count without a gap ({names[0]}, {names[1]}, ...): "
            "--stack says that they are slices of one stack; for images of their own give a folder to write to, -o "
            "FOLDER (in Python: stack=True, or tilelab.infer_many)"
        )
    alike = likeness(folder, names)
    if alike is not None and alike < ALIKE:
        raise InputError(
            f"{path} holds {len(names)} images; {_unlike(alike)}: --stack says that they are one stack; for "
            "images of their own give a folder to write to, -o FOLDER (in Python: stack=True, or tilelab.infer_many)"
        )
    return (_assumed(folder, names, alike),)


def evident_stack(path: str) -> Assumption | None:
    """That a folder or pattern is one stack: its names count, all are of one size and type, and neighbours alike."""
    folder, names, _ = list_images(path)
    if len(names) < 2 or not are_counted(names):
        return None
    try:
        open_image(path).close()
    except InputError:
        return None
    alike = likeness(folder, names)
    return None if alike is not None and alike < ALIKE else _assumed(folder, names, alike)


def _unlike(alike: float) -> str:
    return (
        f"their names count, but neighbours show different things (correlation {alike:.2f}, of slices {ALIKE} and more)"
    )


def _assumed(folder: str, names: list[str], alike: float | None) -> Assumption:
    look = "" if alike is None else f", neighbours look alike (correlation {alike:.2f})"
    return Assumption(
        what=f"whether the {len(names)} images in {folder} are one stack",
        taken="one stack",
        because=f"their names count without a gap, {names[0]} ... {names[-1]}, all are of one size and type{look}",
        flag=FLAGS,
    )


def list_images(path: str) -> tuple[str, list[str], list[str]]:
    """The images in a folder, or those that a pattern names.

    Returns:
        The folder, the names of the images in it, sorted, and one line for each thing that was left out.

    Raises:
        InputError: it cannot be read.
    """
    folder, pattern = split_pattern(path)
    try:
        entries = sorted(
            (e for e in os.scandir(folder) if not e.name.startswith(".") and fnmatch.fnmatchcase(e.name, pattern)),
            key=lambda e: e.name,
        )
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    found, inner = [], 0
    for entry in entries:
        if entry.is_dir():
            if _is_image(entry.path):
                found.append(entry.name)
            else:
                inner += 1
        elif entry.name.lower().endswith(_KNOWN) or _is_image(entry.path):
            found.append(entry.name)
    kept, aside = leave_out(folder, found)
    notes = [f"{folder}: left out {', '.join(a.taken for a in aside)}: {aside[0].because}"] if aside else []
    deeper = f"'{folder.rstrip('/')}/**/*.tif'"
    if inner and not kept:
        raise InputError(f"{folder} holds no image, but {inner} folders: name them, or {deeper}")
    if inner:
        notes.append(f"{folder}: {inner} folders in it were not looked into: name them, or {deeper}")
    return folder, kept, notes


def _is_image(path: str) -> bool:
    """Whether a file or folder is an image by what is in it; a folder of slices is none."""
    try:
        return find_reader(path) is not None
    except (InputError, OSError):
        return False


def gather_images(words: list[str], stack: bool | None) -> tuple[list[str], list[str]]:
    """The images that files, folders, stores, addresses and patterns (quoted ones too) mean, in their order.

    Args:
        words: as the user gave them.
        stack: whether folders and patterns are stacks; None looks at names and sizes.

    Returns:
        Paths and addresses, each once, and one line for each thing to know.  What does not exist is among them.

    Raises:
        InputError: a folder or pattern holds no image, or cannot be read.
    """
    found: dict[str, None] = {}
    notes: list[str] = []
    for word in words:
        for path in expand_word(word):
            if stack or not holds_images_quietly(path):
                found[path] = None
                continue
            if stack is None and evident_stack(path) is not None:
                found[path] = None  # whoever opens it says so
                continue
            folder, names, said = list_images(path)
            if not names:
                raise InputError(f"{path} holds no image")
            notes += said
            if stack is None and len(names) > 1:
                alike = likeness(folder, names) if are_counted(names) else None
                why = "" if alike is None or alike >= ALIKE else f"; {_unlike(alike)}"
                notes.append(
                    f"{path}: {len(names)} images of their own{why} (--stack makes slices of one stack of them)"
                )
            found |= dict.fromkeys(os.path.join(folder, name) for name in names)  # noqa: PTH118
    return list(found), notes


def holds_images_quietly(path: str) -> bool:
    """`holds_images`; what cannot be read holds none, which whoever opens it says."""
    try:
        return holds_images(path)
    except (InputError, OSError):
        return False


def expand_word(word: str) -> list[str]:
    """A word of the command line as paths: with signs for patterns in its folders, or `**`, those that it matches."""
    if remote_place(word) is not None or os.path.lexists(split_member(word)[0]) or is_pattern(word):
        return [word]
    matches = sorted(glob.glob(word, recursive=True)) if glob.has_magic(word) else []  # noqa: PTH207 - any path
    matches = [m for m in matches if os.path.basename(m) not in ZARR_PARTS]  # noqa: PTH119 - each of the folder it is in
    return [m for m in matches if os.path.isfile(m) or _is_image(m)] or [word]  # noqa: PTH113
