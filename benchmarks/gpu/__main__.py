"""The GPU path on one GPU: are its kernels right, how near are they to a plain copy, the whole to the bare engine.

    python -m benchmarks.gpu              # about three minutes; prints one table
    python -m benchmarks.gpu --networks unet-resnet18

Needs torch, torchvision, numba-cuda, numpy and tifffile, and no installed tilelab: run it from the repository's root.
Other engines (--engines) are measured where their libraries and msgspec are there as well.
Without a GPU it says so and exits with 2.
With NUMBA_ENABLE_CUDASIM=1 and --toy everything runs in Numba's simulator, to see that it does; times mean nothing
then.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.parts import Finding

ENGINES = ("torch", "onnxruntime-cuda", "tensorrt", "aotinductor")
NETWORKS = ("unet-resnet18", "unet-resnet50", "pmcanet")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0, or 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=(*NETWORKS, "small"))
    parser.add_argument("--precisions", nargs="*", default=["fp32", "fp16"], choices=("fp32", "fp16"))
    parser.add_argument("--engines", nargs="*", default=["torch"], choices=ENGINES)
    parser.add_argument("--batch", type=int, default=16, help="tiles per run")
    parser.add_argument("--planes", type=int, default=4, help="planes of 9958 x 9959 px in the sustained run")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("msgspec") is None:
        from benchmarks.gpu.networks import stand_in_for_msgspec

        stand_in_for_msgspec()
    for library in ("torch", "numba"):
        if importlib.util.find_spec(library) is None:
            print(f"benchmarks.gpu: {library} is not installed: it needs torch, numba-cuda, numpy and tifffile")
            return 2
    from tilelab.errors import EngineError, TilelabError

    try:
        from tilelab.kernels import device

        info = device.select(0)
    except EngineError as error:
        print(f"benchmarks.gpu: nothing was measured: {error}")
        return 2
    from benchmarks.gpu.parts import Sizes, time_kernels, time_network

    sizes = Sizes.toy(args.batch) if args.toy else Sizes.full(args.batch, args.planes)
    import numba
    import torch

    capability = ".".join(map(str, info.capability))
    rows: list[Finding] = [
        ("GPU", f"{info.name}, compute capability {capability}, CUDA driver {info.driver}", ""),
        ("software", f"Python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}", ""),
    ]
    rows += time_kernels(sizes)
    names, precisions = (["small"], ["fp32"]) if args.toy else (args.networks, args.precisions)
    for name, precision, kind in product(names, precisions, args.engines):
        try:
            rows += time_network(name, precision, kind, sizes)
        except (ImportError, AttributeError, TilelabError, RuntimeError) as error:
            rows.append((f"{name} {precision} {kind}", f"left out: {str(error).splitlines()[0][:90]}", ""))
    print_table(rows)
    return 0


def print_table(rows: Sequence[Finding]) -> None:
    """What, how much, and what was aimed at."""
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for what, value, goal in rows:
        print(f"{what:<{widths[0]}}  {value:<{widths[1]}}  {goal}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
