"""Pieces of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

QUIET = 0.1  # cores that other programs may take before it is said


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> list[str]:
    """A Markdown table; the first `text` columns are text, the others are numbers."""
    lines = [f"| {' | '.join(header)} |", "|---" * text + "|---:" * (len(header) - text) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def paragraph(*parts: str) -> list[str]:
    """Sentences, joined."""
    return [" ".join(parts), ""]


def picture(pictures: dict[str, str], name: str, text: str) -> list[str]:
    """A plot, if it was drawn."""
    return [f"![{text}]({pictures[name]})", ""] if name in pictures else []


def busy(section: dict[str, Any]) -> str:
    """What is to be said of other programs on the machine; empty when it was quiet."""
    cores = section["others"]
    return f"other programs took {cores:.1f} cores meanwhile" if cores > QUIET else ""
