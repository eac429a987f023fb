"""Connected components of one plane: tilelab against scikit-image and dask-image, each a process of its own.

    python -m benchmarks.measure.objects PLANE.tif [--peers PYTHON]

PLANE is a TIFF of class indices; PYTHON has scikit-image, dask-image and tifffile (not installed with tilelab).  All
number the objects of class 1 by faces; seconds are without start-up, memory is the largest that was resident, less what
was resident before.  `tilelab` streams from the file into OME-Zarr with all levels and measures every object as well;
`tilelab, in memory` only numbers an array, as the others do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

_START = """
import json, sys, time, tifffile, numpy as np
def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
path, out = sys.argv[1:]
"""
_STOP = """
print(json.dumps({"seconds": stop - start, "cpu": cpu, "memory": resident("VmHWM") - before, "objects": int(count)}))
"""
_READ = """
plane = (tifffile.imread(path) == 1).astype(np.uint8)
"""
CONTENDERS = {
    "tilelab": """
from tilelab.measure import Question, measure
from tilelab.io.convert import convert_image
import tilelab.kernels.objects.front
small = tifffile.imread(path)[:64, :64]
tifffile.imwrite(out + ".tif", small)
with_small = measure(out + ".tif", Question(only=("1",)))
list(with_small.columns()); convert_image(with_small.objects_image(), out + ".small.ome.zarr", labels=True)
before = resident("VmRSS"); start, cpu = time.perf_counter(), time.process_time()
survey = measure(path, Question(only=("1",)))
list(survey.columns())
convert_image(survey.objects_image(), out + ".ome.zarr", labels=True)
stop, cpu = time.perf_counter(), time.process_time() - cpu; count = survey.objects.count
""",
    "tilelab, in memory": _READ
    + """
from tilelab.measure.components import ArrayPlanes, find_objects
from tilelab.geometry import Box
find_objects(ArrayPlanes(plane[:64, :64])).read(Box((0, 0, 0), (1, 64, 64)))
before = resident("VmRSS"); start, cpu = time.perf_counter(), time.process_time()
objects = find_objects(ArrayPlanes(plane))
numbers = objects.read(Box.whole(objects.labels.shape), np.uint32)
stop, cpu = time.perf_counter(), time.process_time() - cpu; count = objects.count
""",
    "scikit-image": _READ
    + """
from skimage.measure import label
before = resident("VmRSS"); start, cpu = time.perf_counter(), time.process_time()
numbers, count = label(plane, connectivity=1, return_num=True)
stop, cpu = time.perf_counter(), time.process_time() - cpu
""",
    "dask-image": _READ
    + """
import dask.array as da
from dask_image.ndmeasure import label
before = resident("VmRSS"); start, cpu = time.perf_counter(), time.process_time()
numbers, count = label(da.from_array(plane, chunks=(2048, 2048)))
numbers, count = da.compute(numbers, count)
stop, cpu = time.perf_counter(), time.process_time() - cpu
""",
}


def main() -> int:
    """Run every contender; print a line each and the whole as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plane", type=Path)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has scikit-image and dask-image")
    args = parser.parse_args()
    found = {}
    for name, code in CONTENDERS.items():
        python = sys.executable if name.startswith("tilelab") else args.peers
        with tempfile.TemporaryDirectory() as folder:
            command = [python, "-c", _START + code + _STOP, str(args.plane.resolve()), f"{folder}/out"]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        one = found[name]
        times = f"{one['seconds']:.2f} s, {one['cpu']:.2f} s of processor"
        print(f"{name}: {times}, {one['memory'] / 2**20:.0f} MiB, {one['objects']:,} objects", flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
