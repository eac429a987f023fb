"""Engines compute what the model file says, on the device and precision that was asked for, or refuse in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from helpers import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tiny_models import (
    Graph,
    make_spec,
    save,
    save_conv,
    save_half,
    save_nan,
    save_pointwise,
    save_quantized,
    save_stateless,
    save_unet,
)

from tilelab import infer
from tilelab.engines import loading
from tilelab.engines.base import BaseEngine, EngineMemory
from tilelab.engines.cpu import onnxruntime as ort
from tilelab.engines.cpu import openvino as ov
from tilelab.engines.fastest import fastest_tile, tile_candidates
from tilelab.engines.files.onnx import embed_spec, read_onnx
from tilelab.engines.identity import identity_spec
from tilelab.engines.loading import Availability, Target, undo_activation
from tilelab.engines.overrides import SpecOverrides, default_colors, resolve_spec
from tilelab.engines.registry import availability, choose, load_engine, read_spec
from tilelab.errors import EngineError, ModelError, OutputError, PlanError, TilelabError
from tilelab.machine import cpu as machine
from tilelab.spec import METADATA_KEY, ClassInfo, Normalization, Output

CPU_ENGINES = ["onnxruntime", "openvino"]
NORMALIZED = {"mean": (128.0,), "std": (64.0,)}
BF16 = not next(t.reason for t in ov.probe().targets if t.precision == "bf16")


def tiles_for(engine, seed=0):
    shape = (engine.batch, engine.spec.channels, *engine.tile)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def logits(engine, tiles):
    out = np.full((engine.batch, engine.spec.values, *engine.tile), np.nan, np.float32)
    assert engine.run(tiles, out) is None
    return out


def convolve(path, tiles):
    """What `save_conv` computes, with loops over the kernel: the obvious reference."""
    weight, bias = (numpy_helper.to_array(w).astype(np.float64) for w in onnx.load(path).graph.initializer)
    rank = weight.ndim - 2
    padded = np.pad(tiles.astype(np.float64), [(0, 0), (0, 0)] + [(1, 1)] * rank)
    out = np.zeros((len(tiles), len(weight), *tiles.shape[2:])) + bias.reshape(1, -1, *[1] * rank)
    for offset in np.ndindex(weight.shape[2:]):
        shifted = padded[(..., *(slice(o, o + n) for o, n in zip(offset, tiles.shape[2:], strict=True)))]
        out += np.einsum("kc,bc...->bk...", weight[(..., *offset)], shifted)
    return out


# --- what engines compute


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize(
    ("tile", "sizes", "batch"), [((24, 40), (24, 40), 1), ((16, 24), ("h", "w"), 3), ((8, 16, 24), ("z", "y", "x"), 2)]
)
def test_convolution_matches_numpy(tmp_path, name, tile, sizes, batch):
    path = save_conv(tmp_path / "conv.onnx", sizes, channels=2, classes=3, spec=make_spec(tile, channels=2, classes=3))
    engine = load_engine(path, engine=name, batch=batch)
    assert (engine.name, engine.device, engine.precision) == (name, "cpu", "fp32")
    assert (engine.batch, engine.tile) == (batch, tile)
    tiles = tiles_for(engine)
    np.testing.assert_allclose(logits(engine, tiles), convolve(path, tiles), atol=2e-5)
    engine.close()


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_callers_alternate_between_buffers(tmp_path, name):
    engine = load_engine(save_pointwise(tmp_path / "i.onnx", spec=make_spec(activation="sigmoid")), engine=name)
    tiles = [tiles_for(engine, seed) for seed in range(3)]
    outs = [np.empty_like(tiles[0]) for _ in range(2)]
    for i in range(6):
        engine.run(tiles[i % 3], outs[i % 2])
        np.testing.assert_array_equal(outs[i % 2], -tiles[i % 3])
    np.testing.assert_array_equal(outs[0], -tiles[4 % 3])  # untouched by the last run


@pytest.mark.parametrize(
    ("name", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]
)
@pytest.mark.parametrize("tile", [(64, 96), (16, 32, 32)])
def test_a_tile_gives_the_same_bytes_in_any_batch_at_any_place_with_any_threads(tmp_path, name, precision, tile):
    if precision == "bf16" and not BF16:
        pytest.skip("this CPU has no bf16 arithmetic")
    spec = make_spec(tile, stride=4, precisions=("fp32", "bf16", "int8"))
    make = save_quantized if precision == "int8" else save_unet
    path = make(tmp_path / "net.onnx", tile, spec=spec)
    one = load_engine(path, engine=name, precision=precision, threads=1)
    tiles = np.concatenate([tiles_for(one, seed) for seed in range(4)])
    expected = np.concatenate([logits(one, tiles[i : i + 1]) for i in range(4)])
    assert expected.std() > 0.1
    for batch in (1, 2, 3, 4):
        for threads in (1, 2, 3, 5, None):
            engine = load_engine(path, engine=name, precision=precision, batch=batch, threads=threads)
            for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
                for i in range(0, 5 - batch, batch):
                    which = order[i : i + batch]
                    np.testing.assert_array_equal(logits(engine, tiles[which]), expected[which])


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_each_core_computes_a_tile_of_its_own(tmp_path, monkeypatch, name):
    """Several on one tile give other last bits with each number of cores (seen with 3, 5, 6 and 12)."""
    path = save_unet(tmp_path / "net.onnx", (64, 64), spec=make_spec((64, 64), stride=4))
    cores = machine.physical_core_count()
    for threads in (1, 2, 64, None):
        engine = load_engine(path, engine=name, threads=threads)
        if name == "openvino":
            assert 1 <= engine.streams <= (threads or cores)  # it counts the cores itself, and takes no more
            compiled = engine._infers[0].get_compiled_model()
            assert compiled.get_property("INFERENCE_NUM_THREADS") == engine.streams
            assert compiled.get_property("NUM_STREAMS") == engine.streams
        else:
            assert engine.streams == (threads or cores)
    tiles = [tiles_for(engine, seed) for seed in range(24)]
    expected = [logits(engine, tile) for tile in tiles]
    with ThreadPoolExecutor(6) as pool:  # more than it has streams: they wait for their turn
        for got, want in zip(pool.map(lambda tile: logits(engine, tile), tiles), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    monkeypatch.setattr(loading, "available_memory", lambda: 1 << 10)
    assert load_engine(path, engine=name).streams == 1


def test_working_memory_of_a_graph():
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    source = ops.parameter([1, 2, 8, 8], np.float32)
    twice = ops.concat([source, source], 1)
    pooled = ops.reduce_mean(twice, ops.constant(np.array([1, 2, 3])), keep_dims=True)  # 1 number
    model = openvino.Model([ops.add(source, pooled)], [source])
    assert ov.working_bytes(model, 4) == 4 * (2 + 4) * 64 + 4  # the input is still to be added, a mean is made


def test_engines_agree_on_a_network_with_stride(tmp_path):
    path = save_unet(tmp_path / "net.onnx", ("y", "x"), spec=make_spec((64, 64), stride=4, tile_fixed=False))
    engines = [load_engine(path, engine=name, tile=(48, 64)) for name in CPU_ENGINES]
    a, b = (logits(engine, tiles_for(engine)) for engine in engines)
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.skipif(not BF16, reason="this CPU has no bf16 arithmetic")
def test_bf16_is_bf16_and_fp32_is_fp32(tmp_path):
    path = save_unet(tmp_path / "net.onnx", spec=make_spec(stride=4, precisions=("fp32", "bf16")))
    exact = load_engine(path, engine="openvino", precision="fp32")
    tiles = tiles_for(exact)
    reference = logits(load_engine(path, engine="onnxruntime"), tiles)
    assert np.abs(logits(exact, tiles) - reference).max() < 1e-4
    rounded = np.abs(logits(load_engine(path, engine="openvino", precision="bf16"), tiles) - reference).max()
    assert 1e-3 < rounded < 0.5


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_quantised_files_run_in_int8(tmp_path, name):
    path = save_quantized(tmp_path / "q.onnx", spec=make_spec(precisions=("int8",)))
    assert read_onnx(path).precision == "int8"
    engine = load_engine(path, engine=name)
    assert engine.precision == "int8"
    tiles = tiles_for(engine)
    np.testing.assert_allclose(
        logits(engine, tiles), logits(load_engine(path, engine=CPU_ENGINES[name == CPU_ENGINES[0]]), tiles), atol=0.15
    )
    with pytest.raises(EngineError, match="is quantised: it runs in int8 only, not in fp32"):
        load_engine(path, engine=name, precision="fp32")


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_half_precision_files_take_and_give_float32(tmp_path, name):
    path = save_half(tmp_path / "h.onnx", spec=make_spec(precisions=("fp16",)))
    assert read_onnx(path).precision == "fp16"
    engine = load_engine(path, engine=name)
    assert engine.precision == "fp32"  # even where the CPU computes in fp16: that is slower
    tiles = tiles_for(engine)
    np.testing.assert_allclose(logits(engine, tiles), convolve(path, tiles), atol=0.02)


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize(("end", "activation"), [("Softmax", "softmax"), ("Sigmoid", "sigmoid")])
def test_probabilities_become_logits(tmp_path, name, end, activation):
    classes = 2 + (activation == "sigmoid")
    raw = save_conv(tmp_path / "raw.onnx", spec=make_spec(classes=classes, activation=activation))
    ended = save_conv(tmp_path / "ended.onnx", end=end, spec=make_spec(classes=classes, activation=activation))
    plain, undone = (load_engine(path, engine=name) for path in (raw, ended))
    tiles = tiles_for(plain)
    a, b = logits(plain, tiles), logits(undone, tiles)
    if activation == "softmax":  # equal up to one number per pixel
        a, b = a - a[:, :1], b - b[:, :1]
    np.testing.assert_allclose(a, b, atol=1e-4)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20), st.sampled_from(["softmax", "sigmoid"]))
def test_undone_activations_are_finite_and_ordered(values, activation):
    out = np.array(values, np.float32)
    undo_activation(out, activation)
    assert np.isfinite(out).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(out[order]) >= 0).all()
    back = np.exp(out) if activation == "softmax" else 1 / (1 + np.exp(-out.astype(float)))
    np.testing.assert_allclose(back, values, atol=1e-6)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_one_of_two_outputs_can_be_chosen(tmp_path, name):
    path = save_conv(tmp_path / "two.onnx", names=2, spec=make_spec())
    first, second = (port.name for port in read_onnx(path).outputs)
    with pytest.raises(ModelError, match=rf"2 outputs \({first}, {second}\): choose one with --model-output NAME"):
        load_engine(path, engine=name)
    a, b = (load_engine(path, engine=name, spec_overrides=SpecOverrides(output=n)) for n in (first, second))
    tiles = tiles_for(a)
    np.testing.assert_array_equal(logits(a, tiles), -logits(b, tiles))
    with pytest.raises(ModelError, match=f"no output 'third': choose one of {first}, {second}"):
        load_engine(path, spec_overrides=SpecOverrides(output="third"))


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_arrays_that_are_not_as_promised_never_reach_the_library(tmp_path, name):
    engine = load_engine(save_conv(tmp_path / "c.onnx", (16, 32), spec=make_spec((16, 32))), engine=name)
    tiles, out = tiles_for(engine), np.empty((1, 2, 16, 32), np.float32)
    engine.run(tiles, out)
    for bad in (tiles[:, :, :8], tiles.astype(np.float64), np.asfortranarray(tiles)):
        with pytest.raises(ValueError, match="tiles must be C-contiguous float32 1 x 1 x 16 x 32"):
            engine.run(bad, out)
    with pytest.raises(ValueError, match="out must be"):
        engine.run(tiles, out[:, :1])


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_running_releases_the_gil(tmp_path, name):
    tile = (512, 512)
    engine = load_engine(save_unet(tmp_path / "n.onnx", tile, width=16, spec=make_spec(tile, stride=4)), engine=name)
    tiles, ticks, done = tiles_for(engine), [], threading.Event()

    def ticked_within_a_run():
        began = time.perf_counter()
        logits(engine, tiles)
        ended = time.perf_counter()
        return sum(began < t < ended for t in ticks) >= 5  # in between runs there is time for one or two

    def count():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        wait_for(ticked_within_a_run, "a run beside which Python goes on")
    finally:
        done.set()
        counter.join()


# --- what is refused


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_wrong_shapes_and_numbers_are_refused(tmp_path, name):
    def load(path, **more):
        return load_engine(path, engine=name, **more)

    with pytest.raises(ModelError, match=rf"nan.onnx gives NaN or infinite values \(\d+ of 2048\) with {name} fp32"):
        load(save_nan(tmp_path / "nan.onnx", spec=make_spec()))
    with pytest.raises(ModelError, match="takes 3 input channels, but its description, or --channels, says 1"):
        load(save_conv(tmp_path / "rgb.onnx", channels=3, spec=make_spec()))
    with pytest.raises(ModelError, match=r"gives 4 output channels, but its description, or --classes .*, says 2"):
        load(save_conv(tmp_path / "four.onnx", classes=4, spec=make_spec()))
    with pytest.raises(ModelError, match="has no output"):
        load(save_stateless(tmp_path / "none.onnx"))
    with pytest.raises(ModelError, match="gives 1 output channels, but its description"):
        load(save_conv(tmp_path / "plane.onnx", spec=make_spec((4, 32, 32))))
    with pytest.raises(ModelError, match="so its tile along y is 32 px, not 64"):
        load(save_conv(tmp_path / "tile.onnx", spec=make_spec((64, 64))))
    with pytest.raises(ModelError, match="fixes its batch to 2: 3 was asked for"):
        load(save_conv(tmp_path / "batch.onnx", batch=2, spec=make_spec()), batch=3)
    assert load(tmp_path / "batch.onnx").batch == 2


def test_a_pinned_tile_is_not_changed(tmp_path):
    path = save_conv(tmp_path / "c.onnx", ("y", "x"), spec=make_spec())
    with pytest.raises(ModelError, match="pins its tile to 32 x 32: leave --tile 64 x 64 out"):
        load_engine(path, tile=(64, 64))
    assert load_engine(path, tile=(32, 32)).tile == (32, 32)
    free = save_conv(tmp_path / "f.onnx", ("y", "x"), spec=make_spec(tile_fixed=False, tile_min=(16, 16), stride=8))
    with pytest.raises(ModelError, match="tile of 8 x 8 is too small for this model: give at least 16 x 16"):
        load_engine(free, tile=(8, 8))
    with pytest.raises(ModelError, match="not a multiple of stride 8"):
        load_engine(free, tile=(20, 20))


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_tile_that_the_network_cannot_take_gets_a_hint(tmp_path, capfd, name):
    path = save_unet(tmp_path / "free.onnx", ("y", "x"))
    with pytest.raises(ModelError, match=r"on a batch of 1 x 1 x 50 x 50: .*: try a --tile that is a multiple of 32$"):
        load_engine(path, engine=name, tile=(50, 50), spec_overrides=SpecOverrides(**NORMALIZED))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_precisions_are_honoured_or_refused(tmp_path, monkeypatch):
    path = save_conv(tmp_path / "c.onnx", spec=make_spec(precisions=("fp32",)))
    file, spec = read_onnx(path), read_spec(path)
    with pytest.raises(EngineError, match="no bf16 arithmetic on the CPU: use openvino"):
        choose(file, spec, "onnxruntime", "auto", "bf16")
    with pytest.raises(EngineError, match="is not quantised: int8 needs"):
        choose(file, spec, "auto", "auto", "int8")
    with pytest.raises(ModelError, match="unknown precision 'fp64': choose one of fp32, fp16, bf16, int8"):
        choose(file, spec, "auto", "auto", "fp64")
    with pytest.raises(EngineError, match="unknown engine 'caffe': choose auto, openvino, onnxruntime"):
        load_engine(path, engine="caffe")
    with pytest.raises(EngineError, match="no engine here runs on device 'tpu': choose auto, cuda, cpu"):
        load_engine(path, device="tpu")
    with pytest.raises(EngineError, match="0 threads"):
        load_engine(path, threads=0)
    with pytest.raises(EngineError, match="batch of 0"):
        load_engine(path, batch=0)

    def without(reason, precision):
        targets = tuple(Target("cpu", p, reason if p == precision else "") for p in ("fp32", "int8", "bf16", "fp16"))
        return Availability("1.0", targets=targets)

    monkeypatch.setattr(ov, "probe", lambda: without("this CPU has no bf16 arithmetic", "bf16"))
    with pytest.raises(EngineError, match=r"openvino bf16 cannot run .*this CPU has no bf16 arithmetic"):
        choose(file, spec, "openvino", "auto", "bf16")
    assert choose(file, dataclass_replace(spec, precisions=("fp32", "bf16")), device="cpu") == (
        "openvino",
        "cpu",
        "fp32",
    )


def dataclass_replace(spec, **changes):
    import msgspec

    return msgspec.structs.replace(spec, **changes)


@pytest.mark.skipif(not BF16, reason="this CPU has no bf16 arithmetic")
def test_an_unpermitted_precision_runs_only_when_asked_for_and_says_so(tmp_path):
    path = save_conv(tmp_path / "c.onnx", spec=make_spec(precisions=("fp32",)))
    assert load_engine(path, device="cpu").precision == "fp32"
    assert load_engine(path, device="cpu").warnings == ()
    asked = load_engine(path, device="cpu", precision="bf16")
    assert asked.precision == "bf16"
    assert asked.warnings == ("bf16 is unverified for this model: it permits fp32",)
    assert (
        load_engine(save_conv(tmp_path / "d.onnx", spec=make_spec(precisions=("fp32", "bf16"))), device="cpu").precision
        == "bf16"
    )


def test_a_quantised_file_without_permission_runs_only_when_asked_for(tmp_path):
    path = save_quantized(tmp_path / "q.onnx", spec=make_spec(precisions=("fp32",)))
    with pytest.raises(EngineError, match="permits fp32 only: --precision int8 runs it unverified"):
        load_engine(path, device="cpu")
    assert "unverified" in load_engine(path, device="cpu", precision="int8").warnings[0]


def test_auto_falls_to_the_next_engine_that_works(tmp_path, monkeypatch):
    path = save_conv(tmp_path / "c.onnx", spec=make_spec())
    assert load_engine(path, device="cpu").name == "openvino"
    monkeypatch.setattr(ov, "probe", lambda: Availability("", "openvino cannot be imported: pip install tilelab[cpu]"))
    assert load_engine(path, device="cpu").name == "onnxruntime"
    with pytest.raises(EngineError, match=r"openvino cannot run .*pip install tilelab\[cpu\]"):
        load_engine(path, engine="openvino")
    monkeypatch.setattr(ort, "probe", lambda: Availability("", "onnxruntime cannot be imported: pip install it"))
    with pytest.raises(EngineError, match=r"cpu cannot run .*openvino cannot be.*; onnxruntime cannot be"):
        load_engine(path, device="cpu")


@pytest.mark.parametrize("name", [*CPU_ENGINES, "auto"])
def test_broken_files_give_one_line_and_no_noise(tmp_path, capfd, name):
    good = save_unet(tmp_path / "good.onnx", spec=make_spec(stride=4)).read_bytes()
    cases = {
        "empty": b"",
        "text": b"this is not a model, but a few words of text that go on for a while",
        "zeros": bytes(4096),
        "noise": np.random.default_rng(0).bytes(5000),
        "cut early": good[: len(good) // 3],
        "cut late": good[:-7],
        "damaged": good[:60] + bytes(range(256)) + good[316:],
    }
    for case, content in cases.items():
        path = tmp_path / f"{case}.onnx"
        path.write_bytes(content)
        with pytest.raises(TilelabError) as caught:
            load_engine(path, engine=name, spec_overrides=SpecOverrides(classes=2, tile=(32, 32), **NORMALIZED))
        assert "\n" not in str(caught.value), case
        assert str(path) in str(caught.value), case
        assert len(str(caught.value)) < 600, case
    for missing in ("nowhere.onnx", "/nowhere/at/all"):
        with pytest.raises(ModelError, match=f"there is no model file {missing}"):
            load_engine(missing, engine=name)
    with pytest.raises(ModelError, match=r"there is no model 'nothing': give a file, or one of .*identity"):
        load_engine("nothing", engine=name)
    with pytest.raises(ModelError, match="is a folder"):
        load_engine(tmp_path, engine=name)
    (tmp_path / "model.dat").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"unknown format: tilelab reads \.onnx, \.xml"):
        load_engine(tmp_path / "model.dat", engine=name)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_an_operator_nobody_knows_is_named(tmp_path, capfd, name):
    path = save_conv(tmp_path / "odd.onnx", end="Gargle", spec=make_spec())
    with pytest.raises(ModelError, match=r"cannot (load|run) .*odd\.onnx.*Gargle") as caught:
        load_engine(path, engine=name)
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_weights_beside_the_model(tmp_path, name):
    path = save_conv(tmp_path / "c.onnx", spec=make_spec(), external=True)
    beside = tmp_path / "c.onnx.data"
    engine = load_engine(path, engine=name)
    tiles = tiles_for(engine)
    whole = save_conv(tmp_path / "whole.onnx", spec=make_spec())
    np.testing.assert_allclose(logits(engine, tiles), convolve(whole, tiles), atol=2e-5)
    assert read_onnx(path).size_bytes == path.stat().st_size + beside.stat().st_size
    engine.close()
    content = beside.read_bytes()
    beside.write_bytes(content[:-4])
    with pytest.raises(ModelError, match=r"c\.onnx\.data is truncated: c\.onnx needs \d+ bytes"):
        load_engine(path, engine=name)
    beside.unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in c\.onnx\.data, which is missing"):
        load_engine(path, engine=name)


# --- OpenVINO's own format


def test_openvino_models_carry_their_description(tmp_path, capfd):
    openvino = ov.import_openvino()
    path = save_unet(tmp_path / "net.onnx", spec=make_spec(stride=4))
    model = openvino.Core().read_model(path)
    openvino.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    assert read_spec(tmp_path / "net.xml") == read_spec(path)
    a, b = load_engine(path, engine="openvino"), load_engine(tmp_path / "net.xml")
    tiles = tiles_for(a)
    np.testing.assert_array_equal(logits(a, tiles), logits(b, tiles))
    with pytest.raises(EngineError, match=r"onnxruntime does not read \.xml files"):
        load_engine(tmp_path / "net.xml", engine="onnxruntime")
    bare = openvino.Model(model.outputs, model.get_parameters())
    bare.set_rt_info(make_spec(stride=4, name="by hand").to_json(), METADATA_KEY)
    openvino.save_model(bare, tmp_path / "hand.xml")
    assert read_spec(tmp_path / "hand.xml").name == "by hand"
    (tmp_path / "net.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in net\.bin, which is missing"):
        load_engine(tmp_path / "net.xml")
    (tmp_path / "net.bin").write_bytes(b"")
    good = (tmp_path / "hand.xml").read_text()
    for broken in ("", "<net", good[: len(good) // 2], good.replace("Convolution", "Gargle"), good):  # without weights
        (tmp_path / "net.xml").write_text(broken)
        with pytest.raises(
            ModelError, match=r"net\.xml is not an OpenVINO model, or it is (truncated|corrupt)"
        ) as caught:
            load_engine(tmp_path / "net.xml")
        assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- files


@pytest.mark.parametrize("seed", range(3))
def test_the_file_reader_agrees_with_onnx(tmp_path, seed):
    path = [
        save_unet(tmp_path / "a.onnx", spec=make_spec(stride=4)),
        save_conv(tmp_path / "b.onnx", ("z", "y", ""), channels=2, classes=5, names=2, end="Softmax"),
        save_quantized(tmp_path / "c.onnx", batch=7),
    ][seed]
    model, file = onnx.load(path), read_onnx(path)
    assert file.opset == model.opset_import[0].version
    assert file.producer == model.producer_name
    for ports, truth in ((file.inputs, model.graph.input), (file.outputs, model.graph.output)):
        assert [port.name for port in ports] == [value.name for value in truth]
        for port, value in zip(ports, truth, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert port.shape == tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims)
            assert port.dtype == "float32"
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    endings = {value.name: file.endings[value.name] for value in model.graph.output}
    softmax = {name for name in endings if made[name] == "Softmax"}
    assert {name for name, ending in endings.items() if ending.kind == "probabilities"} == softmax


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_files_never_escape_as_other_errors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(save_conv(folder / "good.onnx", spec=make_spec()).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (folder / "bad.onnx").write_bytes(content)
    try:
        resolve_spec(read_onnx(folder / "bad.onnx"), SpecOverrides())
    except ModelError as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told


def test_specs_are_embedded_without_touching_the_rest(tmp_path):
    path = save_unet(tmp_path / "net.onnx", spec=make_spec(stride=4))
    before = onnx.load(path)
    for name in ("first", "second"):
        spec = make_spec(stride=4, name=name)
        embed_spec(path, spec)
        assert read_spec(path) == spec
    after = onnx.load(path)
    props = {prop.key: prop.value for prop in after.metadata_props}
    assert props == {METADATA_KEY: spec.to_json(), "other": "kept"}
    assert len(after.metadata_props) == 2
    del before.metadata_props[:], after.metadata_props[:]
    assert before == after
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError):
        embed_spec(tmp_path / "bad.onnx", spec)
    assert (tmp_path / "bad.onnx").read_bytes() == b"not a model"


def test_a_description_that_is_not_valid_is_named(tmp_path):
    path = save_conv(tmp_path / "c.onnx", spec=make_spec())
    model = onnx.load(path)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"stride"', '"strde"')
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"c\.onnx: the model's description is not valid: .*strde"):
        load_engine(path)


# --- descriptions


def test_flags_describe_a_model_that_does_not(tmp_path):
    path = save_conv(tmp_path / "bare.onnx", ("y", "x"), classes=3)
    with pytest.raises(
        ModelError, match=r"how intensities are normalised and a tile size.*: give --mean M --std S .* and --tile N"
    ):
        load_engine(path)
    with pytest.raises(ModelError, match=r"a tile size, of which it takes any: give --tile N"):
        load_engine(path, spec_overrides=SpecOverrides(**NORMALIZED))
    given_ = SpecOverrides(tile=(40,), **NORMALIZED)
    spec = read_spec(path, given_)
    assert (spec.axes, spec.channels, spec.tile, spec.tile_fixed) == ("yx", 1, (40, 40), False)
    assert (spec.stride, spec.overlap, spec.activation, spec.precisions) == (8, (10, 10), "softmax", ("fp32",))
    assert [c.name for c in spec.classes] == ["background", "class 1", "class 2"]
    assert spec.normalization == Normalization(mean=(128.0,), std=(64.0,))
    engine = load_engine(path, device="cpu", spec_overrides=given_)
    tiles = tiles_for(engine)
    np.testing.assert_allclose(logits(engine, tiles), convolve(path, tiles), atol=2e-5)


@pytest.mark.parametrize(
    ("model", "flags", "missing"),
    [
        ({"channels": "c"}, NORMALIZED, "--channels N"),
        ({}, {"mean": None}, "--mean M --std S"),
        ({"tile": ("y", "x")}, NORMALIZED, "--tile N"),
    ],
)
def test_the_flag_for_what_is_missing_is_named(tmp_path, model, flags, missing):
    path = save_pointwise(tmp_path / "bare.onnx", **({"channels": 1, "spec": None} | model))
    with pytest.raises(ModelError, match=f"give {missing}"):
        load_engine(path, spec_overrides=SpecOverrides(**flags))


def test_classes_are_asked_for_where_the_file_leaves_them_open(tmp_path):
    path = save_pointwise(tmp_path / "bare.onnx", channels="c")
    with pytest.raises(ModelError, match="does not say its classes: give --classes"):
        read_spec(path, SpecOverrides(channels=3, **NORMALIZED))
    spec = read_spec(path, SpecOverrides(channels=3, classes=("a", "b", "c"), **NORMALIZED))
    assert [c.name for c in spec.classes] == ["a", "b", "c"]


def test_what_the_outputs_tell_of_the_activation(tmp_path):
    one = save_conv(tmp_path / "one.onnx", classes=1)
    ended = save_conv(tmp_path / "ended.onnx", classes=2, end="Sigmoid")
    for path, classes in ((one, 2), (ended, 3)):
        spec = read_spec(path, SpecOverrides(**NORMALIZED))
        assert (spec.activation, len(spec.classes)) == ("sigmoid", classes)


def test_flags_lie_over_the_description(tmp_path):
    path = save_conv(tmp_path / "c.onnx", ("y", "x"), spec=make_spec(tile_fixed=False, pixel_size_nm=(4.0, 4.0)))
    spec = read_spec(
        path,
        SpecOverrides(
            classes=("matrix", "pore"),
            colors=("#000000", "#ff0000"),
            mean=(1.0,),
            std=(2.0,),
            intensity_dtype="uint16",
            tile=(64, 48),
            overlap=0.25,
            window="crop",
            stride=16,
            pixel_size_nm=(8.0,),
        ),
    )
    assert spec.classes == (ClassInfo("matrix", "#000000"), ClassInfo("pore", "#ff0000"))
    assert spec.normalization == Normalization(mean=(1.0,), std=(2.0,), dtype="uint16")
    assert (spec.tile, spec.overlap, spec.window, spec.stride) == ((64, 48), (16, 12), "crop", 16)
    assert spec.pixel_size_nm == (8.0, 8.0)
    assert read_spec(path, SpecOverrides()) == read_spec(path)
    assert read_spec(path, SpecOverrides(normalization="mean-std")).normalization.kind == "mean-std"
    assert read_spec(path, SpecOverrides(tile=(12, 64))).overlap == (6, 8)  # at most half the tile
    for flags, words in (
        (
            {"classes": ("a", "b", "c")},
            "gives 2 output channels, but its .* says 3",
        ),
        ({"colors": ("#000000",)}, "--colors gives 1 colours for 2 classes"),
        ({"colors": ("red", "blue")}, "colour 'red'"),
        ({"std": (-1.0,)}, "--std -1 is not positive"),
        ({"mean": (1.0, 2.0)}, "2 channels, the model 1"),
        ({"tile": (64, 64, 64)}, "--tile has 3 entries for axes 'yx': give 1 or 2"),
        ({"overlap": (64,)}, "overlap .* less than the tile"),
        ({"overlap": 1.5}, "--overlap 1.5 is not a fraction"),
        ({"normalization": "percentile", "mean": (1.0,)}, "leave one of them out"),
        ({"stride": 24}, "not a multiple of stride 24"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            read_spec(path, SpecOverrides(**flags))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@given(st.integers(2, 256))
def test_colours_can_be_told_apart(count):
    colors = default_colors(count)
    assert len(set(colors)) == len(colors) == count
    for color in colors:
        ClassInfo("x", color)


def test_read_spec_needs_no_engine_library():
    code = (
        "import sys; from tilelab.engines.registry import load_engine, read_spec; read_spec('identity');"
        "print(sorted({'openvino', 'onnxruntime', 'onnx', 'torch', 'numba', 'zarr', 'rich'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


# --- identity


def test_identity_gives_back_what_it_takes():
    engine = load_engine("identity", tile=(48, 32), batch=2, spec_overrides=SpecOverrides(stride=16, overlap=(8,)))
    assert (engine.spec.stride, engine.spec.overlap, engine.spec.values) == (16, (8, 8), 1)
    tiles = tiles_for(engine)
    np.testing.assert_array_equal(logits(engine, tiles), tiles)
    assert engine.spec.normalization == Normalization(mean=(0.0,), std=(1.0,))
    volume = load_engine("identity", tile=(8, 16, 24))
    assert (volume.spec.axes, volume.tile) == ("zyx", (8, 16, 24))


@given(st.integers(2, 40))
def test_identity_bands_cut_the_grey_values_evenly(count):
    spec = identity_spec(count)
    grey = np.arange(256)
    lines = [(grey - m) / s for m, s in zip(spec.normalization.mean, spec.normalization.std, strict=True)]
    label = np.argmax(lines, axis=0)
    expected = np.maximum(np.ceil(grey * count / 256) - 1, 0)
    edge = (grey * count) % 256 == 0  # two lines meet there: rounding decides
    np.testing.assert_array_equal(label[~edge], expected[~edge])
    assert (np.abs(label - expected) <= edge).all()


def test_identity_refuses_the_impossible():
    for model in ("identity:", "identity:x", "identity:0", "identity:300"):
        with pytest.raises(ModelError, match="identity"):
            load_engine(model)
    with pytest.raises(EngineError, match="identity engine is cpu, not cuda"):
        load_engine("identity", device="cuda")
    with pytest.raises(ModelError, match="gives what it takes"):
        load_engine("identity", spec_overrides=SpecOverrides(classes=3))


# --- the machine


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_every_engine_says_what_works(name):
    found = availability(name)
    assert found.version
    assert not found.reason
    assert {t.precision for t in found.targets} == {"fp32", "fp16", "bf16", "int8"}
    assert {t.precision for t in found.targets if not t.reason} >= {"fp32", "int8"}


def test_versions_name_the_library_and_the_instruction_sets(tmp_path):
    path = save_conv(tmp_path / "c.onnx", spec=make_spec())
    for name in CPU_ENGINES:
        versions = load_engine(path, engine=name).versions()
        assert set(versions) == {name, "cpu"}
        assert versions["cpu"] == machine.cpu_features()
        assert versions[name][0].isdigit()


def test_nothing_is_sent_and_nothing_is_asked(tmp_path):
    """Importing and running OpenVINO opens no connection and leaves no file in the home folder."""
    path = save_conv(tmp_path / "c.onnx", spec=make_spec())
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
import socket, threading
def refuse(*args, **kwargs): raise SystemExit("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from tilelab.engines.registry import load_engine
for name in {CPU_ENGINES}: load_engine({str(path)!r}, engine=name).close()
print(threading.active_count())
"""
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}  # no CI variable
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "1\n", "")
    assert list(home.iterdir()) == []


