"""Where the pixels of an HDF5 dataset lie: in the file, in raw files, or put together from datasets of others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilelab.errors import InputError
from tilelab.io.images.optional import one_line
from tilelab.io.storage.outside import beyond

_BLOCK = re.compile(r"%\d*b")  # the number of a block, in names of virtual datasets


def files_outside(h5py: Any, dataset: Any, home: Path) -> tuple[str, ...]:
    """The files outside of the folder `home` that a dataset is in, or that reading it would read.

    Those in `home` from which it is put together are looked into; others are not opened.

    Raises:
        InputError: one of them is damaged.
    """
    here = os.fsdecode(dataset.file.filename)  # not the file that was opened where a link led elsewhere
    found, pending = [*_named(dataset, here)], [*_sources(dataset, here)]
    seen: set[tuple[str, str]] = set()
    while pending:
        path, name = pending.pop()
        found.append(path)
        if (path, name) in seen or beyond(home, [path]) or not Path(path).is_file():
            continue
        seen.add((path, name))
        try:
            with h5py.File(path, "r", locking="best-effort") as opened:
                for one in _matching(opened, name):
                    inner = opened.get(one)
                    if isinstance(inner, h5py.Dataset):
                        where = os.fsdecode(inner.file.filename)
                        found += _named(inner, where)
                        pending += _sources(inner, where)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is no readable HDF5 file: {one_line(error)}") from error
    return beyond(home, found)


def _named(dataset: Any, here: str) -> Iterator[str]:
    """The file that a dataset is in, and the raw files with its pixels, which HDF5 counts from the current folder."""
    yield here
    yield from (os.fsdecode(name) for name, _, _ in dataset.external or ())


def _sources(dataset: Any, here: str) -> Iterator[tuple[str, str]]:
    """The files and datasets that a virtual one is put together from."""
    if not dataset.is_virtual:
        return
    for name, inner in dict.fromkeys((s.file_name, s.dset_name) for s in dataset.virtual_sources()):
        yield from ((path, inner) for path in ([here] if name == "." else _candidates(name, here)))


def _candidates(name: str, here: str) -> list[str]:
    """The files that a name may mean: HDF5 looks beside the file, then in the current folder."""
    beside, pattern = Path(here).parent / name, _BLOCK.sub("*", name)
    if pattern != name:
        places = [beside.parent, Path(name).parent]
        return [str(path) for place in places for path in place.glob(Path(pattern).name)] or [str(beside)]
    return [str(beside)] if beside.exists() or not Path(name).exists() else [name]


def _matching(opened: Any, name: str) -> list[str]:
    """The datasets that a name means."""
    if not _BLOCK.search(name):
        return [name]
    names: list[str] = []
    opened.visit(names.append)
    pattern = r"\d+".join(map(re.escape, _BLOCK.split(name.lstrip("/"))))
    return [one for one in names if re.fullmatch(pattern, one)]
