"""Places on a disk."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tilelab.io.storage.local_file import LocalFile, refuse_streams
from tilelab.io.storage.stored_file import Version
from tilelab.machine.disk import give_name, remove_entry

if TYPE_CHECKING:
    from pathlib import Path as _Path
else:
    _Path = type(Path())  # PosixPath or WindowsPath: before Python 3.12 only these have heirs


class LocalPath(_Path):
    """A file or folder on a disk; a `pathlib.Path` that is a `Place`."""

    __slots__ = ()

    waits = False
    renames = True
    writable = True
    lists = True

    def write_whole(self, pieces: Iterable[bytes], scratch: LocalPath) -> None:
        """Write the file under another name in the folder `scratch`, then rename it.

        It survives the death of the process from then on (the page cache is the kernel's); a power failure may take it.
        """
        unfinished = scratch / uuid.uuid4().hex
        try:
            with unfinished._open_new() as file:
                file.writelines(pieces)
            try:
                give_name(unfinished, self)
            except FileNotFoundError:
                self.parent.mkdir(parents=True, exist_ok=True)
                give_name(unfinished, self)
        except BaseException:
            remove_entry(unfinished, strict=False)
            raise

    def read_bytes(self) -> bytes:
        """As in `pathlib`; what can be no name is missing, what is no file an OSError."""
        try:
            refuse_streams(self)
        except ValueError:
            raise FileNotFoundError(errno.ENOENT, "can be no name", str(self)) from None
        return super().read_bytes()

    def open_file(self) -> LocalFile:
        """The file, opened for reading at positions; raises InputError when it is missing or unreadable."""
        return LocalFile(self)

    def version(self) -> Version:
        """What tells its content from another."""
        found = self.stat()
        return Version(found.st_size, "modified_ns", str(found.st_mtime_ns))

    def file_sizes(self) -> list[int]:
        """Bytes of every file below."""
        return [file.stat().st_size for file in self.rglob("*") if file.is_file()]

    def free_bytes(self) -> int:
        """Bytes that the disk still takes; OSError when nothing may be written."""
        parent = self.resolve().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OSError(errno.EACCES, f"{parent} is no folder that may be written")
        return shutil.disk_usage(parent).free

    def remove_tree(self) -> None:
        """Remove the folder with everything in it; what cannot be removed stays."""
        remove_entry(self, strict=False)

    def delete_file(self) -> None:
        """Remove the file, if it is there."""
        remove_entry(self)

    def zarr_store(self) -> Any:
        """A read-only store for zarr-python."""
        from zarr.storage import LocalStore

        return LocalStore(self, read_only=True)

    def explain(self, error: Exception) -> str:
        """What an exception that came through `zarr_store` means."""
        return str(error)

    def _open_new(self) -> IO[bytes]:
        """A new file, opened for writing; its folder is made if need be, but not the one around it.

        So a result that is moved away while it is written is missed, and not begun anew without its root.
        """
        try:
            return self.open("xb")
        except FileNotFoundError:
            self.parent.mkdir(exist_ok=True)
            return self.open("xb")
