"""Torch modules and plain functions as engines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilelab
from tilelab.engines.module_digest import module_digest
from tilelab.errors import EngineError, ModelError, OutputError

_IMAGE = np.random.default_rng(0).integers(0, 256, (96, 130), np.uint8)
_SAID = {"mean": 128, "std": 64, "tile": 64, "overlap": 16}


def test_the_page_about_engines_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    page = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102
    labels = tilelab.read_result(tmp_path / "net.ome.zarr").labels[0][...]
    assert labels.shape == (300, 400)
    bright = tilelab.read_result(tmp_path / "threshold.ome.zarr").labels[0][...]
    for name in ("brighter", "named"):
        assert np.array_equal(bright, tilelab.read_result(tmp_path / f"{name}.ome.zarr").labels[0][...])


def test_a_module_gives_what_it_gives_alone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Dropout(0.5), torch.nn.Conv2d(4, 3, 1))
    run = tilelab.infer(_IMAGE, net, tmp_path / "a.ome.zarr", classes=["a", "b", "c"], **_SAID)
    assert net.training
    with torch.inference_mode():
        tile = torch.from_numpy((_IMAGE.astype(np.float32) - 128) / 64)
        expected = net.eval()(tile.expand(1, 3, -1, -1)).argmax(1)[0].numpy()
    assert (tilelab.read_result(run.path).labels[0][...] == expected).mean() > 0.999
    again = tilelab.infer(_IMAGE, net, tmp_path / "a.ome.zarr", classes=["a", "b", "c"], **_SAID)
    assert again.already_finished  # its weights are known
    with torch.no_grad():
        net[0].weight += 1
    with pytest.raises(OutputError):
        tilelab.infer(_IMAGE, net, tmp_path / "a.ome.zarr", classes=["a", "b", "c"], **_SAID)


def test_a_dict_of_outputs_is_chosen_from(tmp_path: Path) -> None:
    def several(tiles: np.ndarray) -> dict[str, np.ndarray]:
        return {"aux": -tiles, "out": tiles}

    run = tilelab.infer(_IMAGE, several, tmp_path / "a.ome.zarr", activation="sigmoid", **_SAID)
    assert np.array_equal(tilelab.read_result(run.path).labels[0][...], _IMAGE > 128)
    run = tilelab.infer(_IMAGE, several, tmp_path / "b.ome.zarr", activation="sigmoid", output="aux", **_SAID)
    assert np.array_equal(tilelab.read_result(run.path).labels[0][...], _IMAGE < 128)


def test_another_function_is_never_taken_for_the_one_before(tmp_path: Path) -> None:
    for sign in (1, -1):
        try:
            tilelab.infer(_IMAGE, lambda x, s=sign: s * x, tmp_path / "a.ome.zarr", activation="sigmoid", **_SAID)
        except OutputError:
            assert sign == -1
        else:
            assert sign == 1


def test_what_is_missing_or_wrong_is_said(tmp_path: Path) -> None:
    out = tmp_path / "a.ome.zarr"
    with pytest.raises(ModelError, match="normalised"):
        tilelab.infer(_IMAGE, np.negative, out, tile=64, activation="sigmoid")
    with pytest.raises(TypeError, match="'tiles'"):
        tilelab.infer(_IMAGE, np.negative, out, tiles=32)
    with pytest.raises(EngineError, match="check channels and tile"):
        tilelab.infer(_IMAGE, lambda x: x.reshape(3, 3), out, **_SAID)
    with pytest.raises(EngineError, match="cuda"):
        tilelab.infer(_IMAGE, np.negative, out, device="cuda", **_SAID)
    with pytest.raises(ModelError, match="NaN"):
        tilelab.infer(_IMAGE, lambda x: np.full_like(x, np.nan), out, activation="sigmoid", **_SAID)
    assert not out.exists()


def test_what_finds_nothing_in_a_made_up_batch_is_asked_for(tmp_path: Path) -> None:
    """Probabilities near 0 are all above 0: as logits, all would be foreground."""

    def rare(tiles: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.minimum(100 - 40 * tiles, 60), dtype=np.float32))

    said = {**_SAID, "mean": 0, "activation": "sigmoid"}
    with pytest.raises(ModelError, match="about the same, between 0 and 1: say --output-is probabilities"):
        tilelab.infer(_IMAGE, rare, tmp_path / "a.ome.zarr", **said)
    run = tilelab.infer(_IMAGE, rare, tmp_path / "b.ome.zarr", output_is="probabilities", **said)
    assert np.array_equal(tilelab.read_result(run.path).labels[0][...], _IMAGE > 160)


def test_a_module_that_is_refused_is_given_back_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Dropout(0.5)).train()
    for words in ({}, {"mean": (0.0,), "std": (1.0,), "classes": 5}):
        with pytest.raises(ModelError):
            tilelab.load_engine(net, spec_overrides=tilelab.SpecOverrides(tile=(32,), **words))
        assert all(part.training for part in net.modules())


def test_a_function_may_change_what_it_is_given(tmp_path: Path) -> None:
    def halved(tiles: np.ndarray) -> np.ndarray:
        tiles *= 0.5
        return tiles

    words = {**_SAID, "activation": "sigmoid", "uncertainty": "symmetries"}
    runs = [
        tilelab.infer(_IMAGE, call, tmp_path / f"{i}.ome.zarr", **words)
        for i, call in enumerate((halved, lambda tiles: 0.5 * tiles))
    ]
    read = [tilelab.read_result(run.path) for run in runs]
    assert np.array_equal(*(result.probabilities[0][...] for result in read))
    assert np.array_equal(*(result.maps["uncertainty"][...] for result in read))


_NET = """
import functools
import torch
SHIFT = 1.0
OFFSETS = {"all": [0.0]}
def finish(x):
    return x * 2 + OFFSETS["all"][0]
