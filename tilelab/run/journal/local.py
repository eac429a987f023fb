"""What is finished of a job, so that a killed run goes on where it was: a lock, a fingerprint and a list of parts.

It lives in ``OUT.partial/.tilelab``: ``job.json`` (the fingerprint, how the work was split, and a name for this
attempt), ``progress`` (a line per band of rows that is on disk, see `records.py`) and ``lock``; all of it goes when the
result is finished.  A line is written with one system call after its data: what a line claims, a SIGKILL cannot take
back.  A power failure can, and so can people: a run that continues looks at what the lines claim before it trusts them.
For remote results see `remote.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tilelab.errors import OutputError, ResumeError
from tilelab.geometry import Units
from tilelab.io.results.sink import Stored
from tilelab.io.storage.place import Place
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.disk import discard_folder, make_ours, remove_entry, try_lock, write_text
from tilelab.run.journal.fingerprint import FOLDER, Fingerprint, check_same_job
from tilelab.run.journal.records import contiguous, format_record, parse_records


class Journal:
    """The journal of one unfinished result; at most one process holds it.

    split: how the work was cut by the run that finished the first rows; those that continue it cut it the same way.
    records: what earlier runs and this one have put down, by unit, oldest first.
    positions: up to where earlier runs finished each unit without a gap, once it has been looked at (`trust`).
    restarted: whether the machine was started anew since the job began, so that what was on disk may be lost.
    """

    split: dict[str, Any]
    restarted = False

    def __init__(self, partial: Place, fingerprint: Fingerprint, split: Mapping[str, Any]) -> None:
        """Take the lock and open or begin the journal.

        Raises:
            OutputError: another run holds the lock, or a folder that is not ours has the name.
            ResumeError: the unfinished result belongs to another job, or its journal is damaged.
        """
        self.records: dict[int, list[Stored]] = {}
        self.positions: dict[int, int] = {}
        make_ours(Path(str(partial)))
        self.folder = Path(str(partial)) / FOLDER
        self._lock = take_lock(self.folder / "lock", partial)
        progress = self.folder / "progress"
        try:
            self._begin(partial, fingerprint, split, _read(self.folder / "job.json"), _read(progress) or b"")
            if not self.records:
                write_text(self.folder / "job.json", self._description(fingerprint))
            self._log = os.open(progress, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.truncate(progress, sum(len(self._line(u, one)) for u, parts in self.records.items() for one in parts))
        except BaseException:
            self.close()
            raise

    def _begin(
        self, result: Place, fingerprint: Fingerprint, split: Mapping[str, Any], known: bytes | None, progress: bytes
    ) -> None:
        """Take up what an earlier run left, `known` being its ``job.json``; or begin."""
        document = None if known is None else _parse(result, known)
        if document is None and (progress or (result / "zarr.json").is_file()):
            raise _damaged(result, "job.json is missing")
        if document is not None:
            check_same_job(result, document["fingerprint"], fingerprint)
            self._job = str(document.get("job", ""))
            for unit, stored in parse_records(self._job, progress):
                self.records.setdefault(unit, []).append(stored)
        if document is not None and self.records:
            self.split = document["split"]
            self.restarted = document.get("boot") != boot()
        else:  # a new name: no line of an earlier attempt passes for one of this
            self.split, self._job = dict(split), secrets.token_hex(8)

    def _description(self, fingerprint: Fingerprint) -> str:
        document = {"fingerprint": fingerprint.document(), "split": self.split, "job": self._job, "boot": boot()}
        return json.dumps(document, indent=1, sort_keys=True) + "\n"

    def _line(self, unit: int, stored: Stored) -> bytes:
        return format_record(self._job, unit, stored)

    @property
    def begun(self) -> bool:
        """Whether an earlier run put something down."""
        return bool(self.records)

    def trust(self, units: Units, axis: int, check: Callable[[int, Stored], bool]) -> int:
        """Look at what earlier runs put down, and take for finished what is as it was; the rest is forgotten.

        Args:
            units: all of the job's.
            axis: the swept one.
            check: says whether a part of a unit is on disk as it was stored.

        Returns:
            The number of units of which something was not.
        """
        spoiled = 0
        for unit, parts in list(self.records.items()):
            box = units[unit].box if 0 <= unit < len(units) else None
            first, last = (0, -1) if box is None else (box.start[axis], box.stop[axis])
            sound: dict[int, Stored] = {}  # by start
            failed = False
            for part in sorted(parts, key=lambda part: -part.stop):  # the longest that is whole
                if part.start not in sound:
                    if first <= part.start < part.stop <= last and check(unit, part):
                        sound[part.start] = part
                    else:
                        failed = True
            spoiled += failed
            self.records[unit] = list(sound.values())
            if (position := contiguous(sound.values(), first)) > first:
                self.positions[unit] = position
        return spoiled

    def record(self, unit: int, stored: Stored) -> None:
        """Put down that `stored` of a unit is on disk; of parts with the same start the longest holds the others.

        It need not come last: two workers may be at the same rows, and the slower one tells what it has, too.
        """
        known = self.records.get(unit, [])
        if any(part.start == stored.start and part.stop >= stored.stop for part in known):
            return
        self.records[unit] = [part for part in known if part.start != stored.start] + [stored]
        self._append(self._line(unit, stored))

    def _append(self, line: bytes) -> None:
        try:
            os.write(self._log, line)
        except OSError as error:
            raise output_error(self.folder / "progress", error) from error

    def finish(self, result: Place) -> None:
        """The result is finished: the journal goes."""
        self.remove(result)

    @staticmethod
    def remove(result: Place) -> None:
        """Remove the journal of a result that is finished.

        Raises:
            OutputError: it cannot be removed; the result is whole all the same.
        """
        try:
            if result.renames:
                if os.path.lexists(folder := Path(str(result / FOLDER))):  # not below a file
                    remove_entry(folder)
            else:
                (result / FOLDER).remove_tree()
        except OSError as error:
            raise OutputError(
                f"{result} is finished, but its journal {result / FOLDER} cannot be removed "
                f"({error.strerror or error}): the same command tries again"
            ) from error

    def abandon(self, result: Place) -> None:
        """Remove an unfinished result that nobody needs, and give the lock back when nobody finds it any more.

        Another run that took the lock before would lose what it writes.

        Raises:
            OSError: it cannot be removed.
        """
        if os.name == "nt":  # an open file keeps its folder from being renamed
            self.close()
        folder = Path(str(result))
        try:
            discard_folder(folder, folder.with_name(folder.name.removesuffix(".partial")), self.close)
        finally:
            self.close()

    def close(self) -> None:
        """Give the lock back; the result stays resumable."""
        if hasattr(self, "_log"):
            os.close(self._log)
            del self._log
        if not self._lock.closed:
            self._lock.close()


def boot() -> str:
    """Tell this start of this machine from others; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _parse(result: Place, data: bytes) -> dict[str, Any]:
    """The content of ``job.json``.

    Raises:
        ResumeError: it is damaged.
    """
    try:
        document = json.loads(data)
        sound = isinstance(document["fingerprint"], dict) and isinstance(document["split"], dict)
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise _damaged(result, "job.json cannot be read")
    found: dict[str, Any] = document
    return found


def _damaged(result: Place, why: str) -> ResumeError:
    return ResumeError(
        f"the journal of the unfinished {result} is damaged ({why}), so what it holds cannot be trusted: "
        "begin anew with --restart"
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def take_lock(path: Path, partial: Place) -> IO[str]:
    """Lock `path` for this process; the operating system lets go when the process dies, however it dies."""
    with contextlib.ExitStack() as failing:
        file = failing.enter_context(path.open("a+"))
        if not try_lock(file, strict=True):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise OutputError(
                f"{partial} is being written by another run (process {holder}): wait for it or choose another output"
            )
        if os.name != "nt" and not _is_there(file, path):
            raise OutputError(f"{partial} was removed by another run, which ended just now: try again")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        failing.pop_all()
    return file


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether a file that is open still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
