"""Many workers on one job, through Dask: processes of this machine, GPUs, or a whole cluster.

dispatch.py      which unit goes where; what happens when a worker dies.  No Dask, no clock of its own.  It asks
    backlog.py   what is still to hand out,
    coverage.py  which rows of a unit are on disk,
    roster.py    who is there,
    helping.py   who helps whom at the end; all of them speak of what attempt.py defines.
order.py         what is sent to workers.
task.py          what runs in a worker; reporting.py what it says meanwhile.
crew.py          the client: loads the engine in all workers, then shared_sweep.py carries out what the dispatcher says
                 (outbox.py: through Dask) and keeps the journal.
start.py         where the workers come from; devices.py what ``--device`` means.
"""
