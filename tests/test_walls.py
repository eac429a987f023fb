"""The walls hold: what a command may bring along, which names are public, and that a crossed wall is noticed."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tifffile

from tilelab.sample import draw_superalloy

ROOT = Path(__file__).parents[1]

# What trains, draws plots, shares work or tests, and takes seconds or gigabytes to import.
HEAVY = ("torch", "torchvision", "matplotlib", "dask", "distributed", "tensorboard", "kornia",
         "segmentation_models_pytorch")  # fmt: skip

RUNNER = """
import json, sys
sys.modules["scipy"] = None  # Numba looks whether it is there; an import of ours would fail
from tilelab.cli import main

def heavy():
    return [name for name in sys.argv[2:] if name in sys.modules]

found = {"import": heavy()}
for command in json.loads(sys.argv[1]):
    code = main(command)
    found[command[0]] = heavy() if code == 0 else f"exit code {code}"
print(json.dumps(found))
"""


def run_python(code: str, *words: str, folder: Path) -> str:
    """What a program prints that runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


STARTER = """
import sys
from tilelab.cli import main
assert main(["infer", "drawn.tif", "--model", "superalloy", "-q"]) == 0
print(len(sys.modules), *(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_a_small_image_is_inferred_with_few_modules(tmp_path: Path) -> None:
    """What the first result waits for, counted: seconds would depend on the machine."""
    pytest.importorskip("openvino")
    tifffile.imwrite(tmp_path / "drawn.tif", draw_superalloy((96, 128), seed=1)[0])
    dear = ("scipy.linalg", "openvino.tools.ovc", "zarr", "rich", "dask", "onnxruntime", "PIL", "asyncio")
    count, *brought = run_python(STARTER, *dear, folder=tmp_path).split()
    assert not brought
    assert int(count) < 950, "870 were imported when this was written: which are new?"


def test_what_infers_plans_describes_and_scores_brings_nothing_of_training_along(tmp_path: Path) -> None:
    image, truth = draw_superalloy((600, 520), seed=1)
    tifffile.imwrite(tmp_path / "drawn.tif", image)
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    commands = [
        ["info", "drawn.tif"],
        ["plan", "drawn.tif", "--model", "superalloy"],
        ["infer", "drawn.tif", "--model", "superalloy", "-q", "--overview", "look.png"],
        ["infer", "drawn.tif", "--model", "superalloy", "-q", "-o", "drawn.ome.tif"],
        ["eval", "drawn.superalloy.ome.zarr", "truth.tif"],
    ]
    said = run_python(RUNNER, json.dumps(commands), *HEAVY, folder=tmp_path)
    assert json.loads(said.splitlines()[-1]) == {"import": []} | {command[0]: [] for command in commands}


PUBLIC = {
    "tilelab": [
        "ModelSpec", "Options", "SpecOverrides", "TilelabError", "__version__", "evaluate", "export", "infer",
        "infer_many", "load_engine", "map_tiles", "measure", "models", "open_image", "plan", "read_result", "train",
    ],
    "tilelab.io": ["Image", "convert_image", "describe", "open_image"],
    "tilelab.evaluation": [
        "Evaluation", "LabelMap", "Labels", "Pair", "PairScores", "evaluate", "find_pairs", "open_labels",
    ],
    "tilelab.sample": ["CLASSES", "draw_superalloy", "write_superalloy", "write_tiled"],
    "tilelab.geometry": [
        "AxisTiling", "Box", "Cuts", "Frame", "Lattice", "Unit", "Units", "WINDOWS", "Window", "boxes", "reflect",
        "window_profile",
    ],
}  # fmt: skip


@pytest.mark.parametrize("room", PUBLIC)
def test_the_public_names_are_these_and_resolve(room: str) -> None:
    module = import_module(room)
    assert sorted(module.__all__) == sorted(PUBLIC[room])
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_importing_tilelab_alone_imports_next_to_nothing(tmp_path: Path) -> None:
    code = "import sys, tilelab, tilelab.io; print([n for n in sys.argv[1:] if n in sys.modules])"
    assert run_python(code, "numpy", "numba", "scipy", "zarr", "rich", *HEAVY, folder=tmp_path) == "[]\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with its order of rooms, to break."""
    for package in ("tilelab", "benchmarks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda _, names: [
            name for name in names if "." in name and not name.endswith(".py")
        ])  # fmt: skip
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "house.py", tmp_path / "tests")
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def check(code: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of a check in another folder, in lines that are not broken."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "500"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def lint_imports(folder: Path) -> tuple[int, str]:
    """`lint-imports`, whose script may stand elsewhere than the interpreter."""
    pytest.importorskip("importlinter", reason="extra `check` is not installed")
    return check("from importlinter.cli import lint_imports as lint; raise SystemExit(lint(no_cache=True))", folder)


def add_import(module: Path, name: str) -> None:
    """Import something at the end of a module."""
    with module.open("a") as file:
        file.write(f"\nimport {name}\n")


def test_an_import_that_runs_up_is_noticed(copy: Path) -> None:
    code, said = lint_imports(copy)
    assert code == 0, said  # as it stands
    add_import(copy / "tilelab" / "geometry" / "box.py", "tilelab.io.convert")
    code, said = lint_imports(copy)
    assert code == 1
    assert re.search(r"tilelab\.geometry\.box -> tilelab\.io\.convert \(l\.\d+\)", said)


@pytest.mark.parametrize("room", ["tilelab/attic.py", "tilelab/run/sweep/attic.py"])
def test_a_room_that_is_not_named_is_noticed(copy: Path, room: str) -> None:
    (copy / room).touch()
    code, said = lint_imports(copy)
    assert code == 1
    assert "attic" in said


def test_a_circle_is_noticed(copy: Path) -> None:
    pytest.importorskip("grimp", reason="extra `check` is not installed")
    code, said = check("from tests.house import main; raise SystemExit(main())", copy)
    assert (code, said.splitlines()[-1].endswith("0 circles")) == (0, True), said
    add_import(copy / "tilelab" / "geometry" / "box.py", "tilelab.geometry.units")
    code, said = check("from tests.house import main; raise SystemExit(main())", copy)
    assert code == 1
    assert "circle in tilelab.geometry" in said


REMOVES = ("unlink", "rmtree", "rename", "rmdir", "removedirs", "renames")
"""Methods and functions that remove or replace what has a name on a disk."""


def removals(source: str) -> list[str]:
    """Calls of them in a module; `replace` of one argument is a path's, of two a text's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = node.func.attr
        system = ast.unparse(node.func) in ("os.remove", "os.replace", "shutil.move")
        path = name == "replace" and len(node.args) == 1 and not node.keywords
        if name in REMOVES or system or path:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_one_module_removes_and_replaces() -> None:
    package = ROOT / "tilelab"
    others = [path for path in sorted(package.rglob("*.py")) if path != package / "machine" / "disk.py"]
    found = {str(path.relative_to(ROOT)): removals(path.read_text()) for path in others}
    assert {name: calls for name, calls in found.items() if calls} == {}
    assert len(removals((package / "machine" / "disk.py").read_text())) > 5


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("p.unlink()", True), ("shutil.rmtree(p)", True), ("p.rename(q)", True), ("os.replace(a, b)", True),
        ("p.replace(q)", True), ("os.remove(p)", True), ("shutil.move(p, q)", True), ("band.move(1, 2)", False),
        ("s.replace('a', 'b')", False), ("l.remove(x)", False),
        ("structs.replace(s, a=1)", False),
    ],
)  # fmt: skip
def test_what_removes_is_noticed(line: str, seen: bool) -> None:
    assert bool(removals(line)) is seen
