"""The notebooks run from start to end, and show pictures and bars."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="extra notebooks not installed")
nbclient = pytest.importorskip("nbclient", reason="extra notebooks not installed")
pytest.importorskip("ipykernel", reason="extra notebooks not installed")
pytest.importorskip("openvino")

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path, **changed: int) -> str:
    """All that a notebook shows when it is run in `folder`, with constants changed; HTML and text."""
    notebook: Any = nbformat.read(EXAMPLES / name, as_version=4)
    for cell in notebook.cells:
        for constant, value in changed.items():
            cell.source = re.sub(rf"^{constant} = \d+", f"{constant} = {value}", cell.source, flags=re.MULTILINE)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            parts.append(data.get("text/html") or data.get("text/plain") or output.get("text", ""))
    return "\n".join(parts)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_kept_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert f"({path.name})" in (EXAMPLES / "README.md").read_text()


@pytest.mark.filterwarnings("default")
def test_segment_and_measure(tmp_path: Path) -> None:
    said = run("segment_and_measure.ipynb", tmp_path)
    assert said.count("data:image/png;base64,") == 2, "the image and the run"
    assert re.search(r"segmenting 100%, (\d+) of \1 tiles", said)
    assert "measuring 100%" in said
    score = re.search(r"mean IoU ([\d.]+)", said.rpartition("Evaluation of 1")[2])
    assert score is not None
    assert float(score[1]) > 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_train_a_network(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training extra not installed")
    said = run("train_a_network.ipynb", tmp_path, STEPS=8)
    assert re.search(r"training 100%, step 8 of 8, loss [\d.]+, mean IoU", said)
    assert "tiny.onnx: " in said
    assert "Evaluation of 1: mean IoU" in said
