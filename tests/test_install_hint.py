"""What a message says is to be installed is a line that pip takes, and an extra that there is."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tilelab import text
from tilelab.errors import OutputError
from tilelab.text import install_hint
from tilelab.training import call

ROOT = Path(__file__).parents[1]


def test_from_a_source_folder():
    command = shlex.split(install_hint("gpu"))
    assert command[:3] == ["pip", "install", "-e"]
    folder, extra = command[3].removesuffix("]").rsplit("[", 1)
    assert (Path(folder) / "pyproject.toml").is_file()
    assert extra == "gpu"


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        (
            {"url": "https://a.example/lab/tilelab.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "git+https://a.example/lab/tilelab.git@abc123",
        ),
        ({"url": "https://a.example/tilelab-1-py3-none-any.whl", "archive_info": {}}, None),
    ],
)
def test_from_where_it_was_fetched(origin, url):
    pip, install, requirement = shlex.split(text._install_from(origin, "view"))
    assert (pip, install) == ("pip", "install")
    parsed = Requirement(requirement)
    assert (parsed.name, parsed.extras, parsed.url) == ("tilelab", {"view"}, url or origin["url"])


def test_from_a_file_that_is_still_there(tmp_path):
    wheel = tmp_path / "my wheels" / "tilelab-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    assert shlex.split(text._install_from({"url": wheel.as_uri()}, "cpu")) == ["pip", "install", f"{wheel}[cpu]"]
    wheel.unlink()
    assert text._install_from({"url": wheel.as_uri()}, "cpu") == text._install_from({}, "cpu")
    assert "source" in text._install_from({}, "cpu")


def test_every_extra_that_is_named_exists_and_no_index_is_meant():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    sources = {path: path.read_text() for path in (ROOT / "tilelab").rglob("*.py")}
    named = {extra for source in sources.values() for extra in re.findall(r"install_hint\([\"'](\w+)[\"']\)", source)}
    assert len(named) >= 8
    assert named <= extras
    assert not [str(path) for path, source in sources.items() if re.search(r"install '?\"?tilelab\[\w", source)]


@pytest.mark.parametrize("missing", ["torch", "kornia", "safetensors"])
def test_what_training_needs_is_named(missing, monkeypatch):
    monkeypatch.setattr(call, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(OutputError, match=rf"^training needs {missing}: .*\[train\]"):
        call.require_torch()
