"""The models that come with tilelab: NAME.onnx, and beside it NAME.int8.xml where int8 was proved to say the same."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

QUANTISED = ".int8.xml"
"""What a quantised file is called after the name of its model."""


def bundled_folder() -> Path:
    """Where they lie."""
    return Path(str(files("tilelab"))) / "models" / "bundled"


def bundled_models() -> dict[str, Path]:
    """The models that come with tilelab, by name."""
    return {path.stem: path for path in sorted(bundled_folder().glob("*.onnx"))}


def quantised_file(model: object) -> Path | None:
    """The int8 file of a bundled model; None where there is none, and for a model that is named by its path."""
    if not isinstance(model, str | Path) or str(model) not in bundled_models() or Path(model).expanduser().exists():
        return None
    path = bundled_folder() / f"{model}{QUANTISED}"
    return path if path.is_file() else None
