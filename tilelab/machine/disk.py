"""Files that appear whole or not at all, and folders that are removed only if they are ours.

Everything that tilelab replaces, renames or removes on a disk goes through this module; nothing else in the package
calls `unlink`, `rmtree`, `rename` or `replace`.

A file is written under a temporary name beside its own, ``.NAME.XXXXXXXX.tilelab``, made so that no file of that name
can have been there, locked while it is written, and renamed when its bytes are on the disk.  What a killed process left
is known by name and by its free lock, and goes when the same file is written again.  A folder is ours if it holds the
mark, `MARK`; links are never followed when something is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tilelab.errors import OutputError

MARK = ".tilelab"
"""What a folder of ours holds: a file, or a folder with the journal of an unfinished result."""
_MANY_FILES = 256
_PATIENCE = 600.0  # seconds; whoever has its turn that long was stopped, by a scheduler, say
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What file systems answer that know no locks."""


def why_unwritten(error: OSError) -> str:
    """Why nothing could be written, and what to do where it is the place: it is full, or another user's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run the same command again"
    ours = error.errno is not None and error.strerror != os.strerror(error.errno)  # which says more
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not ours:
        return "this user may not write there; name another place"
    return error.strerror or str(error)


@contextlib.contextmanager
def replacing(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """A temporary file to write, which becomes `path` if the block ends well, and vanishes otherwise.

    What `path` held stays until then, so a failure costs nothing.  A link is followed: the file behind it is replaced.

    Args:
        path: the file to write; its folder must exist.
        suffix: of the temporary file's name, for libraries that go by it.

    Raises:
        OutputError: it cannot be written, its folder is missing, or it is a folder, a device or a pipe.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        raise OutputError(f"{path} is a folder, a device or a pipe: name a file")
    try:
        sweep_leftovers(final)
        temporary = _beside(final, suffix)
        with temporary.open("xb") as lock:
            try_lock(lock)
            try:
                yield temporary
                move_whole(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {why_unwritten(error)}") from error


@contextlib.contextmanager
def work_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder of ours in `parent`, gone afterwards; what killed processes left of others goes before.

    Args:
        parent: must exist.
        prefix: of its name, which ends in our mark.

    Raises:
        OSError: it cannot be made.
    """
    for left in parent.glob(f"{prefix}*{MARK}"):
        with contextlib.suppress(OSError), (left / MARK).open("r+b") as lock:
            if is_ours(left) and try_lock(lock):
                remove_ours(left)
    folder = Path(tempfile.mkdtemp(MARK, prefix, parent))
    try:
        with (folder / MARK).open("wb") as lock:
            try_lock(lock)
            yield folder
    finally:
        with contextlib.suppress(OSError):
            remove_ours(folder)


def move_whole(source: Path, path: Path) -> None:
    """Give a finished file on the same disk its final name, replacing a file of that name; raises as `replacing`."""
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        raise OutputError(f"{path} is a folder, a device or a pipe: name a file")
    try:
        if final.exists():
            shutil.copymode(final, source)
        flush(source)
        source.replace(final)
        flush(final.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {why_unwritten(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, UTF-8; raises as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on the disk before going on, where the system can."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDWR
    with contextlib.suppress(OSError):  # some file systems cannot, and a folder cannot on Windows
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have everything in a folder on the disk before going on: file by file, or where there are many all at once."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    if len(files) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for path in {*files, *(file.parent for file in files), folder}:
        flush(path)


def replace_folder(whole: Path, path: Path) -> None:
    """Give a finished folder its final name, replacing a folder of that name that is given up.

    A folder cannot be replaced in one step: the old one steps aside first, under a name of ours, and goes last.

    Raises:
        OSError: it cannot be renamed; the old one is in its place again.
    """
    sweep_leftovers(path)
    if not os.path.lexists(path):
        whole.rename(path)
        flush(path.parent)
        return
    aside = _beside(path)
    try:
        path.rename(aside)
        whole.rename(path)
    except BaseException:  # a Ctrl-C, too
        if not os.path.lexists(path):
            aside.rename(path)
        raise
    flush(path.parent)
    remove_entry(aside)


def discard_folder(folder: Path, name: Path, release: Callable[[], None] = lambda: None) -> None:
    """Remove a folder that is no longer wanted, under a name of ours beside `name` by which a later command knows it.

    Args:
        folder: to remove.
        name: of the result that it belongs to.
        release: gives a lock in it back, once nobody finds it by its name any more.

    Raises:
        OSError: it cannot be removed.
    """
    aside = _beside(name)
    folder.rename(aside)
    release()
    remove_entry(aside)


def try_lock(file: IO[bytes] | IO[str], *, strict: bool = False) -> bool:
    """Lock an open file until it is closed or the process dies, however it dies; False when another one has it.

    Args:
        file: to lock.
        strict: tell a file system without locks from a file that another process has.

    Raises:
        OSError: with `strict`, there are no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if strict and error.errno in _NO_LOCKS:
            raise OSError(
                error.errno,
                f"its file system has no locks ({error.strerror}), which keep two runs apart: name a place on another, "
                "or mount it with them (Lustre: flock)",
            ) from error
        return False
    return True


@contextlib.contextmanager
def turn(lock: Path) -> Iterator[None]:
    """Wait until nobody else is within it with the same file, for something that is read, changed and replaced.

    The file is made where it is missing, and stays.  Where there are no locks, or one waits in vain for ten minutes,
    it goes on without.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a place that cannot be written says so itself
            file, until = held.enter_context(lock.open("ab")), time.monotonic() + _PATIENCE
            while not try_lock(file, strict=True) and time.monotonic() < until:
                time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - only so that they do not come back at once
        yield


def make_ours(folder: Path) -> None:
    """Make a folder that bears our mark; one that bears it already may be there.

    Raises:
        OutputError: something else has the name.
        OSError: it cannot be made.
    """
    if not os.path.lexists(folder):
        folder.mkdir(parents=True)
    if is_ours(folder):
        return
    if not folder.is_symlink() and folder.is_dir() and not any(folder.iterdir()):  # or a kill came between the two
        (folder / MARK).mkdir()
    else:
        raise OutputError(f"{folder} was not made by tilelab, which needs that name: move it away")


def is_ours(folder: Path) -> bool:
    """Whether something is a folder that bears our mark; a link to one is not."""
    return not folder.is_symlink() and folder.is_dir() and os.path.lexists(folder / MARK)


def remove_ours(folder: Path) -> None:
    """Remove a folder of ours with all that is in it, its mark last; nothing happens when there is none.

    Raises:
        OutputError: it is not ours, or is a link.
        OSError: something in it cannot be removed.
    """
    if not os.path.lexists(folder):
        return
    if not is_ours(folder):
        raise OutputError(f"{folder} was not made by tilelab and is not removed: move it away")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MARK):
        remove_entry(entry)
    folder.rmdir()


def remove_entry(path: Path, *, strict: bool = True) -> None:
    """Remove a file, a link (not what it points to), or a folder with all that is in it, of a place that is ours.

    Without `strict` what cannot be removed stays, and nothing is said.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(kind):
        shutil.rmtree(path, ignore_errors=not strict)
        return
    with contextlib.suppress(*(() if strict else (OSError,))):
        path.unlink(missing_ok=True)


def give_name(whole: Path, final: Path) -> None:
    """Rename a finished file over another one, or a finished folder where there is none; the disk is not waited for.

    Raises:
        OSError: it cannot be, a folder of that name is there, or the folder of `final` is missing.
    """
    if whole.is_dir():
        whole.rename(final)
    else:
        whole.replace(final)


def _beside(final: Path, suffix: str = "") -> Path:
    """A new name of ours beside `final`, which `sweep_leftovers` knows again."""
    return final.with_name(f".{final.name[:180]}.{secrets.token_hex(4)}{MARK}{suffix}")


def sweep_leftovers(final: Path) -> None:
    """Remove what a killed process left of an earlier attempt at the same file or folder."""
    ours = re.compile(re.escape(f".{final.name[:180]}.") + r"[0-9a-f]{8}" + re.escape(MARK) + r"(\.\w+)?")
    with os.scandir(final.parent) as entries:
        found = [Path(entry.path) for entry in entries if ours.fullmatch(entry.name) and not entry.is_symlink()]
    for leftover in found:
        if leftover.is_dir():
            with contextlib.suppress(OSError):
                remove_entry(leftover)
            continue
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            if try_lock(file):
                leftover.unlink(missing_ok=True)
