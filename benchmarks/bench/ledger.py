"""What a run has measured so far, on disk at once: a run that was cut off goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Ledger:
    """Measurements by name, of one scale and one model.

    Attributes:
        commits: of the working tree in which they were made.
    """

    def __init__(self, path: Path, about: str, commit: str, *, resume: bool = False) -> None:
        """Begin anew, or go on with what is in the file if it is about the same.

        Args:
            path: the file, made when something is put down.
            about: what the measurements depend on: the scale and the model.
            commit: of the working tree.
            resume: go on.
        """
        self._path, self._about = path, about
        self._entries: dict[str, Any] = {}
        self.commits: list[str] = []
        if resume and path.exists():
            document = json.loads(path.read_text())
            if document["about"] == about:
                self._entries, self.commits = document["entries"], document["commits"]
        if commit not in self.commits:
            self.commits.append(commit)

    def get(self, name: str) -> Any:
        """What was measured, or None."""
        return self._entries.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a measurement, which JSON can hold."""
        self._entries[name] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        document = {"about": self._about, "commits": self.commits, "entries": self._entries}
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.replace(self._path)
