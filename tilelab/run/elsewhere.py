"""Paths and addresses that mean the same in another process, in whatever folder that began."""

from __future__ import annotations

from pathlib import Path

from tilelab.engines.registry import members_of
from tilelab.io.images.slices import is_pattern
from tilelab.io.storage.member import split_member
from tilelab.io.storage.remote_access import clean_uri


def absolute_model(model: str | Path) -> str:
    """A model, or the several of ``A,B``."""
    models = [absolute(one) for one in members_of(model)]
    return models[0] if len(models) == 1 else ",".join(models)


def absolute(path: str | Path) -> str:
    """A local path; names and addresses stay.

    Links, too: what one leads to may have another suffix, or none, and other files beside it.
    """
    if "://" in str(path):
        return _Address(path)
    file, member = split_member(str(path))
    place = Path(file).expanduser()
    if not place.exists():
        return str(place.absolute()) if is_pattern(file) else str(path)
    return f"{place.absolute()}::{member}" if member else str(place.absolute())


class _Address(str):
    """An address as workers need it; in what Dask logs of its tasks it appears without user, password and signature."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(clean_uri(self))
