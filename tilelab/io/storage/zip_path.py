"""Places inside a zip file, to read from: OME-Zarr's ``.ozx``, and what was zipped for its way here."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePath, PurePosixPath
from typing import Any, Self

from tilelab.errors import InputError
from tilelab.io.storage.local_file import LocalFile
from tilelab.io.storage.stored_file import Version

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of what follows it


@dataclass(frozen=True)
class _Archive:
    """A zip file: its members by name, and the folders that they are in."""

    path: str
    file: LocalFile
    zip: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    folders: set[str]


@dataclass(frozen=True)
class ZipPath:
    """A file or folder in a zip file; a `Place` that takes no writes.

    Members that are stored are read where they lie, compressed ones as a whole.
    """

    inner: str
    archive: _Archive = field(repr=False, compare=False)

    waits = False
    renames = False
    writable = False
    lists = True

    @classmethod
    def root(cls, path: str) -> ZipPath:
        """The top of the zip file `path`.

        Raises:
            InputError: it is damaged.
        """
        try:
            packed = zipfile.ZipFile(path)  # the archive closes it when it is forgotten
            members = {info.filename.strip("/"): info for info in packed.infolist() if not info.is_dir()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(f"{path} is a damaged zip file: {error}") from error
        folders = {_plain(parent) for name in members for parent in PurePosixPath(name).parents}
        return cls("", _Archive(path, LocalFile(path), packed, members, folders))

    def __str__(self) -> str:
        return f"{self.archive.path}/{self.inner}" if self.inner else self.archive.path

    @property
    def name(self) -> str:
        return PurePosixPath(str(self)).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    @property
    def parent(self) -> ZipPath:
        return self._at(_plain(PurePosixPath(self.inner).parent))

    @property
    def parents(self) -> Sequence[ZipPath]:
        return [self._at(_plain(parent)) for parent in PurePosixPath(self.inner).parents]

    def __truediv__(self, part: str) -> ZipPath:
        return self.joinpath(part)

    def joinpath(self, *parts: str) -> ZipPath:
        return self._at("/".join(p for p in (self.inner, *(part.strip("/") for part in parts)) if p))

    def with_name(self, name: str) -> ZipPath:
        return self.parent / name

    def relative_to(self, other: ZipPath) -> PurePath:
        return PurePosixPath(self.inner).relative_to(other.inner)

    def absolute(self) -> Self:
        return self

    def resolve(self) -> Self:
        return self

    def is_file(self) -> bool:
        return self.inner in self.archive.members

    def is_dir(self) -> bool:
        return self.inner in self.archive.folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[ZipPath]:
        names = {key.partition("/")[0] for key in self.member_names()}
        return (self / name for name in sorted(names))

    def member_names(self) -> Iterator[str]:
        """Names of all files below, from here."""
        lead = f"{self.inner}/" if self.inner else ""
        return (name[len(lead) :] for name in self.archive.members if name.startswith(lead))

    def read_bytes(self) -> bytes:
        """The content of a member; what is damaged is an OSError."""
        try:
            return self.archive.zip.read(self._info())
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(errno.EIO, f"the zip file is damaged: {error}", str(self)) from error

    def open_file(self) -> MemberFile:
        """The file, for reading at positions.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            return MemberFile(str(self), self._info(), self.archive)
        except FileNotFoundError:
            raise InputError(f"{self} does not exist") from None

    def version(self) -> Version:
        info = self._info()
        return Version(info.file_size, "crc32", f"{info.CRC:08x}")

    def file_sizes(self) -> list[int]:
        return [self.archive.members[self.joinpath(key).inner].file_size for key in self.member_names()]

    def zarr_store(self) -> Any:
        """A read-only store for zarr-python."""
        from zarr.storage import StorePath, ZipStore

        return StorePath(ZipStore(self.archive.path, mode="r", read_only=True), self.inner)

    def explain(self, error: Exception) -> str:
        """What an exception that came through `zarr_store` means."""
        return str(error)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: ARG002
        self._refuse()

    def write_bytes(self, data: bytes) -> object:  # noqa: ARG002
        self._refuse()
        return None

    def delete_file(self) -> None:
        """Refuse."""
        self._refuse()

    def write_whole(self, pieces: Iterable[bytes], scratch: ZipPath) -> None:  # noqa: ARG002
        """Refuse."""
        self._refuse()

    def free_bytes(self) -> int | None:
        """Refuse."""
        self._refuse()
        return None

    def remove_tree(self) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> None:
        raise OSError(errno.EROFS, "nothing is written into zip files", str(self))

    def _info(self) -> zipfile.ZipInfo:
        info = self.archive.members.get(self.inner)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such member", str(self))
        return info

    def _at(self, inner: str) -> ZipPath:
        return ZipPath(inner, self.archive)


def _plain(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath() else str(path)


class MemberFile:
    """A member of a zip file as a `StoredFile`."""

    waits = False

    def __init__(self, path: str, info: zipfile.ZipInfo, archive: _Archive) -> None:
        self.path, self.size = path, info.file_size
        self._info, self._file = info, archive.file
        self._whole: bytes | None = None
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            try:
                self._whole = archive.zip.read(info)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
                raise InputError(f"{path} cannot be read: {error}") from error
            return
        signature, name, extra = _LOCAL_HEADER.unpack(self._file.read(info.header_offset, _LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise InputError(f"{archive.path} is a damaged zip file: {path} is not where its table says")
        self._start = info.header_offset + _LOCAL_HEADER.size + name + extra

    def version(self) -> Version:
        """Its size and checksum."""
        return Version(self.size, "crc32", f"{self._info.CRC:08x}")

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; raises InputError where it ends before."""
        if offset + count > self.size:
            raise InputError(f"{self.path} is truncated: byte {offset + count} was asked for, it has {self.size}")
        if self._whole is not None:
            return self._whole[offset : offset + count]
        return self._file.read(self._start + offset, count)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with what begins at `offset`; raises as `read`."""
        out[:] = self.read(offset, len(out))

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: the system reads ahead."""

    def fetch_tail(self, count: int | None = None) -> None:
        """Nothing: the system reads ahead."""

    def forget(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing was kept."""

    def stream(self) -> Any:
        """Its content as a file object."""
        return BytesIO(self.read(0, self.size))

    def close(self) -> None:
        """Nothing: the zip file stays open for others."""
