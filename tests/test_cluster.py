"""Many workers give the bytes of one; a worker's death costs a unit's last rows, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from helpers import text_of, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Graph, make_spec, negate, save, save_conv, save_unet

from tilelab.errors import ClusterError, EngineError, Incomplete, InputError, ModelError, OutputError
from tilelab.geometry import Cuts, Lattice
from tilelab.io.results.result import read_info
from tilelab.run.cluster import task
from tilelab.run.cluster.attempt import Attempt
from tilelab.run.cluster.crew import _Once, open_crew
from tilelab.run.cluster.devices import Slot, is_distributed, worker_slots
from tilelab.run.cluster.shared_sweep import SharedSweep
from tilelab.run.elsewhere import absolute
from tilelab.run.infer import infer, plan
from tilelab.run.options import Options
from tilelab.run.plan.share_out import crossings, expected_tiles, share_out
from tilelab.run.sweep.job import Stalls

distributed = pytest.importorskip("distributed")

HERE = Path(__file__).parent
SHAPE = (8300, 4500)  # 5 x 3 shards
MARKER = 255


# The plan for several workers


@settings(max_examples=100)
@given(data=st.data())
def test_crossings_count_the_tiles_of_each_range(data):
    size, tile = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 50))
    axis = Lattice.fit((size,), (tile,), (data.draw(st.integers(0, tile - 1)),)).axes[0]
    cuts = Cuts(size, data.draw(st.integers(1, 100)))
    counts = [len(axis.covering(*cuts[i])) for i in range(len(cuts))]
    assert crossings(axis, cuts) == (sum(counts), max(counts))


@pytest.mark.parametrize("workers", [2, 4, 7, 64])
@pytest.mark.parametrize("shape", [(1, 60_000, 50_000), (30, 9000, 9000), (1, 8300, 4500)])
def test_sharing_out_cuts_at_shards_and_helps(workers, shape):
    grain = (1, 2048, 2048)
    lattice = Lattice.fit(shape, (1, 512, 512), (0, 128, 128))
    whole = (Cuts(shape[0], 1), *(Cuts(n, -(-n // g) * g) for n, g in zip(shape[1:], grain[1:], strict=True)))
    cuts = share_out(lattice, whole, grain, (1, 2), 1, workers)
    assert all(c.extent % g == 0 for c, g in zip(cuts, grain, strict=True))
    assert cuts[0] == whole[0]
    tiles = expected_tiles(lattice, cuts, grain, 1, workers)
    for y in range(1, 6):
        for x in range(1, 6):
            others = (
                whole[0],
                Cuts.at_most(shape[1], shape[1] // y, 2048),
                Cuts.at_most(shape[2], shape[2] // x, 2048),
            )
            assert tiles <= expected_tiles(lattice, others, grain, 1, workers) * 1.001


def test_a_small_plane_is_not_cut_to_pieces_for_two():
    lattice = Lattice.fit((1, 10_000, 10_000), (1, 512, 512), (0, 128, 128))
    whole = (Cuts(1, 1), Cuts(10_000, 10_240), Cuts(10_000, 10_240))
    assert [len(c) for c in share_out(lattice, whole, (1, 2048, 2048), (1, 2), 1, 2)] == [1, 1, 3]


# Devices


@pytest.mark.parametrize(
    ("device", "workers", "count", "first"),
    [
        ("auto", None, 1, "auto"),
        ("cpu", 3, 3, "cpu"),
        ("cpu*2", None, 2, "cpu"),
        ("cpu*2", 2, 2, "cpu"),
        ("cuda:1", None, 1, "cuda:1"),
        ("cuda:0,2", None, 2, "cuda:0"),
        ("cuda:0*2", None, 2, "cuda:0"),
    ],
)
def test_devices_mean_workers(monkeypatch, device, workers, count, first):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    options = Options(device=device, workers=workers)
    slots = worker_slots(options)
    assert [s.device for s in slots] == [first] * count
    assert is_distributed(options) == (count > 1)


def test_gpus_are_numbered_as_nvidia_smi_does_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    _, second = worker_slots(Options(device="cuda:0,1"))
    assert second.environment == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    _, second = worker_slots(Options(device="cuda:0,1"))
    assert second.environment == {"CUDA_VISIBLE_DEVICES": "1"}


def test_each_gpu_worker_sees_its_own_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    slots = worker_slots(Options(device="cuda:0,1"))
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots] == ["3", "GPU-8f"]
    assert worker_slots(Options(device="all")) == slots
    assert slots[0] == Slot("cuda:0", {"CUDA_VISIBLE_DEVICES": "3"}), "in the order in which 3 was meant"
    with pytest.raises(EngineError, match="names GPU 2, CUDA_VISIBLE_DEVICES=3,GPU-8f leaves 2"):
        worker_slots(Options(device="cuda:0,2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(device="cpu*2", workers=3), "means 2 workers, --workers 3 was asked for"),
        (Options(device="cpu*x"), r"not DEVICE\*N"),
        (Options(device="cuda:0,0"), "names a GPU twice"),
    ],
)
def test_contradictions_are_refused(monkeypatch, options, message):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(EngineError, match=message):
        worker_slots(options)


# Real workers


def digest(path):
    """SHA-256 of all pixels of a result, all levels."""
    info, total = read_info(path), hashlib.sha256()
    for what in ("labels", "probabilities", "logits"):
        for array in info.arrays(path, what):
            total.update(np.ascontiguousarray(zarr.open_array(array.path, mode="r")[:]).data)
    return total.hexdigest()


def files(path):
    """Every file of a result, by hash."""
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob("*") if f.is_file()
    }


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Noise without the marker but for one pixel."""
    path = tmp_path_factory.mktemp("picture") / "picture.zarr"
    pixels = np.random.default_rng(0).integers(0, MARKER, SHAPE, np.uint8)
    pixels[7000, 4400] = MARKER  # in the last lane, where the last units are
    array = zarr.create_array(path, shape=SHAPE, chunks=(1024, 1024), dtype="u1")
    array[:] = pixels
    return path


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """A file that says what goes wrong in the workers."""
    return tmp_path_factory.mktemp("faults") / "faults.json"


