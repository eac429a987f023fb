"""What a continued run trusts is checked: the bytes of an undisturbed run come out, or one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from tests.five_runs import digest
from tests.helpers import wait_for
from tilelab.cli import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.errors import InputError, Interrupted, OutputError, ResumeError
from tilelab.geometry import Box
from tilelab.io.results.result import read_result
from tilelab.io.results.sink import Stored
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.zarr.census import Census, count_shard
from tilelab.io.zarr.sharded_array import ShardedArray, encode_chunk
from tilelab.machine.disk import try_lock
from tilelab.run.execute import drop_empty
from tilelab.run.infer import infer
from tilelab.run.journal import local
from tilelab.run.journal.fingerprint import Fingerprint
from tilelab.run.journal.local import Journal
from tilelab.run.journal.records import contiguous, format_record, parse_records
from tilelab.run.options import Options

SHAPE = (5200, 300)  # three bands of shards, 48 tiles


class Stopping:
    """The identity engine, with something that happens before a batch."""

    def __init__(self, at: int = -1, event: Callable[[], None] | None = None) -> None:
        self._engine = load_engine("identity:3", tile=(256, 256), spec_overrides=SpecOverrides(overlap=(32, 32)))
        self._left, self._event = at, event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, tiles: Any, out: Any) -> None:
        if self._left == 0 and self._event is not None:
            self._event()
        self._left -= 1
        self._engine.run(tiles, out)


def stop() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "plane.tif"
    values = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)
    values[2500:, 150:] = 0  # nothing but zeros there at some levels and in one channel
    tifffile.imwrite(path, values, tile=(256, 256))
    return path


def run(picture: Path, out: Path, engine: Stopping | None = None, **options: Any) -> list[str]:
    said: list[str] = []
    infer(picture, engine or Stopping(), out, options=Options(probabilities=("all",), **options), note=said.append)
    return said


@pytest.fixture(scope="module")
def whole(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "out.ome.zarr"
    run(picture, out)
    return digest(out)


@pytest.fixture(scope="module")
def begun(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a result of which two of three bands are on disk."""
    folder = tmp_path_factory.mktemp("begun")
    progress = folder / "out.ome.zarr.partial/.tilelab/progress"

    def stop_after_two() -> None:
        wait_for(lambda: progress.read_bytes().count(b"\n") == 2, "two bands on disk")
        stop()

    with pytest.raises(Interrupted):
        run(picture, folder / "out.ome.zarr", Stopping(44, stop_after_two))
    lines = progress.read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [["0", "0", "2048"], ["0", "0", "4096"]]
    return folder


