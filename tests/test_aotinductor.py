"""A bundled network as a package of AOTInductor, run by the code that runs it on a GPU.

Package, loader and runner are torch's own, for the CPU; the GPU's memory is the host's (`fake_gpu`), and torch's
streams only say which one is asked for.  What these calls compute is compared with ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from types import SimpleNamespace

import fake_gpu
import msgspec
import numpy as np
import pytest

import tilelab
from tilelab.engines import aotinductor
from tilelab.engines.builders.aotinductor import compile_package, find_compiler
from tilelab.engines.bundled import bundled_models
from tilelab.engines.cuda.aotinductor import AotInductorCudaEngine
from tilelab.engines.files.aotinductor_package import exact_fp32
from tilelab.engines.loading import LoadRequest
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine, read_model, read_spec
from tilelab.run.options import Options

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

MODEL = bundled_models()["particles"]
TILE, BATCH = (64, 64), 2


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The network of the ONNX file, compiled."""
    if find_compiler() is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    from torch.fx.experimental.proxy_tensor import make_fx

    from tilelab.models.graph import GraphNetwork

    spec = msgspec.structs.replace(read_spec(MODEL), tile=TILE, overlap=(16, 16))
    network = GraphNetwork(MODEL).requires_grad_(requires_grad=False)
    traced = make_fx(network)(torch.zeros(BATCH, spec.channels, *TILE))  # sizes of its graph become numbers
    path = tmp_path_factory.mktemp("package") / "particles.pt2"
    # optimising what calls the kernels takes as long as all the rest, and nothing here is about speed
    name, config = "aot_inductor.compile_wrapper_opt_level", torch._inductor.config
    with config.patch({name: "O0"} if hasattr(config.aot_inductor, name.partition(".")[2]) else {}):
        return compile_package(traced, spec, path, batch=BATCH, target="cpu")


@pytest.fixture(scope="module")
def batches():
    """Tiles, and the logits that ONNX Runtime gives for them."""
    engine = load_engine(MODEL, engine="onnxruntime", device="cpu", batch=BATCH, tile=TILE)
    tiles = np.random.default_rng(0).normal(size=(4, BATCH, engine.spec.channels, *TILE)).astype(np.float32)
    logits = np.empty((4, BATCH, engine.spec.values, *TILE), np.float32)
    for each, out in zip(tiles, logits, strict=True):
        engine.run(each, out)
    return tiles, logits


@pytest.fixture
def gpus(monkeypatch, package):
    """Makes engines of the package on two GPUs, which are host memory; `seen`: what held at every run."""
    seen = []
    gpu = fake_gpu.install(monkeypatch, count=2)
    real = torch._inductor.aoti_load_package

    def load(path, *, run_single_threaded, device_index):
        network = real(path, run_single_threaded=run_single_threaded)

        def run(tiles):
            exact = not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
            seen.append(SimpleNamespace(
                exact=exact, graph=torch.is_grad_enabled(), stream=here.stream, alone=run_single_threaded,
                device=device_index,
            ))  # fmt: skip
            return network(tiles)

        return run

    here = threading.local()
    here.stream = None

    @contextlib.contextmanager
    def on_stream(stream):
        here.stream = stream
        yield
        here.stream = None

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: (handle, device))
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(AotInductorCudaEngine, "_tensor", lambda self, array: torch.from_numpy(array))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    aotinductor.probe.cache_clear()
    file = read_model(package)

    def make(index):
        asked = file.inputs[0], file.outputs, file.spec, f"cuda:{index}", "fp32", BATCH, TILE
        return AotInductorCudaEngine(LoadRequest(file, *asked))

    yield SimpleNamespace(make=make, seen=seen, gpu=gpu)
    aotinductor.probe.cache_clear()


def test_it_computes_what_the_onnx_file_does(package, batches):
    engine = load_engine(package)
    assert (engine.name, engine.device, engine.precision, engine.batch) == ("aotinductor", "cpu", "fp32", BATCH)
    for tiles, expected in zip(*batches, strict=True):
        out = np.full_like(expected, np.nan)
        engine.run(tiles, out)
        np.testing.assert_allclose(out, expected, atol=1e-4)


