"""What is made of a model once and kept: in the user's cache folder, under the digest of what it was made of."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tilelab.errors import OutputError
from tilelab.machine.disk import MARK, give_name

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
        with tempfile.TemporaryDirectory(prefix=".model-", suffix=MARK, dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            make(made)
            if not folder.is_dir():
                give_name(made, folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}: set XDG_CACHE_HOME") from error
    return folder, True
