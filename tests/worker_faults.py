"""Preloaded into Dask workers: makes the identity engine slow, and lets tiles that hold a marker go wrong.

The environment variable TILELAB_TEST_FAULTS names a JSON file, read anew for every batch:
    pause   seconds to wait for every batch
    marker  grey value; a tile that holds it meets the fault
    what    raise, die, hang, eat (memory) or starve (an output error)
    times   how often it does so, over all workers; absent: always
    odd     what one of the workers says of its version, and the others do not
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np


def _faults():
    try:
        return json.loads(Path(os.environ["TILELAB_TEST_FAULTS"]).read_text())
    except (KeyError, OSError, ValueError):
        return {}


def _is_due(faults):
    """Count the fault in files, which outlive the process."""
    if "times" not in faults:
        return True
    for n in range(faults["times"]):
        try:
            Path(f"{os.environ['TILELAB_TEST_FAULTS']}.{n}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def _go_wrong(what):
    if what == "raise":
        raise RuntimeError("the marker was met")
    if what == "starve":
        from tilelab.errors import OutputError

        raise OutputError("cannot write anything: the disk is full")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(3600)
    if what == "eat":
        held = []
        while True:
            held.append(np.ones(8 << 20))
            time.sleep(0.05)


def dask_setup(worker):
    """Called by Dask in each worker."""
    from tilelab.engines.identity import IdentityEngine

    plain, odd = IdentityEngine.run, []

    def run(self, tiles, out):
        faults = _faults()
        time.sleep(faults.get("pause", 0))
        if "marker" in faults and (tiles == faults["marker"]).any() and _is_due(faults):
            _go_wrong(faults["what"])
        plain(self, tiles, out)

    def versions(self):
        faults = _faults()
        if "odd" in faults and not odd:
            odd.append(_is_due({"times": 1}))
        return {"library": faults["odd"]} if odd and odd[0] else {}

    IdentityEngine.run, IdentityEngine.versions = run, versions