# --- the fastest tile


class Clockwork(BaseEngine):
    """An engine that takes a set time; its clock is the one that is measured with."""

    now = 0.0

    def __init__(self, tile, batch, seconds, overlap=(8, 8)):
        super().__init__(make_spec(tile, overlap=overlap, tile_fixed=False), tile, batch)
        self.seconds, self.closed = seconds, False

    def run(self, tiles, out):
        assert tiles.shape == (self.batch, 1, *self.tile)
        Clockwork.now += self.seconds

    def close(self):
        self.closed = True


@pytest.fixture
def clockwork(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Clockwork.now)
    made = []

    def load_with(speed):
        def load(tile, batch):
            made.append(Clockwork(tile, batch, tile[0] * tile[1] * batch / speed(tile)))
            return made[-1]

        return load

    load_with.made = made
    return load_with


def squares(*sizes):
    return [((n, n), 1) for n in sizes]


def test_the_fastest_tile_has_most_useful_pixels_per_second(clockwork):
    # The same pixel rate for all: larger tiles lose less to overlap, until they reach beyond the image.
    choice, measured = fastest_tile(clockwork(lambda tile: 1e6), squares(16, 32, 64, 128), (120, 120))
    assert choice.tile == (64, 64)
    assert [m.tile for m in measured] == [(32, 32), (64, 64), (128, 128)]
    (speed,) = (m for m in measured if m.tile == (64, 64))
    assert speed.seconds == pytest.approx(64 * 64 / 1e6)
    assert speed.pixels_per_s == pytest.approx(120 * 120 / (4 * 64 * 64 / 1e6))  # a step of 56: 2 x 2 tiles
    assert all(engine.closed for engine in clockwork.made)


