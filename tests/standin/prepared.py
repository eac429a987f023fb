"""Runs scripts on the stand-in for the driver, each in a process forked from this one, where all is imported.

Imports and compiled kernels of the host are most of what a script's own process would take.  A line of JSON asks:
``{"script": ..., "arguments": [...], "environment": {...}, "out": FILE, "err": FILE}``; the exit code is the answer,
negative for a signal.  This process itself never calls the driver.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

PATIENCE = 200  # seconds of a script: after that it hangs


def prepare():
    """Import what the scripts do, and have the host's kernels called once."""
    import numpy as np
    import standin_gpu  # noqa: F401

    import tilelab.run.sweep.device  # noqa: F401
    from tilelab.cli.main import main
    from tilelab.engines.registry import read_model

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npy"
        np.save(image, np.arange(256, dtype=np.uint8).reshape(16, 16))
        assert main(["infer", str(image), "--model", "identity:2", "-o", f"{folder}/out.ome.zarr", "-q"]) == 0
    read_model("particles")
    gc.freeze()  # else collecting garbage copies every page into each process


def run(asked):
    """One script to its end."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(PATIENCE)
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, asked["out"], 1), (2, asked["err"], 1)):
        target = os.open(name, flags)
        os.dup2(target, number)
        os.close(target)
    os.environ.update(asked["environment"])
    sys.argv[1:] = asked["arguments"]
    exec(compile(asked["script"], "script", "exec"), {"__name__": "__main__"})  # noqa: S102
    sys.exit()


if __name__ == "__main__":
    prepare()
    print("prepared", flush=True)
    while line := sys.stdin.readline():
        print(run(json.loads(line)), flush=True)
