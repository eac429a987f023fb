"""What is made of a model once and kept: in the user's cache folder, under the digest of what it was made of."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tilelab.errors import OutputError
from tilelab.machine.disk import give_name, work_folder

BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What is raised of an archive that is damaged, packed in a way that is not known here, or locked by a password."""
_DIGITS = 16  # of a digest, in names


def cache_folder() -> Path:
    """Where models are kept: ``$XDG_CACHE_HOME/tilelab/models``, else in ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tilelab" / "models"


def digest_of(*files: Path) -> str:
    """SHA-256 of files, one after the other."""
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def is_kept(digest: str) -> bool:
    """Whether something was made for a digest."""
    return (cache_folder() / digest[:_DIGITS]).is_dir()


def unpacked(archive: Path, unpack: Callable[[Path], None]) -> Path:
    """The folder of what an archive holds; the archive itself, where it was fetched, has the one of its digest."""
    key = hashlib.sha256(f"unpacked {digest_of(archive)}".encode()).hexdigest()
    return kept(key, unpack)[0]


def kept(digest: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder that `make` once filled for a digest, and whether it was made just now.

    It appears whole or not at all; of two who make it at once, the first one's stays.

    Raises:
        OutputError: it cannot be written.
    """
    folder = cache_folder() / digest[:_DIGITS]
    if folder.is_dir():
        return folder, False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(folder.parent, ".model-") as scratch:
            made = scratch / "made"
            made.mkdir()
            make(made)
            try:
                give_name(made, folder)
            except OSError:
                if not folder.is_dir():  # another one was not faster
                    raise
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}: set XDG_CACHE_HOME") from error
    return folder, True
