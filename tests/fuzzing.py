"""Damaged inputs of every format: what comes out is right pixels or one line and exit code 2, never anything else.

    python -m tests.fuzzing [--count 5000] [--seed 0] [--only tiff,zarr] [--keep FOLDER]

Each input is a small drawn image of some format, mutated from a seed: bits, bytes and ranges changed, cut short, grown,
files of a store removed, emptied or exchanged, JSON values replaced.  `tilelab info` and `tilelab convert` see it in a
process with a memory limit and an alarm.  Pixels are right if they are those that were drawn, or those that the
format's own library reads from the mutated file (a change in pixels that no checksum guards is not seen by anybody).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.image_files import Array, pixels

SECONDS = 90
MEMORY = 6 << 30
PLANE, STACK = (70, 90), (5, 40, 50)


# --- what is drawn -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A kind of file: how it is drawn, and what its own library reads."""

    name: str
    file: str
    shape: tuple[int, ...]
    draw: Callable[[Path, Array], None]
    read: Callable[[Path], Any]
    dtype: str = "uint8"


def _tiff(**options: Any) -> Callable[[Path, Array], None]:
    def draw(path: Path, values: Array) -> None:
        import tifffile

        tifffile.imwrite(path, values, photometric="minisblack", **options)

    return draw


def _read_tiff(path: Path) -> Any:
    import tifffile

    return tifffile.imread(path, key=None)


def _pillow(path: Path, values: Array) -> None:
    from PIL import Image

    Image.fromarray(values).save(path)


def _read_pillow(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def _zarr(version: int, **options: Any) -> Callable[[Path, Array], None]:
    def draw(path: Path, values: Array) -> None:
        import zarr

        array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, zarr_format=version, **options)
        array[...] = values

    return draw


def _read_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_array(path, mode="r")[...]


