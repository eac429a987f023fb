"""One line and the right exit code, whatever a user, a disk or a machine does; no run ends for want of a reader."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers import wait_for
from tilelab.cli.main import main
from tilelab.cli.terminal import PlainStream, explain_stop, one_line, printable
from tilelab.errors import InputError
from tilelab.io.images.open import open_image
from tilelab.machine import disk

ROOT = Path(__file__).parents[1]
main_module = sys.modules["tilelab.cli.main"]  # the package has the function under that name
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


def tilelab(*words: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "tilelab", *words], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=300, check=False, **more,
    )  # fmt: skip


def draw(folder: Path, name: str = "in.tif", shape: tuple[int, int] = (96, 80)) -> Path:
    tifffile.imwrite(folder / name, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return folder / name


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain µm 日本", "plain µm 日本"), ("a\x1b[31mb", "a\\x1b[31mb"), ("a\x07\x9bb", "a\\x07\\x9bb"),
        ("a\rb", "a\\rb"), ("a\x7fb", "a\\x7fb"), ("a\u202eb", "a\\u202eb"), ("a\udcffb", "a\\udcffb"),
        ("a\u00a0b\tc", "a\u00a0b\tc"),
    ],
)  # fmt: skip
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == one_line(text) == shown
    out = io.StringIO()
    print(text, file=PlainStream(out))  # type: ignore[arg-type]
    assert out.getvalue() == f"{shown}\n"


def test_line_breaks_in_names_make_no_lines() -> None:
    assert one_line("a\nb") == "a\\nb"


@posix
@pytest.mark.parametrize("words", [("info", "{}"), ("infer", "{}", "-m", "{}"), ("eval", "{}", "{}"), ("{}",)])
def test_a_name_draws_nothing_on_a_terminal(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "a\x1b]0;owned\x07\n\udcff.tif"
    for make in (lambda: None, lambda: draw(tmp_path, "plain.tif").rename(tmp_path / evil)):
        make()
        with contextlib.suppress(SystemExit):  # argparse
            main([word.format(evil) for word in words])
        said = capsys.readouterr()
        assert not set(said.out + said.err) & {"\x1b", "\x07", "\udcff"}


@pytest.mark.parametrize(
    "words",
    [
        ("info", "{}"), ("plan", "{}", "-m", "identity"), ("infer", "{}", "-m", "identity"),
        ("infer", "in.tif", "-m", "{}"), ("infer", "in.tif", "-m", "identity", "-o", "{}.ome.zarr"),
        ("infer", "in.tif", "-m", "identity", "--report", "{}"), ("infer", "in.tif", "-m", "identity", "--mask", "{}"),
        ("infer", "in.tif", "-m", "identity", "--overview", "{}.png"), ("convert", "{}", "out.ome.zarr"),
        ("convert", "in.tif", "{}.ome.zarr"), ("eval", "{}", "in.tif"), ("eval", "in.tif", "in.tif", "--json", "{}"),
        ("eval", "in.tif", "in.tif", "--pictures", "{}"), ("export", "{}", "-o", "x.onnx"),
        ("export", "in.tif", "-o", "{}.onnx"), ("train", "{}"), ("demo", "--folder", "{}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "d/" * 2500], ids=["long", "NUL", "deep"])
def test_names_that_can_be_no_file_are_one_line(
    name: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    assert main([word.format(name) for word in words]) == 2
    assert last_line(capsys).startswith("tilelab: error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif"]


# --- what is no file -------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize(
    "words",
    [
        ("info", "{}"), ("infer", "{}", "-m", "identity"), ("infer", "in.tif", "-m", "{}"),
        ("infer", "in.tif", "-m", "identity", "--mask", "{}"), ("convert", "{}", "out.ome.zarr"),
        ("eval", "in.tif", "{}"), ("export", "{}", "-o", "x.onnx"), ("train", "{}"), ("info", "store.zarr"),
        ("info", "folder"), ("infer", "in.tif", "-m", "identity", "--report", "{}"),
    ],
)  # fmt: skip
def test_devices_pipes_and_sockets_are_refused_at_once(
    kind: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if words[0] in ("train", "export"):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "store.zarr").mkdir()
    for path in ("stream.tif", "store.zarr/zarr.json", "folder/0.tif"):
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            Path(path).symlink_to("/dev/zero")
        else:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(path)
    assert main([word.format("stream.tif") for word in words]) == 2
    assert last_line(capsys).startswith("tilelab: error: ")
    assert not list(Path().glob("in.*.ome.zarr"))


@pytest.mark.parametrize("name", ["zarr.json", ".zarray", ".zgroup", "attributes.json", "info"])
def test_deep_documents_are_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep.precomputed" if name == "info" else tmp_path / "deep"
    folder.mkdir()
    (folder / name).write_text("[" * 200_000)
    assert main(["info", str(folder)]) == 2
    assert "deep" in last_line(capsys)
    with pytest.raises(InputError):
        open_image(folder)


# --- disks -----------------------------------------------------------------------------------------------------


WRITE_TEXT = Path.write_text


def full(path: Path, *words: Any, **more: Any) -> int:
    """Writing text, on a disk that is full when the report comes."""
    if disk.MARK in path.name and path.name.startswith(".r.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return WRITE_TEXT(path, *words, **more)


@pytest.mark.parametrize(
    "words",
    [
        ("infer", "in.tif", "-m", "identity", "-q", "--report", "r.json"),
        ("eval", "in.tif", "in.tif", "--json", "r.json"), ("eval", "in.tif", "in.tif", "--markdown", "r.json"),
    ],
)  # fmt: skip
def test_a_disk_that_is_full_when_the_report_comes(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("in.tif", np.zeros((64, 64), np.uint8))
    (tmp_path / "r.json").write_text('{"old": 1}' if "--markdown" not in words else "old\n")
    before = (tmp_path / "r.json").read_text()
    monkeypatch.setattr(Path, "write_text", full)
    assert main(list(words)) == 2
    assert "r.json cannot be written: the disk is full" in last_line(capsys)
    assert (tmp_path / "r.json").read_text() == before
    assert not list(tmp_path.glob(f".*{disk.MARK}"))


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output(tmp_path: Path) -> None:
    draw(tmp_path)
    with Path("/dev/full").open("w") as nowhere:
        code = "import sys; from tilelab.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, "info", "in.tif", "--json"], cwd=tmp_path, stdout=nowhere,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "tilelab: error: standard output: No space left on device"


DENIED = """
import contextlib, io, json, os, sys
from tilelab.cli import main
commands = json.loads(sys.argv[1])
warm = ["infer", "in.tif", "-m", "identity", "-q", "-o", "warm.ome.zarr"], ["eval", "l.tif", "l.tif"]
for words in (*warm, ["convert", "in.tif", "warm.zarr"], ["convert", "in.tif", "warm.ome.tif"]):
    assert main(words) == 0  # what Python imports may be out of the other user's sight
