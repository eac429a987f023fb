"""Compile the launches of our kernels to PTX, and that to machine code: ``python compile_kernels.py COMPILER``.

Every launch for one architecture and a few for the others; with the one of two compilers that is not chosen, a few
only.

Without a GPU; numba-cuda-mlir asks for a driver even so, for which the stand-in serves.  Says the compiler's name and
how much was compiled.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from types import SimpleNamespace

import numpy as np

ARCHITECTURES = [(9, 0), (7, 5), (8, 0), (12, 0)]


class Recorder:
    """Stands in for a kernel: keeps what it was launched with."""

    args = ()

    def __getitem__(self, configuration):
        return self

    def __call__(self, *args):
        self.args = args


def f32(*shape):
    return np.zeros(shape, np.float32)


def u8(*shape):
    return np.zeros(shape, np.uint8)


def i32(*shape):
    return np.zeros(shape, np.int32)


def launches():
    """Each kernel with the arguments that our own launch gives it, as NumPy arrays."""
    from tilelab.kernels import cuda, cuda_elementwise
    from tilelab.kernels.reference import SIGMOID, SOFTMAX

    recorder, found = Recorder(), []
    real, cuda._cut = cuda._cut, recorder
    for raw, out in ((np.uint8, np.float16), (np.uint8, np.float32), (np.uint16, np.float32), (np.float32, np.float32)):
        band = np.zeros((1, 8, 1, 8), raw)
        cuda.cut(band, (0, 0), (8, 1, 8), i32(4, 4), 0, 2, 0, f32(1), f32(1), np.zeros((2, 1, 4, 1, 4), out))
        found.append((f"cut {np.dtype(raw)} {np.dtype(out)}", real, recorder.args))
    blend_kernel, finish_kernel = cuda._blend_kernel, cuda._finish_kernel
    cuda._blend_kernel = cuda._finish_kernel = lambda *wanted: recorder
    for classes in (1, 3, 19):
        canvas = f32(classes, 8, 1, 8)
        for dtype in (np.float32, np.float16):
            logits = np.zeros((2, classes, 4, 1, 4), dtype)
            cuda.blend(canvas, logits, i32(4, 4), 0, 2, 0, (f32(4), f32(1, 1), f32(1, 4)), (0, 0), 0, 4)
            found.append((f"blend {classes} {np.dtype(dtype)}", blend_kernel(classes), recorder.args))
        for activation in (SOFTMAX, SIGMOID) if classes in (3, 19) else ():
            for more in (False, True):
                asked = (u8(1, 4, 1, 8), i32(1), f32(classes, 4, 1, 8)) if more else ()
                cuda.finish(canvas, 0, activation, u8(4, 1, 8), i32(1), *asked)
                wanted = (classes, activation, more, more)
                found.append((f"finish {wanted}", finish_kernel(*wanted), recorder.args))
    lesser = {}
    for name in ("_undo_softmax", "_undo_sigmoid", "_turn", "_fill_zero"):
        lesser[name] = getattr(cuda_elementwise, name)
        setattr(cuda_elementwise, name, recorder)
    half, single = np.zeros((2, 4, 4), np.float16), f32(2, 4, 4)
    for array in (half, single):
        for name, activation in (("_undo_softmax", SOFTMAX), ("_undo_sigmoid", SIGMOID)):
            cuda_elementwise.undo_activation(array, activation)
            found.append((f"{name} {array.dtype}", lesser[name], recorder.args))
        cuda_elementwise.turn(array, single, 1, True, back=True, add=True)
        found.append((f"turn {array.dtype}", lesser["_turn"], recorder.args))
    for array in (half, single, u8(3), i32(1)):
        cuda_elementwise.clear(array)
        found.append((f"clear {array.dtype}", lesser["_fill_zero"], recorder.args))
    return found


def resources(ptx, architecture):
    """Registers and local memory as the linker reports them; it needs no GPU."""
    from cuda.bindings import nvjitlink

    options = [f"-arch={architecture}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        data = ptx.encode() + b"\0"
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    text = log.decode()
    found = re.search(r"used (\d+) registers.* (\d+) stack.* (\d+) bytes lmem", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return registers, max(stack, local)


def check(name, ptx, cc):
    """Nothing spills, nothing is atomic, no product is fused with a sum that the CPU rounds apart."""
    assert f".target sm_{cc[0]}{cc[1]}" in ptx, name
    assert ".local" not in ptx, name
    assert not re.search(r"\b(atom|red)\.", ptx), name
    registers, spilled = resources(ptx, f"sm_{cc[0]}{cc[1]}")
    assert spilled == 0, (name, cc, spilled)
    assert registers <= 96, (name, cc, registers)  # five blocks of 128 threads on every multiprocessor
    if name.startswith("blend"):
        assert "fma.rn.f32" not in ptx, (name, cc)


def main(compiler):
    other = importlib.util.find_spec("numba_cuda_mlir")
    every = compiler == "numba-cuda-mlir" or other is None
    if compiler == "numba-cuda":
        sys.modules["numba_cuda_mlir"] = None
    from tilelab.kernels.compiler import COMPILER, cuda, typeof

    assert compiler == COMPILER, f"{COMPILER} compiles here, not {compiler}"
    if compiler == "numba-cuda":
        import numba.cuda.dispatcher
        from numba import types

        # the only thing it asks a GPU for, when a kernel calls another function
        current = SimpleNamespace()
        numba.cuda.dispatcher.get_current_device = lambda: current
        void = types.void
    else:
        from numba_cuda_mlir.numba_cuda.types import void

        current = SimpleNamespace()
    found, count = launches(), 0
    for cc in ARCHITECTURES:
        current.compute_capability = cc
        for number, (name, kernel, args) in enumerate(found):
            usual = cc == ARCHITECTURES[0]
            if (usual and every) or number % (8 if usual else 16) == 1:
                signature = void(*map(typeof, args))
                ptx, _ = cuda.compile(kernel.py_func, signature, device=False, abi="numba", cc=cc, output="ptx")
                check(name, ptx, cc)
                count += 1
    print(f"{COMPILER} compiled {count} kernels")


if __name__ == "__main__":
    main(sys.argv[1])
