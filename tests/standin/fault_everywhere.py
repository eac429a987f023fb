"""Let the driver fail in every kind of call that a run makes, each time in a process forked for it.

    python fault_everywhere.py FOLDER [all]    # with image.npy and net.onnx in it; prints one JSON object

Each process runs ``tilelab infer`` and ends as any other does; then the same command runs without the fault.  With
"all" the first, a middle and the last call of each kind fail; without it the middle one, and every fifth continues.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import standin_gpu
from driver_standin import digest

import tilelab
import tilelab.run.infer
import tilelab.run.sweep.device  # noqa: F401 - imported once, not in each process
from tilelab.cli import main

PATIENCE = 200  # seconds of a process: after that it hangs


def counts():
    text = ctypes.create_string_buffer(1 << 13)
    ctypes.CDLL("libcuda.so.1").standin_report(text, len(text))
    return json.loads(text.value)


def run(folder, name, fault=""):
    """Exit code, what was said, what the driver counted and the digest of the result, if there is one."""
    log, out, counted = (folder / f"{name}{end}" for end in (".log", ".ome.zarr", ".json"))
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        with log.open("wb") as target:
            os.dup2(target.fileno(), 1)
            os.dup2(target.fileno(), 2)
        if fault:
            os.environ["STANDIN_FAULT"] = fault
        arguments = ["infer", folder / "image.npy", "--model", folder / "net.onnx", "-o", out, "--lanes", "2"]
        code = main([*map(str, arguments), "--engine", "onnxruntime-cuda", "--device", "cuda"])
        counted.write_text(json.dumps(counts()))
        sys.exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = digest(out) if out.exists() else ""
    return code, log.read_text(), json.loads(counted.read_text()) if counted.exists() else {}, found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for left in folder.glob("*.ome.zarr*"):
        shutil.rmtree(left)
    standin_gpu.install()
    run(folder, "compiled")
    code, said, counted, expected = run(folder, "well")
    assert code == 0, said
    failed = {}
    for call in (name for name in counted if name == "launch" or name.startswith("cu")):
        middle = counted[call] // 2 + 1
        for nth in sorted({1, middle, counted[call]} if "all" in sys.argv else {middle}):
            code, said, _, left = run(folder, "failed", f"{call}:{nth}")
            continued = []
            if "all" in sys.argv or len(failed) % 5 == 0:
                again, words, _, found = run(folder, "failed")
                continued = [again, words, found]
            failed[f"{call}:{nth}"] = [code, said, left, *continued]
            for path in folder.glob("failed.ome.zarr*"):
                shutil.rmtree(path)
    print(json.dumps({"expected": expected, "failed": failed}))
