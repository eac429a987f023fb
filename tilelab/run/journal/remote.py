"""The journal of a result in a remote store, as objects in ``OUT/.tilelab``; for its promises see `local.py`.

zarr.json    the root's description, until the result is finished (written by the sink)
job.json     the fingerprint and how the work was split
progress     a line for every part of a unit that is in the store; stores cannot append, so it is rewritten as a
whole, at most about once a second: what a kill loses of it is computed again
lease        who writes; renewed every 5 s, and free for others when it is older than 30 s by the store's own clock
(or at once, when it is of a process of this machine that is gone)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tilelab.errors import OutputError
from tilelab.io.results.sink import Stored
from tilelab.io.storage.remote_path import RemotePath
from tilelab.machine.disk import why_unwritten
from tilelab.run.journal.fingerprint import FOLDER, Fingerprint
from tilelab.run.journal.lease import Lease
from tilelab.run.journal.local import Journal

BEAT_SECONDS = 5.0
SAVE_SECONDS = 1.0
_SAVE_BYTES_PER_SECOND = 2**20  # a long list is saved less often
_TICK_SECONDS = 0.25


class RemoteJournal(Journal):
    """The journal of one unfinished remote result; see `Journal`."""

    def __init__(self, result: RemotePath, fingerprint: Fingerprint, split: Mapping[str, Any]) -> None:
        """Take the lease and open or begin the journal.

        Raises:
            OutputError: another run holds the lease, or the store refuses.
            ResumeError: the unfinished result belongs to another job.
        """
        self.result = result
        self.records: dict[int, list[Stored]] = {}
        self.positions: dict[int, int] = {}
        self._lease: Lease | None = Lease(result)
        self._failure: OutputError | None = None
        self._changed = threading.Lock()
        self._dirty = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._begin(result, fingerprint, split, self._read("job.json"), self._read("progress") or b"")
            if not self.records:
                (result / FOLDER / "job.json").write_bytes(self._description(fingerprint).encode())
        except OSError as error:
            self._lease.release()
            raise OutputError(f"cannot write {result}: {why_unwritten(error)}") from None
        except BaseException:
            self._lease.release()
            raise
        self._thread = threading.Thread(target=self._keep, name="tilelab-journal", daemon=True)
        self._thread.start()

    @staticmethod
    @contextlib.contextmanager
    def lease(result: RemotePath) -> Iterator[None]:
        """Hold the lease of a result, whatever its job, e.g. to remove it."""
        lease = Lease(result)
        try:
            yield
        finally:
            lease.release()

    def record(self, unit: int, stored: Stored) -> None:
        """`stored` of a unit is in the store."""
        with self._changed:
            super().record(unit, stored)
            self._dirty = True
        if self._failure is not None:
            raise self._failure

    def _append(self, line: bytes) -> None:
        """Stores cannot append: all lines are written together, now and then."""

    def finish(self, result: Any) -> None:
        """The result is finished: the journal goes."""
        self._end_thread()
        self._lease = None
        self.remove(result)

    def abandon(self, result: Any) -> None:
        """Remove an unfinished result, unless another run has taken it over; see `Journal.abandon`."""
        self._end_thread()
        try:
            if self._lease is not None and self._lease.is_held():
                result.remove_tree()
        finally:
            self.close()

    def close(self) -> None:
        """Save what is known and give the lease back; the result stays resumable."""
        self._end_thread()
        if self._lease is None:
            return
        if self._dirty and self._failure is None:
            with contextlib.suppress(OSError):
                self._save()
        self._lease.release()
        self._lease = None

    def _end_thread(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _keep(self) -> None:
        """Save and renew, until the end."""
        assert self._lease is not None  # noqa: S101 - as long as this thread runs
        saved = renewed = time.monotonic()
        pause = SAVE_SECONDS
        while not self._stop.wait(_TICK_SECONDS):
            try:
                if time.monotonic() - renewed >= BEAT_SECONDS:
                    self._lease.renew()
                    renewed = time.monotonic()
                if self._dirty and time.monotonic() - saved >= pause:
                    pause = max(SAVE_SECONDS, self._save() / _SAVE_BYTES_PER_SECOND)
                    saved = time.monotonic()
            except OutputError as error:
                self._failure = error
                return
            except OSError as error:
                self._failure = OutputError(f"cannot write {self.result}: {why_unwritten(error)}")
                return

    def _save(self) -> int:
        """Write all positions; returns the number of bytes."""
        with self._changed:
            self._dirty = False
            text = b"".join(self._line(unit, one) for unit, parts in self.records.items() for one in parts)
        (self.result / FOLDER / "progress").write_bytes(text)
        return len(text)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.result / FOLDER / name).read_bytes()
        except FileNotFoundError:
            return None
