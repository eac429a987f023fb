"""What a run takes for true without having been told: every guess is a value, so that none is made in silence.

Readers, models, masks and normalisation attach their guesses to what they give (`Image.assumptions`,
`Engine.assumptions`); `infer` gathers them, says each before it begins, keeps them in the report and the result, and
says them again at the end.  With ``--strict`` the first one is a refusal, and its flag is the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tilelab.errors import StrictError


class Assumption(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A guess.

    Attributes:
        what: was not known, e.g. ``the axes of a.npy``.
        taken: for true instead, e.g. ``yx``.
        because: the grounds, e.g. ``an axis of 1 is no x``.
        flag: that says it otherwise, e.g. ``--axes``; empty where nothing can.
    """

    what: str
    taken: str
    because: str
    flag: str = ""

    def __str__(self) -> str:
        remedy = f" (say otherwise with {self.flag})" if self.flag else ""
        return f"assumed: {self.what}: {self.taken}, because {self.because}{remedy}"


def check_strict(assumptions: Iterable[Assumption], strict: bool) -> None:
    """Refuse the first assumption where none is allowed.

    Raises:
        StrictError: it names what is not known, what would be taken, and the flag that says it.
    """
    if not strict:
        return
    for one in assumptions:
        remedy = f"say it with {one.flag}" if one.flag else "leave --strict out to accept it"
        raise StrictError(
            f"--strict allows no assumptions: {one.what} would be taken as {one.taken}, because {one.because}: {remedy}"
        )