os.setgid(65534)
os.setuid(65534)
found = []
for words in commands:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found.append((main(words), said.getvalue()))
print("FOUND", json.dumps(found))
"""


@posix
@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to become")
def test_folders_without_permission_are_one_line(tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents][:-1]:
        parent.chmod(parent.stat().st_mode | 0o055)
    draw(tmp_path)
    (tmp_path / "shut").mkdir()
    draw(tmp_path / "shut")
    (tmp_path / "shut").chmod(0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    tifffile.imwrite(tmp_path / "l.tif", np.zeros((64, 64), np.uint8))
    (tmp_path / "secret.tif").write_bytes((tmp_path / "in.tif").read_bytes())
    (tmp_path / "secret.tif").chmod(0o600)
    infer = ["infer", "in.tif", "-m", "identity"]
    commands = [
        ["info", "shut/in.tif"], ["info", "secret.tif"], ["info", "shut"], ["convert", "shut/in.tif", "open/out.zarr"],
        ["convert", "in.tif", "shut/out.ome.zarr"], ["convert", "in.tif", "out.ome.tif"], infer,
        [*infer, "-o", "shut/x.ome.zarr"], [*infer, "-o", "x.ome.tif"], ["infer", "in.tif", "-m", "shut/net.onnx"],
        ["eval", "l.tif", "shut/l.tif"], ["eval", "l.tif", "l.tif", "--pictures", "shut/look"],
        [*infer, "-o", "open/x.ome.zarr", "--report", "shut/r.json"], [*infer, "-o", "open/y.zarr", "--mask", "shut/m"],
        [*infer, "-o", "open/z.ome.zarr", "--overview", "look.png"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DENIED, json.dumps(commands)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "FOUND" in done.stdout, done.stderr
    for words, (code, said) in zip(commands, json.loads(done.stdout.rpartition("FOUND")[2]), strict=True):
        assert (code, said.count("\n")) == (2, 1), (words, said)
        assert said.startswith("tilelab: error: "), (words, said)
    assert not list((tmp_path / "open").iterdir())


KERNEL = """
import numba, sys
sys.path.insert(0, sys.argv[1])
import numba.core.caching as caching
def none(*_): return None
for locator in (caching.InTreeCacheLocator, caching.UserWideCacheLocator):
    locator.from_function = none
