"""The GPU path on one GPU: are its kernels right, how near are they to a plain copy, the whole to the bare engine.

    python -m benchmarks.gpu                 # a few minutes; every row is printed as it is measured
    python -m benchmarks.gpu kernels bus     # some steps only
    python -m benchmarks.gpu networks --networks unet-resnet18 --json gpu.json
    python -m benchmarks.gpu make product agreement baselines host    # the whole command, and what it is compared with
    python -m benchmarks.gpu.cost gpu.json --price 3.5    # hours and money for a terabyte, from what was measured

Needs torch, torchvision, numba-cuda-mlir or numba-cuda, numpy and tifffile, and no installed tilelab: run it from the
repository's root.  The steps `make`, `product`, `agreement`, `host` and other engines (--engines) need what tilelab
always does.  On a machine without network `benchmarks.gpu.bare` brings that along and runs everything.
A step that fails is told, where it did so is kept (--json), and the others go on; the exit code is then 1.  Without a
GPU it says so and exits with 2.  With NUMBA_ENABLE_CUDASIM=1 and --toy everything runs in Numba's simulator, to see
that it does; times mean nothing then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.basics import Finding

STEPS = ("launches", "bus", "kernels", "networks", "make", "product", "agreement", "baselines", "host")
BY_DEFAULT = ("launches", "bus", "kernels", "networks")
ENGINES = ("torch", "onnxruntime-cuda", "tensorrt", "aotinductor")
NETWORKS = ("unet-resnet18", "unet-resnet50", "pmcanet")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0, 1 when a step failed, or 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", default=[], metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=(*NETWORKS, "small"))
    parser.add_argument("--precisions", nargs="*", default=["fp32", "fp16"], choices=("fp32", "fp16"))
    parser.add_argument("--engines", nargs="*", default=["torch"], choices=ENGINES)
    parser.add_argument("--batch", type=int, default=16, help="tiles per run")
    parser.add_argument("--planes", type=int, default=4, help="planes of 9958 x 9959 px in the sustained run")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="keep what `make` makes there, or find it there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every row there, as it is measured")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args(argv)
    if unknown := set(args.steps) - set(STEPS):
        parser.error(f"there is no step {', '.join(sorted(unknown))}: choose among {', '.join(STEPS)}")
    if importlib.util.find_spec("msgspec") is None:
        from benchmarks.gpu.networks import stand_in_for_msgspec

        stand_in_for_msgspec()
    if importlib.util.find_spec("torch") is None:
        print("benchmarks.gpu: torch is not installed: it needs torch, numba-cuda-mlir, numpy and tifffile")
        return 2
    from tilelab.errors import EngineError

    try:
        from tilelab.kernels import device

        info = device.select(0)
    except EngineError as error:
        print(f"benchmarks.gpu: nothing was measured: {error}")
        return 2
    told = Findings(args.json, info.name)
    told.step("software", partial(_software, info))
    with tempfile.TemporaryDirectory() as folder:
        for name, step in _steps(args, args.files or Path(folder)):
            told.step(name, step)
    return told.failed


class Findings:
    """What was found, printed and kept as it comes.

    failed: 1 after a step that failed, else 0.
    """

    def __init__(self, path: Path | None, gpu: str) -> None:
        self.failed = 0
        self._path = path
        self._kept: dict[str, Any] = {"gpu": gpu, "findings": [], "failures": []}

    def step(self, name: str, measure: Callable[[], Iterable[Finding]]) -> None:
        """Everything that a step measures, until it fails."""
        from benchmarks.gpu.basics import Finding

        try:
            for finding in measure():
                self._tell(finding)
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the other steps go on
            self.failed = 1
            why = " ".join(str(error).split())[:200] or "it gave no reason"
            self._kept["failures"].append({"what": name, "trace": traceback.format_exc()})
            self._tell(Finding(name, f"left out: {type(error).__name__}: {why}"))

    def _tell(self, finding: Finding) -> None:
        print(f"{finding.what:<46}  {finding.value:<60}  {finding.goal}".rstrip(), flush=True)
        self._kept["findings"].append(finding._asdict())
        if self._path is not None:
            # at once: whoever reads it, or a step that is killed, finds a whole one
            beside = self._path.with_suffix(".writing")
            beside.write_text(json.dumps(self._kept, indent=1))
            beside.replace(self._path)


def _software(info: Any) -> Iterator[Finding]:
    import numpy as np
    import torch

    from benchmarks.gpu.basics import Finding
    from tilelab.kernels.compiler import COMPILER

    capability = ".".join(map(str, info.capability))
    yield Finding("GPU", f"{info.name}, compute capability {capability}, CUDA driver {info.driver}")
    versions = f"torch {torch.__version__}, numpy {np.__version__}, kernels by {COMPILER}"
    yield Finding("software", f"Python {platform.python_version()}, {versions}")


def _steps(args: argparse.Namespace, files: Path) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """What was asked for, by name; every network on every engine is a step of its own."""
    from benchmarks.gpu.basics import Sizes, time_bus
    from benchmarks.gpu.kernels import time_kernels, time_launches

    sizes = Sizes.toy(args.batch) if args.toy else Sizes.full(args.batch, args.planes)
    names, precisions = (["small"], ["fp32"]) if args.toy else (args.networks, args.precisions)
    alone = {"launches": time_launches, "bus": time_bus, "kernels": time_kernels}
    for step in args.steps or BY_DEFAULT:
        if step in alone:
            yield step, partial(alone[step], sizes)
        elif step == "networks":
            from benchmarks.gpu.sweeps import time_network

            for of in product(names, precisions, args.engines):
                yield " ".join(of), partial(time_network, *of, sizes)
        elif step == "host":
            from benchmarks.gpu.host import time_host

            yield step, partial(time_host, sizes)
        else:
            from benchmarks.gpu import product as whole

            measures = {"make": whole.make_files, "product": whole.time_product, "agreement": whole.check_agreement}
            yield step, partial((measures | {"baselines": whole.time_baselines})[step], sizes, files)


if __name__ == "__main__":
    sys.exit(main())
