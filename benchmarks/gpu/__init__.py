"""The GPU path on one GPU: `python -m benchmarks.gpu`.

__main__.py  the command and its table.
parts.py     kernels against a copy, the sweep against the bare engine.
networks.py  what it runs on a machine without our libraries: networks from torchvision, torch as an engine.
"""
