"""The measurements, one module each.

On the page:
precision.py   what each engine and precision costs; efficiency.py tilelab against the bare engine.
limits.py      kernels and formats against the machine.
scaling.py     larger and larger images.
versus.py      what users would pick instead.
scaleout.py    many workers: simulate.py the dispatcher on a simulated clock, idle_units.py real workers that sleep.

On their own:
guard.py       ratios that tell when we got slower.
stack.py       a gigabyte, cut up and killed in every way.
"""
