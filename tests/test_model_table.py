"""Every architecture from training to inference: a few of them here, all of them in the slow suite."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("onnxruntime")

from benchmarks.trained.models import TABLE, Entry, as_markdown, examine  # noqa: E402

# Both of the other papers' networks, with an encoder that leaves time for other tests, and a decoder of the third.
FAST = (Entry("pmcanet:resnet18"), Entry("casenet:resnet18"), Entry("linknet:resnet18"))


pytestmark = pytest.mark.usefixtures("one_thread")


def check(entry: Entry, folder: Path) -> None:
    row = examine(entry, folder)
    assert row.after < row.before
    assert {(c.engine, c.precision) for c in row.checks} >= {("onnxruntime", "fp32")}
    assert all(c.failure() is None for c in row.checks if c.precision == "fp32")
    assert "fp32" in row.permitted
    assert row.wrong <= 1e-4  # ties between the logits of a network that knows nothing may turn
    assert f"`{entry.title}`" in as_markdown([row])


@pytest.mark.parametrize(
    "entry", [pytest.param(e, marks=() if i == 0 else pytest.mark.slow, id=e.name) for i, e in enumerate(FAST)]
)
def test_the_way_from_training_to_inference(entry: Entry, tmp_path: Path) -> None:
    check(entry, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.title)
def test_every_row_of_the_table(entry: Entry, tmp_path: Path) -> None:
    check(entry, tmp_path)


def test_the_table_has_what_the_papers_use() -> None:
    names = {entry.name for entry in TABLE}
    assert {"unet", "pmcanet:resnet50", "pmcanet:compact", "casenet:resnet152"} <= names
    assert {"pidnet", "emnet", "segmenter", "segvit", "mitonet:resnet50"} <= names
    decoders = ("unet", "unet++", "linknet", "fpn", "pspnet", "pan", "deeplabv3+")
    assert {f"{decoder}:resnet18" for decoder in decoders} <= names
    assert len({name for name in names if name.startswith("unet:")}) > 12


def test_a_step_that_raises_the_loss_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    climb = torch.optim.SGD

    class Uphill(climb):  # type: ignore[misc, valid-type]
        def __init__(self, parameters: object, lr: float) -> None:
            super().__init__(parameters, lr=lr, maximize=True)

    monkeypatch.setattr(torch.optim, "SGD", Uphill)
    with pytest.raises(AssertionError, match=r"row.after < row.before|after"):
        check(Entry("unet", {"widths": [4, 8]}), tmp_path)