def test_ties_go_to_the_smaller_tile_and_slow_ones_lose(clockwork):
    shape = (1024, 1024)
    near = {(64, 64): 1.0e6, (128, 128): 0.9e6}  # with overlap 8 both give 0.71 MP/s
    choice, _ = fastest_tile(clockwork(lambda tile: near.get(tile, 1e5)), squares(32, 64, 128, 256), shape)
    assert choice.tile == (64, 64)
    choice, _ = fastest_tile(clockwork(lambda tile: 1e6 if tile[0] < 64 else 1e5), squares(16, 32, 64, 128), shape)
    assert choice.tile == (32, 32)


def test_tiles_beyond_the_memory_limit_are_not_chosen(clockwork):
    def load(tile, batch):
        engine = clockwork(lambda tile: 1e6)(tile, batch)
        engine.memory = EngineMemory(host_bytes=tile[0] * tile[1] * 1000)
        return engine

    choice, measured = fastest_tile(load, squares(32, 64, 128, 256), (1024, 1024), 5_000_000)
    assert choice.tile == (64, 64)
    assert all(0 < m.memory_bytes <= 5_000_000 for m in measured)
    with pytest.raises(PlanError, match=r"even the smallest tile, 32 x 32, needs 1000.0 KiB in the engine, the limit"):
        fastest_tile(load, squares(32, 64, 128), (1024, 1024), 1000)


