"""Every command and code block of the pages is run, in order, in a folder where the files stand that they name.

What cannot be run here stands in `NOT_RUN` with the reason; the real argument parser reads it all the same.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

import tilelab
from tests.pages import ROOT, all_pages, blocks_of, commands_of, flags_in_passing, known_flags, parser_of, refusal
from tests.tiny_models import make_spec, save_unet
from tilelab.cli.main import COMMANDS, main
from tilelab.geometry import Box
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.sample import draw_superalloy, write_superalloy
from tilelab.spec import PALETTE, ClassInfo, Normalization

# (page, command) patterns of what is parsed alone, and why; a reason that names a package holds where it is absent.
NOT_RUN = {
    ("*", "tilelab view *"): "stays until Ctrl-C; tests/test_view.py and tests/test_live.py run it",
    ("*", "tilelab bench*"): "measures for minutes; tests/test_benchmarks.py runs it",
    ("*", "tilelab *--workers*"): "starts processes for seconds each; tests/test_cluster.py runs it",
    ("*", "tilelab *--scheduler*"): "needs a cluster; tests/test_cluster.py makes one",
    ("*", "tilelab *s3://*"): "needs a bucket; tests/test_remote.py makes one",
    ("*", "tilelab *--device cuda*"): "needs a GPU",
    ("*", "tilelab doctor --engine*"): "needs a GPU",
    ("*", "tilelab export * --precision int8*"): "takes minutes; tests/test_export.py runs it",
    ("*", "tilelab export * -o *.zip *"): "tests/test_bioimage_out.py runs it",
    ("*", "tilelab improve *"): "trains for minutes; tests/test_improve.py runs it",
    ("*", "tilelab *.parquet*"): "pyarrow",
    ("docs/correct.md", "tilelab *"): "learns for minutes; tests/test_improve.py runs it",
    ("docs/measure.md", "tilelab attribute *"): "needs a checkpoint; tests/test_attribution.py trains one",
    ("docs/measure.md", "tilelab infer *"): "placeholders for the real data that the table is of",
    ("docs/measure.md", "tilelab measure seg/*"): "of the same data",
    ("docs/measure.md", "tilelab measure coating/*"): "of the same data",
}
# Commands of other programs; each of them is looked at, none is run.
OTHERS = (
    "compute-sanitizer",
    "dask",
    "export",
    "curl",
    "docker",
    "apptainer",
    "rattler-build",
    "snakemake",
    "nextflow",
)
SHELL_ONLY = re.compile(
    r"python -m (?P<module>[\w.]+)|python (?P<file>\S+)|make (?P<target>\S+)|pip install (?P<of>.*)"
)


def reason_not_to_run(page: str, command: str) -> str | None:
    """Why a command is only parsed; None where it is run."""
    for (pages, pattern), reason in NOT_RUN.items():
        if fnmatch.fnmatchcase(page, pages) and fnmatch.fnmatchcase(command, pattern):
            if " " not in reason and importlib.util.find_spec(reason):
                continue
            return reason
    return None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name, drawn: images, masks, models, results."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, shape in (("big", (300, 400)), ("new", (300, 300)), ("mosaic", (200, 260)), ("sample", (256, 256))):
        write_superalloy(folder / f"{name}.tif", folder / f"{name}-truth.tif", shape)
    shutil.copy(folder / "big-truth.tif", folder / "truth.tif")
    for name in ("micrographs", "stack", "IMAGES", "train/images", "train/masks", "val/images", "val/masks"):
        (folder / name).mkdir(parents=True)
    for seed in range(3):
        write_superalloy(
            folder / f"micrographs/m{seed}x.tif", folder / f"m{seed}-truth.tif", (150, 100 + 40 * seed), seed
        )
        shutil.copy(folder / f"micrographs/m{seed}x.tif", folder / "IMAGES")
    for name, seeds in (("train", (0, 2)), ("val", (4,))):
        for seed in seeds:
            write_superalloy(
                folder / name / f"images/{seed}.tif", folder / name / f"masks/{seed}.tif", (160, 160), seed
            )
    draw_stack(folder)
    grey = Normalization(mean=(128.0,), std=(33.0,))
    save_unet(folder / "mine.onnx", (64, 64), spec=make_spec((64, 64), stride=4, normalization=grey, classes=2))
    save_unet(folder / "net.onnx", ("y", "x"))
    write_recipe(folder / "recipe.toml")
    y, x = np.mgrid[:120, :160]
    rings = np.hypot(y % 40 - 20, x % 40 - 20)
    draw_result(folder / "cells.ome.zarr", ("rest", "cell", "membrane"), np.where(rings < 14, 1, 2 * (rings < 17)))
    draw_result(folder / "axons.ome.zarr", ("rest", "axon", "myelin"), np.where(rings < 8, 1, 2 * (rings < 14)))
    draw_result(folder / "coating.ome.zarr", ("rest", "oxide", "crack"), np.where((y > 40) & (y < 80), 1, 0))
    centres, offsets = np.exp(-(rings**2) / 50), np.stack([20 - y % 40, 20 - x % 40])
    maps = {"ctr_hmp": centres[None, None].astype(np.float32), "offsets": offsets[:, None].astype(np.float32)}
    draw_result(folder / "mitochondria.ome.zarr", ("rest", "mitochondrion"), (rings < 15).astype(int), maps)
    Image.fromarray((rings < 15).astype(np.uint8)).save(folder / "cellpose_masks.tif")
    return folder


def draw_stack(folder: Path) -> None:
    """Slices in a folder, and the same in HDF5 where that can be written."""
    volume = np.stack([draw_superalloy((96, 128), 2 * z)[0] for z in range(4)])
    for z, plane in enumerate(volume):
        Image.fromarray(plane).save(folder / "stack" / f"s{z:03}.png")
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(folder / "em.h5", "w") as file:
            file["raw"] = np.tile(volume, (4, 9, 7))


def draw_result(
    path: Path, classes: tuple[str, ...], labels: np.ndarray, maps: dict[str, np.ndarray] | None = None
) -> None:
    """A finished result of those labels."""
    layout, maps = Layout.fit(labels.shape), maps or {}
    kinds = tuple(ClassInfo(name, color) for name, color in zip(classes, PALETTE, strict=False))
    bands = [(name, len(value)) for name, value in maps.items()]
    sink = OmeZarrSink.create(path, layout, classes=kinds, maps=bands, pixel_size_nm=(8.0, 8.0))
    sink.writer(Box.whole(layout.shape), 0, 1).write(Finished(labels[None].astype(np.uint8), None, None, maps))
    sink.finalize()


def draw_results() -> None:
    """The results of the micrographs, and the truth of the cells."""
    with tilelab.open_image("cells.ome.zarr", as_labels="integers") as cells:
        Image.fromarray(cells[:, :].astype(np.uint8)).save("truth.tif")
    Path("results").mkdir()
    for seed in range(3):
        _, truth = draw_superalloy((150, 100 + 40 * seed), seed)
        draw_result(Path("results") / f"m{seed}x.ome.zarr", ("matrix", "secondary", "tertiary"), truth)


PREPARED = {"docs/measure.md": draw_results}  # beside what all pages find


def write_recipe(path: Path) -> None:
    """A training of seconds."""
    path.write_text(
        'name = "mine"\nclasses = [{name = "matrix", color = "#000000"}, {name = "secondary", color = "#e69f00"}, '
        '{name = "tertiary", color = "#56b4e9"}]\nnetwork = {architecture = "unet", options = {widths = [8, 16]}}\n'
        'train = {images = "train/images", masks = "train/masks"}\n'
        'validation = {images = "val/images", masks = "val/masks"}\nsampling = {crop = 64, batch = 2}\n'
        "run = {steps = 2, validate = 1, threads = 1}\ninference = {tile = 64, overlap = 16}\n"
    )


@pytest.fixture
def folder(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is drawn, to work in."""
    place = tmp_path / "work"
    shutil.copytree(drawn, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("TILELAB_CACHE", "")
    return place


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILELAB_CACHE", "")
    return tmp_path


def run(command: str) -> str | None:
    """Run a command here; what it ended with where that is no success."""
    said, began = io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main(shlex.split(command)[1:])
    except SystemExit as end:  # --help, and usage
        code = int(end.code or 0)
    print(f"{time.perf_counter() - began:6.2f} s  {command}")  # shown where the test fails
    return None if code == 0 else f"{command}: {code}\n{said.getvalue()[-800:]}"


def run_page(page: str) -> list[str]:
    """Run a page's commands and Python, in order; what failed."""
    failed: list[str] = []
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks_of(page):
        named = re.match(r"# (\S+\.toml)\n", block.text)
        if named:  # fewer steps than a reader takes
            Path(named[1]).write_text(re.sub(r"steps = \d+, validate = \d+", "steps = 2, validate = 1", block.text))
        if block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), scope)  # noqa: S102
        for command in block.commands:
            if command.startswith("tilelab ") and reason_not_to_run(page, command) is None:
                failed += filter(None, [run(command)])
    return failed