def test_on_a_gpu_nothing_waits_and_fp32_is_fp32(gpus, batches):
    engine = gpus.make(0)
    for tiles, expected in zip(*batches, strict=True):
        out = np.full_like(expected, np.nan)
        engine.enqueue(tiles, out)
        np.testing.assert_allclose(out, expected, atol=1e-4)
    handle = 1000 + gpus.gpu.streams.index(engine.stream)
    assert len(gpus.seen) == len(batches[0])
    for run in gpus.seen:
        assert run.exact, "torch by itself keeps 10 bits (TF32)"
        assert run.alone, "the other runner waits for its previous run at every call"
        assert run.stream == (handle, 0), "in the order of the engine's stream"
        assert not run.graph
    assert torch.backends.cudnn.allow_tf32, "what others set is left as it was"
    assert engine.stream.waits == 0
    out = np.empty_like(batches[1][0])
    engine.run(batches[0][0], out)
    assert engine.stream.waits == 1, "whoever gives host arrays gets them filled"
    np.testing.assert_allclose(out, batches[1][0], atol=1e-4)


def test_two_gpus_compute_at_the_same_time_each_on_its_stream(gpus, batches):
    engines, tiles = [gpus.make(0), gpus.make(1)], batches[0]
    found = [np.empty_like(batches[1]) for _ in engines]

    def run(engine, outs):
        for each, out in zip(tiles, outs, strict=True):
            engine.enqueue(each, out)

    threads = [threading.Thread(target=run, args=both) for both in zip(engines, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.backends.cudnn.allow_tf32, "what others set is left as it was"
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], batches[1], atol=1e-4)
    streams = {run.device: run.stream for run in gpus.seen}
    assert {index: device for index, (_, device) in streams.items()} == {0: 0, 1: 1}
    assert len(set(streams.values())) == 2
    assert {run.exact for run in gpus.seen} == {True}


def test_fp32_stays_fp32_until_the_last_thread_has_done(monkeypatch):
    """Torch has one setting for all threads: who leaves first must not put it back for who computes."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with contextlib.ExitStack() as second:
        with exact_fp32(torch):
            second.enter_context(exact_fp32(torch))
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


OPERATORS = ("cudnn.conv", "cudnn.rnn", "cuda.matmul")


def place_of(name):
    """A part of ``torch.backends``."""
    return operator.attrgetter(name)(torch.backends) if name else torch.backends


def precisions(names=OPERATORS):
    """How torch multiplies fp32 there."""
    return {name: place_of(name).fp32_precision for name in names}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has switches alone")
@pytest.mark.parametrize(
    ("where", "word"), [("", "tf32"), ("cudnn", "tf32"), ("cudnn.conv", "ieee"), ("cuda.matmul", "tf32")]
)
def test_fp32_is_fp32_whatever_was_said_in_torchs_new_words(where, word):
    """They count beside the switches of old, which cannot be read once the two disagree."""
    at_first = precisions(("", "cudnn", *OPERATORS))
    place_of(where).fp32_precision = word
    before = precisions()
    try:
        for _ in range(2):
            with exact_fp32(torch):
                assert set(precisions().values()) == {"ieee"}
                assert not torch.backends.cudnn.allow_tf32, "inductor reads the switch of old"
                assert not torch.backends.cuda.matmul.allow_tf32
            assert precisions() == before
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        for name, said in at_first.items():
            place_of(name).fp32_precision = said


def test_an_image_has_the_logits_of_the_onnx_file(package, tmp_path):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(40, 200, (20, 24)), np.ones((8, 8))).astype(np.uint8)
    found = []
    for engine, model in (("aotinductor", package), ("onnxruntime", MODEL)):
        seams = SpecOverrides(tile=TILE, overlap=(16, 16))
        options = Options(engine=engine, device="cpu", model=seams, logits=True)
        run = tilelab.infer(image, model, tmp_path / f"{engine}.ome.zarr", options=options)
        found.append(np.asarray(tilelab.read_result(run.path).logits))
    np.testing.assert_allclose(*found, atol=1e-3)
    assert found[0].std() > 0.1