def test_tiles_worth_measuring(tmp_path):
    spec = make_spec((64, 64), stride=16, tile_fixed=False, tile_min=(24, 24))
    found = tile_candidates(spec, (100, 1000))
    assert (64, 64) in found
    assert found == sorted(set(found), key=lambda t: (t[0] * t[1], t))
    for tile in found:
        assert all(n % 16 == 0 and n >= 24 for n in tile)
        assert tile[0] <= 112
    assert max(t[1] for t in found) == 256
    assert tile_candidates(make_spec((64, 64)), (1000, 1000)) == [(64, 64)]
    assert all(t[0] == 1 for t in tile_candidates(make_spec((1, 64, 64), tile_fixed=False), (9, 500, 500)))


def test_the_fastest_tile_of_a_real_engine(tmp_path):
    path = save_unet(tmp_path / "n.onnx", ("y", "x"), spec=make_spec((32, 32), stride=4, tile_fixed=False))
    spec, shape = read_spec(path), (96, 96)
    choice, measured = fastest_tile(
        lambda tile, batch: load_engine(path, device="cpu", tile=tile, batch=batch),
        [(t, 1) for t in tile_candidates(spec, shape)],
        shape,
    )
    assert choice in measured
    assert choice.pixels_per_s >= 0.97 * max(m.pixels_per_s for m in measured)