@pytest.mark.parametrize("page", all_pages())
def test_every_command_is_one(page: str) -> None:
    """The parser takes them; other programs are known, and what they name is there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for command in commands_of(page):
        words = shlex.split(command)
        if words[0] == "tilelab":
            wrong += [f"{command}: {said}" for said in [refusal(words[1:])] if said]
        elif (known := SHELL_ONLY.match(command)) and words[0] not in OTHERS:
            file, target, module = known["file"], known["target"], known["module"]
            wrong += [command] * bool(file and not (ROOT / file).exists())
            wrong += [command] * bool(target and target not in targets)
            wrong += [command] * bool(module and importlib.util.find_spec(module) is None)
            for extra in re.findall(r"\.\[([\w,]+)\]", known["of"] or ""):
                wrong += [command] * (not set(extra.split(",")) <= set(extras))
        elif words[0] not in OTHERS:
            wrong.append(f"{command}: neither run nor known")
    assert wrong == []


@pytest.mark.parametrize("page", [page for page in all_pages() if page != "docs/compared.md"])  # has others' flags
def test_every_flag_named_in_passing_is_there(page: str) -> None:
    unknown = [(command, flag) for command, flag in flags_in_passing(page) if flag not in known_flags(command)]
    assert unknown == []


@pytest.mark.parametrize("page", [page for page in all_pages() if any(blocks_of(page))])
def test_every_command_and_block_runs(
    page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("onnxruntime")
    if re.search("import torch|^tilelab train", (ROOT / page).read_text(), re.MULTILINE):
        torch = pytest.importorskip("torch", reason="training extra not installed")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several wait for each other where other programs run beside
        request.addfinalizer(lambda: torch.set_num_threads(threads))
    if page.startswith("docs/tutorials/"):  # which begin with nothing
        monkeypatch.chdir(tmp_path)
    PREPARED.get(page, lambda: None)()
    assert run_page(page) == []


def test_every_reason_not_to_run_is_needed() -> None:
    said = [(page, command) for page in all_pages() for command in commands_of(page)]
    idle = [
        key
        for key in NOT_RUN
        if not any(fnmatch.fnmatchcase(page, key[0]) and fnmatch.fnmatchcase(command, key[1]) for page, command in said)
    ]
    assert idle == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_commands(command: str) -> None:
    examples = parser_of(command).examples
    said = [(line, refusal(shlex.split(line.partition(" > ")[0], comments=True)[1:])) for line in examples]
    assert examples
    assert [line for line in said if line[1]] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """As `make site` does, in a process of its own; the reference has every command and every key of a recipe."""
    pytest.importorskip("furo", reason="documentation extra not installed")
    pytest.importorskip("myst_parser", reason="documentation extra not installed")
    command = [sys.executable, str(ROOT / "docs" / "make_site.py"), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert said.returncode == 0, said.stderr
    commands = (tmp_path / "html/docs/reference/commands.html").read_text()
    assert [name for name in COMMANDS if f"<h2>tilelab {name}<" not in commands] == []
    assert not re.search(r"<p>—</p>", "".join(p.read_text() for p in (tmp_path / "html/docs/reference").glob("*.html")))
    recipes = (tmp_path / "html/docs/reference/recipes.html").read_text()
    assert all(f">{key}</span>" in recipes for key in ("checkpoint", "balance", "weight_decay", "plateau"))


@pytest.mark.parametrize(("picture", "command"), [("help", "tilelab"), ("help-view", "view")])
def test_pictures_of_the_help_are_of_this_help(picture: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else draw it again: `python docs/draw_help.py docs --columns 80 --picture PICTURE COMMAND`."""
    named = importlib.util.spec_from_file_location("draw_help", ROOT / "docs" / "draw_help.py")
    assert named is not None
    assert named.loader is not None
    drawing = importlib.util.module_from_spec(named)
    named.loader.exec_module(drawing)
    monkeypatch.setenv("COLUMNS", "80")
    with Image.open(ROOT / "docs" / f"{picture}.png") as drawn:
        assert drawn.text["text"] == drawing.page_of(command, 80)


