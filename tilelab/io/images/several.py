"""Which of several images of one file or folder is meant: `--series` says it, by number or name."""

from __future__ import annotations

from collections.abc import Sequence

from tilelab.assumptions import Assumption
from tilelab.errors import InputError

FLAG = "--series"
_LISTED = 12


class SeveralImagesError(InputError):
    """A file or folder holds several images, and none of them is taken for granted."""


def choose(uri: str, series: str | None, names: Sequence[str], shown: Sequence[str]) -> int | None:
    """The place in `names` that `series` means; None where nothing was said.

    Args:
        uri: for messages.
        series: a number, from 0, or a name.
        names: of the images.
        shown: what there is to say of each, for people.

    Raises:
        InputError: there is no such image, or several are called so.
    """
    if series is None:
        return None
    found = [i for i, name in enumerate(names) if name == series]
    if not found and series.isdecimal() and int(series) < len(names):
        found = [int(series)]
    if len(found) != 1:
        what = f"{len(found)} are called so" if found else "there is none such"
        raise InputError(f"{FLAG} {series} was asked for, {uri} holds {listing(shown)}: {what}")
    return found[0]


def listing(shown: Sequence[str]) -> str:
    """Several images on one line, by their numbers."""
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(f"{i}: {text}" for i, text in enumerate(shown[:_LISTED])) + more


def guessed(uri: str, taken: int, shown: Sequence[str], because: str) -> Assumption:
    """That one of several images is meant."""
    what = f"which of the {len(shown)} images in {uri} is meant"
    return Assumption(what=what, taken=f"{taken}: {shown[taken]}", because=because, flag=FLAG)