class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 1)
        self.gain = 1.0
        self.names = {"b", "a"}
        torch.nn.init.constant_(self.conv.weight, 0.5)
        torch.nn.init.zeros_(self.conv.bias)
        self.register_buffer("mean", torch.zeros(1), persistent=False)
    @torch.no_grad()
    def forward(self, x):
        words = {"one", "two", "three"}
        return finish(self.conv(x) * self.gain + SHIFT) if "one" in words else x
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList([Part(), Part()])
        self.hidden = [Part()]
        self.after = functools.partial(lambda x, y: x + y, y=1)
    def forward(self, x):
        return self.after(self.parts[0](x))
"""


_DIGESTS = """
import json, sys, types
from tilelab.engines.module_digest import module_digest
import torch
for source in json.load(sys.stdin):
    sys.modules["mynet"] = types.ModuleType("mynet")
    exec(compile(source, "mynet.py", "exec"), vars(sys.modules["mynet"]))
    print(module_digest(sys.modules["mynet"].Net()))
"""


def _digests(sources: list[str], seed: str) -> list[str]:
    """Of networks, made in a process of their own."""
    made = subprocess.run(
        [sys.executable, "-c", _DIGESTS], env=os.environ | {"PYTHONHASHSEED": seed}, input=json.dumps(sources),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return made.stdout.split()


def test_an_edited_module_is_another_and_the_same_one_is_not() -> None:
    pytest.importorskip("torch")
    edits = (
        ("self.conv(x) * self.gain", "self.conv(x) / self.gain"),  # code of a part
        ("self.parts[0](x)", "self.parts[1](x)"),  # of the whole
        ("return x * 2", "return x * 3"),  # of what it calls
        ("SHIFT = 1.0", "SHIFT = 2.0"),
        ("[0.0]", "[1.0]"),
        ("self.gain = 1.0", "self.gain = 2.0"),  # what is no weight
        ("y=1", "y=2"),
        ("torch.zeros(1)", "torch.ones(1)"),
        ("constant_(self.conv.weight, 0.5)", "constant_(self.conv.weight, 0.25)"),
    )
    assert all(_NET.count(old) == 1 for old, _ in edits)
    remark = "# a remark\n\n" + _NET.replace("    def forward", "\n    def forward")
    first, second, *others = _digests([_NET, remark, *(_NET.replace(old, new) for old, new in edits)], "0")
    assert second == first
    assert len({first, *others}) == 1 + len(edits)
    assert _digests([_NET], "1") == [first]


_SCRIPTED = """
import io, json, sys
from pathlib import Path
from tilelab.engines.module_digest import module_digest
import torch
from torch import nn
for name, source in json.load(sys.stdin):
    Path(name).write_text(source)  # which the compiler reads
    made = {"__name__": "mynet"}
    exec(compile(source, name, "exec"), made)
    for _ in range(len(sys.argv)):  # torch numbers what it compiles
        scripted = torch.jit.script(made["Net"]())
    saved = io.BytesIO()
    torch.jit.save(scripted, saved)
    saved.seek(0)
    loaded = torch.jit.load(saved)
    saved = io.BytesIO()
    torch.jit.save(loaded, saved)
    saved.seek(0)
    again = torch.jit.load(saved).eval()
    print(*map(module_digest, (scripted, loaded, again, nn.Sequential(scripted))))
