"""The lock of a remote result: a lease with a heartbeat, judged by the store's clock."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilelab.errors import OutputError
from tilelab.io.storage.remote_path import RemotePath
from tilelab.machine.disk import why_unwritten
from tilelab.run.journal.fingerprint import FOLDER
from tilelab.run.journal.local import boot

LEASE_SECONDS = 30.0


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
            raise OutputError(f"cannot write {result}: {why_unwritten(error)}") from None

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
        """Let others write, unless one of them has taken over: then the lease is its own."""
        with contextlib.suppress(OSError):
            if self.is_held():
                self._place.delete_file()

    def is_held(self) -> bool:
        """Whether it is still that of this process.

        Raises:
            OSError: the store does not say.
        """
        try:
            return bool(json.loads(self._place.store.get(self._place.key)).get("run") == self._owner["run"])
        except (FileNotFoundError, ValueError):
            return False

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


def _machine() -> str:
    """Name of the machine since its last start and of its numbering of processes; empty where that cannot be told."""
    started = boot()
    try:
        return started and started + str(Path("/proc/self/ns/pid").readlink())
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
