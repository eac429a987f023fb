"""How the plots look.

Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart.
"""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9"
GREY, LIGHT, INK = "#9a9a9a", "#dddddd", "#333333"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 160,
}
WIDTH = 7.2


def subplots(height: float, columns: int = 1, **options: Any) -> Any:
    """A figure as wide as the page, and its axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(WIDTH, height), layout="constrained", **options)
