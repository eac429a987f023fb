"""What the commands of this package share."""

from __future__ import annotations

import argparse


def make_parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of ``python -m MODULE``, whose help begins with the module's own text, as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
