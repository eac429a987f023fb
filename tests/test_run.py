"""The main job as users run it: real files, real processes, real kills."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import text_of, wait_for

import tilelab
from tilelab.cli.main import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.errors import InputError, Interrupted, ModelError, OutputError, PlanError, ResumeError
from tilelab.io.results.result import read_result
from tilelab.run.options import Options
from tilelab.run.target import convert_result, output_path

HERE = Path(__file__).parent


def digest(result: Path) -> str:
    """Of every file of a result, names included."""
    state = hashlib.sha256()
    for path in sorted(result.rglob("*")):
        if path.is_file():
            state.update(path.relative_to(result).as_posix().encode())
            state.update(path.read_bytes())
    return state.hexdigest()


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """4500 x 2300: three grains high and two wide, tiled TIFF, 8 bit."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:4500, :2300]
    array = (127 + 90 * np.sin(y / 31) * np.cos(x / 23) + rng.normal(0, 12, (4500, 2300))).clip(0, 255)
    path = tmp_path_factory.mktemp("picture") / "big.tif"
    tifffile.imwrite(path, array.astype(np.uint8), tile=(256, 256))
    return path


@pytest.fixture(scope="module")
def small(picture, tmp_path_factory) -> Path:
    """A corner of it, 1200 x 1100."""
    path = tmp_path_factory.mktemp("small") / "small.tif"
    tifffile.imwrite(path, tifffile.imread(picture)[:1200, :1100], tile=(256, 256))
    return path


def run_identity(image, out, *, tile=96, overlap=24, threads=None, **options):
    engine = load_engine(
        "identity:3", tile=(tile, tile), threads=threads, spec_overrides=SpecOverrides(overlap=(overlap, overlap))
    )
    return tilelab.infer(image, engine, out, options=Options(**options))


def test_one_answer_whatever_the_split(picture, tmp_path):
    run = run_identity(picture, tmp_path / "one.ome.zarr")
    assert run.report["units"] == 1
    one = digest(run.path)
    for lanes, spans in ((2, 1), (1, 3), (2, 3)):
        out = tmp_path / f"{lanes}-{spans}.ome.zarr"
        other = run_identity(picture, out, lanes=lanes, spans=spans)
        assert other.report["units"] > 1
        assert digest(out) == one


def test_one_answer_with_less_memory(picture, tmp_path):
    wide = tmp_path / "wide.tif"
    tifffile.imwrite(wide, tifffile.imread(picture).T, tile=(256, 256))
    run = run_identity(wide, tmp_path / "one.ome.zarr")
    assert run.report["units"] == 1
    tight = sum(run.report["memory"]["planned"].values()) - 1
    other = run_identity(wide, tmp_path / "tight.ome.zarr", memory_bytes=tight)
    assert other.report["units"] > 1
    assert digest(other.path) == digest(run.path)


def test_labels_and_probabilities_are_those_of_the_image(small, tmp_path):
    run = run_identity(small, tmp_path / "r.ome.zarr", probabilities=("all",))
    result = read_result(run.path)
    array = tifffile.imread(small)
    labels = result.labels[0][:]
    expected = np.ceil(array.astype(float) * 3 / 256).clip(1) - 1  # identity:3 cuts the grey values into three bands
    assert (labels == expected).mean() > 0.999  # blending rounds where a value lies on an edge between bands
    probabilities = result.probabilities[0][:]
    assert probabilities.shape == (3, *array.shape)
    assert np.abs(probabilities.astype(int).sum(axis=0) - 255).max() <= 2
    assert result.info.metadata["fingerprint"]["lattice"]["tile"] == "(96, 96)"


def test_a_finished_result_is_recognised_and_another_job_refused(small, tmp_path):
    out = tmp_path / "r.ome.zarr"
    run_identity(small, out)
    before = digest(out)
    assert run_identity(small, out).already_finished
    with pytest.raises(OutputError, match=r"lattice.overlap: \(24, 24\) -> \(32, 32\).*--restart"):
        run_identity(small, out, overlap=32)
    assert digest(out) == before
    assert not run_identity(small, out, overlap=32, restart=True).already_finished
    assert digest(out) != before