@pytest.fixture(scope="module")
def environment(faults):
    """Of processes whose workers shall have faults."""
    return {
        "TILELAB_TEST_FAULTS": str(faults),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(HERE / "worker_faults.py")]),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.fixture(scope="module")
def whole(picture, tmp_path_factory):
    """The result of one process, and its digest."""
    out = tmp_path_factory.mktemp("whole") / "whole.ome.zarr"
    infer(picture, "identity", out)
    return out, digest(out)


@pytest.fixture(scope="module")
def cluster(environment):
    """A scheduler with four workers, as somebody else might have started it."""
    import dask

    config = {
        "distributed.worker.preload": json.loads(environment["DASK_DISTRIBUTED__WORKER__PRELOAD"]),
        "distributed.worker.memory.terminate": 0.9,
    }
    with (
        dask.config.set(config),
        distributed.LocalCluster(
            n_workers=4,
            threads_per_worker=1,
            memory_limit="800MB",
            resources={"GPU": 1},
            dashboard_address="127.0.0.1:0",  # any free port: 8787 may be taken
            silence_logs=60,
            env=environment,
        ) as made,
    ):
        yield made


@pytest.fixture
def broken(faults):
    """Say what goes wrong, until the test ends."""

    def say(**what):
        faults.write_text(json.dumps(what))

    yield say
    for file in faults.parent.iterdir():
        file.unlink()


def options_for(cluster, **more):
    return Options(scheduler=cluster.scheduler_address, **more)


def test_many_workers_give_the_bytes_of_one(cluster, picture, whole, tmp_path):
    run = infer(picture, "identity", tmp_path / "many.ome.zarr", options=options_for(cluster))
    workers = run.report["workers"]
    assert (workers["count"], workers["lost"], workers["repeated"]) == (4, 0, 0)
    assert run.report["units"] > 1
    assert digest(run.path) == whole[1]
    assert files(run.path) == files(whole[0])


