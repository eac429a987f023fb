"""The machine's own limit, against which engines are measured."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("openvino")

from tilelab.cli.bench import measure_engines
from tilelab.engines.cpu import matrix_product, openvino


def test_products_are_those_of_numpy() -> None:
    """What is timed is a whole product: its largest values are right, in fp32 exactly and in int8 roughly."""
    source = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    factor = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    core = openvino.import_openvino().Core()
    for quantized, tolerance in ((False, 1e-4), (True, 0.8)):
        compiled = core.compile_model(
            matrix_product._product(64, quantized=quantized), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled([source])[0]
        np.testing.assert_allclose(found, (source @ factor.T).max(axis=1), atol=tolerance)


def test_every_precision_of_this_machine_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_product, "_SIDES", (256,))
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
    assert int(found[1]) == pytest.approx(100 * 2 * 44592 * row["megapixels_per_s"] / 1000, abs=1)