"""

_SCRIPT = """
import torch
from typing import Dict, Final, List
from torch import nn
def finish(x):
    return x * 2
class Scaled(nn.Module):
    gain: float
    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain
    def forward(self, x):
        return x * self.gain
class Net(nn.Module):
    steps: Final[int]
    names: Dict[str, List[int]]
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        nn.init.constant_(self.conv.weight, 0.5)
        nn.init.zeros_(self.conv.bias)
        self.first, self.second = Scaled(2.0), Scaled(3.0)
        self.steps = 3
        self.names = {"a": [1, 2]}
        self.table = torch.zeros(3)
        self.register_buffer("mean", torch.zeros(1), persistent=False)
    def forward(self, x):
        for _ in range(self.steps):
            x = x + 1
        return finish(self.second(self.first(self.conv(x)))) + self.table.sum() + len(self.names["a"])
"""


def test_a_scripted_module_is_told_by_code_attributes_and_constants_wherever_it_is_loaded(tmp_path: Path) -> None:
    """What is no weight did not count: two gains were one network."""
    pytest.importorskip("torch")
    edits = (
        ("Scaled(2.0), Scaled(3.0)", "Scaled(2.0), Scaled(3.5)"),
        ("Scaled(2.0), Scaled(3.0)", "Scaled(3.0), Scaled(2.0)"),
        ("self.steps = 3", "self.steps = 4"),
        ("[1, 2]", "[1, 3]"),
        ("self.table = torch.zeros(3)", "self.table = torch.ones(3)"),
        ('"mean", torch.zeros(1)', '"mean", torch.ones(1)'),
        ("return x * 2", "return x * 3"),
        ("x = x + 1", "x = x - 1"),
        ("return x * self.gain", "return x / self.gain"),
        ("constant_(self.conv.weight, 0.5)", "constant_(self.conv.weight, 0.25)"),
    )
    sources = [_SCRIPT, "# a remark\n\n" + _SCRIPT, *(_SCRIPT.replace(old, new) for old, new in edits)]
    assert len({*sources}) == len(sources)
    given = json.dumps([(str(tmp_path / f"net{i}.py"), source) for i, source in enumerate(sources)])

    def digests(*words: str) -> list[list[str]]:
        made = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _SCRIPTED, *words], input=given, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return [line.split() for line in made.stdout.splitlines()]

    found = digests()
    for one, loaded, again, _ in found:
        assert one == loaded == again
    assert found[0] == found[1]
    for place in (0, 3):
        assert len({each[place] for each in found}) == 1 + len(edits)
    assert digests("another", "process") == found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_and_scripted_parts_of_a_module_count_too() -> None:
    torch = pytest.importorskip("torch")

    def make(gain: float) -> Any:
        module, table = torch.nn.Module(), torch.tensor([gain, 1.0])
        module.part = torch.jit.trace(lambda x: x * table, torch.zeros(2))  # a function with a constant
        module.whole = torch.jit.trace(torch.nn.Identity(), torch.zeros(2))
        return module

    assert module_digest(make(1.0)) == module_digest(make(1.0)) != module_digest(make(2.0))


def test_an_edited_forward_is_not_continued_with(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 1)

        def forward(self, x: Any) -> Any:
            return self.conv(x)

    net = Network()
    tilelab.infer(_IMAGE, net, tmp_path / "a.ome.zarr", classes=["a", "b"], **_SAID)
    assert tilelab.infer(_IMAGE, net, tmp_path / "a.ome.zarr", classes=["a", "b"], **_SAID).already_finished
    Network.forward = lambda self, x: -self.conv(x)  # type: ignore[method-assign]
    with pytest.raises(OutputError):
        tilelab.infer(_IMAGE, net, tmp_path / "a.ome.zarr", classes=["a", "b"], **_SAID)
