"""What a file or folder of data names outside of its own folder: whoever made it could make us read anything.

Names are judged as they are written; links are the file system's and are followed as everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from tilelab.errors import InputError


def leaves(name: str) -> bool:
    """Whether a name that counts from a folder leads out of it, or begins at the root."""
    windows = PureWindowsPath(name)
    return bool(windows.root or windows.drive) or os.path.normpath(name.replace("\\", "/")).split("/")[0] == ".."


def beyond(folder: str | os.PathLike[str], paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Those of local `paths` that are not in `folder`, each once."""
    home = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay as they are
    absolute = dict.fromkeys(os.path.abspath(path) for path in paths)  # noqa: PTH100
    return tuple(path for path in absolute if not Path(path).is_relative_to(home))


def check_outside(uri: str, outside: tuple[str, ...], allowed: bool) -> None:
    """Refuse data that lie outside of their folder, unless that is allowed.

    Raises:
        InputError: it names the first place.
    """
    if outside and not allowed:
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        raise InputError(
            f"{uri} would have {outside[0]}{more} read, outside of its own folder: --allow-outside lets it"
        )