def test_a_network_gives_the_same_bytes_from_one_process_and_from_local_workers(tmp_path):
    model = save_unet(tmp_path / "unet.onnx", (64, 64), spec=make_spec((64, 64), stride=4, overlap=(32, 32)))
    pixels = np.random.default_rng(1).integers(0, 256, (2500, 700), np.uint8)  # two shards, two units
    np.save(tmp_path / "picture.npy", pixels)
    alone = infer(tmp_path / "picture.npy", model, tmp_path / "alone.ome.zarr")
    notes = []
    shared = infer(
        tmp_path / "picture.npy",
        model,
        tmp_path / "shared.ome.zarr",
        options=Options(device="cpu*2"),
        note=notes.append,
    )
    assert shared.report["workers"]["count"] == 2
    assert any("2 workers on this machine" in line for line in notes)
    assert not any("http" in line and "127.0.0.1" not in line for line in notes)
    assert files(shared.path) == files(alone.path)
    assert digest(shared.path) == digest(alone.path)


def test_what_is_assumed_of_a_model_is_the_same_from_workers(tmp_path, monkeypatch):
    """They know it by another path, which the result kept."""
    monkeypatch.chdir(tmp_path)
    graph = Graph(2)
    save(Path("bare.onnx"), graph, [(graph.node("Tanh", graph.conv("tiles", 1, 2)), 2)], (64, 64))
    tifffile.imwrite("a.tif", np.random.default_rng(1).integers(0, 256, (100, 90), np.uint8))
    said = {"mean": 128, "std": 64, "tile": 64, "overlap": 16}
    alone = infer("a.tif", "bare.onnx", "alone.ome.zarr", **said)
    assert alone.report["assumptions"][0]["what"] == "the output of bare.onnx"
    shared = infer("a.tif", "bare.onnx", "shared.ome.zarr", device="cpu*2", **said)
    assert files(shared.path) == files(alone.path)


def test_a_unit_that_always_fails_is_named_and_the_rest_is_finished(
    cluster, picture, whole, tmp_path, broken, capsys, monkeypatch
):
    from tilelab.cli.main import main

    broken(marker=MARKER, what="raise")
    out = tmp_path / "out.ome.zarr"
    words = ["infer", str(picture), "-m", "identity", "-o", str(out), "--scheduler", cluster.scheduler_address, "-q"]
    assert main(words) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "incomplete" in line]
    assert "1 of" in line
    assert "RuntimeError: the marker was met" in line
    assert "region 0:1," in line
    assert not out.exists()
    broken()
    assert main(words) == 0
    assert "was finished by an earlier run" in capsys.readouterr().err
    assert digest(out) == whole[1]


@pytest.mark.parametrize("what", ["die", "hang", "eat"])
def test_a_worker_that_dies_hangs_or_eats_all_memory_costs_its_unit_only(
    cluster, picture, whole, tmp_path, broken, what
):
    broken(marker=MARKER, what=what, times=1)
    notes = []
    options = options_for(cluster, patience_seconds=4 if what == "hang" else 120)
    run = infer(picture, "identity", tmp_path / "out.ome.zarr", options=options, note=notes.append)
    assert run.report["workers"]["repeated"] + run.report["workers"]["helped"] >= 1
    assert run.report["workers"]["lost"] >= (what != "hang")
    assert any("hangs" in line for line in notes) == (what == "hang")
    assert digest(run.path) == whole[1]
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(4, timeout=60)


def test_a_disk_that_is_full_stops_the_job_at_once(cluster, picture, tmp_path, broken):
    broken(marker=0, what="starve")
    with pytest.raises(OutputError, match="disk is full"):
        infer(picture, "identity", tmp_path / "out.ome.zarr", options=options_for(cluster))


def test_killed_workers_change_nothing(cluster, picture, whole, tmp_path, broken):
    broken(pause=0.01)
    kill_and_compare(cluster, picture, whole, tmp_path / "out.ome.zarr", kills=3, every=1.0)


