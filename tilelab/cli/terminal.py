"""What reaches a terminal and what stops a command: no control character of a name, no traceback for a user's fault."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO, cast

_DESCRIPTORS = 65_536
"""Files that may be open at once, where the system allows so many; soft limits of 1,024 are for programs of old."""


def printable(text: str) -> str:
    """A text without control characters, lone surrogates and marks that reverse text: written as Python would."""
    return "".join(c if c in "\n\t" or c.isprintable() or _harmless(c) else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """`printable`, and without line breaks."""
    return printable(text).replace("\n", "\\n")


def _harmless(c: str) -> bool:
    return unicodedata.category(c) == "Zs"  # spaces that are not U+0020


class PlainStream:
    """A standard stream that writes `printable` text in its own encoding; what nobody reads any more is dropped."""

    def __init__(self, stream: TextIO, *, clean: bool = True) -> None:
        self.raw, self._clean = stream, clean

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, text: str) -> int:
        """As a file's, but that a carriage return is one at the beginning only."""
        start = "\r" if text.startswith("\r") else ""
        clean = start + printable(text[len(start) :]) if self._clean else text
        encoding = self.raw.encoding or "utf-8"
        with self._unread():
            self.raw.write(clean.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """As a file's."""
        with self._unread():
            self.raw.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        """Go on in silence where the reader went away (``| head``): a run must not end for that.

        Raises:
            OSError: it cannot be written for another reason.
        """
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # nothing may be left to flush at the end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.raw.fileno())
                os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, "standard output") from None


def drawn(stream: TextIO) -> TextIO:
    """The same stream for programs that draw with control characters; they are given what is `printable` already."""
    return cast("TextIO", PlainStream(stream.raw, clean=False)) if isinstance(stream, PlainStream) else stream


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Both standard streams as `PlainStream`, flushed at the end."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = cast("TextIO", PlainStream(sys.stdout))
    if sys.stderr is not None:
        sys.stderr = cast("TextIO", PlainStream(sys.stderr))
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


def explain_stop(error: BaseException) -> str | None:
    """One line for what a user, a disk or a full machine caused; None for a mistake of ours."""
    if isinstance(error, MemoryError):
        return f"there is not enough memory{_of(error)}: lower --memory, --workers or the size of what is read"
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read"
    if isinstance(error, OSError):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{name}{error.strerror or error}"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of ~NAME
        return "a path begins with ~ and a name, of which no user has a home folder here"
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "a name holds a NUL, which no file can be called"
    module = type(error).__module__
    if module.startswith(("numba_cuda", "numba.cuda", "cuda.")) or "CUDA" in str(error).split("\n")[0]:
        return f"the GPU failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None


def _of(error: BaseException) -> str:
    return f" ({error})" if str(error) else ""


def ignore_interrupts() -> None:
    """Let a second Ctrl-C not disturb the end of a process that ends already."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def allow_open_files() -> None:
    """Raise the soft limit of open files to what the system lets us."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
