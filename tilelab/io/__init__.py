"""Images in, segmentations out.

The public names are imported when they are first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilelab.io.convert import convert_image
    from tilelab.io.images.image import Image
    from tilelab.io.images.open import describe, open_image

__all__ = ["Image", "convert_image", "describe", "open_image"]

_HOMES = {
    "Image": "tilelab.io.images.image",
    "convert_image": "tilelab.io.convert",
    "describe": "tilelab.io.images.open",
    "open_image": "tilelab.io.images.open",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
