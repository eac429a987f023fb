"""The journal that suits the place of a result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tilelab.io.storage.place import Place
from tilelab.io.storage.remote_path import RemotePath
from tilelab.run.journal.fingerprint import FOLDER, Fingerprint
from tilelab.run.journal.local import Journal, take_lock


def open_journal(partial: Place, fingerprint: Fingerprint, split: Mapping[str, Any]) -> Journal:
    """The journal of the unfinished result at `partial`; raises as `Journal`."""
    if isinstance(partial, RemotePath):
        from tilelab.run.journal.remote import RemoteJournal

        return RemoteJournal(partial, fingerprint, split)
    return Journal(partial, fingerprint, split)


@contextlib.contextmanager
def held(partial: Place) -> Iterator[None]:
    """Hold the lock of an unfinished result, whatever its job, e.g. to remove it.

    Raises:
        OutputError: another run holds it.
    """
    if isinstance(partial, RemotePath):
        from tilelab.run.journal.remote import RemoteJournal

        with RemoteJournal.lease(partial):
            yield
        return
    with take_lock(Path(str(partial)) / FOLDER / "lock", partial):
        yield
