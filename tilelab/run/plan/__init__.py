"""What a run will take, in whole numbers, before it starts.

`request` (what is asked, and where its tiles lie), `buffers` and `device_buffers` (every array that a unit holds; the
sweep allocates by them), `share_out` (cuts for several workers), `plan` (units that fit the memory), `estimate` (time).
"""
