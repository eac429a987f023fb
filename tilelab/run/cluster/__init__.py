"""Many workers on one job, through Dask: processes of this machine, GPUs, or a whole cluster.

dispatch.py   which unit goes where; what happens when a worker dies.  No Dask, no clock of its own.
task.py       what runs in a worker.
crew.py       the client: carries out what the dispatcher says, keeps the journal.
start.py      where the workers come from; devices.py what ``--device`` means.
"""
