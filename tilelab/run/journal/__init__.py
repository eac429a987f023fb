"""What is finished of a run, so that a killed one goes on where it was.

`fingerprint` (of which job), `open` (where), `local` (a folder and a lock) or `remote` (objects and a `lease`).
"""
