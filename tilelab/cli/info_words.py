"""Words of `tilelab info` for what images, models and results have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilelab.cli.terminal import printable
from tilelab.text import counted, size_text

if TYPE_CHECKING:
    from rich.text import Text

Rows = list[tuple[str, Any]]


def classes_text(classes: list[dict[str, str]]) -> Text:
    """A line for each class: index, colour, name."""
    from rich.text import Text

    text = Text()
    for index, entry in enumerate(classes):
        if index:
            text.append("\n")
        text.append(f"{index} ")
        text.append("  ", style=f"on {entry['color']}")
        text.append(printable(f" {entry['name']} ({entry['color']})"))
    return text


def pixel_text(sizes: list[tuple[str, float]] | None) -> str:
    """The size of a pixel, once where it is the same on all axes."""
    if not sizes:
        return "unknown"
    values = {value for _, value in sizes}
    if len(values) == 1:
        return f"{sizes[0][1]:g} nm"
    return ", ".join(f"{axis} {value:g} nm" for axis, value in sizes)


def axes_text(axes: str, shape: list[int]) -> str:
    """The extent, its axes, and how many pixels that is."""
    pixels = 1
    for axis, n in zip(axes, shape, strict=True):
        pixels *= n if axis in "zyx" else 1
    return f"{size_text(shape)} ({', '.join(axes)}), {pixels / 1e6:.4g} MP"


def levels_text(levels: list[list[int]]) -> str:
    """How many levels, and the extent of the coarsest."""
    return f"{len(levels)}, down to {size_text(levels[-1])}" if len(levels) > 1 else "1"


def plain_text(value: Any) -> str:
    """Whatever JSON can hold, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def confidence_text(found: dict[str, Any] | None) -> str | None:
    """How the probabilities were calibrated, and what that is worth."""
    if not found:
        return None
    text = f"logits over {found['temperature']:g}"
    if found.get("ece"):
        without, calibrated = found["ece"]
        text += f": calibration error {calibrated:.2%}, without {without:.2%}, on {counted(found['images'], 'image')}"
    return text
