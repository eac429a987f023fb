"""What a user runs to decide whether to switch, and what tells us when we got slower.

__main__.py   the commands; registry.py names the benchmarks of the page, suite.py runs them and keeps what they found.
measure/      the measurements, one module each.
page/         from what they found to the page, its plots and the README's table.
bench/        what they are made of: settings, model, images, machine, processes, contenders.
peers/        what users would pick instead, one adapter each.
trained/      what trained models reach: pages of their own.
gpu/          the GPU path on a machine that has little else.
"""