def test_nothing_foreign_is_removed(picture, tmp_path):
    out = tmp_path / "mine.ome.zarr"
    out.mkdir()
    (out / "precious.txt").write_text("thesis")
    for restart in (False, True):
        with pytest.raises(OutputError, match="not made by tilelab"):
            run_identity(picture, out, restart=restart)
    assert (out / "precious.txt").read_text() == "thesis"


def start(picture, out, pause):
    return subprocess.Popen(
        [sys.executable, str(HERE / "slow_infer.py"), str(picture), str(out), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_lock(out, process):
    """Wait until the process has begun to work on its output."""
    lock = out.with_name(out.name + ".partial") / ".tilelab" / "lock"
    wait_for(lambda: str(process.pid) in text_of(lock), "its lock", process=process)


def kill_until_finished(picture, out, kills, pause=0.003, seed=0):
    """Kill runs at random moments; returns how many kills met a run that had begun to write."""
    rng = random.Random(seed)  # noqa: S311
    met = 0
    for _ in range(kills):
        process = start(picture, out, pause)
        wait_for_lock(out, process)
        time.sleep(rng.uniform(0, 1.2))
        if process.poll() is None:
            met += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists() or met < kills
        if out.exists():
            break
    last = start(picture, out, 0)
    output, _ = last.communicate()
    assert last.returncode == 0, output
    return met


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_continued_the_bytes_are_the_same(picture, tmp_path, kills):
    undisturbed = start(picture, tmp_path / "undisturbed.ome.zarr", 0)
    output, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, output
    met = kill_until_finished(picture, tmp_path / "killed.ome.zarr", kills, pause=0.003 if kills < 10 else 0.01)
    assert met >= kills // 2
    assert digest(tmp_path / "killed.ome.zarr") == digest(tmp_path / "undisturbed.ome.zarr")


def test_a_continued_run_does_not_begin_again(picture, tmp_path):
    out = tmp_path / "r.ome.zarr"
    process = start(picture, out, 0.003)
    progress = out.with_name(out.name + ".partial") / ".tilelab" / "progress"
    wait_for(lambda: text_of(progress), "the first finished rows", process=process)
    process.kill()
    process.communicate()
    again = start(picture, out, 0)
    output, _ = again.communicate()
    assert again.returncode == 0
    assert "was finished by an earlier run" in output


def test_two_runs_on_one_output_the_second_is_refused(picture, tmp_path):
    out = tmp_path / "r.ome.zarr"
    first = start(picture, out, 0.02)
    wait_for_lock(out, first)
    second = start(picture, out, 0)
    output, _ = second.communicate()
    first.kill()
    first.communicate()
    assert second.returncode != 0
    assert f"another run (process {first.pid})" in output


def test_an_unfinished_result_of_another_job_is_refused(small, tmp_path):
    out = tmp_path / "r.ome.zarr"
    engine = load_engine("identity:3", tile=(96, 96))

    class Stops:
        def __getattr__(self, name):
            return getattr(engine, name)

        def run(self, tiles, out):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="the same command continues"):
        tilelab.infer(small, Stops(), out)
    with pytest.raises(ResumeError, match=r"lattice.tile: \(96, 96\) -> \(128, 128\)"):
        run_identity(small, out, tile=128)
    assert not run_identity(small, out, tile=128, restart=True).already_finished


def tilelab_command(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tilelab", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
        check=False,
    )


@pytest.mark.parametrize(
    ("image", "model", "name"),
    [
        ("a/big.tif", "superalloy", "big.superalloy"),
        ("a/big.ome.tif", "nets/mine.onnx", "big.mine"),
        ("big.v2.ome.zarr", "identity:3", "big.v2.identity-3"),
        ("em.h5::/raw", "runs/mito/best.safetensors", "em.mito"),
        ("s3://lab/em/volume.zarr", "https://a.example/net.onnx?token=1#sha256=2", "volume.net"),
        ("slices/*.tif", "./best.onnx", "slices.best"),
        ("stack/", "a b/häut chen.onnx", "stack.häut-chen"),
        ("big.tif", lambda tiles: tiles, "big.lambda"),
    ],
)
def test_the_default_name_carries_image_and_model(image, model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slices").mkdir()
    assert str(output_path(image, None, model)) == f"{name}.ome.zarr"


def test_a_file_address_is_a_path():
    assert str(output_path("a.tif", "file:///data/a%20b.ome.zarr")) == "/data/a b.ome.zarr"
    assert str(output_path("a.tif", "file://localhost/a.ome.zarr")) == "/a.ome.zarr"
    with pytest.raises(InputError, match=r"names the machine 'data': a path on this one has three slashes"):
        output_path("a.tif", "file://data/a.ome.zarr")  # it went to /a.ome.zarr
    with pytest.raises(InputError, match=r"ftp://h/a.ome.zarr is of an unknown kind"):
        output_path("a.tif", "ftp://h/a.ome.zarr")


def test_what_was_begun_under_the_earlier_default_name_is_pointed_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.ome.zarr.partial/.tilelab").mkdir(parents=True)
    np.save("a.npy", np.zeros((64, 70), np.uint8))
    said = []
    tilelab.infer("a.npy", "identity", tile=64, overlap=16, note=said.append)
    assert any("-o a.ome.zarr continues it" in line for line in said)
    assert Path("a.identity.ome.zarr/zarr.json").is_file()


def test_the_command_line_from_start_to_report(picture, tmp_path):
    done = tilelab_command(
        "infer", picture, "--model", "identity", "--report", "r.json", "--overview", "o.png", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "big.identity.ome.zarr" / "zarr.json").exists()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["tiles"]["inferred"] == report["tiles"]["lattice"] > 100
    assert report["megapixels"] == pytest.approx(4500 * 2300 / 1e6)
    assert {"wall", "engine", "waited_for_read", "waited_for_blend", "waited_for_write"} <= report["seconds"].keys()
    assert (tmp_path / "o.png").stat().st_size > 10_000
    assert "MP/s" in done.stderr
    assert "\r" not in done.stderr  # no progress bar where nobody watches
    again = tilelab_command("infer", picture, "--model", "identity", cwd=tmp_path)
    assert again.returncode == 0
    assert "already finished" in again.stderr


def test_ctrl_c_leaves_a_resumable_output_and_exit_code_3(picture, tmp_path):
    words = ["infer", str(picture), "--model", "identity", "--tile", "64", "--overlap", "60", "-o", "r.ome.zarr"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tilelab", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    partial = tmp_path / "r.ome.zarr.partial"
    wait_for((partial / "zarr.json").exists, "the result's first file", process=process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert partial.exists()
    assert not (tmp_path / "r.ome.zarr").exists()


@pytest.mark.parametrize("suffix", [".ome.tif", ".png"])
def test_other_formats_hold_the_same_labels(small, tmp_path, suffix):
    zarr = run_identity(small, tmp_path / "r.ome.zarr")
    run = run_identity(small, tmp_path / f"r{suffix}")
    from tilelab.io.images.open import open_image

    with open_image(zarr.path / "labels" / "classes") as a:
        labels = a[:]
    if suffix == ".png":
        from PIL import Image

        with Image.open(run.path) as image:
            np.testing.assert_array_equal(np.asarray(image), labels)
    else:
        np.testing.assert_array_equal(tifffile.imread(run.path), labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["r.ome.zarr", f"r{suffix}"])
    assert run_identity(small, tmp_path / f"r{suffix}").already_finished


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.tif", "--model", "identity"], "missing.tif does not exist"),
        (["empty.tif", "--model", "identity"], "empty"),
        (["noise.tif", "--model", "identity"], "format"),
        (["truncated.tif", "--model", "identity"], "truncated"),
        (["nan.tif", "--model", "identity", "--normalization", "mean-std"], "NaN"),
        (["two.tif", "--model", "identity"], "--channel"),
        (["line.npy", "--model", "identity"], "axes"),
        (["sixteen.tif", "--model", "identity"], "--range"),
        (["good.tif", "--model", "missing.onnx"], "no model file"),
        (["good.tif", "--model", "unheard"], "superalloy"),
        (["good.tif", "--model", "broken.onnx"], "broken.onnx"),
        (["good.tif", "--model", "identity", "--tile", "0"], "tile"),
        (["good.tif", "--model", "identity", "--overlap", "300"], "overlap"),
        (["good.tif", "--model", "identity", "--memory", "1MB"], "--memory"),
        (["good.tif", "--model", "identity", "--memory", "lots"], "amount of memory"),
        (["good.tif", "--model", "identity", "-o", "result.xyz"], "unknown format"),
        (["good.tif", "--model", "identity", "-o", "good.tif"], "is the input"),
        (["good.tif", "--model", "identity", "-o", "nowhere/else/r.ome.zarr", "--report", "no/r.json"], "no folder"),
        (["good.tif", "--model", "identity", "--mask", "small.tif"], "same size"),
        (["good.tif", "--model", "identity", "--probabilities", "cheese"], "cheese"),
        (["good.tif", "--model", "identity", "--model-pixel-size", "8"], "--rescale"),
        (["good.tif", "--model", "identity", "--engine", "abacus"], "abacus"),
        (["good.tif", "--model", "identity", "--device", "cuda:0"], "cuda"),
        (["good.tif", "--model", "identity", "--level", "3"], "level 3"),
        (["good.tif", "--model", "identity", "--no-labels", "--probabilities", "none"], "nothing would be written"),
        (["good.tif"], "--model"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(bad_inputs, words, message, monkeypatch, capsys):
    monkeypatch.chdir(bad_inputs)
    monkeypatch.setenv("COLUMNS", "120")
    before = sorted(p.name for p in bad_inputs.iterdir())
    try:
        code = main(["infer", *words])
    except SystemExit as left:  # argparse's way
        code = left.code
    said = capsys.readouterr().err
    assert code == 2, said
    last = said.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("tilelab")
    assert "Traceback" not in said
    assert sorted(p.name for p in bad_inputs.iterdir()) == before


def test_an_error_is_the_whole_commands_last_line_and_exit_code(bad_inputs):
    done = tilelab_command("infer", "truncated.tif", "--model", "identity", cwd=bad_inputs)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tilelab")
    assert "truncated" in last
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (300, 200), np.uint8)
    tifffile.imwrite(folder / "good.tif", grey, resolution=(1e7 / 4, 1e7 / 4), resolutionunit="CENTIMETER")
    (folder / "empty.tif").write_bytes(b"")
    (folder / "noise.tif").write_bytes(rng.bytes(5000))
    tifffile.imwrite(folder / "whole.tif", grey, tile=(64, 64))
    whole = (folder / "whole.tif").read_bytes()
    (folder / "truncated.tif").write_bytes(whole[: len(whole) // 2])
    nan = grey.astype(np.float32)
    nan[150, 100] = np.nan
    tifffile.imwrite(folder / "nan.tif", nan)
    tifffile.imwrite(folder / "two.tif", np.stack([grey, grey]), imagej=True, metadata={"axes": "CYX"})
    np.save(folder / "line.npy", rng.integers(0, 255, 64, np.uint8))
    tifffile.imwrite(folder / "sixteen.tif", grey.astype(np.uint16))
    tifffile.imwrite(folder / "small.tif", grey[:100])
    (folder / "broken.onnx").write_bytes(rng.bytes(3000))
    return folder


def test_an_unwritable_place_is_said(picture, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write"):
        run_identity(picture, tmp_path / "file" / "r.ome.zarr")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to mount a tiny file system")
def test_a_full_disk_is_said_and_the_run_continues_when_there_is_room(picture, tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("no tiny file system can be mounted here")
    try:
        with pytest.raises(OutputError, match=r"full|space"):
            run_identity(picture, mount / "r.ome.zarr")
        assert not (mount / "r.ome.zarr").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(mount)], check=True)
        run_identity(picture, mount / "r.ome.zarr")
        run_identity(picture, tmp_path / "other" / "r.ome.zarr")  # as far from the image, of which it tells the way
        assert digest(mount / "r.ome.zarr") == digest(tmp_path / "other" / "r.ome.zarr")
    finally:
        subprocess.run(["umount", str(mount)], check=False)


def test_planning_counts_what_running_does(picture, tmp_path):
    plan = tilelab.plan(picture, "identity", options=Options(lanes=2, spans=2))
    run = tilelab.infer(picture, "identity", tmp_path / "r.ome.zarr", options=Options(lanes=2, spans=2))
    assert plan.tiles == run.report["tiles"]["inferred"]
    assert len(plan.units) == run.report["units"] == 4
    with pytest.raises(PlanError, match="--memory"):
        tilelab.plan(picture, "identity", options=Options(memory_bytes=1 << 20))


def test_the_plan_of_a_petabyte_takes_no_time_and_memory():
    from tilelab.run.plan.plan import make_plan
    from tilelab.run.plan.request import ImageFacts, Request, Written

    spec = load_engine("identity:2", tile=(512, 512)).spec
    shape = (100_000, 100_000, 100_000)
    began = time.process_time()
    image = ImageFacts(shape, (1, 512, 512), 1, np.dtype(np.uint8))
    plan = make_plan(Request.of(image, spec, Written(True, (1,))))
    assert plan.tiles >= len(plan.lattice) > 10**9
    assert plan.recomputed < 0.05
    assert len(plan.units) >= 10**5
    assert time.process_time() - began < 10  # a list of its tiles would take hours


def test_an_array_needs_a_name_for_its_result():
    with pytest.raises(OutputError, match="no name"):
        tilelab.infer(np.zeros((10, 10), np.uint8), "identity")


def test_a_dask_array_gives_what_the_file_gives(small, tmp_path):
    import dask.array as da

    array = da.from_array(tifffile.imread(small), chunks=(512, 512))
    tilelab.infer(array, "identity", tmp_path / "a.ome.zarr")
    tilelab.infer(small, "identity", tmp_path / "b.ome.zarr")
    a, b = read_result(tmp_path / "a.ome.zarr"), read_result(tmp_path / "b.ome.zarr")
    for one, two in zip(a.labels + a.probabilities, b.labels + b.probabilities, strict=True):
        np.testing.assert_array_equal(one[:], two[:])


def test_a_stack_is_segmented_slice_by_slice(small, tmp_path):
    stack = tifffile.imread(small)[:1200].reshape(3, 400, 1100)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    run_identity(tmp_path / "stack.tif", tmp_path / "stack.ome.zarr")
    whole = read_result(tmp_path / "stack.ome.zarr")
    assert whole.info.axes == "zyx"
    for z in range(3):
        tifffile.imwrite(tmp_path / "slice.tif", stack[z])
        run_identity(tmp_path / "slice.tif", tmp_path / f"slice{z}.ome.zarr")
        np.testing.assert_array_equal(whole.labels[0][z], read_result(tmp_path / f"slice{z}.ome.zarr").labels[0][:])


def test_a_3d_model_needs_a_volume(picture, tmp_path):
    with pytest.raises(PlanError, match="3-D"):
        tilelab.infer(
            picture,
            load_engine("identity", tile=(8, 32, 32)),
            tmp_path / "r.ome.zarr",
        )


def test_wrong_class_is_a_model_error(picture):
    with pytest.raises(ModelError, match="cheese"):
        tilelab.plan(picture, "identity", options=Options(probabilities=("cheese",)))


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_is_made_of_a_result_by_one_run_alone(small, tmp_path, monkeypatch, restart):
    """Another would take the result away while it is read: what is gone of it reads as 0."""
    out = tmp_path / "r.ome.tif"

    def convert(work, target, options):
        monkeypatch.undo()
        with pytest.raises(OutputError, match=r"r\.ome\.tif is being written by another run"):
            run_identity(small, out, restart=restart)
        convert_result(work, target, options)

    monkeypatch.setattr("tilelab.run.infer.convert_result", convert)
    run_identity(small, out)
    labels = read_result(run_identity(small, tmp_path / "r.ome.zarr").path).labels[0][:]
    np.testing.assert_array_equal(tifffile.imread(out), labels)
