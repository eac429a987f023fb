"""Where the pixels of an HDF5 dataset lie: in the file, in raw files, or put together from datasets of others."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilelab.errors import InputError
from tilelab.io.images.optional import one_line
from tilelab.io.storage.outside import beyond

_BLOCK = re.compile(r"%\d*b")  # the number of a block, in names of virtual datasets


@dataclass(frozen=True)
class Origins:
    """The files that a dataset is in, or that reading it would read.

    Attributes:
        outside: those outside of its folder.
        expected: how many datasets it is put together from; 0 of one that is not virtual.
        missing: those of them that are not there, which HDF5 reads as the fill value without a word.
    """

    outside: tuple[str, ...]
    expected: int
    missing: tuple[str, ...]

    def check(self, uri: str) -> tuple[str, ...]:
        """What to say of the datasets that are missing.

        Raises:
            InputError: none is there.
        """
        if not self.missing:
            return ()
        first = self.missing[0]
        if len(self.missing) == self.expected:
            raise InputError(
                f"{uri} is put together from {self.expected} other datasets, none of which is there (as {first}): copy "
                "them beside"
            )
        there = f"{self.expected - len(self.missing)} of {self.expected}"
        said = (
            f"{there} datasets that it is put together from are there, the others (as {first}) read as the fill value"
        )
        return (f"{uri}: {said}",)


def find_origins(h5py: Any, dataset: Any, home: Path) -> Origins:
    """Where a dataset, in a file of the folder `home`, has its pixels from.

    Files in `home` from which it is put together are looked into; others are not opened.

    Raises:
        InputError: one of them is damaged.
    """
    here = os.fsdecode(dataset.file.filename)  # not the file that was opened where a link led elsewhere
    found, pending = [*_named(dataset, here)], [*_sources(dataset, here)]
    seen: set[tuple[str, str]] = set()
    missing: list[str] = []
    there = 0
    while pending:
        path, name = pending.pop()
        found.append(path)
        if (path, name) in seen:
            continue
        seen.add((path, name))
        if not Path(path).is_file():
            missing.append(path)
            continue
        if beyond(home, [path]):
            there += 1
            continue
        try:
            with h5py.File(path, "r", locking="best-effort") as opened:
                inside = [one for n in _matching(opened, name) if isinstance(one := opened.get(n), h5py.Dataset)]
                missing += [] if inside else [f"{path}::{name}"]
                there += sum(not inner.is_virtual for inner in inside)
                for inner in inside:
                    where = os.fsdecode(inner.file.filename)
                    found += _named(inner, where)
                    pending += _sources(inner, where)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is no readable HDF5 file: {one_line(error)}") from error
    return Origins(beyond(home, found), there + len(missing), tuple(sorted(missing)))


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
    beside = Path(here).parent / name
    if _BLOCK.search(name):
        pattern = _BLOCK.sub("*", glob.escape(beside.name))
        return [str(path) for place in (beside.parent, Path(name).parent) for path in place.glob(pattern)] or [
            str(beside)
        ]
    return [str(beside)] if beside.exists() or not Path(name).exists() else [name]


def _matching(opened: Any, name: str) -> list[str]:
    """The datasets that a name means."""
    if not _BLOCK.search(name):
        return [name]
    names: list[str] = []
    opened.visit(names.append)
    pattern = r"\d+".join(map(re.escape, _BLOCK.split(name.lstrip("/"))))
    return [one for one in names if re.fullmatch(pattern, one)]