@pytest.fixture
def partial(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out.ome.zarr.partial"


def test_a_begun_result_is_continued_and_not_begun_again(picture: Path, partial: Path, whole: str) -> None:
    out = partial.with_suffix("")
    said = run(picture, out)
    assert any(line.startswith((f"continuing {out}: 7", f"continuing {out}: 8")) for line in said)
    assert digest(out) == whole


def test_a_continued_run_says_what_it_keeps_of_the_one_that_began_it(picture: Path, partial: Path) -> None:
    said: list[str] = []
    options = Options(probabilities=("all",), spans=3)
    made = infer(picture, Stopping(), partial.with_suffix(""), options=options, note=said.append).report
    assert "--spans 3 does nothing: the result was begun with 1" in said
    whole = made["megapixels"] / made["seconds"]["wall"]
    assert made["megapixels_per_second"] < 0.4 * whole, "two of three bands are another run's"


def shards(partial: Path) -> list[Path]:
    return sorted(path for path in partial.rglob("c/**/*") if path.is_file())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": lambda shard: shard.unlink(),
    "emptied": lambda shard: shard.write_bytes(b""),
    "cut short": lambda shard: shard.write_bytes(shard.read_bytes()[:-9]),
    "grown": lambda shard: shard.write_bytes(shard.read_bytes() + b"\0"),
    "of zeros": lambda shard: shard.write_bytes(bytes(shard.stat().st_size)),
    "one bit": lambda shard: shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", [0, 5, -1])
def test_a_damaged_shard_is_written_again(picture: Path, partial: Path, whole: str, damage: str, which: int) -> None:
    DAMAGE[damage](shards(partial)[which])
    out = partial.with_suffix("")
    said = run(picture, out)
    assert digest(out) == whole
    if "/2/0" not in str(shards(out)[which]):  # of the third band nothing was promised
        assert any("were not as they had been written" in line for line in said)


def test_a_shard_of_zeros_has_no_file_and_loses_one(tmp_path: Path) -> None:
    array = ShardedArray(LocalPath(tmp_path), (4, 8), np.dtype(np.uint8), (4, 4), (4, 8), "yx")
    scratch = LocalPath(tmp_path / "scratch")
    piece = encode_chunk(np.ones((4, 4), np.uint8))
    stored = array.write_shard((0, 0, 0, 0), [piece, None], scratch)
    everything = Box((0, 0, 0), (1, 4, 8))
    assert array.census(everything, contents=True) == stored
    assert array.census(everything, contents=False).sizes == stored.sizes
    assert array.write_shard((0, 0, 0, 0), [None, None], scratch) == Census()
    assert array.census(everything, contents=True) == Census()


JOURNAL: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "progress removed": ("progress", lambda _: None),
    "progress emptied": ("progress", lambda _: b""),
    "progress torn": ("progress", lambda data: data[:-5]),
    "progress of words": ("progress", lambda _: b"all of it\n"),
    "a digit changed": ("progress", lambda data: data.replace(b"0 0 2048", b"0 0 5200")),
    "an old line": ("progress", lambda _: b"0 5200\n"),
    "a unit beyond": ("progress", lambda data: data + b"7 0 2048 1 1 00 00000000\n"),
    "garbage behind": ("progress", lambda data: data + bytes(range(256))),
    "garbage before": ("progress", lambda data: b"\xff\n" + data),
    "another job's lines": ("progress", lambda _: format_record("other", 0, Stored(0, 5200, Census()))),
    "job removed": ("job.json", lambda _: None),
    "job emptied": ("job.json", lambda _: b""),
    "job cut": ("job.json", lambda data: data[: len(data) // 2]),
    "job a list": ("job.json", lambda _: b"[1]"),
    "job deep": ("job.json", lambda _: b"[" * 100_000),
    "job without a fingerprint": ("job.json", lambda _: b'{"split": {}}'),
    "another tile": ("job.json", lambda data: data.replace(b"(256, 256)", b"(512, 512)")),
}


@pytest.mark.parametrize("damage", JOURNAL)
def test_a_damaged_journal_is_no_promise(picture: Path, partial: Path, whole: str, damage: str) -> None:
    name, change = JOURNAL[damage]
    path = partial / ".tilelab" / name
    data = change(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    out = partial.with_suffix("")
    if name == "job.json":
        with pytest.raises(ResumeError, match=r"is damaged|was begun by a different job") as refused:
            run(picture, out)
        assert "--restart" in str(refused.value)
        assert not out.exists()
        run(picture, out, restart=True)
    else:
        run(picture, out)
    assert digest(out) == whole


def test_ctrl_c_before_and_after_the_sweep_says_how_to_go_on(
    picture: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler goes by the exit code: that of a run that can be continued, whenever it was stopped."""
    runs, out = sys.modules["tilelab.run.infer"], partial.with_suffix("")

    def stopped_in(what: str, out: Path, **options: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(runs, what, lambda *_: stop())
            try:
                run(picture, out, **options)
            except KeyboardInterrupt:  # which would end the tests
                raise RuntimeError("nothing to go on with") from None

    with pytest.raises(RuntimeError):
        stopped_in("_open_engine", partial.with_name("new.ome.zarr"))
    with pytest.raises(Interrupted, match=r"the same command continues \(.*out\.ome\.zarr\.partial\)"):
        stopped_in("_open_engine", out)
    file = partial.with_name("labels.ome.tif")
    with pytest.raises(Interrupted, match=r"the same command continues \(all of .*labels\.ome\.tif is segmented\)"):
        stopped_in("convert_result", file)
    with pytest.raises(Interrupted, match=r"the same command continues \(.*\.work\)"):
        stopped_in("_open_engine", file)
    run(picture, file)
    assert file.exists()
    with pytest.raises(Interrupted, match="the same command without --restart continues"):
        run(picture, out, Stopping(20, stop), restart=True)


def test_what_a_stopped_restart_says_is_true(picture: Path, tmp_path: Path, whole: str) -> None:
    """An earlier result is in the way of going on: without --restart it would be taken for this one."""
    out = tmp_path / "out.ome.zarr"
    run(picture, out)
    with pytest.raises(Interrupted, match=r"without --restart, once .*/out\.ome\.zarr is moved away, continues"):
        run(picture, out, Stopping(44, stop), restart=True)
    out.rename(tmp_path / "earlier")
    run(picture, out)
    assert digest(out) == whole


JOB = Fingerprint(input={"a": "b"}, model={}, engine={}, lattice={}, options={})


def test_what_is_given_up_is_gone_before_its_lock_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run that took the lock first would write into what is then removed."""
    partial = tmp_path / "out.ome.zarr.partial"
    journal, close, there = Journal(LocalPath(partial), JOB, {}), Journal.close, []
    monkeypatch.setattr(Journal, "close", lambda self: (there.append(partial.exists()), close(self)))
    drop_empty(journal, LocalPath(partial))
    assert not any(there)
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "out.ome.zarr.partial"

    def too_late(file: Any, **more: Any) -> bool:
        shutil.rmtree(partial)
        return try_lock(file, **more)

    monkeypatch.setattr(local, "try_lock", too_late)
    with pytest.raises(OutputError, match="was removed by another run, which ended just now: try again"):
        Journal(LocalPath(partial), JOB, {})


def test_a_file_system_without_locks_is_no_other_run(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lustre is where it was mounted without them."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputError, match=r"its file system has no locks .*: name a place on another"):
        run(picture, tmp_path / "out.ome.zarr")


def test_lines_of_an_earlier_attempt_do_not_pass(picture: Path, partial: Path, whole: str) -> None:
    """The journal of a longer attempt comes back, as from a backup, beside the files of a shorter one."""
    old = (partial / ".tilelab/progress").read_bytes()
    shutil.rmtree(partial)
    out = partial.with_suffix("")
    with pytest.raises(Interrupted):
        run(picture, out, Stopping(19, stop))
    (partial / ".tilelab/progress").write_bytes(old)
    run(picture, out)
    assert digest(out) == whole


@pytest.mark.parametrize("document", ["labels/zarr.json", "0/zarr.json", "labels/classes/1/zarr.json", "zarr.json"])
def test_missing_descriptions_are_written_again(picture: Path, partial: Path, whole: str, document: str) -> None:
    (partial / document).unlink()
    run(picture, partial.with_suffix(""))
    assert digest(partial.with_suffix("")) == whole


def test_after_a_restart_of_the_machine_contents_are_read_however_large(
    picture: Path, partial: Path, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tilelab.run.execute as module

    monkeypatch.setattr(module, "_CHEAP", -1)
    description = partial / ".tilelab/job.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"boot": "an earlier one"}))
    DAMAGE["of zeros"](shards(partial)[0])
    assert any("were not as they had been written" in line for line in run(picture, partial.with_suffix("")))
    assert digest(partial.with_suffix("")) == whole


def test_a_result_that_moves_away_while_it_is_written_is_an_error(picture: Path, tmp_path: Path, whole: str) -> None:
    out, partial, aside = tmp_path / "a.ome.zarr", tmp_path / "a.ome.zarr.partial", tmp_path / "aside"
    with pytest.raises(OutputError):
        run(picture, out, Stopping(30, lambda: partial.rename(aside) and None))
    assert not out.exists()
    shutil.rmtree(partial, ignore_errors=True)
    aside.rename(partial)
    run(picture, out)
    assert digest(out) == whole


def test_files_that_vanish_while_it_is_written_are_missed(picture: Path, tmp_path: Path, whole: str) -> None:
    out, partial = tmp_path / "a.ome.zarr", tmp_path / "a.ome.zarr.partial"

    def remove_one() -> None:
        wait_for(lambda: shards(partial), "a shard")[0].unlink()

    with pytest.raises(OutputError, match="changed or removed while it was written"):
        run(picture, out, Stopping(44, remove_one))
    assert not out.exists()
    run(picture, out)
    assert digest(out) == whole


CHANGES: dict[str, Callable[[Path], object]] = {
    "overwritten": lambda path: tifffile.imwrite(path, np.ones(SHAPE, np.uint8), tile=(256, 256)),
    "touched": lambda path: path.touch(),
    "replaced": lambda path: shutil.copy(path, path.with_name("b.tif")) and path.with_name("b.tif").replace(path),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_changes_while_it_is_read_gives_no_result(picture: Path, tmp_path: Path, change: str) -> None:
    image = Path(shutil.copy(picture, tmp_path / "in.tif"))
    with pytest.raises(InputError, match=r"was changed while it was read|does not exist|truncated|No such file"):
        run(image, tmp_path / "out.ome.zarr", Stopping(40, lambda: CHANGES[change](image) and None))
    assert not (tmp_path / "out.ome.zarr").exists()


# --- lines and counts ----------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**40)
PARTS = st.builds(Stored, NUMBERS, NUMBERS, st.builds(Census, NUMBERS, NUMBERS, st.integers(0, 2**64 - 1)))


@given(st.lists(st.tuples(NUMBERS, PARTS), max_size=6), st.data())
def test_lines_come_back_until_the_first_that_is_damaged(
    records: list[tuple[int, Stored]], data: st.DataObject
) -> None:
    lines = [format_record("job", unit, part) for unit, part in records]
    assert list(parse_records("job", b"".join(lines))) == records
    assert list(parse_records("another", b"".join(lines))) == []
    if lines:
        at = data.draw(st.integers(0, len(lines) - 1))
        where = data.draw(st.integers(0, len(lines[at]) - 2))
        damaged = bytearray(lines[at])
        damaged[where] ^= data.draw(st.integers(1, 255))
        found = list(parse_records("job", b"".join([*lines[:at], bytes(damaged), *lines[at + 1 :]])))
        assert found[:at] == records[:at]
        assert len(found) == at or b"\n" in damaged[:-1]


def test_the_slower_of_two_workers_at_the_same_rows_takes_nothing_back(tmp_path: Path) -> None:
    job = Fingerprint(input={}, model={}, engine={}, lattice={}, options={})
    whole, part, rest = (Stored(a, b, Census(b - a, 1, 1)) for a, b in ((0, 8), (0, 4), (8, 9)))
    for expected in ([whole], [whole, rest]):
        journal = Journal(LocalPath(tmp_path / "r.partial"), job, {})
        for one in (*expected, part):
            journal.record(3, one)
        assert journal.records == {3: expected}
        journal.close()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=8), st.integers(0, 5))
def test_parts_reach_as_far_as_they_leave_no_gap(spans: list[tuple[int, int]], start: int) -> None:
    covered: set[int] = set()
    for first, length in spans:
        covered |= set(range(first, first + length))
    expected = start
    reachable = [(a, a + n) for a, n in spans]
    while (further := max([b for a, b in reachable if a <= expected < b], default=expected)) > expected:
        expected = further
    assert contiguous([Stored(a, b, Census()) for a, b in reachable], start) == expected


def test_counts_add_in_any_order_and_tell_places_and_contents_apart() -> None:
    one, two = count_shard("a", [b"12", b"3"]), count_shard("b", [b"123"])
    assert one + two == two + one
    assert count_shard("a", [b"123"]) == one
    assert len({one.digest, two.digest, count_shard("a", [b"124"]).digest}) == 3
    assert (one + two).sizes == (2, 6)


def test_a_finished_result_reads_as_ever(picture: Path, partial: Path) -> None:
    out = partial.with_suffix("")
    run(picture, out)
    assert read_result(out).labels[0].shape == SHAPE


def test_a_finished_result_that_lost_a_shard_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 2100), np.uint8)
    np.save(tmp_path / "a.npy", image)
    out = tmp_path / "a.ome.zarr"
    options = Options(model=SpecOverrides(tile=(64, 64), overlap=(16, 16)), probabilities=("all",))
    infer(tmp_path / "a.npy", "identity:2", out, options=options)
    assert infer(tmp_path / "a.npy", "identity:2", out, options=options).already_finished
    before = digest(out)
    shard = max(out.glob("0/c/**/*"), key=lambda p: p.is_file() and p.stat().st_size)
    shard.unlink()
    with pytest.raises(OutputError, match=r"was finished, but has lost data: \d+ files with .* --restart"):
        infer(tmp_path / "a.npy", "identity:2", out, options=options)
    assert main(["info", str(out)]) == 0
    assert "damaged" in capsys.readouterr().out
    infer(tmp_path / "a.npy", "identity:2", out, options=replace(options, restart=True))
    assert digest(out) == before
    assert main(["info", str(out)]) == 0
    assert "damaged" not in capsys.readouterr().out
