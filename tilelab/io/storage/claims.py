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
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

from tilelab.errors import OutputError
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import Address, remote_place
from tilelab.io.storage.remote_path import RemotePath

Kind = Literal["html", "json", "text", "png", "jpeg", "model", "any", "result", "folder", "into"]
_NO_IMAGES = (".onnx", ".xml", ".bin", ".engine", ".plan", ".pt2")  # models: no slice, whatever folder they lie in
_STORES = ("zarr.json", ".zgroup", ".zarray", "attributes.json", "info")  # Zarr 3 and 2, N5, precomputed
_LONGEST = 255 - 40
"""Bytes of a name that leave room for what is put around it while it is written."""
_BEGINS: dict[str, tuple[bytes, ...]] = {
    "json": (b"{", b"["),
    "png": (b"\x89PNG",),
    "jpeg": (b"\xff\xd8",),
    "html": (b"<!doctype html",),
}


@dataclass(frozen=True, slots=True)
class Write:
    """A file that a command is asked to write.

    Attributes:
        path: of the file or folder; None where it was not asked for.
        flag: by which the user named it, for messages.
        kind: of its content: an existing file is replaced only by one of its kind.  What is there of a ``result`` (a
            file) or a ``folder`` is judged by who writes it, here or in a store; ``into`` is a folder that files are
            added to.
        replace: whether an existing file may be replaced at all.
    """

    path: Address | None
    flag: str
    kind: Kind = "any"
    replace: bool = True


def claim(reads: Mapping[str, Any], writes: Sequence[Write]) -> None:
    """Refuse writes that would destroy what is read, each other, or what was not asked to be replaced.

    Args:
        reads: what the command reads, by what it is called in messages (``the image``, ``--mask``); a list is as many
            of them; values that are no paths (arrays, engines, None) are passed over.
        writes: the files that it is to write.

    Raises:
        OutputError: it names both.
    """
    known = [(what, place) for what, value in reads.items() for place in _places(value)]
    taken: list[tuple[str, str]] = []
    for write in writes:
        if write.path is None:
            continue
        path = str(write.path)
        check_name(path)
        for what, place in known:
            if harm := _harm(write, path, place):
                raise OutputError(f"{write.flag} {path} would {harm} {what}, {place}: choose another")
        if write.kind == "into":
            _check_folder(write, path)
        elif write.kind not in ("result", "folder"):
            _check_target(write, path)
        for flag, other in () if write.kind == "into" else taken:
            if _same(path, other) or _inside(path, other) or _inside(other, path):
                raise OutputError(f"{write.flag} {path} and {flag} {other} are one place: choose another for one")
        if write.kind != "into":
            taken.append((write.flag, path))


def check_name(path: str) -> None:
    """Refuse what no file can be called.

    Raises:
        OutputError: it holds a NUL, or a part of it is longer than file systems take.
    """
    if "\0" in path:
        raise OutputError(f"{path!r} cannot be written: a name holds no NUL")
    if "://" not in path and (longest := max(map(len, map(os.fsencode, Path(path).parts)), default=0)) > _LONGEST:
        raise OutputError(
            f"{path[:60]}... cannot be written: a name of {longest} bytes is too long, {_LONGEST} are left"
        )


def _places(value: Any) -> list[str]:
    """The paths behind something that a command reads, companions included."""
    if isinstance(value, list | tuple):
        return [place for one in value for place in _places(one)]
    value = getattr(value, "uri", value)  # of an image that is open
    if not isinstance(value, str | os.PathLike | RemotePath):
        return []
    if (place := remote_place(value)) is not None:
        return [str(place).rstrip("/")]
    text = os.fspath(cast("str | os.PathLike[str]", value))
    if "\0" in text:
        return []  # whoever opens it says so
    path = split_member(text)[0]
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
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
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    if kind in _BEGINS:
        return head.lstrip().startswith(_BEGINS[kind])
    if kind == "text":
        try:
            return "\0" not in head[: head.rfind(b"\n") + 1 or None].decode()
        except UnicodeDecodeError:
            return False
    return True


def _harm(write: Write, path: str, read: str) -> str:
    """What writing one place would do to what lies at another; nothing where they do not meet."""
    if "://" in read or "://" in path:
        one, other = path.rstrip("/"), read.rstrip("/")
        meet = one == other or (f"{one}/").startswith(f"{other}/") or (f"{other}/").startswith(f"{one}/")
        return "overwrite" if meet else ""
    if _same(path, read):
        return "be written among" if write.kind == "into" and Path(read).is_dir() else "overwrite"
    if write.kind != "into" and _inside(read, path):
        return "overwrite"
    return "become a part of" if Path(read).is_dir() and _disturbs(write, path, read) else ""


def _check_folder(write: Write, path: str) -> None:
    """Whether files can be added to a folder that is made where it is missing."""
    folder = Path(path).absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise OutputError(f"{write.flag} {path} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{write.flag} {path} cannot be written: {there} may not be written by this user")


def _disturbs(write: Write, path: str, folder: str) -> bool:
    """Whether it would become a part of a folder that is read: anywhere in a store, a file directly in others."""
    if not _inside(path, folder):
        return False
    store = any((Path(folder) / name).exists() for name in _STORES)
    apart = write.kind in ("folder", "into") or path.lower().endswith(_NO_IMAGES)
    beside = not apart and _same(os.path.dirname(os.path.abspath(path)), folder)  # noqa: PTH100, PTH120
    return store or beside


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
