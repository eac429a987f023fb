"""Run the tests that need no torch with the newest Python and packages there are, and with the oldest and lowest.

    python -m tests.versions [newest] [lowest] [3.12 ...] [--all]

`newest`: the newest Python, the newest packages; `lowest`: the oldest Python, the lowest packages; a number: that
Python, the newest packages.

Without `--all`: the quick part, geometry, kernels (also Numba's simulator and compiler for GPUs), files, engines and
the GPU path on the stand-in for the driver.
What pyproject.toml promises is what was run: `lowest` fails where a declared bound cannot be installed as it stands.
Environments are kept in .venv-versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-versions"
EXTRAS = ("cpu", "cluster", "formats", "remote")
HELD_BACK = ("nncf",)
"""Of the tests' own packages: those that keep others from their newest versions (NumPy below 2.5)."""

QUICK = [
    "geometry", "layout", "kernels", "cuda_kernels", "sweep", "region", "formats", "read_files", "tiff_out",
    "zarr_sink", "engines", "core_counts", "gpu_races", "gpu_driver", "gpu_faults", "plan_gpu", "tensorrt",
]  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUND = re.compile(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)")
FACTS = """
import importlib.metadata, json, platform
found = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **found}))
"""


def main() -> int:
    """Make the environments, run the tests, say what they were run with."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.partition("\n")[0])
    parser.add_argument("which", nargs="*", help="newest, lowest, or a Python as 3.12 (default: newest and lowest)")
    parser.add_argument("--all", action="store_true", help="every test that needs no torch")
    arguments = parser.parse_args()
    pythons = find_pythons()
    lines, failed = [], False
    for which in arguments.which or ("newest", "lowest"):
        asked = tuple(map(int, which.split("."))) if which[0].isdigit() else ()
        fit = [version for version in pythons if version[: len(asked)] == asked]
        if not fit:
            parser.error(f"no Python {which} here: {', '.join('.'.join(map(str, v)) for v in sorted(pythons))}")
        version = min(fit) if which == "lowest" else max(fit)
        python, found = make_environment(which, version, pythons[version])
        code, said = run_tests(python, [] if arguments.all else QUICK)
        raised = wrong_bounds(found) if which == "lowest" else []
        failed |= bool(code or raised)
        names = (
            "python",
            "numpy",
            "numba",
            "numba-cuda",
            "numba-cuda-mlir",
            "zarr",
            "tifffile",
            "onnxruntime",
            "openvino",
            "dask",
        )
        lines.append(f"{which}: " + ", ".join(f"{name} {found[name]}" for name in names if name in found) + f": {said}")
        lines += [f"  {line}" for line in raised]
    print("\n".join(lines))
    return failed


def find_pythons() -> dict[tuple[int, ...], str]:
    """The interpreters of this machine that may run tilelab, by version."""
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") or "" for minor in range(11, 30))]
    candidates += map(str, Path.home().glob(".pyenv/versions/*/bin/python"))
    found: dict[tuple[int, ...], str] = {}
    for candidate in filter(None, candidates):
        code = "import sys; print(*sys.version_info[:3], sys.version_info.releaselevel)"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        *numbers, level = done.stdout.split() or ("0", "broken")
        version = tuple(map(int, numbers))
        if level == "final" and version >= least:
            found.setdefault(version, candidate)
    return found


def requirements() -> list[str]:
    """What is installed: tilelab with its extras, and what the tests need of their own."""
    own = [line for line in PROJECT["optional-dependencies"]["test"] if not line.startswith(HELD_BACK)]
    return ["--editable", f".[{','.join(EXTRAS)}]", *own]


def make_environment(which: str, version: tuple[int, ...], python: str) -> tuple[str, dict[str, str]]:
    """The environment's interpreter, and the version of everything in it; what is there and up to date is kept."""
    folder = FOLDER / which
    inside = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    stamp = hashlib.sha256(json.dumps([version, PROJECT, requirements()]).encode()).hexdigest()
    made = folder / "made"
    if not made.exists() or made.read_text() != stamp:
        uv = find_uv()
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", python, folder], check=True)
        resolution = "lowest-direct" if which == "lowest" else "highest"
        words = ["pip", "install", "--quiet", "--python", inside, "--resolution", resolution, *requirements()]
        subprocess.run([*uv, *words], check=True, cwd=ROOT)
        made.write_text(stamp)
    return inside, json.loads(subprocess.run([inside, "-c", FACTS], check=True, capture_output=True).stdout)


def find_uv() -> list[str]:
    """The command of uv, which can ask for the lowest versions; installed beside the environments if need be."""
    if found := shutil.which("uv"):
        return [found]
    tools = FOLDER / "tools"
    inside = str(tools / ("Scripts" if os.name == "nt" else "bin") / "python")
    if (
        subprocess.run([inside, "-m", "uv", "--version"], capture_output=True, check=False).returncode
        if tools.exists()
        else True
    ):
        subprocess.run([sys.executable, "-m", "venv", tools], check=True)
        subprocess.run([inside, "-m", "pip", "install", "--quiet", "uv"], check=True)
    return [inside, "-m", "uv"]


def run_tests(python: str, names: list[str]) -> tuple[int, str]:
    """Run these test files, or all that there are; returns the exit code and pytest's last line."""
    files = [f"tests/test_{name}.py" for name in names]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(Path(python).parents[1] / "numba")}
    environment.pop("PYTHONPATH", None)
    command = [
        python,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--numprocesses=auto",
        "--dist=loadfile",
        *files,
    ]
    said = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            said = line.strip() or said
    return process.returncode, said


def wrong_bounds(found: dict[str, str]) -> list[str]:
    """Bounds that are declared but were not run."""
    declared = [*PROJECT["dependencies"], *requirements()]
    declared += [line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]]
    wrong = []
    for name, bound in dict.fromkeys(match.groups() for line in declared if (match := BOUND.match(line))):
        ran = found.get(name.lower(), "")
        if ran and pad(ran) != pad(bound):
            wrong.append(f"{name}>={bound} is declared, the lowest that can be installed is {ran}: raise the bound")
    return wrong


def pad(version: str) -> list[str]:
    """The parts of a version without closing zeros: 3.1.0 is 3.1."""
    return re.sub(r"(\.0)+$", "", version).split(".")


if __name__ == "__main__":
    sys.exit(main())
