"""Which prediction belongs to which truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilelab.errors import InputError

SUFFIXES = (
    ".ome.zarr",
    ".zarr",
    ".ome.tiff",
    ".ome.tif",
    ".tiff",
    ".tif",
    ".png",
    ".jpeg",
    ".jpg",
    ".bmp",
    ".npy",
    ".mrc",
    ".h5",
    ".hdf5",
)
MICROSCOPES = (".dm3", ".dm4", ".ser", ".emd", ".czi", ".lif", ".nd2")
"""Of what microscopes write: looked for in a folder that holds none of the others, which are often made of these."""
_ENDINGS = ("mask", "masks", "label", "labels", "truth", "gt", "annot", "pred", "prediction", "seg", "segmentation")


@dataclass(frozen=True)
class Pair:
    """A prediction, its truth and, when known, the image that both are of: paths, in Python also arrays."""

    name: str
    prediction: Any
    truth: Any
    image: Any = None


def find_pairs(prediction: Path, truth: Path, image: Path | None = None) -> tuple[list[Pair], list[str]]:
    """Pair files, or the files of folders by their names without suffix.

    A name that has no partner is tried again without an ending such as ``_mask`` or ``.labels``, and that of a result
    without its model's (``big.superalloy`` is of ``big``).  A file paired with a folder takes its namesake out
    of it.

    Args:
        prediction: file or folder (an OME-Zarr is a file in this sense).
        truth: likewise.
        image: likewise, may be missing for some pairs.

    Returns:
        The pairs in the order of their names, and one line for each file that has no partner.

    Raises:
        InputError: something does not exist, two files have the same name, or nothing pairs.
    """
    single = [is_file(path) for path in (prediction, truth)]
    if all(single):
        name = name_of(prediction)
        images = {} if image is None else {name: image}
        if image is not None and not is_file(image):
            images = match_names({name}, list_files(image), results=True)
        return [Pair(name, prediction, truth, images.get(name))], []
    predictions = {name_of(prediction): prediction} if single[0] else list_files(prediction)
    truths = {name_of(truth): truth} if single[1] else list_files(truth)
    found = match_names(set(predictions), truths, results=True)
    images = {} if image is None or is_file(image) else match_names(set(found), list_files(image), results=True)
    if image is not None and is_file(image) and len(found) == 1:
        images = dict.fromkeys(found, image)
    pairs = [Pair(name, predictions[name], found[name], images.get(name)) for name in sorted(found)]
    used = {pair.truth for pair in pairs}
    notes = [
        f"{predictions[n]} has no truth in {truth}" for n in sorted(set(predictions) - set(found)) if not single[1]
    ]
    notes += [
        f"{path} has no prediction in {prediction}" for path in truths.values() if path not in used and not single[0]
    ]
    if not pairs:
        raise InputError(
            f"nothing in {prediction} has the name of anything in {truth}: {_few(predictions)} against {_few(truths)}"
        )
    return pairs, notes


def name_of(path: Path) -> str:
    """The name that pairs: without folder and suffix."""
    for suffix in (*SUFFIXES, *MICROSCOPES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def list_files(folder: Path) -> dict[str, Path]:
    """The images in a folder by name; those of `MICROSCOPES` where there are no others.

    Raises:
        InputError: there are none, or two have the same name.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
    for suffixes in (SUFFIXES, MICROSCOPES):
        if files := _by_name(path for path in paths if path.name.lower().endswith(suffixes)):
            return files
    raise InputError(f"{folder} holds no image ({', '.join((*SUFFIXES, *MICROSCOPES))})")


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("."):
            continue
        name = name_of(path)
        if name in files:
            raise InputError(f"{files[name]} and {path} have the same name: keep one of them")
        files[name] = path
    return files


def match_names(names: set[str], files: dict[str, Path], *, results: bool = False) -> dict[str, Path]:
    """The file of each name that has one: the same name, or else the only one that is the same without its ending.

    Names of `results` may end in that of a model.
    """
    found = {name: files[name] for name in names if name in files}
    for core_of in (_core, _without_model) if results else (_core,):
        by_core: dict[str, list[Path]] = {}
        taken = set(found.values())
        for name in [name for name, path in files.items() if path not in taken]:
            by_core.setdefault(_core(name), []).append(files[name])
        wanting: dict[str, list[str]] = {}
        for name in names - set(found):
            wanting.setdefault(core_of(name), []).append(name)
        for core, claimants in wanting.items():
            if len(claimants) == len(by_core.get(core, [])) == 1:
                found[claimants[0]] = by_core[core][0]
    return found


def _without_model(name: str) -> str:
    """The core of ``big.superalloy``, as results are called, is that of ``big``."""
    return _core(name.rpartition(".")[0])


def _core(name: str) -> str:
    """`name` in lower case without endings that say what the file is."""
    core = name.lower()
    for ending in _ENDINGS:
        for join in ("_", "-", "."):
            core = core.removesuffix(join + ending)
    return core


def is_file(path: Path) -> bool:
    """Whether `path` is one image: a file, or a folder that is a Zarr.

    Raises:
        InputError: it does not exist.
    """
    try:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        return path.is_file() or any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    except OSError as error:  # a folder above it is closed to us, or the name is too long
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _few(files: dict[str, Path]) -> str:
    names = sorted(files)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