from tilelab.kernels.jit import jit
import kernel_of_the_test
print(kernel_of_the_test.add(2, 3))
"""


@pytest.mark.parametrize("temporary", ["writable", "not of this user alone", "full"])
def test_compiled_kernels_need_no_place_to_be_kept(tmp_path: Path, temporary: str) -> None:
    """A package and a home that are read only; at the end the temporary folder is not to be had either."""
    code = "from tilelab.kernels.jit import jit\n\n@jit()\ndef add(a, b):\n    return a + b\n"
    (tmp_path / "kernel_of_the_test.py").write_text(code)
    ours = tmp_path / "tmp" / f"tilelab-kernels-{os.getuid() if os.name != 'nt' else 0}"
    ours.parent.mkdir()
    script = KERNEL
    if temporary == "not of this user alone":
        ours.mkdir()
        ours.chmod(0o777)
    elif temporary == "full":
        script = script.replace("from tilelab", (
            "\ndef full(*_): raise OSError(28, 'No space left on device')\n"
            "caching.IndexDataCacheFile.save = full\nfrom tilelab"), 1)  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False,
        env=os.environ | {"TMPDIR": str(ours.parent), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
    assert any(ours.rglob("*.nbi")) == (temporary == "writable")


# --- machines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 9 EiB"), "9 EiB"),
        (RecursionError(), "nested too deeply"),
        (PermissionError(errno.EACCES, "Permission denied", "/x\x1b"), r"/x\x1b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (ValueError("embedded null byte"), "NUL"),
        (RuntimeError("CUDA error: out of memory\nmore"), "the GPU failed: CUDA error: out of memory"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_what_a_machine_does_is_one_line(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    module = SimpleNamespace(add_arguments=lambda _: None, run=fail, EXAMPLES=())
    monkeypatch.setattr(main_module, "import_module", lambda _: module)
    monkeypatch.setattr(main_module, "ignore_interrupts", lambda: None)
    assert main(["doctor"]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(
        main_module, "import_module", lambda _: SimpleNamespace(add_arguments=lambda _: None, run=fail, EXAMPLES=())
    )
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])
    assert explain_stop(ZeroDivisionError()) is None


@posix
@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_run_does_not_end_for_want_of_a_reader(which: str, tmp_path: Path) -> None:
    draw(tmp_path)
    end, pipe = os.pipe()
    os.close(end)
    words = ["infer", "in.tif", "--model", "identity"] if which == "stderr" else ["info", "in.tif", "in.tif"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, which: pipe}
    done = subprocess.run(
        [sys.executable, "-m", "tilelab", *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True, check=False, timeout=300, **streams,  # type: ignore[call-overload]
    )  # fmt: skip
    os.close(pipe)
    assert done.returncode == 0
    assert not (done.stdout if which == "stderr" else done.stderr)
    if which == "stderr":
        assert (tmp_path / "in.identity.ome.zarr" / "zarr.json").is_file()


@posix
def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    """64 x 64 chunks over a wide image, with 64 descriptors in all."""
    wide = np.random.default_rng(0).integers(0, 256, (128, 8192), np.uint8)
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "wide.zarr", data=wide, chunks=(64, 64))
    tifffile.imwrite(tmp_path / "wide.tif", wide)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from tilelab.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for words in (("infer", "wide.zarr", "-m", "identity", "-q"), ("convert", "wide.zarr", "out.ome.tif", "-q")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tifffile.imread(tmp_path / "out.ome.tif") == wide).all()


@posix
def test_workers_where_shared_memory_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    from multiprocessing import synchronize

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synchronize.SemLock, "__init__", refuse)
    draw(tmp_path)
    assert main(["infer", "in.tif", "-m", "identity", "--workers", "2"]) == 2
    assert "make /dev/shm writable" in last_line(capsys)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
{patch}
from tilelab.cli import main
sys.exit(main(sys.argv[1:]))
"""
START_UP = """
import tilelab.cli.main
def slow(*_):
    Path("ready").touch(); time.sleep(60)
sys.modules["tilelab.cli.main"].import_module = slow
"""
CONVERSION = """
import tilelab.io.results.image_pyramid as pyramid
def slow(*_):
    Path("ready").touch(); time.sleep(60)
pyramid.write_pyramid = slow
"""
STUBBORN = """
import tilelab.io.results.image_pyramid as pyramid
def slow(*_):
    Path("ready").touch()
    try:
        time.sleep(60)
    finally:
        Path("again").touch(); time.sleep(60)
pyramid.write_pyramid = slow
"""
TRAINING = """
import tilelab.training.loop as loop
def slow(*_, **__):
    Path("ready").touch(); time.sleep(60)
loop.Trainer = slow
"""


@posix
@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (START_UP, ("info", "in.tif")), (START_UP, ("infer", "in.tif", "-m", "identity")),
        (CONVERSION, ("convert", "in.tif", "out.ome.zarr")), (STUBBORN, ("convert", "in.tif", "out.ome.zarr")),
        (TRAINING, ("train", "r.toml")),
    ],
    ids=["start", "start of infer", "conversion", "twice", "training"],
)  # fmt: skip
def test_interrupted_at_any_moment(patch: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """With nothing to go on with: code 130."""
    if words[0] == "train":
        pytest.importorskip("torch")
        from tests.test_danger import RECIPE

        (tmp_path / "r.toml").write_text(RECIPE)
        for part in ("images", "masks"):
            (tmp_path / "data" / part).mkdir(parents=True)
            tifffile.imwrite(tmp_path / "data" / part / "a.tif", np.eye(64, dtype=np.uint8))
    draw(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(patch=patch), *words], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for((tmp_path / "ready").exists, "the slow part", process=process)
    process.send_signal(signal.SIGINT)
    if patch is STUBBORN:
        wait_for((tmp_path / "again").exists, "its answer", process=process)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("tilelab: ")
    assert not (tmp_path / "out.ome.zarr").exists()
