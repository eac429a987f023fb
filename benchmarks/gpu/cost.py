"""What a terabyte takes and costs, from figures that were measured: ``python -m benchmarks.gpu.cost FILE --price X``.

FILE is what ``python -m benchmarks.gpu --json FILE`` wrote.  A terabyte is 10^12 pixels of 8 bits.  Used are the speeds
of the sustained runs and of the whole command; where there are none, nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEGAPIXELS_A_TERABYTE = 1e6
_USED = (": sustained", ": warm again")


def cost_table(measured: Mapping[str, Any], price: float, currency: str = "") -> list[str]:
    """Lines of a Markdown table, a row for each measured speed; none where nothing was measured.

    Args:
        measured: the GPU, and what was found.
        price: of the GPU for an hour.
        currency: of the price.
    """
    used = [f for f in measured["findings"] if f["figure"] and f["what"].endswith(_USED)]
    if not used:
        return []
    unit = f" {currency}" if currency else ""
    lines = [f"Measured on {measured['gpu']}, at {price:g}{unit} for an hour of it.", ""]
    lines += ["| | MP/s | hours a TB | cost a TB |", "|---|---:|---:|---:|"]
    for finding in used:
        hours = MEGAPIXELS_A_TERABYTE / finding["figure"] / 3600
        lines.append(f"| {finding['what']} | {finding['figure']:.0f} | {hours:.2f} | {hours * price:.2f}{unit} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 2, having printed nothing, where nothing was measured."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cost", description=description)
    parser.add_argument("measured", type=Path, metavar="FILE")
    parser.add_argument("--price", type=float, required=True, help="of the GPU for an hour")
    parser.add_argument("--currency", default="")
    args = parser.parse_args(argv)
    lines = cost_table(json.loads(args.measured.read_text()), args.price, args.currency)
    if not lines:
        print(f"benchmarks.gpu.cost: {args.measured} has no measured speed", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
