"""The machine's own limit, against which engines are measured."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("openvino")

from tilelab.cli.bench import macs_per_pixel, measure_engines
from tilelab.engines.cpu import matrix_product, openvino
from tilelab.engines.registry import load_engine


def test_products_are_those_of_numpy() -> None:
    """What is timed is a whole product: its largest values are right, in fp32 exactly and in int8 roughly."""
    source = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    factor = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    core = openvino.import_openvino().Core()
    for quantized, tolerance in ((False, 1e-4), (True, 0.8)):
        compiled = core.compile_model(
            matrix_product._product((64, 64, 64), quantized=quantized), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled([source])[0]
        np.testing.assert_allclose(found, (source @ factor.T).max(axis=1), atol=tolerance)


def test_every_precision_of_this_machine_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_product, "_SHAPES", ((256, 256, 256),))
    monkeypatch.setattr(matrix_product, "_MAPS", ((16, 64),))
    here = {target.precision for target in openvino.probe().targets if not target.reason}
    for precision in ("fp32", "int8", "bf16", "fp16"):
        limit = matrix_product.best_product(precision, 0.02)
        assert (limit is None) == (precision not in here)
        assert limit is None or limit > 1e8


def test_bench_says_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilelab.engines.registry.ENGINES", {"openvino": ("tilelab.engines.cpu.openvino", ("onnx",))})
    monkeypatch.setattr("tilelab.spec.PRECISIONS", ("fp32",))
    monkeypatch.setattr("tilelab.cli.bench.best_product", lambda precision, seconds: 1e9)
    (row,) = measure_engines("superalloy", 0.01)
    found = re.search(r"(\d+)% of the best product's 1 GFLOP/s", row["remark"])
    assert found
    engine = load_engine("superalloy", engine="openvino", precision="fp32", trial=False)
    work = macs_per_pixel(engine)
    engine.close()
    assert int(found[1]) == pytest.approx(100 * 2 * work * row["megapixels_per_s"] / 1000, abs=1)


def test_what_an_engine_multiplies_is_what_the_training_counted_where_nothing_is_saved() -> None:
    engine = load_engine("superalloy", engine="openvino", precision="fp32", trial=False)
    work = macs_per_pixel(engine)
    engine.close()
    assert work == engine.spec.training["macs_per_pixel"] == 44592
