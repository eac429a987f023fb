"""What a machine without network needs to be carried there: ``python -m benchmarks.gpu.carry [FOLDER]``.

Downloads wheels of the packages that tilelab imports and such a machine (Python 3.12 on x86-64 Linux with torch, numba
and numba-cuda) has not, and leaves out of them what is not used there: about 4 MB in all.
`benchmarks.gpu.bare` installs them beside the machine's own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

THERE = ("numba", "numpy", "pillow", "rich", "tifffile")  # of what tilelab needs
BESIDE = ("donfig",)  # that zarr needs
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "any")
CODECS = ("imcd", "shared", "shared_cython", "zstd", "zlib", "deflate", "blosc", "png", "jpeg8")
FOLDER = Path(".gpu")


def packages() -> list[str]:
    """Names of what tilelab needs that is not there."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]]
    return [*(name for name in names if name not in THERE), *BESIDE]


def slim(wheel: Path, out: Path) -> None:
    """Write the wheel with what is used there: some of imagecodecs, one half of zstandard, no debugging tables."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        files = {n: source.read(n) for n in source.namelist() if not n.endswith("/")}
        wanted = {n for n in files if "/licenses/" not in n and "cffi" not in n and not n.endswith((".pyi", "RECORD"))}
        if wheel.name.startswith("imagecodecs"):
            wanted = _with_codecs(files, wanted)
        for name in sorted(wanted):
            target.writestr(name, _stripped(files[name]) if ".so" in name and ".libs/" not in name else files[name])
        record = next(name for name in files if name.endswith("RECORD"))
        target.writestr(record, "".join(f"{name},,\n" for name in [*sorted(wanted), record]))


def _with_codecs(files: dict[str, bytes], wanted: set[str]) -> set[str]:
    """Of what is wanted, without all codecs but ours and the libraries that these load."""
    kept = {n for n in wanted if ".so" not in n}
    found = {n for n in wanted if n.startswith(tuple(f"imagecodecs/_{codec}." for codec in CODECS)) and ".so" in n}
    while found:
        kept |= found
        found = {n for n in files if ".libs/" in n and any(n.rpartition("/")[2].encode() in files[m] for m in found)}
        found -= kept
    return kept


def _stripped(code: bytes) -> bytes:
    """A library without what only a debugger reads, where the tool for that is here."""
    if shutil.which("strip") is None:
        return code
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "library.so"
        path.write_bytes(code)
        done = subprocess.run(["strip", "--strip-unneeded", path], capture_output=True, check=False)
        return code if done.returncode else path.read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the folder; returns the exit code of pip where that fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--python", default="3.12", help="of the machine without network")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        tag = "cp" + args.python.replace(".", "")
        words = [word for platform in PLATFORMS for word in ("--platform", platform)]
        words += [word for abi in (tag, "abi3", "none") for word in ("--abi", abi)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", args.python, "--implementation", "cp", *words]
        code = subprocess.run([*command, "--dest", name, *packages()], check=False).returncode
        if code:
            return code
        for old in args.folder.glob("*.whl"):
            old.unlink()
        for wheel in sorted(Path(name).glob("*.whl")):
            slim(wheel, args.folder / wheel.name)
    wheels = sorted(args.folder.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 1e6:6.2f} MB in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