def commands_of_packages() -> list[str]:
    """What containers and workflows call, with a word in the place of each of their variables."""
    found = []
    for path in ("packaging/snakemake/Snakefile", "packaging/nextflow/main.nf", "packaging/conda/recipe.yaml"):
        text = re.sub(r'"\s*\n\s*"', "", (ROOT / path).read_text())  # strings that stand below each other are one
        for line in re.findall(r"^\W*(tilelab (?:infer|measure|demo)[^\n]*)", text, re.MULTILINE):
            words = re.sub(r"\$?\{(threads|task\.cpus)\}", "2", re.sub(r"\$?\{params\.flags\}", "", line))
            found.append(re.split(r" 2?> ", re.sub(r"\$?\{[^}]*\}", "x", words))[0].rstrip('" '))
    return found


def test_packages_call_commands_that_are_there() -> None:
    assert len(commands_of_packages()) == 5
    wrong = [f"{line}: {said}" for line in commands_of_packages() if (said := refusal(shlex.split(line)[1:]))]
    assert wrong == []


def test_packages_install_what_the_project_declares() -> None:
    """The extras of the containers are there, and the conda recipe has every dependency with its lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, pattern in (("Dockerfile", r"EXTRAS=(\S+)"), ("Apptainer.def", r"/source\[(\S+)\]")):
        extras = re.search(pattern, (ROOT / "packaging" / name).read_text())
        assert extras is not None
        assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    recipe = (ROOT / "packaging/conda/recipe.yaml").read_text()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    assert [one for one in wanted if f"- {one.replace('>=', ' >=')}\n" not in recipe] == []
    assert f'version: "{tilelab.__version__}"' in recipe
