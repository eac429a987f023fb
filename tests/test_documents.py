"""What the pages name is there: modules, names, commands, files, links; and the same checks run everywhere."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tilelab.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/results/**/*.md")
    for path in ROOT.glob(pattern)
)
OURS = ("tilelab", "benchmarks", "tests")
SUFFIXES = "py|toml|json|md|png|txt|onnx|cff|yaml"


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Path:
    return ROOT / request.param


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = find_spec(".".join(parts[:n]))
        except ModuleNotFoundError:  # its parent is no package
            continue
        if found is not None:
            value = import_module(".".join(parts[:n])) if n < len(parts) else None
            for name in parts[n:]:
                if not hasattr(value, name):
                    return False
                value = getattr(value, name)
            return True
    return False


def test_modules_and_names_resolve(page: Path) -> None:
    """Those that begin with a package, and in code those that begin with a room of ours."""
    text = page.read_text()
    rooms = {path.stem for path in (ROOT / "tilelab").iterdir()} - {"__init__", "run"}  # `run.steps` is in recipes
    named = set(re.findall(rf"\b(?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+", text))
    named |= {f"tilelab.{name}" for name in re.findall(rf"`((?:{'|'.join(rooms)})(?:\.[A-Za-z_]\w*)+)", text)}
    files = {name for name in named if re.fullmatch(rf".*\.(?:{SUFFIXES})", name)}  # `benchmarks.json` is a file
    assert [name for name in sorted(named - files) if not resolves(name)] == []


def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    unknown = [name for name in sorted(modules) if name.split(".")[0] in OURS and find_spec(name) is None]
    commands = set(re.findall(r"(?:^|`)tilelab ([a-z]+)", text, re.MULTILINE))
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert unknown + sorted(commands - set(COMMANDS)) + sorted(targets - known) == []


def test_files_and_links_are_there(page: Path) -> None:
    """Paths in code are from the root or from the package, links from the page."""
    text = page.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text)} - {""}
    missing = [link for link in sorted(links) if not (page.parent / link).exists()]
    names = set(re.findall(rf"(?<![\w/.:-])((?:[\w-]+/)+[\w.-]+\.(?:{SUFFIXES}))(?![\w*])", text))
    tops = {path.name for path in (*ROOT.iterdir(), *(ROOT / "tilelab").iterdir())}
    ours = {name for name in names if name.split("/")[0] in tops} - links
    places = (ROOT, ROOT / "tilelab", page.parent)
    missing += [name for name in sorted(ours) if not any((place / name).exists() for place in places)]
    assert missing == []


def test_the_hooks_are_the_checks() -> None:
    entries = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert entries == [line.strip().replace("$(RUN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_the_citation_has_the_version_and_licence_of_the_package() -> None:
    import tilelab

    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == tilelab.__version__
    assert re.search(r"^license: (.*)$", text, re.MULTILINE)[1] in (ROOT / "LICENSE").read_text()
    assert f"## [{tilelab.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
