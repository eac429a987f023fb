"""What benchmarks are made of.

settings.py    how large everything is, where things lie.
workbench.py   what every benchmark gets: the model, images, a way to run commands; ledger.py remembers over a kill.
processes.py   a command, watched from outside.
machine.py     what a measurement was made on.
model.py       the network that all use; quantize.py makes it int8.
mosaic.py      large images with known truth.
contenders.py  what tilelab is compared with, and how each is run; quality.py says how far results are apart.
"""
