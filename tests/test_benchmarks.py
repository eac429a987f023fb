"""The benchmarks at toy size: every number is measured, every table and plot is made of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmarks train their own network")

from benchmarks import suite
from benchmarks.__main__ import main
from benchmarks.bench import contenders, machine, model
from benchmarks.bench.contenders import CONTENDERS, Contender
from benchmarks.bench.ledger import Ledger
from benchmarks.bench.machine import Others
from benchmarks.bench.processes import run_process, without_paths
from benchmarks.bench.quality import compare_labels, compare_logits, softmax
from benchmarks.bench.settings import TOY
from benchmarks.bench.workbench import Workbench
from benchmarks.measure import guard, instructions, stack, versus
from benchmarks.measure.limits import Kernels, measure_limits, take_turns
from benchmarks.measure.precision import measure_efficiency, measure_precisions
from benchmarks.measure.scaleout import measure_planning, measure_scaleout
from benchmarks.measure.scaling import measure_scaling
from benchmarks.measure.simulate import Costs, simulate
from benchmarks.measure.versus import estimate, measure_peers
from benchmarks.page import headline, index, page
from benchmarks.page import peers as page_peers
from benchmarks.page.goals import goals
from benchmarks.trained import ablation
from tilelab import cli
from tilelab.engines.cpu import matrix_product
from tilelab.engines.registry import read_spec
from tilelab.errors import InputError
from tilelab.io.images.open import open_image
from tilelab.spec import ModelSpec

HERE = ("tilelab fp32", "NumPy over ONNX Runtime")


def untrained(path: Path) -> Path:
    """A checkpoint of the benchmarks' architecture, which nothing has trained."""
    from tilelab.models import build_model
    from tilelab.training.checkpoint import Checkpoint, Header, save_checkpoint
    from tilelab.training.recipe import load_recipe

    recipe = load_recipe(str(model.RECIPE))
    assert recipe.normalization is not None
    tile = (TOY.tile, TOY.tile)
    spec = ModelSpec(
        architecture=model.ARCHITECTURE,
        classes=recipe.classes,
        normalization=recipe.normalization,
        tile=tile,
        overlap=(TOY.overlap, TOY.overlap),
        stride=32,
        receptive_field=563,
    )
    network = build_model(recipe.network.architecture, 1, len(recipe.classes))
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    save_checkpoint(path, Checkpoint(Header(recipe=recipe, spec=spec, step=1), tensors))
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("cache")

    def here(*words: str | Path) -> None:
        assert cli.main([str(word) for word in words]) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # spinning threads of several libraries starve each other
        patch.setattr(model, "_tilelab", here)  # torch is imported already
        patch.setattr(model, "_DRAWN", {"train": 2, "val": 1})
        made = Workbench(TOY, folder, contenders=HERE, checkpoint=untrained(folder / "untrained.safetensors"))
        assert made.model.spec.tile == (TOY.tile, TOY.tile)
        return made


@pytest.fixture(scope="module")
def document(bench: Workbench) -> dict[str, object]:
    """A document with every section, as `run_suite` keeps it."""
    ladder = [("openvino", "fp32"), ("onnxruntime", "fp32"), ("openvino", "int8"), ("onnxruntime", "int8")]
    found_package = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.measure.precision.LADDER", ladder)  # not every processor has bf16
        patch.setattr(matrix_product, "_SHAPES", ((256, 256, 256),))
        patch.setattr(matrix_product, "_MAPS", ((32, 64),))
        patch.setattr(versus, "CONTENDERS", tuple(c for c in CONTENDERS if c.name in HERE))
        # one quantiser is missing; with it, `test_the_network_is_trained_and_quantised` does the rest
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found_package(name))
        found = {
            "efficiency": measure_efficiency(bench),
            "precision": measure_precisions(bench),
            "limits": measure_limits(bench),
            "scaling": measure_scaling(bench),
            "peers": measure_peers(bench),
            "scaleout": measure_scaleout(bench),
        }
    sections = {}
    for name, value in found.items():
        sections[name] = {
            "scale": TOY.name,
            "commit": "0" * 12,
            "began": "2026-01-01 00:00 UTC",
            "others": 0.0,
            "machine": suite.describe_machine(),
            "found": value,
            "seconds": 1.0,
            "commands": bench.take_commands(),
        }
    return json.loads(json.dumps({"format": suite.FORMAT, "sections": sections}))  # what a file can hold


