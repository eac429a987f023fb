"""The GPU path on one GPU: `python -m benchmarks.gpu`.

__main__.py  the command and its table.
basics.py    sizes, findings, times on a stream; the bus.
kernels.py   kernels against NumPy and against a copy; their launches.
sweeps.py    the sweep against the bare engine.
product.py   the whole command, from a file to a result.
networks.py  what it runs on a machine without our libraries: networks from torchvision, torch as an engine.
cost.py      time and money for a terabyte, from what was measured.
"""
