"""Many workers give the bytes of one; a worker's death costs a unit's last rows, and nothing else."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from helpers import text_of, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_spec, save_unet

from tilelab.errors import ClusterError, EngineError, Incomplete, InputError, ModelError, OutputError
from tilelab.geometry import Cuts, Frame, Lattice, Units
from tilelab.io.results.result import read_info
from tilelab.run.cluster.devices import Slot, is_distributed, worker_slots
from tilelab.run.cluster.dispatch import Assign, Dispatcher, Limits, Release, Restart, largest_first
from tilelab.run.infer import infer, plan
from tilelab.run.options import Options
from tilelab.run.plan.share_out import crossings, expected_tiles, share_out

distributed = pytest.importorskip("distributed")

HERE = Path(__file__).parent
SHAPE = (8300, 4500)  # 5 x 3 shards
MARKER = 255
GRAIN = 4


# The dispatcher, on a simulated clock


class Simulation:
    """Workers that take a random time for a unit, report, die and fail at random."""

    def __init__(self, units, rng, *, workers, death=0.0, bad=(), hang=0.0, limits=None):
        self.units, self.rng, self.death, self.bad, self.hang = units, rng, death, set(bad), hang
        self.positions = {}
        self.disk = {unit.index: set() for unit in units}
        self.now = 0.0
        self.events = []
        self.started = {}  # unit -> times it was started
        self.order = 0
        self.queues = {}
        self.names = 0
        self.dispatcher = make_dispatcher(units, self.positions, self.record, limits or Limits(patience=50))
        for _ in range(workers):
            self.join()

    def record(self, unit, position):
        """What is recorded must be on disk."""
        begin = self.units[unit].box.start[1]
        assert self.positions.get(unit, begin) < position
        assert self.disk[unit] >= set(range(begin, position))
        self.positions[unit] = position

    def join(self):
        self.names += 1
        name = f"w{self.names}"
        self.queues[name] = []
        self.dispatcher.join(name)

    def at(self, delay, what, *args):
        self.order += 1
        heapq.heappush(self.events, (self.now + delay, self.order, what, args))

    def begin(self, worker):
        """A worker takes up the first of what it was sent."""
        attempt = self.queues[worker][0]
        assert (attempt.start - self.units[attempt.unit].box.start[1]) % GRAIN == 0
        self.dispatcher.started(attempt.number, self.now)
        self.started[attempt.unit] = self.started.get(attempt.unit, 0) + 1
        if self.rng.random() < self.hang:
            return
        if self.rng.random() < self.death:
            self.at(self.rng.uniform(0, 2), "die", worker)
        self.at(self.rng.uniform(0.5, 1.5), "step", worker, attempt, attempt.start)

    def step(self, worker, attempt, position):
        if worker not in self.queues or attempt not in self.queues[worker]:
            return
        if attempt.released:
            self.dispatcher.ended(attempt.number)
        elif attempt.unit in self.bad:
            self.dispatcher.failed(attempt.number, "bad")
        else:
            position = min(attempt.stop, position + GRAIN)
            self.disk[attempt.unit].update(range(attempt.start, position))
            if position < attempt.stop:
                self.dispatcher.reported(attempt.number, position - attempt.start, position, self.now)
                self.at(self.rng.uniform(0.5, 1.5), "step", worker, attempt, position)
                return
            self.dispatcher.done(attempt.number, self.now)
        self.queues[worker].remove(attempt)
        if self.queues[worker]:
            self.begin(worker)

    def die(self, worker):
        if worker in self.queues:
            del self.queues[worker]
            self.dispatcher.leave(worker)
            self.join()

    def run(self, most=20000):
        for _ in range(most):
            for action in self.dispatcher.actions(self.now):
                if isinstance(action, Assign):
                    queue = self.queues[action.attempt.worker]
                    queue.append(action.attempt)
                    assert len(queue) <= 2
                    if len(queue) == 1:
                        self.begin(action.attempt.worker)
                elif isinstance(action, Release):
                    attempt = action.attempt
                    queue = self.queues.get(attempt.worker, [])
                    if attempt in queue[1:]:  # was waiting
                        queue.remove(attempt)
                        self.dispatcher.ended(attempt.number)
                elif isinstance(action, Restart):
                    self.queues.pop(action.worker, None)
                    self.join()
            if self.dispatcher.finished:
                return
            if self.events:
                self.now, _, what, args = heapq.heappop(self.events)
                getattr(self, what)(*args)
            else:
                self.now += 10.0
            self.dispatcher.check_silence(self.now)
        pytest.fail("the job does not end")


def make_dispatcher(units, positions, record=None, limits=None):
    return Dispatcher(
        units,
        Frame(1),
        GRAIN,
        positions,
        record or positions.__setitem__,
        lambda unit, start, stop: stop - start,
        limits,
    )


class Steady:
    """Random numbers without surprises."""

    def random(self):
        return 0.5

    def uniform(self, low, high):
        return (low + high) / 2


def make_units(shape, extents):
    return Units(tuple(Cuts(n, e) for n, e in zip(shape, extents, strict=True)))


@settings(max_examples=200)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_every_unit_is_finished_or_given_up_whatever_happens(data, seed):
    shape = tuple(data.draw(st.integers(1, 30)) for _ in range(3))
    units = make_units(shape, [GRAIN * data.draw(st.integers(1, 4)) for _ in range(3)])
    bad = data.draw(st.sets(st.integers(0, len(units) - 1), max_size=3))
    simulation = Simulation(
        units,
        random.Random(seed),  # noqa: S311
        workers=data.draw(st.integers(1, 6)),
        death=data.draw(st.sampled_from([0, 0.1])),
        hang=data.draw(st.sampled_from([0, 0.05])),
        bad=bad,
        limits=Limits(deaths=50, patience=50),
    )
    simulation.run()
    dispatcher = simulation.dispatcher
    assert {f.unit for f in dispatcher.failures} == bad
    assert all(f.cause == "bad" and f.attempts >= 3 for f in dispatcher.failures)
    assert dispatcher.left == 0
    assert dispatcher.stopped is None
    finished = {u for u, p in simulation.positions.items() if p == units[u].box.stop[1]}
    assert finished == set(range(len(units))) - bad


def test_without_trouble_each_unit_is_started_once():
    units = make_units((40, GRAIN, 1), (1, GRAIN, 1))  # nothing to part
    simulation = Simulation(units, Steady(), workers=4)
    simulation.run()
    assert simulation.started == dict.fromkeys(range(40), 1)
    assert simulation.dispatcher.retries == 0


def test_a_unit_that_kills_its_worker_is_given_up_and_goes_on_from_what_is_on_disk_before():
    units = make_units((1, 40, 1), (1, 20, 1))
    dispatcher = make_dispatcher(units, {}, limits=Limits(deaths=2))
    for n in range(4):
        dispatcher.join(f"w{n}")
    first = next(a.attempt for a in dispatcher.actions(0) if a.attempt.unit == 0)
    dispatcher.started(first.number, 0)
    dispatcher.reported(first.number, 8, 8, 1)
    dispatcher.leave(first.worker)  # it got on: this death does not count
    for _ in range(2):
        (attempt,) = (a.attempt for a in dispatcher.actions(2) if a.attempt.unit == 0)
        assert attempt.start == 8
        assert attempt.tiles == 12
        assert attempt.worker != first.worker
        dispatcher.started(attempt.number, 3)
        assert len(dispatcher.failures) == 0
        dispatcher.leave(attempt.worker, "killed")
    assert [(f.unit, f.cause, f.attempts) for f in dispatcher.failures] == [(0, "killed", 2)]


def test_a_failed_unit_goes_to_another_worker_first():
    units = make_units((6, 4, 1), (1, 4, 1))
    dispatcher = make_dispatcher(units, {})
    dispatcher.join("a")
    dispatcher.join("b")
    attempts = {a.attempt.worker: a.attempt for a in dispatcher.actions(0)}
    failed = attempts["a"]
    dispatcher.failed(failed.number, "broken")
    for a in dispatcher.actions(0):
        assert (a.attempt.worker, a.attempt.unit) != ("a", failed.unit)


def run_two(rows, slow_reports):
    """A slow worker has done some of its unit when a fast one is through with the other two; what comes next."""
    units = make_units((3, rows, 1), (1, rows, 1))
    positions = {}
    dispatcher = make_dispatcher(units, positions)
    dispatcher.join("slow")
    dispatcher.join("fast")
    first = {a.attempt.worker: a.attempt for a in dispatcher.actions(0)}
    for attempt in first.values():
        dispatcher.started(attempt.number, 0)
    dispatcher.done(first["fast"].number, 1)
    (second,) = dispatcher.actions(1)
    dispatcher.started(second.attempt.number, 1)
    dispatcher.reported(first["slow"].number, *slow_reports, 2)
    dispatcher.done(second.attempt.number, 2)
    return dispatcher, positions, first["slow"], dispatcher.actions(2)


def test_an_idle_worker_takes_over_the_rear_of_what_is_slow():
    dispatcher, positions, slow, (help_,) = run_two(100, (20, 20))  # 10 rows a second; the helper does 100
    part = help_.attempt
    assert (part.worker, part.unit, part.start, part.stop) == ("fast", slow.unit, 28, 100)  # 27.3, at a shard
    assert part.eager
    dispatcher.started(part.number, 2)
    dispatcher.done(part.number, 2.7)
    assert positions[slow.unit] == 20  # what lies behind a gap is not recorded
    assert not dispatcher.finished
    dispatcher.reported(slow.number, 28, 28, 2.8)
    assert positions[slow.unit] == 100
    assert dispatcher.finished
    assert dispatcher.actions(3) == [Release(slow)]


def test_a_worker_that_halts_is_relieved_of_all_that_is_not_on_disk():
    dispatcher, positions, slow, (help_,) = run_two(100, (0, 0))
    assert (help_.attempt.start, help_.attempt.stop) == (0, 100) or help_.attempt.start > 0
    parts = [help_.attempt]
    now = 2.0
    while not dispatcher.finished:
        part = parts[-1]
        dispatcher.started(part.number, now)
        now += 1
        dispatcher.done(part.number, now)
        parts += [a.attempt for a in dispatcher.actions(now) if isinstance(a, Assign)]
        assert len(parts) < 10
    assert positions[slow.unit] == 100
    assert min(part.start for part in parts) == 0


def test_what_two_workers_share_survives_the_loss_of_either():
    for lost in ("slow", "fast"):
        dispatcher, positions, slow, (help_,) = run_two(100, (20, 20))
        dispatcher.started(help_.attempt.number, 2)
        dispatcher.reported(help_.attempt.number, 40, 68, 2.5)
        assert positions[slow.unit] == 20
        dispatcher.leave(lost)
        dispatcher.join("third")
        parts = [a.attempt for a in dispatcher.actions(3) if isinstance(a, Assign)]
        if lost == "slow":
            assert [(p.start, p.stop) for p in parts] == [(20, 28)]
        else:  # the slow one would go on to the end, past what the helper left on disk
            assert [p.unit for p in parts] in ([], [slow.unit])
            dispatcher.started(slow.number, 3)
            dispatcher.reported(slow.number, 28, 28, 3)
            assert positions[slow.unit] == 68


def test_a_job_that_fails_everywhere_is_stopped():
    units = make_units((100, 4, 1), (1, 4, 1))
    simulation = Simulation(units, random.Random(0), workers=3, bad=range(100))  # noqa: S311
    simulation.run()
    assert simulation.dispatcher.stopped.cause == "bad"
    assert len(simulation.dispatcher.failures) < 20


def test_a_worker_that_cannot_do_the_job_gets_none_of_it():
    units = make_units((6, 4, 1), (1, 4, 1))
    dispatcher = make_dispatcher(units, {})
    dispatcher.join("a")
    dispatcher.join("b")
    dispatcher.actions(0)
    dispatcher.refuse("a")
    dispatcher.join("a")
    assert dispatcher.workers == 1
    assert {a.attempt.worker for a in dispatcher.actions(0)} <= {"b"}
    assert dispatcher.left == 6


@settings(max_examples=100)
@given(data=st.data())
def test_units_are_ordered_by_size_and_none_is_missing(data):
    shape = [data.draw(st.integers(1, 40)) for _ in range(3)]
    units = make_units(shape, [data.draw(st.integers(1, 20)) for _ in range(3)])
    order = list(largest_first(units))
    assert sorted(order) == list(range(len(units)))
    full = tuple(c.extent for c in units.cuts)
    is_full = [units[i].box.shape == full for i in order]
    assert is_full == sorted(is_full, reverse=True)


def test_a_petabyte_of_units_is_never_listed():
    import tracemalloc

    units = make_units((10**6, 10**5, 10**4), (1, 2048, 2048))
    tracemalloc.start()
    dispatcher = make_dispatcher(units, {}, record=lambda unit, position: None)
    for n in range(100):
        dispatcher.join(f"w{n}")
    for number in range(1, 5001):
        dispatcher.actions(number)
        dispatcher.done(number, number)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert dispatcher.left == len(units) - 5000


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


def test_each_gpu_worker_sees_its_own_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    slots = worker_slots(Options(device="cuda:0,1"))
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots] == ["3", "GPU-8f"]
    assert worker_slots(Options(device="all")) == slots
    assert slots[0] == Slot("cuda:0", {"CUDA_VISIBLE_DEVICES": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
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
    pixels = np.random.default_rng(1).integers(0, 256, (2500, 2300), np.uint8)
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
    broken(pause=0.002)
    kill_and_compare(cluster, picture, whole, tmp_path / "out.ome.zarr", kills=3, every=1.0)


def kill_and_compare(cluster, picture, whole, out, kills, every):
    rng = random.Random(0)  # noqa: S311
    done = threading.Event()
    killed = []

    def kill():
        for _ in range(kills):
            if done.wait(every):
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
    wait_for(lambda: text_of(progress), "the first finished rows", process=client)
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
        dask_command("worker", address, "--nthreads", "1", "--local-directory", tmp_path, "--death-timeout", "5"),
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


def test_workers_that_disagree_are_refused(cluster, picture, tmp_path, broken):
    broken(odd="2.0")
    try:
        with pytest.raises(ClusterError, match=r"would not give the same result \(library"):
            infer(picture, "identity", tmp_path / "out.ome.zarr", options=options_for(cluster))
    finally:
        broken()
        with distributed.Client(cluster, set_as_default=False) as client:
            client.restart()


def test_what_workers_cannot_open_is_refused(picture, tmp_path):
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


def test_incomplete_is_an_error_of_its_own():
    assert not issubclass(Incomplete, OutputError)
