"""Everything that can go wrong by the user's hand, as one family of exceptions.

The command line prints a `TilelabError` as one line and exits with 2; anything else is a defect of ours and
keeps its traceback.  A message says what was asked, what is true, and what to do.
"""


class TilelabError(Exception):
    """Base of all errors that a user can cause and cure."""


class InputError(TilelabError):
    """An image cannot be read as asked: missing, empty, truncated, corrupt, of an unknown format or kind."""


class ModelError(TilelabError):
    """A model file is broken, says too little of itself, or does not fit the image."""


class EngineError(TilelabError):
    """An engine, device or precision that was asked for is not to be had on this machine."""


class OutputError(TilelabError):
    """An output cannot be written: it exists, is locked by another run, is unwritable, or the disk is full."""


class PlanError(TilelabError):
    """What was asked cannot be done within its limits (memory, geometry)."""


class ResumeError(OutputError):
    """An unfinished output belongs to a different job; the differing fields are named."""


class ClusterError(TilelabError):
    """Workers or their scheduler cannot be reached, disagree or are gone; what was finished is kept."""


class StrictError(TilelabError):
    """Something would have to be assumed, and ``--strict`` forbids it."""


class Incomplete(TilelabError):
    """Some regions failed every time they were tried; all others are finished and kept (exit code 4)."""


class Interrupted(TilelabError):
    """The run was stopped on request and can be continued (exit code 3)."""


class Stopped(Interrupted):
    """The run was stopped on request before there was anything to continue (exit code 130)."""
