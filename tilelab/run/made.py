"""A finished run: where its result is, what it says, and its pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tilelab.errors import InputError
from tilelab.io.images.image import Image
from tilelab.io.images.notebook import page, thumbnail
from tilelab.io.results.result import Result, read_result
from tilelab.io.storage.place import Place
from tilelab.text import size_text


@dataclass(repr=False)
class Run:
    """A finished run; a path to whatever takes one, ``tilelab.measure(run)``.

    Attributes:
        path: of the result.
        report: everything worth keeping: what was run on what, how long each part took, versions.
        already_finished: the result was there, nothing was computed.
    """

    path: Place
    report: dict[str, Any] = field(repr=False)
    already_finished: bool = False

    @cached_property
    def result(self) -> Result:
        """The OME-Zarr, with all its levels.

        Raises:
            InputError: the result is a file, which has `labels` alone.
        """
        return read_result(self.path)

    @cached_property
    def labels(self) -> Image:
        """uint8 class indices of the finest level, lazy; axes ``yx`` or ``zyx``.

        Raises:
            InputError: the run was to write none.
        """
        if not self._is_file:
            return self._finest("labels")
        from tilelab.io.images.open import open_image

        return open_image(self.path, as_labels="indices")

    @cached_property
    def probabilities(self) -> Image:
        """uint8 ``round(255 p)`` of the finest level, lazy, a channel for each class that has one.

        Raises:
            InputError: the run was to write none, or the result is a file.
        """
        if self._is_file:
            raise InputError(f"{self.path} holds labels alone: infer to .ome.zarr for probabilities")
        return self._finest("probabilities")

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        shape, axes = self.report.get("shape", ()), self.report.get("axes", "")
        seconds = self.report.get("seconds", {}).get("wall", 0.0)
        how = "was there" if self.already_finished else f"{self.report.get('model', '')}, {seconds:.1f} s"
        return f"<Run {self.path} {axes} {size_text(shape)}: {how}>"

    def _repr_html_(self) -> str:
        """For notebooks: a thumbnail, and what there is to know."""
        report, engine = self.report, self.report.get("engine", {})
        facts = {
            "of": str(report.get("input", "")),
            "model": str(report.get("model", "")),
            "engine": " ".join(str(engine.get(key, "")) for key in ("name", "precision", "device")).strip(),
            "time": "was there" if self.already_finished else f"{report.get('seconds', {}).get('wall', 0.0):.1f} s",
            "assumed": "; ".join(f"{one['what']}: {one['taken']}" for one in report.get("assumptions", ())),
        }
        try:
            picture = thumbnail(self.labels, self.labels.shown())
        except InputError:
            picture = "", ""
        return page(str(self.path), facts, *picture)

    @property
    def _is_file(self) -> bool:
        return not self.path.name.endswith(".zarr")

    def _finest(self, kind: str) -> Image:
        levels: tuple[Image, ...] = getattr(self.result, kind)
        if not levels:
            raise InputError(f"{self.path} has no {kind}: the run was to write none")
        return levels[0]