def test_every_benchmark_measures(document: dict) -> None:
    found = {name: section["found"] for name, section in document["sections"].items()}
    assert set(found) == set(suite.SUITE)
    assert found["efficiency"]["ratio"] > 0
    assert found["efficiency"]["computed"] >= 1
    rows = {(row["engine"], row["precision"]): row for row in found["precision"]["rows"]}
    for engine in ("openvino", "onnxruntime"):
        assert rows[engine, "fp32"]["agreement"] > 0.99
        assert rows[engine, "int8"].get("agreement", 1) > 0.5  # missing where its quantiser is
        assert rows[engine, "fp32"]["bare_megapixels_per_s"] > 0
    assert rows["openvino", "fp32"]["mean_iou"] == pytest.approx(rows["onnxruntime", "fp32"]["mean_iou"], abs=0.01)
    assert {row["kernel"] for row in found["limits"]["kernels"]} == {"copy", "update", "blend", "cut", "finish"}
    assert all(row["decode_megapixels_per_s"] > 0 for row in found["limits"]["formats"])
    assert [row["tiles"] for row in found["scaling"]["rows"]] == [4, 25]
    peers = found["peers"]["rows"]
    for name in HERE:
        (measured,) = peers[name]["sizes"].values()
        assert measured["finished"]
        assert measured["megapixels_per_s"] > 0
    # both blend the same logits, with different windows, at the same places
    ours, loop = (peers[name]["whole"]["agreement"] for name in HERE)
    assert ours == pytest.approx(loop, abs=0.1)


@pytest.mark.slow
def test_the_network_is_trained_and_quantised(tmp_path: Path) -> None:
    made = Workbench(TOY, tmp_path)
    assert made.model.data == "trained briefly on drawn micrographs"
    assert made.model.spec.tile == (TOY.tile, TOY.tile)
    for engine, path in made.quantized.items():
        assert read_spec(path).precisions == ("int8",), engine


