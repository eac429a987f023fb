"""TensorRT engine files: build, save, load, run and every way to fail, on a stand-in for TensorRT 10 and for 11.

TensorRT cannot be installed where these tests run; `fake_tensorrt` has what both versions have and nothing else, so
whatever passes here calls only that.  NVIDIA's bindings of 11, which can be had without TensorRT, are asked whether
they know every name of it.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import fake_gpu
import numpy as np
import pytest
from fake_tensorrt import FakeTensorRT, HardwareCompatibilityLevel, MemoryPoolType, used_names
from tiny_models import make_spec, save_conv, save_half, save_stateless

from tilelab.engines.builders.tensorrt import BuildOptions, build_engine, default_timing_cache
from tilelab.engines.cuda import tensorrt
from tilelab.engines.files import tensorrt_plan as plan_file
from tilelab.engines.files.onnx import embed_spec
from tilelab.engines.files.tensorrt_plan import MAGIC, open_plan, read_header, read_plan_file
from tilelab.engines.loading import LoadRequest
from tilelab.engines.registry import choose, load_engine, permitted, read_model, read_spec
from tilelab.errors import EngineError, ModelError
from tilelab.run.self_check import find_source, self_check


@pytest.fixture
def gpu(monkeypatch):
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def trt(monkeypatch, gpu):
    """The fake as the installed TensorRT."""
    return install(monkeypatch, FakeTensorRT("11.4.1", gpu))


def install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: object())
    tensorrt.probe.cache_clear()
    return module


@pytest.fixture(autouse=True)
def forget_probes():
    yield
    tensorrt.probe.cache_clear()


def save_model(folder, **more):
    options = {"spec": make_spec(channels=2, classes=3, precisions=("fp32",)), "channels": 2, "classes": 3}
    return save_conv(folder / "m.onnx", **(options | more))


def built(folder, batch=2, **options):
    onnx = save_model(folder)
    build_engine(onnx, folder / "m.engine", options=BuildOptions(batch=batch, **options))
    return folder / "m.engine"


def run(engine):
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(engine.batch, engine.spec.channels, *engine.tile)).astype(np.float32)
    out = np.full((engine.batch, engine.spec.values, *engine.tile), np.nan, np.float32)
    engine.run(tiles, out)
    return tiles, out


def test_the_real_bindings_know_every_name(gpu):
    real = find_spec("tensorrt_bindings")
    if real is None:
        pytest.skip("NVIDIA's bindings are not installed: pip install tensorrt-cu13-bindings")
    (library,) = Path(real.submodule_search_locations[0]).glob("tensorrt.*")
    code, names = library.read_bytes(), used_names(FakeTensorRT("11.4.1", gpu))
    assert names >= {"execute_async_v3", "set_tensor_address", "infer_shapes", "STRONGLY_TYPED", "TF32", "WORKSPACE"}
    assert {name for name in names if f"{name}\0".encode() not in code} == set()
    for removed in ("EXPLICIT_BATCH", "OBEY_PRECISION_CONSTRAINTS"):
        assert f"{removed}\0".encode() not in code


def test_an_engine_file_is_built_loaded_and_run(trt, tmp_path, gpu):
    path = built(tmp_path)
    engine = load_engine(path, batch=2)
    assert (engine.name, engine.device, engine.precision) == ("tensorrt", "cuda:0", "fp32")
    assert engine.tile == (32, 32)
    tiles, out = run(engine)
    for k in range(3):
        np.testing.assert_array_equal(out[:, k], (k + 1) * tiles.mean(axis=1))
    assert engine.versions() == {"tensorrt": trt.__version__, "gpu": "Fake H100", "driver": "13.0"}
    assert engine.memory.device_bytes == 123 << 20
    assert gpu.streams[0].waits >= 1
    engine.close()


def test_outputs_that_nobody_asked_for_have_somewhere_to_go(trt, tmp_path):
    """A plan writes all of them; without an address it does not run."""
    path = built(tmp_path)
    header, start, _ = read_header(path)
    plan = json.loads(path.read_bytes()[start:].removeprefix(b"ptrt"))
    plan["tensors"] += [plan["tensors"][1] | {"name": name} for name in ("deep", "deeper")]
    plan_file.write_plan(path, header, b"ptrt" + json.dumps(plan).encode())
    tiles, out = run(load_engine(path))
    np.testing.assert_array_equal(out[:, 2], 3 * tiles.mean(axis=1))
    plan["tensors"][-1]["shape"] = [-1, -1, 32, 32]
    plan_file.write_plan(path, header, b"ptrt" + json.dumps(plan).encode())
    with pytest.raises(ModelError, match="output deeper whose size depends on its values"):
        load_engine(path)


def test_options_reach_tensorrt(trt, tmp_path):
    built(tmp_path)
    wanted = BuildOptions(
        batch=(1, 4, 8), compatibility="ampere+", tf32=True, workspace_bytes=1 << 30, optimization_level=5
    )
    header = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", options=wanted)
    assert trt.networks == [1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)] * 2
    plain, asked = trt.configs
    assert plain.flags == set(), "fp32 is no TF32"
    assert (plain.builder_optimization_level, plain.pools) == (3, {})
    assert plain.hardware_compatibility_level is HardwareCompatibilityLevel.NONE
    assert asked.flags == {"TF32"}
    assert (asked.builder_optimization_level, asked.pools) == (5, {MemoryPoolType.WORKSPACE: 1 << 30})
    assert asked.hardware_compatibility_level is HardwareCompatibilityLevel.AMPERE_PLUS
    assert asked.profiles[0].shapes == {"tiles": ((1, 2, 32, 32), (4, 2, 32, 32), (8, 2, 32, 32))}
    assert header.batch == (1, 4, 8)
    assert header.tf32
    assert load_engine(tmp_path / "m.engine").batch == 4
    for batch in (1, 3, 8):
        assert run(load_engine(tmp_path / "m.engine", batch=batch))[1].shape[0] == batch


def test_the_header_says_what_the_plan_does_not(trt, tmp_path):
    path = built(tmp_path)
    header, start, stop = read_header(path)
    assert path.read_bytes().startswith(MAGIC)
    assert start % 256 == 0
    assert path.read_bytes()[start : start + 4] == b"ptrt"
    assert stop == path.stat().st_size
    assert header.spec == read_spec(tmp_path / "m.onnx")
    assert (header.tensorrt, header.capability, header.gpu) == (trt.__version__, (9, 0), "Fake H100")
    assert header.source == "m.onnx"
    assert header.source_sha256 == read_model(tmp_path / "m.onnx").digest()
    assert header.system == plan_file.this_system()
    file = read_model(path)
    assert file.format == "tensorrt"
    assert file.inputs[0].shape == (2, 2, 32, 32)
    assert read_spec(path) == header.spec


def test_half_precision_comes_from_the_graph(trt, tmp_path):
    onnx = save_half(tmp_path / "h.onnx", spec=make_spec(precisions=("fp32", "fp16")))
    with pytest.raises(ModelError, match=r"h.onnx holds fp16 arithmetic, not fp32: .* convert that first"):
        build_engine(onnx, tmp_path / "h.engine", precision="fp32")
    build_engine(onnx, tmp_path / "h.engine", precision="fp16", options=BuildOptions(batch=1))
    engine = load_engine(tmp_path / "h.engine")
    assert engine.precision == "fp16"
    assert engine.tiles_dtype == engine.logits_dtype == np.float16
    tiles, out = run(engine)
    np.testing.assert_allclose(out[:, 1], 2 * tiles[:, 0], atol=0.01)
    file = read_model(tmp_path / "h.engine")
    assert permitted(file, file.spec) == ("fp16",)
    with pytest.raises(EngineError, match="was built for fp16: build another for fp32"):
        choose(file, file.spec, precision="fp32")


def test_progress_is_told_and_can_cancel(trt, tmp_path):
    seen = []
    onnx = save_model(tmp_path)
    build_engine(onnx, tmp_path / "m.engine", progress=lambda *step: seen.append(step))
    assert seen[:3] == [("Building engine", 0, 4), ("Tactics", 0, 2), ("Tactics", 1, 2)]
    assert seen[-1] == ("Building engine", 4, 4)

    def stop(phase, done, steps):
        if phase == "Tactics" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(onnx, tmp_path / "n.engine", progress=stop)
    assert not (tmp_path / "n.engine").exists()
    assert not list(tmp_path.glob(".n*"))


def test_timings_are_kept_between_builds_and_dropped_for_another_version(trt, tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "sm90.timing"
    built(tmp_path, timing_cache=cache)
    assert cache.read_bytes() == trt.__version__.encode()
    built(tmp_path, timing_cache=cache)
    cache.write_bytes(b"9.9.9 of another version")
    built(tmp_path, timing_cache=cache)
    assert cache.read_bytes() == trt.__version__.encode()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_timing_cache("10.16", (9, 0)) == tmp_path / "tilelab" / "tensorrt-10.16-sm90.timing"


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        ("parse", ModelError, "cannot read .*m.onnx: Unsupported operator NonMaxSuppression"),
        ("build", EngineError, r"could not build .* on Fake H100: \[optimizer.cpp\] Could not find any implementation"),
    ],
)
def test_a_build_that_fails_says_why_and_leaves_nothing(trt, tmp_path, failure, error, words):
    trt.failures.add(failure)
    with pytest.raises(error, match=words):
        built(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_plan_that_fails_says_why(trt, tmp_path):
    path = built(tmp_path)
    for failure, error, words in (
        ("context", EngineError, r"GPU out of memory: .*m.engine needs 0.12 GiB of scratch memory .*: lower --batch"),
        ("second input", ModelError, "needs more inputs than tiles: second"),
        ("execute", EngineError, r"TensorRT failed on a batch of 2 x 2 x 32 x 32: \[enqueue.cpp\] an illegal memory"),
    ):
        trt.failures = {failure}
        with pytest.raises(error, match=words):
            load_engine(path)


def test_wrong_batches_and_tiles_are_refused(trt, tmp_path):
    path = built(tmp_path, batch=(1, 2, 4))
    file = read_model(path)
    request = LoadRequest(file, file.inputs[0], file.outputs, file.spec, "cuda:0", "fp32", 5, (32, 32))
    with pytest.raises(ModelError, match=r"takes batches from 1 x 2 x 32 x 32 to 4 x 2 x 32 x 32, not 5 x 2 x 32 x 32"):
        tensorrt.load(request)
    with pytest.raises(ModelError, match="fixes its batch to 2: 3 was asked for"):
        load_engine(built(tmp_path, batch=2), batch=3)
    with pytest.raises(EngineError, match=r"batch sizes .* must be at least 1 and rise"):
        built(tmp_path, batch=(4, 2, 8))


def test_a_fixed_graph_needs_no_profile(trt, tmp_path):
    onnx = save_model(tmp_path, batch=3)
    header = build_engine(onnx, tmp_path / "m.engine")
    assert header.batch == (3, 3, 3)
    assert not trt.configs[0].profiles
    assert load_engine(tmp_path / "m.engine").batch == 3


# --- refused in words


def test_another_gpu_is_refused(monkeypatch, tmp_path, gpu):
    install(monkeypatch, FakeTensorRT("10.16.0", gpu))
    path = built(tmp_path)
    wide = tmp_path / "wide.engine"
    build_engine(tmp_path / "m.onnx", wide, options=BuildOptions(batch=2, compatibility="ampere+"))
    other = fake_gpu.install(monkeypatch, (8, 6), "Fake A10")
    install(monkeypatch, FakeTensorRT("10.16.0", other))
    words = (
        r"m.engine was built on Fake H100 \(compute capability 9.0\), Fake A10 has 8.6: export it again here: "
        r"tilelab export .*, or for all newer GPUs with --hardware-compatibility ampere\+"
    )
    with pytest.raises(EngineError, match=words):
        load_engine(path)
    run(load_engine(wide))
    old = fake_gpu.install(monkeypatch, (7, 5), "Fake T4")
    install(monkeypatch, FakeTensorRT("10.16.0", old))
    with pytest.raises(EngineError, match=r"runs on GPUs of compute capability 8.0 or more, Fake T4 has 7.5"):
        load_engine(wide)


def test_another_version_is_refused(monkeypatch, tmp_path, gpu):
    install(monkeypatch, FakeTensorRT("10.16.0", gpu))
    path = built(tmp_path)
    install(monkeypatch, FakeTensorRT("11.4.1", gpu))
    with pytest.raises(EngineError, match=r"was built with TensorRT 10.16.0, here is 11.4.1: export it again here"):
        load_engine(path)
    install(monkeypatch, FakeTensorRT("10.3.0", gpu))
    words = r"10.3.0 on Fake H100 cannot load .*, built with 10.16.0 on Fake H100: .* expecting library version 10.3.0"
    with pytest.raises(EngineError, match=words):
        load_engine(path)


def test_another_system_is_refused(trt, tmp_path, monkeypatch):
    path = built(tmp_path)
    monkeypatch.setattr(plan_file, "this_system", lambda: "win32 amd64")
    with pytest.raises(EngineError, match=r"was built for linux .*, this is win32 amd64"):
        load_engine(path)


def test_damage_is_found(trt, tmp_path):
    path = built(tmp_path)
    whole = path.read_bytes()
    header_end = read_header(path)[1]
    for name, data, words in (
        ("empty", b"", "is empty"),
        ("short", whole[:20], "is truncated"),
        ("cut", whole[:-7], "is damaged: it has .* bytes, its header says"),
        ("changed", whole[:-3] + b"xyz", "is damaged: its plan has changed since it was written"),
        ("header", whole[:40] + b"\0" + whole[41:], "has a header that this tilelab cannot read"),
        ("newer", whole[:33] + b'"future":1,' + whole[44:], "has a header that this tilelab cannot read"),
    ):
        damaged = tmp_path / f"{name}.engine"
        damaged.write_bytes(data)
        with pytest.raises(ModelError, match=words):
            load_engine(damaged, batch=2)
    assert header_end > 40
    with pytest.raises(ModelError, match="there is no model file"):
        load_engine(tmp_path / "none.engine")


def test_a_bare_plan_works_with_its_description_beside_it(trt, tmp_path):
    path = built(tmp_path)
    with open_plan(path) as plan:
        bare = tmp_path / "bare.plan"
        bare.write_bytes(plan)
    with pytest.raises(ModelError, match=r"is a bare TensorRT plan and does not describe its model: .*bare.plan.json"):
        load_engine(bare)
    spec = read_spec(path)
    beside = tmp_path / "bare.plan.json"
    beside.write_text(spec.to_json())
    tiles, out = run(load_engine(bare, batch=2))
    np.testing.assert_array_equal(out[:, 2], 3 * tiles.mean(axis=1))
    beside.rename(tmp_path / "bare.json")
    assert read_plan_file(bare).files == (bare, tmp_path / "bare.json")
    run(load_engine(bare, batch=2))
    bare.write_bytes(b"not a plan")
    with pytest.raises(EngineError, match=r"cannot load .*bare.plan: \[runtime.cpp\] Magic tag does not match"):
        load_engine(bare, batch=2)


def test_an_engine_with_unknown_types_is_refused(trt, tmp_path):
    path = built(tmp_path)
    header, start, _ = read_header(path)
    plan = path.read_bytes()[start:].replace(b'"float32"', b'"int32"', 1)
    plan_file.write_plan(path, header, plan)
    with pytest.raises(ModelError, match=r"has tiles of type .*INT32: tilelab needs float32 or float16"):
        load_engine(path)


# --- what is there


def test_without_tensorrt_it_says_how_to_get_it(gpu, tmp_path, monkeypatch):
    tensorrt.probe.cache_clear()
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    assert "pip install tensorrt" in tensorrt.probe().reason
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"TensorRT does not load .*: pip install tensorrt"):
        build_engine(save_model(tmp_path), tmp_path / "m.engine")


def test_an_old_tensorrt_and_a_missing_driver_are_named(monkeypatch, gpu):
    install(monkeypatch, FakeTensorRT("8.6.1", gpu))
    assert tensorrt.probe().reason == "TensorRT 8.6.1 is too old: 10.1 or later is needed"
    install(monkeypatch, FakeTensorRT("10.16.0", gpu))
    assert not tensorrt.probe().reason
    assert {t.device for t in tensorrt.probe().targets} == {"cuda:0"}
    tensorrt.probe.cache_clear()
    monkeypatch.setattr(tensorrt, "driver_problem", lambda: "no NVIDIA driver is installed")
    assert tensorrt.probe().reason == "no NVIDIA driver is installed"


def test_a_model_without_description_is_refused_before_the_build(trt, tmp_path):
    with pytest.raises(ModelError):
        build_engine(save_stateless(tmp_path / "s.onnx"), tmp_path / "s.engine")
    assert not trt.networks


# --- the check on the user's machine


def save_means(path, channels=1, classes=3, error=0.0):
    """What the fake plan computes, as ONNX: output `k` is ``(k + 1)`` times the mean of the channels."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.repeat(np.arange(1, classes + 1, dtype=np.float32)[:, None] / channels, channels, axis=1)
    weight[0] += error
    graph = helper.make_graph(
        [helper.make_node("Conv", ["tiles", "w"], ["logits"])],
        "means",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["batch", channels, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, 32, 32])],
        [numpy_helper.from_array(weight[:, :, None, None], "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    embed_spec(path, make_spec(channels=channels, classes=classes))
    return path


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (3.0, False), (0.1, False)])
def test_the_self_check_tells_right_engines_from_wrong_ones(trt, tmp_path, error, passed):
    onnx = save_means(tmp_path / "m.onnx", error=error)
    build_engine(onnx, tmp_path / "m.engine", options=BuildOptions(batch=2))
    report = self_check(tmp_path / "m.engine", sweep=False)
    assert report.passed is passed
    assert str(report).startswith("passed: tensorrt fp32 on cuda:0" if passed else "FAILED: tensorrt fp32")
    assert (report.changed > 0) is (error == 3.0)  # wrong logits are found where no label changes, too


def test_the_self_check_finds_its_source(trt, tmp_path):
    onnx = save_means(tmp_path / "m.onnx")
    build_engine(onnx, tmp_path / "x.engine", options=BuildOptions(batch=1))
    assert find_source(tmp_path / "x.engine", None) == onnx
    onnx.rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(ModelError, match="is needed to check it: put it beside"):
        find_source(tmp_path / "x.engine", None)
    assert find_source(tmp_path / "x.engine", tmp_path / "elsewhere.onnx").name == "elsewhere.onnx"
    save_means(onnx, error=0.5)
    with pytest.raises(ModelError, match=r"was built from m.onnx, but .*m.onnx is another file"):
        self_check(tmp_path / "x.engine")
