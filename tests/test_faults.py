"""A command that dies or fails anywhere leaves the bytes of an undisturbed run to the next one, or a refusal.

Every way in which the system can fail a command is tried once: each call that touches a file of the output, in its
order, fails with an error or is the last thing that the process does.  Calls are counted by a layer over `os` and
`open` in a process of its own; kills are real.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.five_runs import digest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "zarr": ["infer", "in.tif", "-m", "identity:2", "--tile", "64", "--overlap", "8", "-q", "-o", "out.ome.zarr"],
    "tiff": ["infer", "in.tif", "-m", "identity:2", "--tile", "64", "--overlap", "8", "-q", "-o", "out.ome.tif"],
    "png": ["infer", "in.tif", "-m", "identity:2", "--tile", "64", "--overlap", "8", "-q", "-o", "out.png"],
    "precomputed": ["infer", "in.tif", "-m", "identity:2", "--tile", "64", "--overlap", "8", "-q", "-o",
                    "out.precomputed"],
    "report": ["infer", "in.tif", "-m", "identity:2", "--tile", "64", "--overlap", "8", "-q", "-o", "out.ome.zarr",
               "--overview", "look.png"],
    "convert": ["convert", "in.tif", "out.ome.zarr", "-q"],
    "convert tiff": ["convert", "in.tif", "out.ome.tif", "-q"],
}  # fmt: skip
KINDS = ("kill", "error")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "in.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(1, 256, (150, 170), np.uint8), tile=(64, 64))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def fork_runs(folder: Path, image: Path, words: list[str], steps: str) -> list[str]:
    """The command once for each step of `steps`, each in a copy of a warm process; a line for each; see faults.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", str(folder), str(image), steps, *words],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_fails_anywhere_is_made_good_by_the_next(image: Path, tmp_path: Path, name: str) -> None:
    """About a dozen moments of each command, spread over its calls; all of them in the slow test."""
    lines = fork_runs(tmp_path, image, COMMANDS[name], "14")
    assert len(lines) >= 14
    assert not [line for line in lines if not line.endswith("ok")], "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_fails_at_any_call(image: Path, tmp_path: Path, name: str) -> None:
    lines = fork_runs(tmp_path, image, COMMANDS[name], "all")
    assert len(lines) > 50
    assert not [line for line in lines if not line.endswith("ok")], "\n".join(lines)


# --- states between two renames ------------------------------------------------------------------------------------


def tilelab(folder: Path, words: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tilelab", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"in.tif"}


def test_what_a_kill_leaves_between_two_renames_is_cleaned_by_the_next_command(image: Path, tmp_path: Path) -> None:
    """Each state that a kill can leave beside a finished result: the next command says so, and nothing else is left."""
    for name, out, work in (("tiff", "out.ome.tif", ".out.ome.tif.work"), ("zarr", "out.ome.zarr", "out.ome.zarr")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy2(image, folder)
        assert tilelab(folder, COMMANDS[name])[0] == 0
        assert names(folder) == {out}
        finished = digest(folder / out)
        if work != out:  # converted, its Zarr not yet removed
            zarr = [*COMMANDS[name][:-1], "work.ome.zarr"]
            assert tilelab(folder, zarr)[0] == 0
            (folder / "work.ome.zarr").rename(folder / work)
        else:  # renamed, its journal not yet removed
            (folder / out / ".tilelab").mkdir()
            (folder / out / ".tilelab" / "job.json").write_text("{}")
        code, said = tilelab(folder, COMMANDS[name])
        assert code == 0
        assert f"{out} is already finished" in said
        assert names(folder) == {out}
        assert digest(folder / out) == finished


def test_an_old_result_that_stepped_aside_goes_when_the_new_one_is_there(image: Path, tmp_path: Path) -> None:
    shutil.copy2(image, tmp_path)
    assert tilelab(tmp_path, COMMANDS["zarr"])[0] == 0
    finished = digest(tmp_path / "out.ome.zarr")
    (tmp_path / "out.ome.zarr").rename(tmp_path / ".out.ome.zarr.0123abcd.tilelab")  # killed during --restart
    assert tilelab(tmp_path, COMMANDS["zarr"])[0] == 0
    assert names(tmp_path) == {"out.ome.zarr"}
    assert digest(tmp_path / "out.ome.zarr") == finished


def test_restart_keeps_the_old_result_until_the_new_one_is_whole(image: Path, tmp_path: Path) -> None:
    shutil.copy2(image, tmp_path)
    words = COMMANDS["zarr"]
    assert tilelab(tmp_path, words)[0] == 0
    finished = digest(tmp_path / "out.ome.zarr")
    assert tilelab(tmp_path, [*words, "--restart"])[0] == 0
    assert digest(tmp_path / "out.ome.zarr") == finished
    assert names(tmp_path) == {"out.ome.zarr"}