def test_planes_are_made_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real micrographs, where nothing has made the folder before."""
    real = tmp_path / "data" / model.SET
    monkeypatch.setattr(model, "micrographs", lambda scale, cache: real)
    drawn = [(np.full((64, 64), 7, np.uint8), np.ones((64, 64), np.uint8))]
    monkeypatch.setattr(model, "load_micrographs", lambda root, name, split: drawn)
    assert model.plane(TOY, tmp_path / "new", (96, 96)).is_file()


def test_killed_runs_are_repeated(document: dict) -> None:
    rows = document["sections"]["peers"]["found"]["rows"]
    for name in HERE:
        kill = rows[name]["kill"]
        assert kill["killed_after"] < kill["undisturbed"] + 5
        assert kill["lost"] == pytest.approx(kill["killed_after"] + kill["again"] - kill["undisturbed"])


def test_page_plots_and_headline(document: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / suite.RESULTS_FILE).write_text(json.dumps(document))
    assert main(["page", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    for entry in suite.SUITE.values():
        assert f"## {entry.title}" in text
    for name in ("stages", "bandwidth", "scaling", "peers", "memory", "scaleout"):
        assert f"({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    speed = document["sections"]["peers"]["found"]["rows"]["tilelab fp32"]["sizes"]["128 x 136"]["megapixels_per_s"]
    assert f"({speed:.2f})" in text
    assert "other programs" not in text.lower()
    readme = tmp_path / "ours.md"
    readme.write_text("before\n<!-- headline -->\nold\n<!-- /headline -->\nafter\n")
    assert main(["readme", "--out", str(tmp_path), "--readme", str(readme)]) == 0
    once = readme.read_text()
    assert once.startswith("before\n<!-- headline -->\n|  |")
    assert once.endswith("<!-- /headline -->\nafter\n")
    assert "old" not in once
    assert main(["readme", "--out", str(tmp_path), "--readme", str(readme)]) == 0
    assert readme.read_text() == once


def test_no_table_contradicts_another(document: dict, tmp_path: Path) -> None:
    """Seconds times MP/s are the image, wherever both stand; a time is the same on the page and in the README."""
    page.write_page(document, tmp_path / "page.md", {})
    text = (tmp_path / "page.md").read_text()
    found = {name: section["found"] for name, section in document["sections"].items()}
    tables = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    cells = {row[0]: row for row in tables}
    pixels = np.prod(found["precision"]["image"]) / 1e6
    for row in found["precision"]["rows"]:
        if "missing" in row:
            continue
        _, seconds, speed, bare, computed, *_ = cells[f"{row['engine']} {row['precision']}"]
        assert float(speed) == pytest.approx(pixels / row["seconds"]["process"], abs=0.01)
        assert float(seconds) == pytest.approx(row["seconds"]["process"], abs=0.1)
        assert float(bare) * float(computed) == pytest.approx(row["bare_megapixels_per_s"], rel=0.05, abs=0.05)
        assert float(computed) == pytest.approx(row["computed"], abs=0.01)
        assert row["computed"] >= 1
        assert row["limit_megapixels_per_s"] >= row["bare_megapixels_per_s"]
        limit, share = row["limit_megapixels_per_s"], row["sweep_of_limit"]
        assert limit == max(row["rates"].values()) == row["rates"][row["limit_tile"]]
        assert limit * share * row["seconds"]["sweep"] == pytest.approx(pixels)
        assert f"| {limit:.2f} ({row['limit_tile']}) | {share:.2f} |" in text
    size = found["peers"]["sizes"][-1]
    ours = "\n".join(headline.headline(document))
    for name in HERE:
        measured = found["peers"]["rows"][name]["sizes"][size]
        assert f"{measured['seconds']:.1f} ({measured['megapixels_per_s']:.2f})" in text
        assert measured["seconds"] * measured["megapixels_per_s"] == pytest.approx(128 * 136 / 1e6)
        assert f"| {measured['seconds']:.0f} |" in ours


def test_each_kind_of_processor_has_its_row(document: dict, tmp_path: Path) -> None:
    """Of full runs; its figures are those of its page."""
    for kind, scale in (("amd-avx512", "full"), ("intel-amx", "full"), ("short", "short")):
        other = json.loads(json.dumps(document))
        other["sections"]["peers"]["scale"] = scale
        (tmp_path / kind).mkdir()
        (tmp_path / kind / suite.RESULTS_FILE).write_text(json.dumps(other))
    (tmp_path / "accuracy.md").touch()
    index.write_index(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert [line[3:].partition("]")[0] for line in text.splitlines() if line.startswith("| [")] == [
        "amd-avx512",
        "intel-amx",
    ]
    found = document["sections"]["peers"]["found"]
    assert f"| {found['rows'][HERE[0]]['sizes']['128 x 136']['seconds']:.1f} (" in text
    assert "[accuracy.md](accuracy.md)" in text


@pytest.mark.parametrize(
    ("processor", "kind"),
    [
        ("AMD EPYC (family 26, model 2), avx2, avx512f", "amd-avx512"),
        ("Intel(R) Xeon(R) Processor, avx2, avx512f, amx_tile", "intel-amx"),
        ("Intel(R) Core(TM), avx2", "intel-avx2"),
        ("Something", "other"),
    ],
)
def test_results_are_kept_by_the_kind_of_processor(processor: str, kind: str) -> None:
    assert machine.cpu_kind(processor) == kind


def test_the_headline_names_the_peer_at_its_best(document: dict) -> None:
    other = json.loads(json.dumps(document))
    rows = other["sections"]["peers"]["found"]["rows"]
    size = other["sections"]["peers"]["found"]["sizes"][-1]
    for name, seconds in (("MONAI gaussian", 8.0), ("MONAI gaussian, bf16 channels-last", 2.0)):
        rows[name] = json.loads(json.dumps(rows[HERE[0]]))
        rows[name]["sizes"][size]["seconds"] = seconds
    rows[HERE[0]]["sizes"][size]["seconds"] = 1.0
    lines = headline.headline(other)
    assert "times MONAI at its best (bf16 channels-last)" in lines[0]
    (ours,) = (line for line in lines if line.startswith(f"| **{HERE[0]}**"))
    assert "| 8.00 | 2.00 |" in ours


def test_no_machine_paths_in_results(document: dict, bench: Workbench) -> None:
    text = json.dumps([section["commands"] for section in document["sections"].values()])
    assert "tilelab infer" in text
    assert str(Path(__file__).parents[1]) not in text
    assert sys.executable not in text
    assert str(bench.cache) not in text


def test_a_busy_machine_is_said(document: dict, tmp_path: Path) -> None:
    busy = json.loads(json.dumps(document))
    busy["sections"]["limits"]["others"] = 1.5
    page.write_page(busy, tmp_path / "page.md", {})
    assert "Other programs took 1.5 cores meanwhile: times are noisy" in (tmp_path / "page.md").read_text()


def test_work_of_others_is_noticed_and_ones_own_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall, busy, own = machine._used()
    run_process([sys.executable, "-c", "sum(range(5_000_000))"], cwd=tmp_path)
    after = machine._used()
    assert after[0] > wall
    assert after[2] > own  # the child's work is ours
    assert after[1] > busy or not Path("/proc/stat").exists()
    others = Others()
    monkeypatch.setattr(machine, "_used", lambda: (others._began[0] + 10, others._began[1] + 15, others._began[2] + 5))
    assert others.cores() == pytest.approx(1)  # 10 seconds in which 15 were used, 5 of them by this process


def test_headline_needs_peers_and_markers(document: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the peers"):
        headline.headline({"sections": {}})
    (tmp_path / "plain.md").write_text("no markers")
    with pytest.raises(InputError, match="no place for the headline"):
        headline.rewrite(tmp_path / "plain.md", document)


def test_one_failure_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Workbench) -> dict[str, object]:
        raise ValueError("no such luck in /some/folder/file.tif")

    monkeypatch.setattr("benchmarks.measure.limits.measure_limits", broken)
    monkeypatch.setattr("benchmarks.measure.scaling.measure_scaling", lambda bench: {"words": [], "rows": []})
    monkeypatch.setattr(suite, "draw", lambda out, say: None)
    assert not suite.run_suite(["limits", "scaling"], Workbench(TOY, tmp_path), tmp_path, lambda line: None)
    sections = suite.load_document(tmp_path)["sections"]
    assert sections["limits"]["failed"] == "ValueError: no such luck in file.tif"
    assert sections["scaling"]["found"] == {"words": [], "rows": []}

    # going on, only what failed is measured again
    monkeypatch.setattr("benchmarks.measure.scaling.measure_scaling", broken)
    monkeypatch.setattr("benchmarks.measure.limits.measure_limits", lambda bench: {"kernels": []})
    resumed = Workbench(TOY, tmp_path, resume=True)
    assert suite.run_suite(["limits", "scaling"], resumed, tmp_path, lambda line: None)
    sections = suite.load_document(tmp_path)["sections"]
    assert "failed" not in sections["limits"]
    assert sections["scaling"]["found"] == {"words": [], "rows": []}


def test_a_ledger_goes_on_with_the_same_only(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.json", "toy a", "1")
    first.put("x", {"seconds": 1.5})
    assert Ledger(tmp_path / "l.json", "toy a", "2").get("x") is None
    resumed = Ledger(tmp_path / "l.json", "toy a", "2", resume=True)
    assert resumed.get("x") == {"seconds": 1.5}
    assert resumed.commits == ["1", "2"]
    assert Ledger(tmp_path / "l.json", "toy b", "2", resume=True).get("x") is None


def test_what_takes_too_long_is_estimated_and_said_to_be(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        f"{n} x {n}": {"finished": True, "seconds": 2 + 0.5 * versus.tiles(n, n, TOY), "growth": 1000 + 3 * n * n}
        for n in (64, 256)
    }
    found = estimate(sizes, (1000, 1000), TOY)
    assert found["seconds"] == pytest.approx(2 + 0.5 * versus.tiles(1000, 1000, TOY))
    assert found["growth"] == pytest.approx(1000 + 3 * 1000**2)
    assert found["from"] == ["64 x 64", "256 x 256"]
    assert estimate({}, (10, 10), TOY)["from"] == []
    one, count = sizes["256 x 256"], versus.tiles(256, 256, TOY)
    phases = {"load": 1.5, "infer": 0.5 * count}
    found_by_one = estimate({"256 x 256": one | {"phases": phases}}, (1000, 1000), TOY)
    assert found_by_one["seconds"] == pytest.approx(found["seconds"])

    monkeypatch.setattr(type(bench), "seconds_left", property(lambda self: 1.0))
    row = {"precision": "fp32", "missing": "", "sizes": dict(sizes)}
    race = versus.Race(bench, {"tilelab fp32": row})
    race.time([CONTENDERS[0]], (1000, 1000))
    assert row["sizes"]["1000 x 1000"] == {
        "finished": False,
        "reason": "not run, for want of time",
        "estimate": found,
    }
    assert race.left_out == ["tilelab fp32 on 1000 x 1000"]
    assert page_peers.measured_or_estimated(row, "1000 x 1000") == (found, "~")


def test_goals_are_judged(document: dict) -> None:
    found = goals(document)
    assert {goal.what for goal in found} >= {"128 x 136 px finishes within 24 GB", "seconds per tile, 4 times the area"}
    blend = next(goal for goal in found if goal.what.startswith("blending"))
    assert blend.reached == (float(blend.measured.rstrip("%")) >= 70)


def test_paths_of_this_machine_are_left_out() -> None:
    text = "OSError: [Errno 2] No such file: '/home/someone/work/x.tif' (see https://a.org/b/c) 3/4"
    assert without_paths(text) == "OSError: [Errno 2] No such file: 'x.tif' (see https://a.org/b/c) 3/4"


# --- many workers


def test_simulated_workers_share_the_work(document: dict) -> None:
    found = document["sections"]["scaleout"]["found"]
    assert all(0 < point["efficiency"] <= 1.05 for point in found["points"])
    assert found["real"][0]["seconds"] > found["real"][0]["ideal_seconds"]
    costs = Costs(submit=0.001, message=0.0001, latency=0.005, start=0.02)
    one, four = (simulate("v", (64, 8192, 8192), workers, costs)["seconds"] for workers in (1, 4))
    assert 3 < one / four < 4.1
    slow = simulate("v", (64, 8192, 8192), 4, Costs(submit=0.5, message=0.0001, latency=0.005, start=0.02))
    assert slow["client_busy"] > 0.9
    assert slow["seconds"] > 0.5 * slow["units"]


def test_planning_takes_the_same_memory_for_a_petabyte() -> None:
    small = measure_planning("1 TB", (1000, 31_623, 31_623), 256)
    large = measure_planning("1 PB", (10_000, 316_228, 316_228), 256)
    assert large["units"] > 30 * small["units"]
    assert large["held"] < 2 * small["held"]
    assert large["peak"] < 1 << 20


def test_sections_are_kept_from_run_to_run(tmp_path: Path) -> None:
    suite.keep(tmp_path, "limits", {"found": 1})
    suite.keep(tmp_path, "peers", {"found": 2})
    suite.keep(tmp_path, "limits", {"found": 3})
    assert suite.load_document(tmp_path)["sections"] == {"limits": {"found": 3}, "peers": {"found": 2}}
    with pytest.raises(InputError, match="no measurements"):
        suite.load_document(tmp_path / "nowhere")


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "install-peers" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", "nothing"])
    assert "efficiency" in capsys.readouterr().err


# --- processes


def test_process_memory_is_watched_and_limited(tmp_path: Path) -> None:
    hold = "import time; held = bytearray(200 << 20); time.sleep(600)"
    stopped = run_process([sys.executable, "-c", hold], cwd=tmp_path, memory_limit=150 << 20)
    assert stopped.stopped == "memory"
    assert not stopped.ok
    assert "more than the limit" in stopped.reason
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    assert run_process([sys.executable, "-c", child], cwd=tmp_path, memory_limit=150 << 20).stopped == "memory"


def test_process_can_be_killed_and_can_fail(tmp_path: Path) -> None:
    killed = run_process([sys.executable, "-c", "import time; time.sleep(600)"], cwd=tmp_path, kill_after=0.3)
    assert (killed.stopped, killed.code) == ("asked", -9)
    failed = run_process([sys.executable, "-c", "raise SystemExit('no disk')"], cwd=tmp_path)
    assert (failed.ok, failed.reason) == (False, "no disk")
    good = run_process([sys.executable, "-c", "print('done')"], cwd=tmp_path)
    assert (good.ok, good.output.strip()) == (True, "done")


# --- quality


def test_labels_are_compared() -> None:
    one = np.zeros((700, 10), np.uint8)
    other = one.copy()
    other[:70] = 1
    scores = compare_labels(open_image(one), open_image(other), 3)
    assert scores["agreement"] == pytest.approx(0.9)
    assert scores["mean_iou"] == pytest.approx((0.9 + 0) / 2)


def test_a_seam_is_found() -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(scale=0.1, size=(2, 64, 64)).astype(np.float32)
    same = compare_logits(whole, whole)
    assert same["seam"] == {"largest": 0.0, "usual": 0.0}
    smooth = whole + rng.normal(scale=0.01, size=whole.shape).astype(np.float32)
    assert compare_logits(smooth, whole)["seam"]["largest"] < 2 * compare_logits(smooth, whole)["seam"]["usual"]
    seamed = smooth.copy()
    seamed[0, :, 32:] += 1
    found = compare_logits(seamed, whole)["seam"]
    assert found["largest"] > 10 * found["usual"]
    np.testing.assert_allclose(softmax(whole).sum(axis=0), 1, atol=1e-6)


# --- kernels and guard

MEASURED = set(instructions.MEASURES)


def test_kernels_move_what_is_counted() -> None:
    kernels = Kernels(threads=2, width=256, tile=64)
    try:
        times = take_turns(kernels.works, 0.01)
    finally:
        kernels.close()
    assert set(times) == set(kernels.moved)
    assert all(len(taken) >= 3 and min(taken) > 0 for taken in times.values())


def test_guard_compares_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.4, 0.41, 0.42])
    monkeypatch.setattr(guard, "MEASURES", {"a": lambda: 0.9, "b": lambda: next(values)})
    kept = tmp_path / "guard.json"
    kept.write_text(json.dumps({"a": {"ratio": 1.0, "noise": 0.2}, "b": {"ratio": 1.0, "noise": 0.5}}))
    lines: list[str] = []
    ratios = {ratio.name: ratio for ratio in guard.check(path=kept, say=lines.append)}
    assert ratios["a"].holds
    assert not ratios["b"].holds  # it was measured three times
    assert ratios["b"].measured == 0.42
    assert [line.split()[-1] for line in lines] == ["holds", "FELL"]
    assert [ratio.name for ratio in guard.check(("a",), kept, lines.append)] == ["a"]
    kept.write_text(json.dumps({"c": {"ratio": 1.0, "noise": 0.2}}))
    with pytest.raises(InputError, match="'c', which is not measured"):
        guard.read_kept(kept)
    with pytest.raises(InputError, match="--update"):
        guard.read_kept(tmp_path / "none.json")


def test_guard_keeps_its_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MEASURES", {"a": lambda: 0.5})
    kept = tmp_path / "guard.json"
    kept.write_text(json.dumps({"a": {"ratio": 1.0, "noise": 0.2}}))
    guard.update(kept, lambda line: None)
    assert guard.read_kept(kept) == {"a": {"ratio": 0.5, "noise": 0.2}}


def test_instructions_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "why_not", lambda: "")
    monkeypatch.setattr(instructions, "MEASURES", {"a": lambda: 100.0, "b": lambda: 120.0})
    kept, lines = tmp_path / "instructions.json", list[str]()
    assert all(one.holds for one in instructions.check(kept, lines.append))  # none are kept
    kept.write_text(json.dumps({"versions": instructions.versions(), "counts": {"a": 99.0, "b": 100.0}}))
    assert [one.holds for one in instructions.check(kept, lines.append)] == [True, False]
    instructions.update(kept, lines.append)
    assert all(one.holds for one in instructions.check(kept, lines.append))
    kept.write_text(json.dumps({"versions": {"python": "0"}, "counts": {"a": 1.0, "b": 1.0}}))
    assert all(one.holds for one in instructions.check(kept, lines.append))
    monkeypatch.setattr(instructions, "why_not", lambda: "there is no valgrind")
    assert instructions.check(kept, lines.append) == []
    assert lines[-1].endswith("there is no valgrind")
    assert set(json.loads(instructions.KEPT.read_text())["counts"]) <= MEASURED


def test_nothing_got_slower() -> None:
    """The quick ratios, against those in the repository: medians in turns, three attempts, more than half is noise."""
    lines: list[str] = []
    ratios = guard.check(guard.QUICK, say=lines.append)
    assert len(ratios) == len(guard.QUICK)
    assert all(ratio.holds for ratio in ratios), "\n".join(lines)


# --- a stack


@pytest.mark.slow
def test_a_stack_is_one_answer(real_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "stack.md"
    assert stack.main([str(tmp_path / "work"), "--shape", "16x512x768", "-o", str(page)]) == 0
    text = page.read_text()
    assert "all the same" in text
    assert text.count("| 4 workers") == 3


# --- ablation


def test_the_ablation_is_a_table_of_every_variant() -> None:
    cells = [*((a, f) for a in ablation.ATTENTIONS for f in ablation.FUSIONS), ablation.WITHOUT]
    networks = {ablation.variant(a, f, 1).to_json() for a, f in cells}
    assert len(networks) == len(cells) == 10
    page = ablation.as_markdown({cell: [0.5 + i / 100, 0.52 + i / 100] for i, cell in enumerate(cells)})
    assert "| LACA | 0.5100 ± 0.0141 | 0.5200 ± 0.0141 | 0.5300 ± 0.0141 |" in page
    assert "over 2 seeds" in page
    assert "Without the pyramid: 0.6000" in page


# --- peers


def test_peers_that_are_not_installed_are_named(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "INSTALLED", tmp_path / "installed.txt")
    reason = contenders.why_not(bench, Contender("MONAI gaussian", "monai_gaussian"))
    assert reason == "not installed: python -m benchmarks install-peers"
    (tmp_path / "installed.txt").write_text("torch==1.0\n")
    assert "other requirements" in contenders.why_not(bench, Contender("MONAI gaussian", "monai_gaussian"))


def test_a_peer_that_needs_too_much_does_not_finish(bench: Workbench, tmp_path: Path) -> None:
    (contender,) = (c for c in CONTENDERS if c.here)
    row = contenders.segment(bench, contender, (128, 136), tmp_path, memory_limit=1 << 20).row(1.0)
    assert not row["finished"]
    assert "limit" in row["reason"]


def test_every_peer_is_pinned() -> None:
    lines = [line for line in contenders.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    for name in ("monai", "nnunetv2", "torch-em", "tiler", "torchio", "konfai"):
        assert any(line.split("==")[0].split("[")[0] == name for line in lines), name


@pytest.mark.slow
@pytest.mark.parametrize("contender", [c for c in CONTENDERS if c.module and not c.here], ids=lambda c: c.name)
def test_every_installed_peer_runs(contender: Contender, bench: Workbench, tmp_path: Path) -> None:
    reason = contenders.why_not(bench, contender)
    if reason:
        pytest.skip(reason)
    attempt = contenders.segment(bench, contender, (128, 136), tmp_path, logits=True)
    assert attempt.outcome.ok, attempt.outcome.errors
    assert np.load(attempt.labels).shape == (128, 136)
    assert np.load(attempt.logits).shape == (3, 128, 136)
