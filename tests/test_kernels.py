"""The compiled kernels do what the obvious NumPy ones do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelab.kernels import cpu, jit, reference
from tilelab.kernels.reference import SIGMOID, SOFTMAX

DTYPES = [np.uint8, np.uint16, np.float32]
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60)
@given(
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    channels=st.integers(1, 3),
    repeat=st.booleans(),
    tile=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_cut_equals_reference(seed, dtype, channels, repeat, tile):
    rng = np.random.default_rng(seed)
    shape = (1 if repeat else channels, 7, 3, 11)
    band = (rng.random(shape) * 200).astype(dtype)
    # reflected and plain positions alike
    index = [
        np.abs((np.arange(t) + rng.integers(0, n)) % (2 * n) - n) % n for t, n in zip(tile, shape[1:], strict=True)
    ]
    mean, gain = rng.random((2, channels)).astype(np.float32)
    expected = np.empty((channels, *tile), np.float32)
    reference.cut(band, *index, mean, gain, expected)
    got = np.full_like(expected, np.nan)
    cpu.cut(band, *index, mean, gain, got)
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=80)
@given(
    seed=seeds,
    classes=st.sampled_from([1, 2, 3, 19]),
    activation=st.sampled_from([SOFTMAX, SIGMOID]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 17))
    | st.tuples(st.just(1), st.just(1), st.integers(1020, 2052)),  # more than is finished at a time
    row=st.integers(0, 20),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
    want_logits=st.booleans(),
    sharpness=st.sampled_from([1.0, 0.61, 1.7]),
    before=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 5)),
)
def test_finish_equals_reference(seed, classes, activation, size, row, scale, want_logits, sharpness, before):
    rng = np.random.default_rng(seed)
    n, height, width = size
    canvas = (rng.normal(size=(classes, n + 2, height, width)) * scale).astype(np.float32)
    into = None
    if before is not None:  # a window of outputs that are larger, and less than the canvas
        into = tuple((a, a + max(1, m - (a > 0))) for a, m in zip(before, size, strict=True))
        size = tuple(stop + 1 for _, stop in into)
    canvas[:, :, :, ::5] = 0  # ties
    channels = np.arange(classes + activation)[::-1].copy()
    results = []
    for finish in (reference.finish, cpu.finish):
        work = canvas.copy()
        labels = np.full(size, 77, np.uint8)
        probabilities = np.full((len(channels), *size), 77, np.uint8)
        logits = np.full((classes, *size) if want_logits else (0, 0, 0, 0), 77, np.float32)
        finish(work, row, activation, labels, probabilities, channels, logits, sharpness, into)
        results.append((work, labels, probabilities, logits))
    (work_r, labels_r, probabilities_r, logits_r), (work, labels, probabilities, logits) = results
    np.testing.assert_array_equal(labels, labels_r)
    np.testing.assert_array_equal(work, work_r)
    np.testing.assert_array_equal(logits, logits_r)
    assert np.abs(probabilities.astype(int) - probabilities_r).max() <= 1
    # a difference of one only where the exact value lies on the edge between two bytes
    assert (probabilities != probabilities_r).mean() <= 0.02 or probabilities.size < 100


def test_exponential_is_accurate_over_its_range():
    x = np.linspace(-24, 0, 20001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    got = np.array([cpu._exp_negative(v) for v in x[::10]])
    np.testing.assert_allclose(got, exact[::10], rtol=0, atol=5e-7)
    assert cpu._exp_negative(np.float32(-1e30)) < 1e-10
    assert cpu._exp_negative(np.float32(0)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_tiles_are_found(dtype):
    band = np.full((2, 5, 1, 6), 3, dtype)
    index = [np.arange(5), np.arange(1), np.arange(1, 6)]
    assert cpu.is_constant(band, *index)
    assert reference.is_constant(band, *index)
    band[1, 4, 0, 5] = 4
    assert not cpu.is_constant(band, *index)
    assert not reference.is_constant(band, *index)
    band[0, 0, 0, 0] = 9  # outside the tile
    band[1, 4, 0, 5] = 3
    assert cpu.is_constant(band, *index)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(bad):
    values = np.arange(60, dtype=np.float32).reshape(3, 20)
    assert cpu.all_finite(values)
    values[2, 19] = bad
    assert not cpu.all_finite(values)
    assert not reference.all_finite(values)


def compile_something(*_: object, **__: object) -> Iterator[None]:
    """As a machine does that has no kernels yet."""
    numba.njit(lambda x: x + 1)(1)
    return iter(())


BEGUN, ENDED = "compiling kernels, once on this machine", "compiled kernels in 0 s; the next time they are there"


def test_compiling_is_told_once_and_only_where_something_is_compiled(monkeypatch):
    monkeypatch.setattr(jit, "_TOLD_SECONDS", 0.0)
    said: list[str] = []
    with jit.tell_compiling(said.append):
        compile_something()
        compile_something()
        assert said == [BEGUN]
    assert [re.sub(r"\d+ s", "0 s", line) for line in said] == [BEGUN, ENDED]
    monkeypatch.undo()
    with jit.tell_compiling(said.append):
        pass
    assert len(said) == 2


def test_infer_and_measure_say_that_kernels_are_compiled(monkeypatch, tmp_path, capsys):
    """In the same words, with no line about it where they are there."""
    from tilelab.cli import measure
    from tilelab.cli.main import main
    from tilelab.kernels import warm

    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.uint8).reshape(8, 8))
    words = ["infer", str(tmp_path / "a.npy"), "-m", "identity", "-o", str(tmp_path / "a.ome.zarr"), "--restart", "-q"]
    many = [*words[:4], "-o", f"{tmp_path}/many/", "-q"]
    for command in (words, words, many):  # the first compiles what this image needs, if nothing did before
        assert main(command) == 0
        said = capsys.readouterr().err
    assert BEGUN not in said
    monkeypatch.setattr(warm, "warm_up", compile_something)
    measure_all = measure._measure_all
    monkeypatch.setattr(measure, "_measure_all", lambda *args: compile_something() and measure_all(*args))
    for command in (words, [*many, "--restart"], ["measure", str(tmp_path / "a.ome.zarr")]):
        assert main(command) == 0
        assert capsys.readouterr().err.count(BEGUN) == 1, command
