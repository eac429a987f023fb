"""What is known of a type is made when it is imported: msgspec crashes where two threads ask first at a time."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import json, sys, threading
import msgspec
from tilelab.geometry import Box
from tilelab.io.results.result import ResultInfo
from tilelab.io.zarr.documents import ArrayV2, ArrayV3, Group, Sharding
from tilelab.spec import ModelSpec

sys.setswitchinterval(1e-6)
for kind in (ResultInfo, ArrayV2, ArrayV3, Group, Sharding, ModelSpec):
    ready = threading.Barrier(4)

    def ask():
        ready.wait()
        try:
            msgspec.convert({}, kind)
        except msgspec.ValidationError:
            pass

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("done")
"""


def test_threads_may_read_what_results_models_and_stores_say() -> None:
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=120)
        assert run.stdout == "done\n", run.stderr
