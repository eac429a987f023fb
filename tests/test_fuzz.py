"""Damaged inputs of every format give right pixels or one line; `make fuzz` tries 5,000."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.fuzzing import FORMATS, fuzz, mutate
from tests.image_files import pixels


def test_damaged_inputs_are_right_or_refused() -> None:
    counts, wrong = fuzz(300)
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > 100  # the mutations do damage
    assert counts["right"] > 50  # and not everything is refused


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_drawn_is_what_the_formats_library_reads(tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    values = pixels(form.shape, form.dtype)
    form.draw(tmp_path / form.file, values)
    np.testing.assert_array_equal(np.squeeze(np.asarray(form.read(tmp_path / form.file))), values)


@pytest.mark.parametrize("name", ["png", "zarr3"])
def test_a_seed_is_one_damage(tmp_path: Path, name: str) -> None:
    form, found = FORMATS[name], []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / form.file
        form.draw(path, pixels(form.shape, form.dtype))
        how = mutate(path, random.Random(3))  # noqa: S311 - repeatable, not secret
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        found.append((how, [file.read_bytes() for file in files]))
    assert found[0] == found[1]
