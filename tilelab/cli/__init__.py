"""The command line; one module per command, imported only when that command runs."""

from tilelab.cli.main import main

__all__ = ["main"]
