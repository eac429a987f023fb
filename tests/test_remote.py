"""Remote stores: a real S3 server, a proxy that makes trouble, a web server; what is read and written is the same."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import tifffile
from helpers import wait_for
from s3_server import KEY, SECRET, S3Server, TroubleProxy, environment, web_server

import tilelab
from tilelab.cli.main import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.errors import InputError, OutputError, ResumeError, TilelabError
from tilelab.geometry import Box
from tilelab.io.convert import convert_image
from tilelab.io.images.open import describe, open_image
from tilelab.io.results.result import read_result
from tilelab.io.results.sink import Stored
from tilelab.io.storage import remote_access
from tilelab.io.storage.remote_path import RemotePath
from tilelab.io.storage.remote_store import open_store
from tilelab.io.zarr.census import Census
from tilelab.run.execute import drop_empty
from tilelab.run.journal import lease as leases
from tilelab.run.journal import remote as journal_remote
from tilelab.run.journal.fingerprint import Fingerprint
from tilelab.run.options import Options

pytest.importorskip("obstore", reason="extra `remote` is not installed")
pytest.importorskip("moto", reason="extra `test` is not installed")
zarr = pytest.importorskip("zarr")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server():
    server = S3Server()
    server.make_bucket("data")
    yield server
    server.stop()


@pytest.fixture
def s3(server, monkeypatch) -> S3Server:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "TILELAB_REMOTE"))]:
        monkeypatch.delenv(name)
    for name, value in environment(server.url).items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def trouble(s3, monkeypatch):
    proxy = TroubleProxy(s3.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """2500 x 2300: two grains high and wide."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:2500, :2300]
    return (127 + 90 * np.sin(y / 31) * np.cos(x / 23) + rng.normal(0, 12, (2500, 2300))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(pixels, tmp_path_factory) -> Path:
    """The picture as chunks, as shards, in a codec that only zarr-python knows, and as TIFF (tiles, strips, bare)."""
    root = tmp_path_factory.mktemp("pictures")
    zarr.create_array(root / "plain.zarr", data=pixels, chunks=(256, 300), zarr_format=2)
    zarr.create_array(root / "shards.zarr", data=pixels, chunks=(128, 128), shards=(512, 512))
    zarr.create_array(
        root / "foreign.zarr", data=pixels, chunks=(256, 300), zarr_format=2, filters=[numcodecs.Delta("u1")]
    )
    tifffile.imwrite(root / "tiles.tif", pixels, tile=(256, 256), compression="zlib")
    tifffile.imwrite(root / "strips.tif", pixels, rowsperstrip=64, compression="zlib")
    tifffile.imwrite(root / "bare.tif", pixels)
    return root


@pytest.fixture(scope="module")
def uploaded(server, folder) -> str:
    """All of it in the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server.url).items():
            patch.setenv(name, value)
        store = open_store("s3://data")
        for file in folder.rglob("*"):
            if file.is_file():
                store.put(f"in/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return "s3://data/in"


def objects(prefix: str) -> dict[str, bytes]:
    """Everything below a prefix of the bucket."""
    store = open_store("s3://data")
    return {key.removeprefix(prefix + "/"): store.get(key) for key in store.keys(prefix)}


def files(result: Path) -> dict[str, bytes]:
    return {p.relative_to(result).as_posix(): p.read_bytes() for p in sorted(result.rglob("*")) if p.is_file()}


def segment(image, out, notes=None, **options):
    engine = load_engine("identity:3", tile=(128, 128), spec_overrides=SpecOverrides(overlap=(40, 40)))
    note = (lambda line: None) if notes is None else notes.append
    return tilelab.infer(image, engine, out, options=Options(**({"lanes": 2} | options)), note=note)


def without_root(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name != "zarr.json"}


@pytest.fixture(scope="module")
def truth(server, uploaded, tmp_path_factory) -> dict[str, bytes]:
    """The result on disk, made from the bucket."""
    out = tmp_path_factory.mktemp("truth") / "out.ome.zarr"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server.url).items():
            patch.setenv(name, value)
        segment(f"{uploaded}/shards.zarr", out)
    return files(out)


# reading


@pytest.mark.parametrize("name", ["plain.zarr", "shards.zarr", "foreign.zarr", "tiles.tif", "strips.tif", "bare.tif"])
def test_every_region_is_that_of_the_local_image(s3, uploaded, folder, pixels, name):
    rng = np.random.default_rng(1)
    with open_image(f"{uploaded}/{name}") as image, open_image(folder / name) as local:
        assert (image.shape, image.dtype, image.chunks, image.axes) == (local.shape, local.dtype, local.chunks, "yx")
        assert image.uri == f"{uploaded}/{name}"
        for _ in range(6):
            start = tuple(int(rng.integers(0, n - 1)) for n in image.shape)
            stop = tuple(int(rng.integers(a + 1, min(n, a + 900) + 1)) for a, n in zip(start, image.shape, strict=True))
            box = Box(start, stop)
            np.testing.assert_array_equal(image.read(box), pixels[box.slices])
        assert image.fingerprint() == image.fingerprint()
    assert describe(f"{uploaded}/{name}")["shape"] == [2500, 2300]


def test_absent_chunks_read_as_the_fill_value(s3, tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(600, 600), dtype="u1", chunks=(64, 64), shards=(128, 128), fill_value=9
    )
    array[300:310, 300:310] = 77
    store = open_store("s3://data")
    for file in (tmp_path / "a.zarr").rglob("*"):
        if file.is_file():
            store.put(f"absent.zarr/{file.relative_to(tmp_path / 'a.zarr').as_posix()}", file.read_bytes())
    with open_image("s3://data/absent.zarr") as image:
        expected = np.full((600, 600), 9, np.uint8)
        expected[300:310, 300:310] = 77
        np.testing.assert_array_equal(image[:], expected)
        np.testing.assert_array_equal(image[290:305, 301:500], expected[290:305, 301:500])


def test_neighbouring_chunks_come_in_one_request(trouble, uploaded):
    with open_image(f"{uploaded}/shards.zarr") as image:
        before = len(trouble.seen)
        image[0:128, 0:512]  # a row of four chunks of one shard
        asked = trouble.seen[before:]
        assert len(asked) == 2  # the index and the row
        before = len(trouble.seen)
        image[128:256, 0:512]
        assert len(trouble.seen) - before == 1


@pytest.mark.parametrize("name", ["tiles.tif", "plain.zarr", "bare.tif"])
def test_web_servers_are_read_in_ranges(s3, folder, pixels, name):
    password = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
    with web_server(folder, authorization=password) as (url, seen):
        address = url.replace("http://", f"http://user:{SECRET}@")
        with open_image(f"{address}/{name}?token={SECRET}") as image:
            np.testing.assert_array_equal(image[700:1300, 100:1000], pixels[700:1300, 100:1000])
            assert SECRET not in image.uri + repr(image) + json.dumps(image.fingerprint())
        if name.endswith(".tif"):
            gets = [extent for method, _, extent in seen if method == "GET"]
            assert gets
            assert all(gets)  # never the whole file
        with pytest.raises(InputError, match="access is denied \\(401\\)") as refused:
            open_image(f"{url}/{name}?sig={SECRET}")
        assert SECRET not in str(refused.value)


def test_signed_addresses(s3, folder, pixels):
    with web_server(folder, signature=SECRET) as (url, _):
        with open_image(f"{url}/tiles.tif?sig={SECRET}") as image:
            np.testing.assert_array_equal(image[:300, :300], pixels[:300, :300])
        with pytest.raises(InputError, match="403"):
            open_image(f"{url}/tiles.tif")


# writing


def test_what_was_not_copied_into_a_bucket_is_no_zeros(s3, pixels, tmp_path):
    whole = np.array(pixels)
    whole[:2048, :2048] = 0
    convert_image(whole, tmp_path / "a.ome.zarr")
    lost = next(path for path in (tmp_path / "a.ome.zarr").rglob("0/c/1/0"))
    store = open_store("s3://data")
    for file in (tmp_path / "a.ome.zarr").rglob("*"):
        if file.is_file() and file != lost:
            store.put(f"part/{file.relative_to(tmp_path).as_posix()}", file.read_bytes())
    with pytest.raises(InputError, match="is not whole: 2 of the 3 shards"):
        open_image("s3://data/part/a.ome.zarr")
    lost.unlink()
    with web_server(tmp_path) as (url, _), open_image(f"{url}/a.ome.zarr") as image:  # which does not list
        assert not image[:100, :100].any()
        np.testing.assert_array_equal(image[:100, 2048:], pixels[:100, 2048:])
        with pytest.raises(InputError, match="0/c/1/0 is missing: it was written"):
            image[2000:2100, :]


def test_from_bucket_to_bucket_gives_the_bytes_of_local_files(s3, uploaded, folder, truth, tmp_path):
    run = segment(f"{uploaded}/shards.zarr", "s3://data/same/out.ome.zarr")
    assert not run.already_finished
    found = objects("same/out.ome.zarr")
    assert found.keys() == truth.keys()
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in truth.items()
    }
    # from local files the pixels are the same; the root tells another file's times
    assert without_root(files(Path(segment(folder / "shards.zarr", tmp_path / "o.ome.zarr").path))) == without_root(
        truth
    )
    result = read_result("s3://data/same/out.ome.zarr")
    local = tmp_path / "o.ome.zarr"
    for level, image in enumerate(result.labels):
        np.testing.assert_array_equal(image[:], read_result(local).labels[level][:])
    assert segment(f"{uploaded}/shards.zarr", "s3://data/same/out.ome.zarr").already_finished
    with pytest.raises(OutputError, match="is the result of another job"):
        segment(f"{uploaded}/plain.zarr", "s3://data/same/out.ome.zarr")
    segment(f"{uploaded}/plain.zarr", "s3://data/same/out.ome.zarr", restart=True)
    segment(f"{uploaded}/shards.zarr", "s3://data/same/out.ome.zarr", restart=True)
    assert objects("same/out.ome.zarr") == truth
    with open_image("s3://data/same/out.ome.zarr") as image:  # a result is an image
        assert image.axes == "cyx"


def test_two_workers_read_and_write_the_store_themselves(s3, uploaded, tmp_path):
    pytest.importorskip("distributed")
    options = Options(model=SpecOverrides(tile=(128, 128), overlap=(40, 40)))
    alone = tilelab.infer(f"{uploaded}/shards.zarr", "identity:3", tmp_path / "one.ome.zarr", options=options)
    from dataclasses import replace

    both = tilelab.infer(
        f"{uploaded}/shards.zarr", "identity:3", "s3://data/two.ome.zarr", options=replace(options, workers=2)
    )
    assert both.report["workers"]["count"] == 2
    assert objects("two.ome.zarr") == files(alone.path)


def start(image: str, out: str, pause: float, url: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(HERE / "slow_infer.py"), image, out, str(pause)],
        env={**os.environ, **environment(url), "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_object(key: str, process: subprocess.Popen) -> None:
    store = open_store("s3://data")
    wait_for(lambda: store.exists(key) and store.get(key), key, process=process)


def test_killed_and_run_again(s3, uploaded):
    image, out = f"{uploaded}/shards.zarr", "s3://data/killed/out.ome.zarr"
    straight = start(image, "s3://data/straight/out.ome.zarr", 0.0, s3.url)
    said = straight.communicate(timeout=120)[0]
    assert straight.returncode == 0, said
    process = start(image, out, 0.02, s3.url)
    try:
        wait_for_object("killed/out.ome.zarr/.tilelab/progress", process)
        with pytest.raises(InputError, match="is not finished"):
            read_result(out)
        with pytest.raises(InputError):
            open_image(out)
        with pytest.raises(OutputError, match="being written by another run"):
            segment(image, out)  # whatever its job
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert not open_store("s3://data").exists("killed/out.ome.zarr/zarr.json")
    with pytest.raises(ResumeError, match="was begun by a different job"):
        segment(image, out, symmetries=True)  # the same machine sees at once that the process is gone
    again = start(image, out, 0.0, s3.url)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert f"continuing {out}: " in said
    assert objects("killed/out.ome.zarr") == objects("straight/out.ome.zarr")


def test_interrupted_saves_what_is_finished(s3, uploaded):
    out = "s3://data/stopped/out.ome.zarr"
    process = start(f"{uploaded}/shards.zarr", out, 0.02, s3.url)
    wait_for_object("stopped/out.ome.zarr/.tilelab/progress", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    left = objects("stopped/out.ome.zarr")
    assert ".tilelab/lease" not in left
    assert left[".tilelab/progress"]


def test_a_silent_run_elsewhere_is_waited_for_then_taken_over(s3, uploaded, truth, monkeypatch):
    place = RemotePath.parse("s3://data/elsewhere/out.ome.zarr")
    lease = place / ".tilelab" / "lease"
    lease.write_bytes(json.dumps({"host": "far", "process": 12, "machine": "other", "birth": "1"}).encode())
    with pytest.raises(OutputError, match="process 12 on far") as refused:
        segment(f"{uploaded}/shards.zarr", place)
    assert "30 s" in str(refused.value)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    time.sleep(2.1)  # the store's clock counts whole seconds
    segment(f"{uploaded}/shards.zarr", place)
    assert objects("elsewhere/out.ome.zarr") == truth


def test_a_run_that_was_taken_over_stops(s3, monkeypatch):
    monkeypatch.setattr(journal_remote, "BEAT_SECONDS", 0.1)
    place = RemotePath.parse("s3://data/over/out.ome.zarr")
    job = Fingerprint(input={"b": "c"}, model={}, engine={}, lattice={}, options={})
    journal = journal_remote.RemoteJournal(place, job, {})
    (place / ".tilelab" / "lease").write_bytes(json.dumps({"run": "another"}).encode())

    def go_on() -> None:
        for position in range(1200):
            journal.record(0, Stored(0, position, Census()))
            time.sleep(0.1)

    with pytest.raises(OutputError, match="was taken over by another run"):
        go_on()
    journal.close()
    assert json.loads((place / ".tilelab" / "lease").read_bytes()) == {"run": "another"}, "it is not ours to give back"


def test_a_run_that_was_taken_over_removes_nothing(s3):
    """It wakes with nothing finished, and what is there is another's by now."""
    place = RemotePath.parse("s3://data/asleep/out.ome.zarr")
    job = Fingerprint(input={"b": "c"}, model={}, engine={}, lattice={}, options={})
    journal = journal_remote.RemoteJournal(place, job, {})
    (place / ".tilelab" / "lease").write_bytes(json.dumps({"run": "another"}).encode())
    (place / "labels" / "shard").write_bytes(b"another's")
    drop_empty(journal, place)
    assert (place / "labels" / "shard").read_bytes() == b"another's"
    assert json.loads((place / ".tilelab" / "lease").read_bytes()) == {"run": "another"}


def test_two_that_begin_at_once(s3):
    place = RemotePath.parse("s3://data/race/out.ome.zarr")
    first = leases.Lease(place)
    with pytest.raises(OutputError, match="being written by another run"):
        leases.Lease(place)
    first.renew()
    first.release()
    leases.Lease(place).release()


# trouble


def test_faults_are_retried(trouble, uploaded, truth):
    kinds = {5: "503", 11: "drop", 17: "cut", 23: "503", 29: "drop"}

    def fault(method, path, number):
        kind = "stall" if number in (60, 130) else kinds.get(number % 31)
        return None if kind == "cut" and method != "GET" else kind

    trouble.fault, trouble.stall_seconds = fault, 1.0
    segment(f"{uploaded}/shards.zarr", "s3://data/faults/out.ome.zarr")
    happened = {fault for *_, fault in trouble.seen}
    assert {"503", "drop", "cut", "stall"} <= happened
    trouble.fault = lambda method, path, number: None
    assert objects("faults/out.ome.zarr") == truth


def test_a_store_that_fails_for_good_leaves_a_result_to_continue(trouble, uploaded, truth, monkeypatch):
    monkeypatch.setenv("TILELAB_REMOTE_TRIES", "2")
    out = "s3://data/fails/out.ome.zarr"

    def fault(method, path, number):
        late = sum(m == "PUT" and "/c/" in p for m, p, *_ in trouble.seen) > 14
        return "503" if late and method == "PUT" and "/c/" in path else None

    trouble.fault = fault
    with pytest.raises(OutputError, match=r"is overloaded or failing \(503 SlowDown\) \(2 tries\)") as failed:
        segment(f"{uploaded}/shards.zarr", out)
    assert "\n" not in str(failed.value)
    assert not open_store("s3://data").exists("fails/out.ome.zarr/zarr.json")
    trouble.fault = lambda method, path, number: None
    notes: list[str] = []
    segment(f"{uploaded}/shards.zarr", out, notes)
    assert any(line.startswith(f"continuing {out}") for line in notes)
    assert objects("fails/out.ome.zarr") == truth


def test_stalled_reads_end_in_one_line(trouble, uploaded, monkeypatch):
    monkeypatch.setenv("TILELAB_REMOTE_TRIES", "2")
    monkeypatch.setenv("TILELAB_REMOTE_TIMEOUT", "0.3")
    trouble.stall_seconds = 1.0
    trouble.fault = lambda method, path, number: "stall"
    with pytest.raises(InputError, match=r"did not answer within 0.3 s \(2 tries\)"):
        open_image(f"{uploaded}/shards.zarr")


@pytest.mark.parametrize(
    ("uri", "fault", "message"),
    [
        ("s3://nowhere/x.zarr", None, "there is no bucket 'nowhere' at 127.0.0.1"),
        ("s3://data/no/x.zarr", None, "s3://data/no/x.zarr does not exist"),
        ("s3://data/no/x.tif", None, "s3://data/no/x.tif does not exist"),
        ("s3://data/in", None, "is no Zarr"),
        ("s3://data/x.zarr", "403", r"access is denied \(403 AccessDenied\): the credentials have no right"),
        ("s3://data/x.zarr", "301", "is in another region: set AWS_REGION"),
        ("s3://data/in/tiles.tif", "403", "access is denied"),
        ("s3:///x.zarr", None, "names no bucket"),
        ("ftp://user:SHHHsecretSHHH@host/x.zarr", None, "ftp://host/x.zarr is of an unknown kind: known are file, s3"),
    ],
)
def test_reading_is_refused_in_one_line(trouble, uploaded, uri, fault, message):
    trouble.fault = lambda method, path, number: fault
    with pytest.raises(InputError, match=message) as refused:
        open_image(uri)
    said = str(refused.value)
    assert "\n" not in said
    assert SECRET not in said
    assert KEY not in said


@pytest.mark.parametrize(
    ("out", "fault", "message"),
    [
        ("s3://nowhere/o.ome.zarr", None, "there is no bucket 'nowhere'"),
        ("s3://data/o.ome.zarr", "403", "access is denied"),
        ("s3://data/o.ome.tif", None, "results in remote stores are OME-Zarr; write NAME.ome.zarr there and convert"),
        ("s3://data/o.png", None, "results in remote stores are OME-Zarr"),
        ("https://host/o.ome.zarr", None, "web servers are read only"),
        ("s3://data/in/shards.zarr", None, "is the input"),
        (
            "s3://data/in/plain.zarr",
            None,
            "exists and was not made by tilelab|holds objects that tilelab did not write",
        ),
    ],
)
def test_writing_is_refused_in_one_line(trouble, uploaded, out, fault, message):
    trouble.fault = lambda method, path, number: fault if "o.ome.zarr" in path else None
    with pytest.raises(OutputError, match=message) as refused:
        segment(f"{uploaded}/shards.zarr", out)
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


def test_an_unreachable_host_is_said_soon(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1 cannot be reached: no connection") as refused:
        open_image("s3://data/x.zarr")
    assert SECRET not in str(refused.value)
    assert time.monotonic() - began < 10
    with pytest.raises(InputError, match="cannot be reached"):
        open_image("https://no.such.host.invalid/x.zarr")


def test_credentials_from_a_profile_and_none_at_all(s3, uploaded, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert open_store("s3://data")._access.anonymous
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert open_store("s3://data")._access.anonymous  # of another profile
    monkeypatch.setenv("AWS_PROFILE", "lab")
    access = open_store("s3://data")._access
    assert not access.anonymous
    assert access.store.config["region"] == "eu-west-1"
    open_image(f"{uploaded}/plain.zarr").close()


def test_without_credentials_the_refusal_says_where_they_are_looked_for(trouble, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    trouble.fault = lambda method, path, number: "403"
    with pytest.raises(InputError, match=r"no credentials were found \(set AWS_ACCESS_KEY_ID"):
        open_image("s3://data/x.zarr")


def test_a_metadata_service_that_is_not_there_is_not_waited_for(s3, monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError

    remote_access._on_cloud_machine.cache_clear()
    monkeypatch.setattr(remote_access.socket, "create_connection", connect)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TilelabError, match="only one of AWS_ACCESS_KEY_ID"):
        open_store("s3://data")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert open_store("s3://data")._access.anonymous
    assert open_store("gs://data")._access.anonymous
    assert asked == [(("169.254.169.254", 80), 1.0)]
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection, never answers
        monkeypatch.setattr(remote_access, "_METADATA", mute.getsockname())
        remote_access._on_cloud_machine.cache_clear()
        began = time.monotonic()
        assert not remote_access._on_cloud_machine()
        assert time.monotonic() - began < 30
    remote_access._on_cloud_machine.cache_clear()


def test_secrets_appear_nowhere(s3, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    password = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
    with web_server(folder, authorization=password) as (url, _):
        image = url.replace("http://", f"http://user:{SECRET}@") + f"/shards.zarr?sig={SECRET}"

        def command(*more: str) -> str:
            main(list(more))
            said = capsys.readouterr()
            return said.out + said.err

        out = "s3://data/secret/out.ome.zarr"
        said = command("infer", image, "--model", "identity:3", "-o", out, "--report", "report.json")
        assert (tmp_path / "report.json").exists(), said
        said += command("infer", image, "--model", "identity:3", "-o", out)
        said += command("plan", image, "--model", "identity:3", "--no-calibration", "--json")
        said += command("infer", image + "x", "--model", "identity:3", "-o", "s3://nowhere/out.ome.zarr")
        said += command("infer", image, "--model", "identity:3")
        said += command("info", image)
    everything = said.encode() + (tmp_path / "report.json").read_bytes()
    everything += b"".join(data for name, data in objects("secret").items() if name.endswith(".json"))
    for path in tmp_path.rglob("*"):
        everything += str(path).encode() + (path.read_bytes() if path.suffix == ".json" else b"")
    assert b"shards.zarr" in everything
    for secret in (SECRET, KEY):
        assert secret.encode() not in everything


def test_a_path_prints_without_secrets_and_pickles_with_them():
    import pickle

    path = RemotePath.parse(f"https://user:{SECRET}@host/a%20b/c.zarr?sig={SECRET}") / "0"
    assert str(path) == "https://host/a b/c.zarr/0"
    assert SECRET not in repr(path) + str(path.parents)
    assert pickle.loads(pickle.dumps(path)) == path  # noqa: S301
    assert (path.parent.name, path.parent.suffix, path.relative_to(path.parent).as_posix()) == ("c.zarr", ".zarr", "0")


def test_a_short_object_is_an_error_of_one_line(s3):
    place = RemotePath.parse("s3://data/short")
    place.write_bytes(b"12345")
    file = place.open_file()
    assert (file.size, file.read(1, 3)) == (5, b"234")
    with pytest.raises(InputError, match="is truncated: bytes 2 to 12 were asked for, it has 5"):
        file.read(2, 10)
    stream = file.stream()
    stream.seek(-2, os.SEEK_END)
    assert stream.read() == b"45"


@pytest.mark.parametrize("many", [False, True])
def test_an_object_that_changes_while_it_is_read_is_an_error(s3, many):
    place = RemotePath.parse(f"s3://data/changing{many}")
    place.write_bytes(bytes(range(256)) * 100)
    file = place.open_file()
    assert (file.size, file.read(10, 3)) == (25600, bytes([10, 11, 12]))
    place.write_bytes(bytes(25600))
    with pytest.raises(InputError, match="has changed since it was opened"):
        file.fetch([(0, 4), (20000, 4)]) if many else file.read(10, 3)


def test_one_object_that_is_missing_keeps_no_other_from_going(tmp_path, monkeypatch):
    """Google says so of a folder, which is no object, and leaves all that comes after it."""
    from obstore.store import LocalStore

    monkeypatch.setattr(remote_access, "_has_google_credentials", lambda: False)
    store = open_store("gs://bucket-of-this-test")
    monkeypatch.setattr(store, "_access", dataclasses.replace(store._access, store=LocalStore(tmp_path)))
    place = RemotePath("gs://bucket-of-this-test", "out")
    for i in range(40):
        (place / "c" / str(i)).write_bytes(b"x")
    (RemotePath("gs://bucket-of-this-test", "outer") / "kept").write_bytes(b"x")
    (place / "missing").delete_file()
    store.delete(["out/missing", *store.keys("out"), "out/other"])
    assert [*store.keys("out")] == []
    assert [*store.keys("outer")] == ["outer/kept"]


def test_a_bucket_that_gives_its_objects_but_not_their_names(trouble, uploaded, pixels):
    trouble.fault = lambda method, path, number: "403" if "list-type" in path else None
    for name in ("plain.zarr", "shards.zarr"):
        with open_image(f"{uploaded}/{name}") as image:
            np.testing.assert_array_equal(image[:300, :400], pixels[:300, :400])
        assert describe(f"{uploaded}/{name}")["stored"].startswith("unknown of")
    assert any(fault == "403" for *_, fault in trouble.seen)
