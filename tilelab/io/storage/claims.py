"""What a command reads and what it writes, said before anything is opened: the one place that keeps users' files safe.

A write is refused where it would destroy something: a path that the command reads (by any name: links, case, relative
paths), a folder that holds one, a place inside a store that is read, another of its own outputs, or a file of another
kind than what would be written.  Local paths are compared by device and inode, remote ones by address.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tilelab.errors import OutputError
from tilelab.io.storage.member import split_member

Kind = Literal["json", "text", "png", "model", "any"]
_STORES = ("zarr.json", ".zgroup", ".zarray", "attributes.json", "info")  # Zarr 3 and 2, N5, precomputed
_BEGINS: dict[str, tuple[bytes, ...]] = {"json": (b"{", b"["), "png": (b"\x89PNG",)}


@dataclass(frozen=True, slots=True)
class Write:
    """A file that a command is asked to write.

    Attributes:
        path: of the file; None where it was not asked for.
        flag: by which the user named it, for messages.
        kind: of its content: an existing file is replaced only by one of its kind.
        replace: whether an existing file may be replaced at all.
    """

    path: str | os.PathLike[str] | None
    flag: str
    kind: Kind = "any"
    replace: bool = True


def claim(reads: Mapping[str, Any], writes: Sequence[Write]) -> None:
    """Refuse writes that would destroy what is read, each other, or what was not asked to be replaced.

    Args:
        reads: what the command reads, by what it is called in messages (``the image``, ``--mask``); values that are no
            paths (arrays, engines, None) are passed over.
        writes: the files that it is to write.

    Raises:
        OutputError: it names both.
    """
    known = [(what, place) for what, value in reads.items() for place in _places(value)]
    taken: list[tuple[str, str]] = []
    for write in writes:
        if write.path is None:
            continue
        path = os.fspath(write.path)
        _check_target(write, path)
        for what, place in known:
            if _collides(path, place):
                raise OutputError(f"{write.flag} {path} would overwrite {what}, {place}: choose another file")
        for flag, other in taken:
            if _same(path, other) or _inside(path, other) or _inside(other, path):
                raise OutputError(f"{write.flag} {path} and {flag} {other} are one place: choose another for one")
        taken.append((write.flag, path))


def _places(value: Any) -> list[str]:
    """The paths behind something that a command reads, companions included."""
    if not isinstance(value, str | os.PathLike):
        return []
    path = split_member(os.fspath(value))[0]
    if "://" in path:
        return [path.removeprefix("file://")] if path.startswith("file://") else [path.rstrip("/")]
    if not os.path.lexists(path):
        return []
    beside = Path(path)
    companions = []
    if beside.is_file() and beside.suffix.lower() in (".onnx", ".xml"):  # weights that lie beside a model's graph
        names = {f"{beside.stem}.bin", f"{beside.name}.data", f"{beside.name}_data", f"{beside.stem}.data"}
        companions = [str(beside.with_name(name)) for name in names if beside.with_name(name).exists()]
    return [path, *companions]


def _check_target(write: Write, path: str) -> None:
    """What can be said of the target alone."""
    if "://" in path:
        raise OutputError(f"{write.flag} {path}: only local files can be written there")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {folder} may not be written by this user")
    try:
        found = os.stat(path)  # noqa: PTH116 - follows links, as writing does
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{write.flag} {path} is a folder, a device or a pipe: name a file")
    if not write.replace:
        raise OutputError(f"{path} exists: choose another name")
    if found.st_size and not _is_kind(path, write.kind):
        raise OutputError(f"{write.flag} {path} is another kind of file and is not replaced: choose another name")


def _is_kind(path: str, kind: Kind) -> bool:
    """Whether a file's first bytes are those of its kind."""
    with Path(path).open("rb") as file:
        head = file.read(4096)
    if kind in _BEGINS:
        return head.lstrip().startswith(_BEGINS[kind])
    if kind == "text":
        try:
            return "\0" not in head[: head.rfind(b"\n") + 1 or None].decode()
        except UnicodeDecodeError:
            return False
    return True


def _collides(write: str, read: str) -> bool:
    """Whether writing one place would change what lies at the other."""
    if "://" in read:
        return write.rstrip("/") == read
    return _same(write, read) or _inside(read, write) or (Path(read).is_dir() and _disturbs(write, read))


def _disturbs(write: str, folder: str) -> bool:
    """Whether a file would become a part of a folder that is read: anywhere in a store, directly in others."""
    if not _inside(write, folder):
        return False
    store = any((Path(folder) / name).exists() for name in _STORES)
    return store or _same(os.path.dirname(os.path.abspath(write)), folder)  # noqa: PTH100, PTH120


def _same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _inside(path: str, folder: str) -> bool:
    """Whether `path` lies in `folder`, however both are written."""
    here, there = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if there in here.parents:
        return True
    return there.is_dir() and any(_same(str(parent), str(there)) for parent in here.parents if parent.exists())
