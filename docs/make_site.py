"""Builds the site: our pages where they stand, the reference made from the program, and no warning passes.

    python docs/make_site.py [FOLDER]

The pages are copied to FOLDER/source with the paths that they have here, so that their links hold.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from reference import pages

ROOT = Path(__file__).parents[1]
COPIED = """README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE
    docs/**/*.md docs/**/*.png docs/**/*.jpg examples/* packaging/**/*
    benchmarks/results/**/*.md benchmarks/results/**/*.png"""
CONTENTS = {
    "Tutorials": "docs/tutorials/microscopist docs/tutorials/connectomics docs/tutorials/method",
    "How to": """docs/images docs/models docs/running docs/measure docs/viewers docs/correct docs/python docs/engines
        docs/gpu packaging/README examples/README""",
    "Reference": "docs/reference/commands docs/reference/recipes docs/reference/models docs/reference/python",
    "About": """docs/limits docs/compared benchmarks/results/README benchmarks/results/accuracy
        benchmarks/results/models benchmarks/results/ablation benchmarks/results/stack benchmarks/results/recipes
        ARCHITECTURE CONTRIBUTING SECURITY CHANGELOG""",
}


def stage(source: Path) -> None:
    """Lay out what Sphinx reads."""
    for pattern in COPIED.split():
        for path in ROOT.glob(pattern):
            if path.is_file() and not {"short", "long", "toy"} & set(
                path.relative_to(ROOT).parts
            ):  # which are of this machine alone
                (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, source / path.relative_to(ROOT))
    for name, text in pages().items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (source / "index.md").write_text((source / "README.md").read_text() + contents(source))
    (source / "README.md").unlink()


def contents(source: Path) -> str:
    """The table of contents; a page that is not there is left out, one that is in no list comes last."""
    listed, trees = {"README"}, []
    for caption, names in CONTENTS.items():
        there = [name for name in names.split() if (source / f"{name}.md").exists()]
        listed |= set(there)
        trees.append((caption, there))
    rest = sorted(str(path.relative_to(source).with_suffix("")) for path in source.rglob("*.md"))
    trees[-1][1].extend(name for name in rest if name not in listed)
    lines = (
        "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in trees
    )
    return "".join(lines)


def build(folder: Path) -> int:
    """Build the site in `folder`/html; 1 where Sphinx had anything to say."""
    from sphinx.cmd.build import build_main

    shutil.rmtree(folder, ignore_errors=True)
    stage(folder / "source")
    words = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(Path(__file__).parent)]
    return build_main([*words, "-d", str(folder / "trees"), str(folder / "source"), str(folder / "html")])


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")
    code = build(place)
    sys.stdout.write(f"{place / 'html' / 'index.html'}\n" if code == 0 else "the site has warnings: see above\n")
    sys.exit(code)
