"""What the readers of optional formats share: libraries imported when used, names with a member, small JSON files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from tilelab.errors import InputError
from tilelab.io.zarr.documents import parse_json
from tilelab.text import install_hint


def require(module: str, what: str) -> Any:
    """The optional package `module`, which reading `what` takes.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"reading {what} needs {module}, which cannot be imported ({error}): {install_hint('formats')}"
        ) from error


def is_precomputed(path: Path) -> bool:
    """Whether the folder `path` is a neuroglancer precomputed volume, or by its name should be."""
    if path.suffix == ".precomputed":
        return True
    info = path / "info"
    if not info.is_file():
        return False
    try:
        document = parse_json(info.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and (
        "scales" in document or str(document.get("@type", "")).startswith("neuroglancer_")
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is incomplete: it has no {path.name}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return document


def one_line(error: BaseException) -> str:
    """What a library says, on one line and without its internals."""
    text = " ".join(str(error).split())
    for end in (" [tensorstore_spec=", " [source locations=", " [source_location"):
        text = text.partition(end)[0]
    return text or type(error).__name__
