"""Files appear whole or not at all; only what is ours is removed; what is read is never overwritten."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tilelab.errors import OutputError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import (
    MARK,
    is_ours,
    make_ours,
    remove_ours,
    replace_folder,
    replacing,
    turn,
    work_folder,
    write_text,
)

PNG = b"\x89PNG\r\n\x1a\n rest"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["report.json"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (path.read_text(), names(tmp_path)) == ("old", ["report.json"])


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_folder_whose_replacement_is_interrupted_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    calls: list[Path] = []
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == stopped:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["new", "old"]
    assert (tmp_path / "old" / "a").read_text() == "old"


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "pipe", "no folder"])
def test_what_cannot_be_a_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / "missing" / "file"
    with pytest.raises(OutputError, match=r"name a file|No such file"), replacing(path):
        pytest.fail("nothing may be written")


def test_a_killed_writer_leaves_the_old_file_and_its_leftover_goes_next_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from tilelab.machine.disk import replacing\n"
        "with replacing(Path(sys.argv[1])) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_text(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_a_temporary_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("slow")
        write_text(path, "fast")
        assert first.read_text() == "slow"
    assert (path.read_text(), names(tmp_path)) == ("slow", ["a.txt"])


def test_files_that_look_like_ours_but_are_others_stay(tmp_path: Path) -> None:
    others = [f".a.txt.work{MARK}", f".b.txt.01234567{MARK}", f"a.txt.01234567{MARK}", f".a.txt.0123456{MARK}"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".a.txt.0123abcd{MARK}").symlink_to(tmp_path / others[0])
    write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == sorted([*others, "a.txt", f".a.txt.0123abcd{MARK}"])


def test_only_folders_that_bear_the_mark_are_removed(tmp_path: Path) -> None:
    ours, theirs, link = tmp_path / "ours", tmp_path / "theirs", tmp_path / "link"
    make_ours(ours)
    make_ours(ours)
    (ours / "deep").mkdir()
    (theirs / "deep").mkdir(parents=True)
    (theirs / "deep" / "file").write_text("mine")
    (ours / "out").symlink_to(theirs)
    link.symlink_to(ours)
    assert is_ours(ours)
    assert not is_ours(link)
    for path in (theirs, link):
        with pytest.raises(OutputError, match="was not made by tilelab and is not removed"):
            remove_ours(path)
    with pytest.raises(OutputError, match="was not made by tilelab"):
        make_ours(theirs)
    remove_ours(ours)
    remove_ours(ours)  # nothing there, nothing to do
    assert names(tmp_path) == ["link", "theirs"]
    assert (theirs / "deep" / "file").read_text() == "mine"


# --- claims ------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    path.write_bytes(b"II*\0 pixels")
    return path


def same_ways(image: Path) -> list[str]:
    """Names of one file."""
    link, hard = image.with_name("link.tif"), image.with_name("hard.tif")
    link.symlink_to(image)
    os.link(image, hard)
    return [
        str(image),
        str(link),
        str(hard),
        f"{image.parent}/../{image.parent.name}/{image.name}",
        f"{image.parent}/./in.tif",
    ]


def test_what_is_read_is_never_written_by_any_name(image: Path) -> None:
    for name in same_ways(image):
        with pytest.raises(OutputError, match=r"--overview .* would overwrite the image"):
            claim({"the image": image}, [Write(name, "--overview")])
        with pytest.raises(OutputError, match="would overwrite the image"):
            claim({"the image": f"{image}::/raw"}, [Write(name, "-o")])


def test_weights_beside_a_model_are_read_too(tmp_path: Path) -> None:
    for model, weights in (("net.xml", "net.bin"), ("net.onnx", "net.onnx.data")):
        (tmp_path / model).write_text("graph")
        (tmp_path / weights).write_text("weights")
        with pytest.raises(OutputError, match="would overwrite --model"):
            claim({"--model": tmp_path / model}, [Write(tmp_path / weights, "--report")])


def test_folders_that_are_read_are_not_written_into(tmp_path: Path) -> None:
    slices, store = tmp_path / "slices", tmp_path / "a.zarr"
    (slices / "deep").mkdir(parents=True)
    (store / "0").mkdir(parents=True)
    (store / "zarr.json").write_text("{}")
    for folder, path in ((slices, "look.png"), (store, "look.png"), (store, "0/look.png")):
        with pytest.raises(OutputError, match="would become a part of the image"):
            claim({"the image": folder}, [Write(folder / path, "--overview")])
    claim({"the image": slices}, [Write(slices / "deep" / "look.png", "--overview")])
    claim({"the image": slices}, [Write(tmp_path / "look.png", "--overview")])


def test_two_outputs_are_two_places(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="are one place"):
        claim({}, [Write(tmp_path / "a.json", "--json"), Write(f"{tmp_path}/./a.json", "--markdown")])
    claim({}, [Write(None, "--json"), Write(tmp_path / "a.json", "--markdown")])


@pytest.mark.parametrize(
    ("kind", "content", "ok"),
    [
        ("json", b' {"a": 1}', True), ("json", b"II*\0", False), ("json", b"", True), ("png", PNG, True),
        ("png", b"II*\0", False), ("png", b"{}", False), ("text", "µm table\n".encode(), True), ("text", PNG, False),
        ("text", b"II*\0\1\2", False), ("model", b"\x08\x07", True),
    ],
)  # fmt: skip
def test_an_existing_file_is_replaced_by_its_own_kind_only(tmp_path: Path, kind: str, content: bytes, ok: bool) -> None:
    path = tmp_path / "there"
    path.write_bytes(content)
    if ok:
        claim({}, [Write(path, "--out", kind)])
    else:
        with pytest.raises(OutputError, match="another kind of file"):
            claim({}, [Write(path, "--out", kind)])
    with pytest.raises(OutputError, match="exists"):
        claim({}, [Write(path, "--out", kind, replace=False)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="may not be written"):
        claim({}, [Write(tmp_path / "shut" / "a", "-o")])


def test_remote_reads_and_arrays_are_no_obstacle(tmp_path: Path) -> None:
    claim({"the image": "s3://bucket/a.zarr", "mask": None, "array": [1, 2]}, [Write(tmp_path / "a.json", "--report")])
    with pytest.raises(OutputError, match="only local files"):
        claim({}, [Write("s3://bucket/a.json", "--report")])


HOLD = """
import pathlib, sys, time
from tilelab.machine.disk import work_folder
with work_folder(pathlib.Path(sys.argv[1]), ".export-") as folder:
    (folder / "x").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_work_folder_goes_and_takes_those_of_killed_ones_along(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    left = Path(killed.stdout.readline().strip())
    foreign = tmp_path / ".export-mine.tilelab"
    foreign.mkdir()
    with work_folder(tmp_path, ".export-") as folder:
        assert left.is_dir()  # its process lives
        assert folder.is_dir()
    assert not folder.exists()
    killed.kill()
    killed.communicate()
    with work_folder(tmp_path, ".export-"):
        assert not left.exists()
    assert foreign.is_dir()


def test_turns_come_one_after_the_other_and_nobody_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    inside: list[int] = []
    together: list[int] = []

    def count() -> None:
        with turn(lock):
            inside.append(1)
            time.sleep(0.02)
            together.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=count) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 5
    monkeypatch.setattr("tilelab.machine.disk._PATIENCE", 0.1)
    with turn(lock), turn(lock), turn(tmp_path / "missing" / "lock"):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with turn(lock):
        pass
