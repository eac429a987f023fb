"""What tifffile has to say while it opens a file: it logs what other libraries would raise."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Broken lists of pages, page entries and tags; and pixels that end before the image does.  tifffile reads on, with
# fewer pages.  What it logs about metadata of other kinds leaves the pixels intact.
_DAMAGE = re.compile(r"TiffPages?\b|TiffFrame\b|TiffTag\b|.*ImageJ series metadata invalid")

_TAG = re.compile(r"TiffTag (\d+)\b.*\binvalid (?:data type|value)")
_PRIVATE = 32768
"""Tags of that code and above are those of makers, which need not follow the standard."""


class Notes(logging.Handler):
    """Collects tifffile's messages of this thread.

    Attributes:
        damage: those that mean that pixels or pages are missing.
        oddities: those about metadata that do not fit the pages.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.damage: list[str] = []
        self.oddities: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Sort a message in."""
        if record.thread != self._thread:
            return
        message = plain(record.getMessage())
        if (tag := _TAG.search(message)) is not None:
            if int(tag[1]) < _PRIVATE:
                self.damage.append(message)
        elif record.levelno >= logging.ERROR and _DAMAGE.match(message):
            self.damage.append(message)
        elif "series" in message:
            self.oddities.append(message)


@contextmanager
def collect_notes() -> Iterator[Notes]:
    """Collect tifffile's messages, which else go to the terminal."""
    notes = Notes()
    logger = logging.getLogger("tifffile")
    logger.addHandler(notes)
    try:
        yield notes
    finally:
        logger.removeHandler(notes)


def plain(message: str) -> str:
    """A message of tifffile on one line, its objects by their kind alone."""
    return " ".join(re.sub(r"<tifffile\.(TiffTag \d+|\w+)[^>]*>", r"\1", message).split())
