"""What a result's bytes depend on, and how two jobs differ."""

from __future__ import annotations

from collections.abc import Mapping

from tilelab.errors import ResumeError
from tilelab.io.storage.place import Place

FOLDER = ".tilelab"


Fingerprint = Mapping[str, Mapping[str, str]]


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """One phrase per field that differs, ``section.field: before -> now``."""
    found: list[str] = []
    for section in sorted({*before, *now}):
        old, new = before.get(section, {}), now.get(section, {})
        found += [
            f"{section}.{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
    return found


def check_same_job(result: Place, before: Fingerprint, now: Fingerprint) -> None:
    """Refuse to continue what another job began.

    Raises:
        ResumeError: it names the fields that differ.
    """
    changed = differences(before, now)
    if changed:
        raise ResumeError(
            f"{result} was begun by a different job ({'; '.join(changed)}): "
            "repeat that job, choose another output, or begin anew with --restart"
        )
