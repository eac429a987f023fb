"""The journal of a result in a remote store, as objects in ``OUT/.tilelab``; see `tilelab.journal` for its promises.

zarr.json    the root's description, until the result is finished (written by the sink)
job.json     the fingerprint and how the work was split
progress     unit and position of every band that is in the store; stores cannot append, so it is rewritten as a
whole, at most about once a second: what a kill loses of it is computed again
lease        who writes; renewed every 5 s, and free for others when it is older than 30 s by the store's own clock
(or at once, when it is of a process of this machine that is gone)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tilelab.errors import OutputError
from tilelab.io.remote import RemotePath
from tilelab.journal import FOLDER, Fingerprint, Journal, check_same_job

LEASE_SECONDS = 30.0
BEAT_SECONDS = 5.0
SAVE_SECONDS = 1.0
_SAVE_BYTES_PER_SECOND = 2**20  # a long list is saved less often
_TICK_SECONDS = 0.25


class Lease:
    """The right to write a result; at most one process has it.  Taken at birth.

    Raises:
        OutputError: another run has it, or the store refuses.
    """

    def __init__(self, result: RemotePath) -> None:
        self._result = result
        self._place = result / FOLDER / "lease"
        self._owner: dict[str, Any] = {
            "machine": _machine(),
            "host": socket.gethostname(),
            "process": os.getpid(),
        } | _birth(os.getpid())
        self._owner["run"] = uuid.uuid4().hex
        self._data = b""
        self._beats = 0
        try:
            self._tag = self._take()
        except OSError as error:
            raise OutputError(f"cannot write {result}: {error.strerror}") from None

    def renew(self) -> None:
        """Say that this process lives.

        Raises:
            OutputError: another run has taken over.
            OSError: the store fails.
        """
        self._beats += 1
        tag = self._put(self._tag)
        if tag is None:
            raise OutputError(f"{self._result} was taken over by another run, as this one did not answer for too long")
        self._tag = tag

    def release(self) -> None:
        """Let others write."""
        with contextlib.suppress(OSError):
            self._place.unlink()

    def _put(self, tag: str | None) -> str | None:
        """Write the lease if its tag is `tag`; None when it is another's."""
        store, key = self._place.store, self._place.key
        self._data = json.dumps(self._owner | {"beats": self._beats}).encode()
        new = store.put_if(key, self._data, tag)
        if new is None:  # an answer that was lost on its way makes us try again and meet ourselves
            with contextlib.suppress(FileNotFoundError):
                found = json.loads(store.get(key))
                if found.get("run") == self._owner["run"]:
                    return store.stat(key).tag
        return new

    def _take(self) -> str:
        store, key = self._place.store, self._place.key
        for _ in range(3):
            if (tag := self._put(None)) is not None:
                break
            try:
                stat, holder = store.stat(key), json.loads(store.get(key))
            except FileNotFoundError:
                continue  # given back this very moment
            except ValueError:
                holder = {}
            age = self._now() - stat.modified
            if age < LEASE_SECONDS and not _is_gone(holder):
                who = f"process {holder.get('process', '?')} on {holder.get('host', 'an unknown machine')}"
                raise OutputError(
                    f"{self._result} is being written by another run ({who}, heard of {max(0.0, age):.0f} s ago): "
                    f"wait for it or choose another output; if it is gone, try again after {LEASE_SECONDS:.0f} s"
                )
            if (tag := self._put(stat.tag)) is not None:
                break
        if tag is None or json.loads(store.get(key)).get("run") != self._owner["run"]:
            raise OutputError(f"{self._result} is being written by another run, which came first: wait for it")
        return tag

    def _now(self) -> float:
        """The store's time, which all machines share."""
        clock = self._result / FOLDER / "clock"
        clock.write_bytes(self._owner["run"].encode())
        return clock.store.stat(clock.key).modified


class RemoteJournal(Journal):
    """The journal of one unfinished remote result; see `Journal`."""

    def __init__(self, result: RemotePath, fingerprint: Fingerprint, split: Mapping[str, Any]) -> None:
        """Take the lease and open or begin the journal.

        Raises:
            OutputError: another run holds the lease, or the store refuses.
            ResumeError: the unfinished result belongs to another job.
        """
        self.result = result
        self.positions: dict[int, int] = {}
        self._lease: Lease | None = Lease(result)
        self._failure: OutputError | None = None
        self._changed = threading.Lock()
        self._dirty = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            known = self._read_job()
            if known is None:
                self.split = dict(split)
                document = {"fingerprint": fingerprint, "split": self.split}
                (result / FOLDER / "job.json").write_bytes(json.dumps(document, indent=1, sort_keys=True).encode())
            else:
                check_same_job(result, known["fingerprint"], fingerprint)
                self.split = known["split"]
                self._load()
        except OSError as error:
            self._lease.release()
            raise OutputError(f"cannot write {result}: {error.strerror}") from None
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

    def record(self, unit: int, position: int) -> None:
        """Rows of `unit` before `position` on the sweep axis are in the store."""
        with self._changed:
            self.positions[unit] = position
            self._dirty = True
        if self._failure is not None:
            raise self._failure

    def finish(self, result: Any) -> None:
        """The result is finished: the journal goes."""
        self._end_thread()
        self._lease = None
        self.remove(result)

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
                self._failure = OutputError(f"cannot write {self.result}: {error.strerror or error}")
                return

    def _save(self) -> int:
        """Write all positions; returns the number of bytes."""
        with self._changed:
            self._dirty = False
            text = "".join(f"{unit} {position}\n" for unit, position in self.positions.items()).encode()
        (self.result / FOLDER / "progress").write_bytes(text)
        return len(text)

    def _read_job(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self.result / FOLDER / "job.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return document

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for line in (self.result / FOLDER / "progress").read_bytes().decode().splitlines():
                unit, position = line.split()
                self.positions[int(unit)] = int(position)


def _machine() -> str:
    """Name of the machine since its last start and of its numbering of processes; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _birth(process: int) -> dict[str, str]:
    """When a process of this machine began, in the kernel's words; nothing when there is none or it cannot be told."""
    try:
        return {"birth": Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]}
    except (OSError, IndexError):
        return {}


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine that has ended."""
    if not holder.get("machine") or holder["machine"] != _machine() or "birth" not in holder:
        return False
    return bool(_birth(int(holder.get("process", 0))).get("birth") != holder["birth"])
