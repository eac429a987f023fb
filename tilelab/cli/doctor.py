"""`tilelab doctor`: which engines and devices work here, and why others do not."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.cli.terminal import drawn
from tilelab.errors import EngineError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.version import __version__
from tilelab.text import install_hint

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES = ("numpy", "numba", "zarr", "numcodecs", "tifffile", "imagecodecs", "msgspec", "pillow", "zarrs")
ONLY_NVIDIA = "those of Apple and AMD are not supported, neither to infer nor to train; CPUs are used instead"
_GPU_LIBRARIES = ("onnxruntime-gpu", "tensorrt", "numba-cuda-mlir", "numba-cuda")


EXAMPLES = (
    "tilelab doctor",
    "tilelab doctor --engine net.engine --onnx net.onnx    # is it right here?",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_json(parser)
    parser.add_argument(
        "--engine", metavar="FILE", help="check a compiled file against ONNX Runtime\non a drawn micrograph"
    )
    parser.add_argument("--onnx", metavar="FILE", help="the network that this file was built from")


def run(args: argparse.Namespace) -> int:
    """Examine the machine and tell; an `EngineError` when nothing on it can run a model."""
    if args.engine is not None and args.json is not None:
        raise EngineError("--json is what the machine can do, --engine checks one file: give one of them")
    if args.engine is None and args.onnx is not None:
        raise EngineError("--onnx is what the file of --engine was built from: give that, too")
    if args.engine is not None:
        return _check_file(args.engine, args.onnx)
    claim({}, [Write(json_file(args.json), "--json", "json")])
    found = examine()
    if not put_json(args.json, json.dumps(found, indent=1)):
        from rich.console import Console

        show(found, Console(file=drawn(sys.stdout), highlight=False, soft_wrap=False))
    if not any(row["works"] for row in found["engines"]):
        raise EngineError(f"no engine works here: {install_hint('cpu')}")
    return 0


def _check_file(path: str, onnx: str | None) -> int:
    """Whether a compiled engine is right on this machine; an `EngineError` when it is not."""
    from tilelab.run.self_check import self_check

    report = self_check(path, onnx)
    print(report)
    if not report.passed:
        raise EngineError(f"{path} does not compute what its network does: build it again, in fp32 if need be")
    return 0


def examine() -> dict[str, Any]:
    """Everything that is shown, as a document; every engine that is installed computes a small convolution."""
    from tilelab.engines.registry import ENGINES, RANKING, availability
    from tilelab.engines.selftest import selftest
    from tilelab.machine.cpu import core_count, cpu_features, cpu_name
    from tilelab.machine.memory import available_memory

    rows: list[dict[str, Any]] = []
    for engine in ENGINES:
        found = availability(engine)
        if found.reason:
            rows.append(_row(engine, found.version, "", "", found.reason))
        for target in found.targets:
            checked = "onnx" in ENGINES[engine][1]  # others run what was compiled for this machine before
            why = target.reason or (selftest(engine, target.device, target.precision) if checked else "")
            rows.append(_row(engine, found.version, target.device, target.precision, why, checked=checked))
    order = {entry: i for i, entry in enumerate(RANKING)}
    rows.sort(key=lambda row: (not row["works"], order.get((row["engine"], row["device"], row["precision"]), 99)))
    return {
        "tilelab": __version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu": {"name": cpu_name(), "cores": core_count(), "features": cpu_features().split()},
        "memory_available": available_memory(),
        "libraries": _versions(_LIBRARIES),
        "engines": rows,
        "gpu": {"devices": find_gpus(), "only": ONLY_NVIDIA, "libraries": _versions(_GPU_LIBRARIES)},
        "warnings": find_conflicts(),
    }


def _row(
    engine: str, version: str, device: str, precision: str, reason: str, *, checked: bool = True
) -> dict[str, Any]:
    return {
        "engine": engine,
        "version": version,
        "device": device,
        "precision": precision,
        "works": not reason,
        "checked": checked and not reason,
        "reason": reason,
    }


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed, without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def find_gpus() -> list[str]:
    """NVIDIA GPUs as their driver tells them: name, memory, driver version, compute capability."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = ("name", "memory.total", "driver_version", "compute_cap")
    try:
        told = subprocess.run(
            [tool, f"--query-gpu={','.join(asked)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ["nvidia-smi is there but fails: is the driver loaded?"]
    found = []
    for line in told.stdout.splitlines():
        parts = [part.strip() for part in line.split(",", 3)]
        if len(parts) == len(asked):
            name, memory, driver, capability = parts
            found.append(f"{name}, {memory}, driver {driver}, compute capability {capability}")
        else:
            found.append(f"nvidia-smi: {line.strip()}")
    return found


def find_conflicts() -> list[str]:
    """Packages that cannot live together."""
    installed = _versions(("onnxruntime", *_GPU_LIBRARIES))
    found = []
    if "onnxruntime" in installed and "onnxruntime-gpu" in installed:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    needs = _tensorrt_of_onnxruntime()
    if needs and "tensorrt" in installed and installed["tensorrt"].partition(".")[0] != needs:
        found.append(
            f"onnxruntime-gpu was built for TensorRT {needs}, but tensorrt {installed['tensorrt']} is installed: "
            f"its TensorRT provider will not load; pip install 'tensorrt=={needs}.*'"
        )
    return found


def _tensorrt_of_onnxruntime() -> str:
    """The major version of TensorRT that ONNX Runtime's provider links to, empty when it has none."""
    module = find_spec("onnxruntime")
    if module is None or module.origin is None:
        return ""
    folder = Path(module.origin).parent / "capi"
    for name in ("libonnxruntime_providers_tensorrt.so", "onnxruntime_providers_tensorrt.dll"):
        if (folder / name).is_file():
            match = re.search(rb"nvinfer(?:\.so\.|_)(\d+)", (folder / name).read_bytes())
            return match.group(1).decode() if match else ""
    return ""


def show(found: dict[str, Any], console: Console) -> None:
    """Print the document for people."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tilelab.text import format_bytes

    cpu = found["cpu"]
    gpus = found["gpu"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, value in {
        "tilelab": f"{found['tilelab']}, Python {found['python']}, {found['system']}",
        "CPU": f"{cpu['name']}, {cpu['cores']} cores ({' '.join(cpu['features'])})",
        "memory": f"{format_bytes(found['memory_available'])} available",
        "GPU": "\n".join(gpus["devices"]) or f"no NVIDIA GPU: {gpus['only']}",
        "libraries": _listing(found["libraries"] | gpus["libraries"]),
    }.items():
        facts.add_row(name, Text(value))
    console.print(facts)
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("works here", "version", "device", "precision", "checked"):
        table.add_column(column, no_wrap=True)
    absent = Table.grid(padding=(0, 2))
    absent.add_column(no_wrap=True)
    absent.add_column(overflow="fold")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in found["engines"]:
        if row["works"]:
            cells = (row[name] for name in ("engine", "version", "device", "precision"))
            table.add_row(*cells, Text("yes", "green") if row["checked"] else Text("not run"))
        else:
            reasons.setdefault((row["engine"], row["reason"]), []).append(row["precision"])
    for (engine, reason), precisions in reasons.items():
        absent.add_row(Text(f"{engine} {', '.join(precisions)}".strip(), "red"), Text(reason))
    if table.rows:
        console.print(table)
        console.print(
            "Without --engine and --precision, the first of these that the model permits is used.\n"
            "Checked: it computed a convolution whose result is exact in every precision.\n"
        )
    if reasons:
        console.print("Not here:")
        console.print(absent)
    for warning in found["warnings"]:
        console.print(Text(f"\nwarning: {warning}", "yellow"))


def _listing(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
