"""What a result's bytes depend on, and how two jobs differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tilelab.errors import ResumeError
from tilelab.io.storage.place import Place

FOLDER = ".tilelab"

Section = Mapping[str, str]
KnownFingerprint = Mapping[str, Section]
"""As it is found in a result, which another version may have written."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a result's bytes depend on: names and values, in sections.

    input: what was read.
    model: hashes of its description and of its files.
    engine: what computed, and its versions.
    lattice: where the tiles lie.
    options: what was wanted.
    """

    input: Section
    model: Section
    engine: Section
    lattice: Section
    options: Section

    def of_file(self, kind: str) -> Fingerprint:
        """The fingerprint of a file that is made of the result, where there are several kinds."""
        return msgspec.structs.replace(self, options={**self.options, "file": kind})

    def document(self) -> dict[str, dict[str, str]]:
        """Ready for JSON."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


def differences(before: KnownFingerprint, now: Fingerprint) -> list[str]:
    """One phrase per field that differs, ``section.field: before -> now``."""
    found: list[str] = []
    present = now.document()
    for section in sorted({*before, *present}):
        old, new = before.get(section, {}), present.get(section, {})
        found += [
            f"{section}.{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
    return found


def check_same_job(result: Place, before: KnownFingerprint, now: Fingerprint) -> None:
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
