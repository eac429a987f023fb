"""A place to read from or write to: a local path or one in a remote store, which are used alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from tilelab.io.storage.remote_path import SCHEMES, RemotePath

Place: TypeAlias = Path | RemotePath


def as_place(uri: str | os.PathLike[str] | RemotePath) -> Place:
    """What `uri` means: a path, ``file://...``, or an address in a remote store.

    Raises:
        InputError: it is an address of an unknown kind.
    """
    if isinstance(uri, RemotePath):
        return uri
    text = os.fspath(uri)
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text) if text.startswith("file://") else None
    return RemotePath.parse(text) if parts is None else Path(unquote(parts.path))


def remove_tree(place: Place) -> None:
    """Remove a folder with everything in it; what cannot be removed stays."""
    if isinstance(place, RemotePath):
        place.remove_tree()
    else:
        shutil.rmtree(place, ignore_errors=True)


def remote_place(uri: str | os.PathLike[str] | RemotePath) -> RemotePath | None:
    """The place that `uri` means if it is in a bucket or on a web server, else None."""
    if isinstance(uri, RemotePath):
        return uri
    text = os.fspath(uri)
    return RemotePath.parse(text) if text.partition("://")[0].lower() in SCHEMES and "://" in text else None