# --- which network it is


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_the_digest_tells_networks_apart_that_describe_themselves_alike(tmp_path, name):
    def digest(path, **more):
        return load_engine(path, engine=name, spec_overrides=SpecOverrides(**more)).model_digest

    path = save_conv(tmp_path / "a.onnx", names=2, spec=make_spec())
    first, second = (port.name for port in read_onnx(path).outputs)
    (tmp_path / "b.onnx").write_bytes(path.read_bytes())
    assert digest(path, output=first) == digest(tmp_path / "b.onnx", output=first)
    assert digest(path, output=first) != digest(path, output=second)
    beside = save_conv(tmp_path / "c.onnx", spec=make_spec(), external=True)
    before = digest(beside)
    weights = tmp_path / "c.onnx.data"
    content = bytearray(weights.read_bytes())
    content[3] ^= 1  # a bit of one weight
    weights.write_bytes(content)
    assert digest(beside) != before


def test_a_result_of_other_weights_is_not_taken_for_this_model_s(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    np.save(tmp_path / "image.npy", image)
    out = tmp_path / "out.ome.zarr"
    for path in (save_conv(tmp_path / "a.onnx", spec=make_spec()), save_unet(tmp_path / "b.onnx", spec=make_spec())):
        assert read_spec(path) == make_spec()
    infer(tmp_path / "image.npy", tmp_path / "a.onnx", out)
    with pytest.raises(OutputError, match=r"model\.file"):
        infer(tmp_path / "image.npy", tmp_path / "b.onnx", out)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_sums_of_products_of_bytes_do_not_saturate_unsaid(name, tmp_path):
    """They did on processors without VNNI: two products are added in 16 bits there."""
    pytest.importorskip(name)
    graph, channels, sums = Graph(2), 8, (72 * 255 * 127, 72 * 255 * 2)
    one, zero = graph.constant(np.float32(1)), graph.constant(np.uint8(0))
    weights = np.stack([np.full((channels, 3, 3), value, np.int8) for value in (127, 2)])
    taps = graph.node("DequantizeLinear", graph.constant(weights), one, graph.constant(np.int8(0)))
    source = graph.node("DequantizeLinear", graph.node("QuantizeLinear", "tiles", one, zero), one, zero)
    made = graph.node("Conv", source, taps, pads=[1, 1, 1, 1])
    step = graph.constant(np.float32(sums[0] / 255))
    logits = graph.node("DequantizeLinear", graph.node("QuantizeLinear", made, step, zero), step, zero)
    spec = make_spec((16, 16), channels=channels, precisions=("int8",), outputs=(Output(kind="logits"),))
    path = save(tmp_path / "q.onnx", graph, [(logits, 2)], (16, 16), channels=channels, spec=spec)
    engine = load_engine(path, engine=name)
    out = np.empty((1, 2, 16, 16), np.float32)
    engine.run(np.full((1, channels, 16, 16), 255, np.float32), out)
    engine.close()
    assert engine.precision == "int8"
    if not any("16 bits" in warning for warning in engine.warnings):
        np.testing.assert_allclose(out[0, :, 8, 8], sums, atol=sums[0] / 255)
    else:  # OpenVINO has no other way there
        assert name == "openvino"
        assert not machine.has_cpu_feature("avx512_vnni", "avx_vnni", "amx_int8")
