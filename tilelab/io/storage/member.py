"""A file and what is meant inside it: ``FILE.h5::/path``."""

from __future__ import annotations

from pathlib import Path


def split_member(path: str) -> tuple[str, str]:
    """``file.h5::/path/in/file`` as the file and the path in it, which is empty where none is named."""
    if "::" not in path or Path(path).exists():
        return path, ""
    file, _, member = path.partition("::")
    return file, member