def kill_and_compare(cluster, picture, whole, out, kills, every):
    rng = random.Random(0)  # noqa: S311
    done = threading.Event()
    killed = []

    progress = out.with_name(out.name + ".partial") / ".tilelab" / "progress"

    def kill():
        while not text_of(progress) and not done.wait(0.01):
            pass  # workers that only load the engine yet are no loss to the job, however long they take
        for n in range(kills):
            if done.wait(every if n else 0):
                return
            pids = [w.process.pid for w in list(cluster.workers.values()) if w.process is not None and w.process.pid]
            if pids:
                pid = rng.choice(pids)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run = infer(picture, "identity", out, options=options_for(cluster))
    finally:
        done.set()
        killer.join()
    assert killed
    assert run.report["workers"]["lost"] >= 1
    assert digest(run.path) == whole[1]


@pytest.mark.slow
def test_a_worker_killed_every_three_seconds_changes_nothing(cluster, picture, whole, tmp_path, broken):
    broken(pause=0.08)
    kill_and_compare(cluster, picture, whole, tmp_path / "out.ome.zarr", kills=100, every=3.0)


def test_a_killed_client_leaves_no_process_and_its_work_goes_on(picture, whole, tmp_path, environment, broken):
    broken(pause=0.02)
    out = tmp_path / "out.ome.zarr"
    words = [sys.executable, "-m", "tilelab", "infer", str(picture), "-m", "identity", "-o", str(out)]
    words += ["--workers", "2", "-q", "--report", str(tmp_path / "report.json")]
    client = subprocess.Popen(words, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    progress = out.with_name(out.name + ".partial") / ".tilelab" / "progress"
    # more than two workers may do twice where they help each other
    wait_for(lambda: text_of(progress).count("\n") >= 4, "a quarter of the rows", process=client)
    children = psutil.Process(client.pid).children(recursive=True)
    assert len(children) >= 2
    client.kill()
    client.communicate()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert progress.read_text()
    broken()
    again = subprocess.run(words, env=os.environ | environment, stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "was finished by an earlier run" in again.stderr
    assert digest(out) == whole[1]
    report = json.loads((tmp_path / "report.json").read_text())
    alone = plan(picture, "identity", options=Options(workers=2))
    assert report["tiles"]["inferred"] < alone.tiles


def test_an_interrupted_client_says_how_to_go_on(picture, tmp_path, environment, broken):
    broken(pause=0.02)
    out = tmp_path / "out.ome.zarr"
    words = [sys.executable, "-m", "tilelab", "infer", str(picture), "-m", "identity", "-o", str(out), "--workers", "2"]
    client = subprocess.Popen(
        words, env=os.environ | environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    progress = out.with_name(out.name + ".partial") / ".tilelab" / "progress"
    wait_for(lambda: text_of(progress), "the first finished rows", process=client)
    os.killpg(client.pid, signal.SIGINT)  # Ctrl-C reaches the workers too
    _, said = client.communicate(timeout=60)
    assert client.returncode == 3, said
    assert "the same command continues" in said
    assert "Traceback" not in said


def dask_command(what, *words):
    return [
        sys.executable,
        "-m",
        f"distributed.cli.dask_{what}",
        *map(str, words),
        "--no-dashboard",
        "--dashboard-address",
        "127.0.0.1:0",
    ]


def test_a_lost_scheduler_leaves_what_was_done(picture, tmp_path, environment, broken):
    broken(pause=0.02)
    scheduler = subprocess.Popen(
        dask_command(
            "scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", tmp_path / "scheduler.json"
        ),
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    said = tmp_path / "scheduler.json"
    wait_for(lambda: text_of(said).endswith("}"), "the scheduler's address", process=scheduler)
    address = json.loads(said.read_text())["address"]
    worker = subprocess.Popen(
        dask_command("worker", address, "--nthreads", "1", "--local-directory", tmp_path, "--death-timeout", "60"),
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    out = tmp_path / "out.ome.zarr"
    progress = out.with_name(out.name + ".partial") / ".tilelab" / "progress"

    def kill_when_begun():
        try:
            wait_for(lambda: text_of(progress), "the first finished rows")
        finally:
            scheduler.kill()

    killer = threading.Thread(target=kill_when_begun)
    killer.start()
    try:
        with pytest.raises(ClusterError, match="the same command continues"):
            infer(picture, "identity", out, options=Options(scheduler=address))
    finally:
        killer.join()
        for process in (worker, scheduler):
            process.kill()
            process.wait()
    assert progress.read_text()


def test_a_scheduler_that_dies_before_a_worker_comes_is_one_line(picture, tmp_path, environment):
    said = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen(
        dask_command("scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", said),
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: text_of(said).endswith("}"), "the scheduler's address", process=scheduler)
    options = Options(scheduler=json.loads(said.read_text())["address"], patience_seconds=8)
    killer = threading.Timer(2, scheduler.kill)
    killer.start()
    try:
        with pytest.raises(ClusterError, match=r"went away|0 of 1 workers came|no Dask scheduler answers"):
            infer(picture, "identity", tmp_path / "out.ome.zarr", options=options)
    finally:
        killer.join()
        scheduler.kill()
        scheduler.wait()


def test_a_scheduler_that_dies_while_the_engine_is_loaded_is_one_line(monkeypatch):
    """What was asked of it then raised what is neither ours nor an OSError."""

    class Gone:
        status, nthreads, dashboard_link = "closed", dict, None
        subscribe_topic = submit = lambda *_, **__: None

        def unsubscribe_topic(self, topic):
            raise distributed.client.ClosedClientError("Client is closed. Can't send unsubscribe-topic message.")

    @contextmanager
    def start(options):
        yield Gone(), options

    monkeypatch.setattr("tilelab.run.cluster.crew.start_client", start)
    with (
        pytest.raises(ClusterError, match="went away while the engine was loaded"),
        open_crew("a.tif", "identity", Options(scheduler="tcp://far:1"), print),
    ):
        pass


def test_what_workers_cannot_open_is_refused(picture, tmp_path, monkeypatch):
    monkeypatch.setattr("tilelab.run.cluster.start.CONNECT_SECONDS", 1)  # for a port where nobody will ever answer
    with pytest.raises(InputError, match="give its path"):
        infer(np.zeros((9, 9), np.uint8), "identity", tmp_path / "out.ome.zarr", options=Options(workers=2))
    from tilelab.engines.registry import load_engine

    with pytest.raises(ModelError, match="give its path or name"):
        infer(picture, load_engine("identity"), tmp_path / "out.ome.zarr", options=Options(workers=2))
    with pytest.raises(ClusterError, match="no Dask scheduler answers at tcp"):
        infer(picture, "identity", tmp_path / "out.ome.zarr", options=Options(scheduler="tcp://127.0.0.1:1"))
    with pytest.raises(InputError, match="absent"):  # before any worker is started
        infer(tmp_path / "absent.tif", "identity", tmp_path / "out.ome.zarr", options=Options(workers=2))


def test_no_worker_can_load_the_engine(cluster, picture, tmp_path):
    with pytest.raises(EngineError, match="identity engine is cpu"):
        infer(picture, "identity", tmp_path / "o.ome.zarr", options=options_for(cluster, device="cuda:0"))


def test_workers_that_disagree_are_refused(cluster, picture, tmp_path, broken):
    """The last that uses the cluster: one of its workers stays odd."""
    broken(odd="2.0")
    with pytest.raises(ClusterError, match=r"would not give the same result \(library"):
        infer(picture, "identity", tmp_path / "out.ome.zarr", options=options_for(cluster))


def test_incomplete_is_an_error_of_its_own():
    assert not issubclass(Incomplete, OutputError)


@pytest.mark.parametrize("what", ["ended", "failed"])
def test_what_a_worker_inferred_counts_where_others_finish_its_unit(what):
    """A unit that another one finished, or that is on disk before its worker says so, would have taken no tiles."""
    sweep = object.__new__(SharedSweep)
    sweep.stalls, sweep.journal = Stalls(), SimpleNamespace()
    sweep.dispatcher = SimpleNamespace(ended=lambda number: None, failed=lambda number, cause, unwritable: None)
    sweep.outbox = SimpleNamespace(forget=lambda attempt: None)
    attempt = Attempt(0, 0, "worker", 0, 10, 10, 0.0, done=3, released=True)
    sweep._handle_attempt(what, attempt, {"tiles": 7, "cause": "", "unwritable": False}, 0.0)
    assert sweep.stalls.tiles == 7
    sweep._drop(attempt)  # died: so many were told of
    assert sweep.stalls.tiles == 10


def test_a_worker_computes_with_the_file_that_is_there_when_a_run_begins(tmp_path, monkeypatch):
    """One of a cluster that stays keeps its engine from run to run."""
    path = save_conv(tmp_path / "net.onnx", (64, 64), spec=make_spec((64, 64)))
    monkeypatch.setattr(task, "_kept", task._Kept())
    monkeypatch.setattr(task, "with_threads", lambda options: options)
    tiles = np.ones((1, 1, 64, 64), np.float32)
    first, kept = task.load_here(str(path), Options()), task._kept._engine
    before = task.infer_here(str(path), Options(), tiles)
    assert task.load_here(str(path), Options()) == first
    assert task._kept._engine is kept
    negate(path)
    second = task.load_here(str(path), Options())
    assert second.facts.digest != first.facts.digest
    np.testing.assert_allclose(task.infer_here(str(path), Options(), tiles), -before, rtol=1e-3, atol=1e-3)


def test_a_worker_lets_go_of_the_image_when_no_unit_comes(monkeypatch):
    """One of a cluster that stays kept it open, and the one of the run before."""
    closed = []

    @contextmanager
    def job(name, spec):
        yield f"job of {name} for {spec}"
        closed.append(name)

    kept, engine = task._Kept(), SimpleNamespace(spec="spec")
    first, second = (SimpleNamespace(topic=name, job=partial(job, name)) for name in ("first", "second"))
    monkeypatch.setattr(task, "IDLE_SECONDS", 60.0)
    with kept.lock:
        assert kept.job(first, engine) is kept.job(first, engine)
        kept.rest()
    with kept.lock:
        kept.wake()
        assert kept.job(second, engine) == "job of second for spec"
        assert closed == ["first"]
        monkeypatch.setattr(task, "IDLE_SECONDS", 0.01)
        kept.rest()
    wait_for(lambda: closed == ["first", "second"], "the second to be closed")
    with kept.lock:
        kept.job(second, engine)
        kept.rest()
        kept.wake()  # the next unit
        time.sleep(0.1)
    assert closed == ["first", "second"]


def test_workers_say_that_they_compile_kernels(tmp_path, monkeypatch):
    numba = pytest.importorskip("numba")
    said = []
    monkeypatch.setattr(task, "_kept", task._Kept())
    monkeypatch.setattr(task, "with_threads", lambda options: options)
    monkeypatch.setattr(task, "_say", lambda topic, line: said.append((topic, line)))
    monkeypatch.setattr("tilelab.kernels.warm.warm_up", lambda: numba.njit(lambda x: x + 1)(1))
    monkeypatch.setattr("tilelab.kernels.jit._TOLD_SECONDS", 3600.0)
    task.load_here("identity", Options(), "load")
    assert said == [("load", "compiling kernels, once on this machine")]
    notes = []
    once = _Once(notes.append)
    for line in (
        "compiling kernels",
        "compiling kernels",
        "compiled kernels in 41 s; ...",
        "compiled kernels in 43 s; ...",
    ):
        once(line)
    assert notes == ["workers: compiling kernels", "workers: compiled kernels in 41 s; ..."]


def test_what_is_named_from_here_means_the_same_to_a_worker_that_began_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("em.h5", "a.onnx", "b_1.tif"):
        (tmp_path / name).touch()
    for named in ("em.h5::/raw", "a.onnx", "b_*.tif"):
        assert absolute(named) == f"{tmp_path.resolve()}/{named}"
    for kept in ("superalloy", "identity:3", "s3://lab/em.zarr"):
        assert absolute(kept) == kept
    (tmp_path / "link.onnx").symlink_to("a.onnx")  # as in the cache of Hugging Face, to a file without a suffix
    assert absolute("link.onnx") == f"{tmp_path.resolve()}/link.onnx"