def _ome_zarr(path: Path, values: Array) -> None:
    import zarr

    group = zarr.create_group(path, zarr_format=3)
    array = group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=(16, 32))
    array[...] = values
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "yx"]
    scale = [{"type": "scale", "scale": [4.0, 4.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def _read_ome_zarr(path: Path) -> Any:
    import zarr

    group = zarr.open_group(path, mode="r")
    ome: Any = group.attrs["ome"]
    array: Any = group[ome["multiscales"][0]["datasets"][0]["path"]]
    return array[...]


def _hdf5(path: Path, values: Array) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=values, chunks=(2, 16, 16), compression="gzip", fletcher32=True)


def _read_hdf5(path: Path) -> Any:
    import h5py

    with h5py.File(path) as file:
        return file["raw"][...]


def _mrc(path: Path, values: Array) -> None:
    import mrcfile

    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 40.0


def _read_mrc(path: Path) -> Any:
    import mrcfile

    # permissive: files from before 2000 have no stamp, and a statistic that is none changes no pixel
    with warnings.catch_warnings(action="ignore"), mrcfile.open(path, permissive=True) as file:
        return np.array(file.data)


def _tensorstore(driver: str) -> tuple[Callable[[Path, Array], None], Callable[[Path], Any]]:
    def draw(path: Path, values: Array) -> None:
        import tensorstore

        spec: dict[str, Any] = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
        if driver == "n5":
            spec["metadata"] = {"compression": {"type": "gzip"}, "blockSize": [16, 16, 2]}
            spec["metadata"] |= {"dataType": str(values.dtype), "dimensions": list(values.shape[::-1])}
            target = tensorstore.open(spec, create=True).result()
            target.write(values.T).result()
        else:
            spec["scale_metadata"] = {"resolution": [4, 4, 40], "encoding": "raw", "chunk_size": [16, 16, 2]}
            spec["multiscale_metadata"] = {"type": "image", "data_type": str(values.dtype), "num_channels": 1}
            shape = [*values.shape[::-1], 1]
            target = tensorstore.open(spec, create=True, shape=shape).result()
            target.write(values.T[..., np.newaxis]).result()

    def read(path: Path) -> Any:
        import tensorstore

        spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
        return np.squeeze(tensorstore.open(spec).result().read().result()).T

    return draw, read


def _npy(path: Path, values: Array) -> None:
    np.save(path, values, allow_pickle=False)


def _read_npy(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


def _slices(path: Path, values: Array) -> None:
    path.mkdir()
    for z, plane in enumerate(values):
        _pillow(path / f"slice_{z:03}.png", plane)


def _read_slices(path: Path) -> Any:
    return np.stack([_read_pillow(file) for file in sorted(path.iterdir())])


FORMATS = {
    form.name: form
    for form in (
        Format("tiff", "a.tif", PLANE, _tiff(rowsperstrip=16), _read_tiff),
        Format("tiff-tiles", "a.tif", PLANE, _tiff(tile=(32, 32), compression="zlib", predictor=True), _read_tiff),
        Format("tiff-lzw", "a.tif", PLANE, _tiff(compression="lzw", rowsperstrip=16), _read_tiff, "uint16"),
        Format("tiff-zstd", "a.tif", STACK, _tiff(tile=(32, 32), compression="zstd"), _read_tiff),
        Format("tiff-ome", "a.ome.tif", STACK, _tiff(ome=True, metadata={"axes": "ZYX"}), _read_tiff),
        Format("tiff-imagej", "a.tif", STACK, _tiff(imagej=True, metadata={"axes": "ZYX"}), _read_tiff, "uint16"),
        Format("bigtiff", "a.tif", PLANE, _tiff(bigtiff=True, tile=(32, 32)), _read_tiff, "float32"),
        Format("png", "a.png", PLANE, _pillow, _read_pillow),
        Format("npy", "a.npy", STACK, _npy, _read_npy, "uint16"),
        Format("zarr2", "a.zarr", STACK, _zarr(2, chunks=(2, 16, 32)), _read_zarr),
        Format("zarr3", "a.zarr", STACK, _zarr(3, chunks=(2, 16, 16), shards=(4, 32, 32)), _read_zarr, "uint16"),
        Format("ome-zarr", "a.ome.zarr", PLANE, _ome_zarr, _read_ome_zarr),
        Format("hdf5", "a.h5", STACK, _hdf5, _read_hdf5),
        Format("mrc", "a.mrc", STACK, _mrc, _read_mrc, "int16"),
        Format("n5", "a.n5", STACK, *_tensorstore("n5")),
        Format("precomputed", "a.precomputed", STACK, *_tensorstore("neuroglancer_precomputed")),
        Format("slices", "stack", STACK, _slices, _read_slices),
    )
}


# --- how it is mutated ---------------------------------------------------------------------------------------------

_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**40, 2**63, -(2**63), 0.5, -0.0, 1e300)
_VALUES: tuple[Any, ...] = (*_NUMBERS, None, True, "", "a", "\x1b[31m\n", [], {}, [[]], "x" * 5000)


def mutate(path: Path, chance: random.Random) -> str:
    """Damage a file or a store in place; says how."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        texts = [file for file in files if _is_json(file)]
        if texts and chance.random() < 0.6:
            return _mutate_json(chance.choice(texts), chance)
        file = chance.choice(files)
        kind = chance.choice(("remove", "exchange", "folder", "bytes", "bytes", "bytes"))
        if kind == "remove":
            file.unlink()
            return f"{file.name} removed"
        if kind == "exchange":
            other = chance.choice(files)
            one, two = file.read_bytes(), other.read_bytes()
            file.write_bytes(two)
            other.write_bytes(one)
            return f"{file.name} and {other.name} exchanged"
        if kind == "folder":
            file.unlink()
            file.mkdir()
            return f"{file.name} is a folder"
        return f"{file.name}: {_mutate_bytes(file, chance)}"
    return _mutate_bytes(path, chance)


def _is_json(file: Path) -> bool:
    return file.suffix == ".json" or file.name in (".zarray", ".zattrs", ".zgroup", "info", ".zmetadata")


def _mutate_bytes(file: Path, chance: random.Random) -> str:
    data = bytearray(file.read_bytes())
    size = len(data)
    # headers, and what lies at the end, tell how to read the rest: they are hit more often than their share
    near = chance.choice((min(size, 64), min(size, 512), size))
    at = chance.randrange(max(1, near)) if chance.random() < 0.7 else size - 1 - chance.randrange(max(1, near))
    kind = chance.choice(("bit", "bit", "byte", "word", "zero", "cut", "cut", "grow", "copy", "noise"))
    if not size:
        data += b"\xff"
    elif kind == "bit":
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        data[at] = chance.randrange(256)
    elif kind == "word":
        word = chance.choice((0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1)).to_bytes(4, chance.choice(("little", "big")))
        data[at : at + 4] = word
    elif kind == "zero":
        length = chance.randrange(1, max(2, size - at))
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "cut":
        del data[at:]
    elif kind == "grow":
        data += chance.randbytes(chance.randrange(1, 4096))
    elif kind == "copy":
        length = chance.randrange(1, max(2, size // 2))
        data[at : at + length] = data[:length]
    else:
        length = chance.randrange(1, 64)
        data[at : at + length] = chance.randbytes(length)
    file.write_bytes(data)
    return f"{kind} at {at} of {size}"


def _mutate_json(file: Path, chance: random.Random) -> str:
    try:
        document = json.loads(file.read_text())
    except ValueError:
        return _mutate_bytes(file, chance)
    places = list(_places(document))
    if not places or chance.random() < 0.1:
        text = chance.choice(("", "{", "[" * 50_000, "nul", "[]", "{}", '"a"', "\xff\xfe", "1e999", "NaN"))
        file.write_bytes(text.encode("latin-1"))
        return f"{file.name} is {text[:8]!r}"
    parent, key = chance.choice(places)
    kind = chance.choice(("value", "value", "value", "delete", "double"))
    before = json.dumps(parent[key])[:40]
    if kind == "value":
        parent[key] = chance.choice(_VALUES)
        after = json.dumps(parent[key])[:20]
    elif kind == "delete":
        del parent[key]
        after = "gone"
    else:
        parent[key] = [parent[key], parent[key]]
        after = "doubled"
    file.write_text(json.dumps(document))
    return f"{file.name} {key}: {before} -> {after}"


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a document, as its parent and key."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(items):
        yield document, key
        yield from _places(value)


# --- what must come out --------------------------------------------------------------------------------------------


@cache
def _drawn(form: Format) -> Path:
    """The whole file, drawn once in each process."""
    path = Path(tempfile.mkdtemp(prefix="tilelab-fuzz-")) / form.file
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    form.draw(path, pixels(form.shape, form.dtype))
    return path


class Alarm(BaseException):
    """It takes too long."""


def try_one(form: Format, seed: int, folder: Path) -> tuple[str, str]:
    """One mutated input; returns ``refused``, ``right`` or what is wrong, and how it was mutated."""
    values, path = pixels(form.shape, form.dtype), folder / form.file
    drawn = _drawn(form)
    if drawn.is_dir():
        shutil.copytree(drawn, path)
    else:
        shutil.copyfile(drawn, path)
    how = mutate(path, random.Random(f"{form.name} {seed}"))  # noqa: S311 - repeatable, not secret
    code, said = _command(["info", str(path)])
    if (wrong := _wrong(code, said)) is not None:
        return f"info: {wrong}", how
    result = folder / "out.ome.zarr"
    code, said = _command(["convert", str(path), str(result), "-q"])
    if (wrong := _wrong(code, said)) is not None:
        return f"convert: {wrong}", how
    if code:
        return ("refused", how) if not result.exists() else ("convert: refused and written", how)
    import zarr

    got = np.squeeze(zarr.open_array(result / "0", mode="r")[...])  # type: ignore[arg-type]
    if _equal(got, values):
        return "right", how
    absent = "the others read as 0" in said and got.shape == np.squeeze(values).shape
    if absent and _equal(got, np.where(got == 0, 0, np.squeeze(values)).astype(got.dtype)):
        return "right", how  # absent pieces were said, and what is there is right
    try:
        with contextlib.redirect_stderr(None), np.errstate(all="ignore"):
            reference = form.read(path)
    except Exception as error:  # noqa: BLE001 - whatever a library says of a broken file
        return f"convert: pixels where {form.name}'s library has none ({type(error).__name__})", how
    if ": yxc, because" in said:  # a side that became as short as colours are many, which was said
        reference = np.moveaxis(np.asarray(reference), -1, 0)
    return ("right", how) if _equal(got, reference) else ("convert: other pixels than were stored", how)


def _equal(got: Array, want: Any) -> bool:
    want = np.squeeze(np.asarray(want))
    if want.dtype.kind == "b":
        want = want.astype(np.uint8)
    return got.shape == want.shape and bool(np.array_equal(got, want, equal_nan=got.dtype.kind == "f"))


def _command(words: list[str]) -> tuple[int | str, str]:
    """A command in this process; its exit code, or the exception that escaped, and all that it wrote on stderr."""
    from tilelab.cli.main import main

    sys.stderr.flush()
    with tempfile.TemporaryFile("w+b") as log, tempfile.TemporaryFile("w+b") as out:
        kept, kept_out = os.dup(2), os.dup(1)
        os.dup2(log.fileno(), 2)
        os.dup2(out.fileno(), 1)
        try:
            code: int | str = main(words)
        except Alarm:
            code = f"no end after {SECONDS} s"
        except SystemExit as end:
            code = f"exit {end.code}"
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            code = f"{type(error).__name__}: {str(error)[:120]} in {Path(where.filename).name}:{where.lineno}"
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os.dup2(kept, 2)
            os.dup2(kept_out, 1)
            os.close(kept)
            os.close(kept_out)
        log.seek(0)
        return code, log.read().decode(errors="replace")


def _wrong(code: int | str, said: str) -> str | None:
    """What is wrong with an exit code and the lines before it."""
    if isinstance(code, str):
        return code
    lines = said.splitlines()
    if foreign := [line for line in lines if not line.startswith("tilelab: ")]:
        return f"says {foreign[0][:120]!r}"
    if any(ord(c) < 32 or ord(c) == 127 for line in lines for c in line):
        return f"control characters in {said[:120]!r}"
    errors = [line for line in lines if line.startswith("tilelab: error: ")]
    if code not in (0, 2) or len(errors) != (code == 2):
        return f"exit code {code} with {len(errors)} errors"
    return None


# --- many of them --------------------------------------------------------------------------------------------------


def work(names: list[str], first: int, count: int, keep: Path | None) -> None:
    """Try inputs `first` to `first + count`; a line of JSON for each, before and after."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _ring)
    out = os.fdopen(os.dup(1), "w")
    for number in range(first, first + count):
        form = FORMATS[names[number % len(names)]]
        print(json.dumps([number, form.name]), file=out, flush=True)
        with tempfile.TemporaryDirectory(prefix="tilelab-fuzz-") as folder:
            signal.alarm(SECONDS)
            try:
                found, how = try_one(form, number, Path(folder))
            except Alarm:
                found, how = f"no end after {SECONDS} s", "?"
            finally:
                signal.alarm(0)
            if keep is not None and found not in ("refused", "right"):
                shutil.copytree(folder, keep / f"{number}-{form.name}", dirs_exist_ok=True)
        print(json.dumps([number, form.name, found, how]), file=out, flush=True)


def _ring(*_: object) -> None:
    raise Alarm


def fuzz(
    count: int, seed: int = 0, names: list[str] | None = None, keep: Path | None = None, processes: int = 1
) -> tuple[Counter[str], list[str]]:
    """Try `count` inputs; how many were ``refused`` and ``right``, and a line for each of which something was wrong."""
    names = names or list(FORMATS)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    share = -(-count // processes)
    spans = [(seed * 1_000_000 + i, min(share, count - i)) for i in range(0, count, share)]
    running = [(_start(names, first, n, keep), first, n) for first, n in spans]
    while running:
        process, first, n = running.pop()
        done, pending = 0, ""
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            if len(row) == 2:
                pending = row[1]
                continue
            done, pending = row[0] - first + 1, ""
            counts[row[2] if row[2] in ("refused", "right") else "wrong"] += 1
            if row[2] not in ("refused", "right"):
                wrong.append(f"{row[0]} {row[1]} ({row[3]}): {row[2]}")
        process.stdout.close()
        code = process.wait()
        if pending:  # it died of this one; the others still have to be tried
            counts["wrong"] += 1
            wrong.append(f"{first + done} {pending}: the process died ({code})")
            if n - done - 1 > 0:
                running.append((_start(names, first + done + 1, n - done - 1, keep), first + done + 1, n - done - 1))
        elif code:
            raise RuntimeError(f"the fuzzing process ended with {code}")
    return counts, wrong


def _start(names: list[str], first: int, count: int, keep: Path | None) -> subprocess.Popen[str]:
    words = ["--worker", str(first), str(count), "--only", ",".join(names), *(["--keep", str(keep)] if keep else [])]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzzing", *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip


def main() -> int:
    """Fuzz from the command line; 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(FORMATS))
    parser.add_argument("--keep", type=Path, help="folder for the inputs that went wrong")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.only.split(",")
    if args.worker:
        work(names, *args.worker, args.keep)
        return 0
    began = time.perf_counter()
    counts, wrong = fuzz(args.count, args.seed, names, args.keep, args.processes)
    for line in wrong:
        print(line)
    print(f"{dict(counts)} in {time.perf_counter() - began:.0f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
