"""What is finished of a job, so that a killed run goes on where it was: a lock, a fingerprint and a list of positions.

It lives in ``OUT.partial/.tilelab``: ``job.json`` (the fingerprint and how the work was split), ``progress`` (one line
per band of rows that is on disk) and ``lock``; all of it goes when the result is finished.
A line is written with one system call after its data: what a line claims, a SIGKILL cannot take back.
For remote results see `tilelab.run.journal.remote`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tilelab.errors import OutputError, ResumeError
from tilelab.io.storage.place import Place
from tilelab.run.journal.fingerprint import FOLDER, Fingerprint, check_same_job


class Journal:
    """The journal of one unfinished result; at most one process holds it.

    split: how the work was cut by the run that finished the first rows; those that continue it cut it the same way.
    """

    def __init__(self, partial: Place, fingerprint: Fingerprint, split: Mapping[str, Any]) -> None:
        """Take the lock and open or begin the journal.

        Raises:
            OutputError: another run holds the lock.
            ResumeError: the unfinished result belongs to another job.
        """
        self.folder = Path(str(partial)) / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.folder / "lock", partial)
        self.positions: dict[int, int] = {}
        known = _read(self.folder / "job.json")
        if known is not None:
            try:
                check_same_job(partial, known["fingerprint"], fingerprint)
            except ResumeError:
                self.close()
                raise
            self._load()
        self.split: dict[str, Any] = known["split"] if known is not None and self.positions else dict(split)
        if not self.positions:
            _write_atomically(self.folder / "job.json", {"fingerprint": fingerprint.document(), "split": self.split})
        self._log = os.open(self.folder / "progress", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _load(self) -> None:
        path = self.folder / "progress"
        if not path.exists():
            return
        whole, _, torn = path.read_text().rpartition("\n")
        for line in whole.splitlines():
            unit, position = line.split()
            self.positions[int(unit)] = max(self.positions.get(int(unit), 0), int(position))
        if torn:  # never promised, and nothing may be appended to it
            os.truncate(path, len(whole) + 1 if whole else 0)

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left finished rows."""
        return bool(self.positions)

    def record(self, unit: int, position: int) -> None:
        """Rows of `unit` before `position` on the sweep axis are on disk."""
        self.positions[unit] = position
        os.write(self._log, f"{unit} {position}\n".encode())

    def finish(self, result: Place) -> None:
        """The result is finished: the journal goes."""
        self.remove(result)

    @staticmethod
    def remove(result: Place) -> None:
        """Remove the journal of a result that is finished."""
        with contextlib.suppress(OSError):
            (result / FOLDER).remove_tree()

    def close(self) -> None:
        """Give the lock back; the result stays resumable."""
        if hasattr(self, "_log"):
            os.close(self._log)
            del self._log
        if not self._lock.closed:
            self._lock.close()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document


def _write_atomically(path: Path, document: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def take_lock(path: Path, partial: Place) -> IO[str]:
    """Lock `path` for this process; the operating system lets go when the process dies, however it dies."""
    file = path.open("a+")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise OutputError(
            f"{partial} is being written by another run (process {holder}): wait for it or choose another output"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
