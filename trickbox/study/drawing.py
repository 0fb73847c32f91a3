"""What all pictures share: colors that follow the page, blank figures, and SVG to put into a page."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers can tell apart. In a page each becomes a variable of its style, so
# that pictures are light or dark as the page is.
BLUE, RED, GREEN, GRAY, ORANGE, BAND = "#0072b2", "#b34700", "#007a58", "#5b6570", "#e69f00", "#eceff3"
INK, PAPER = "#000000", "#ffffff"
VERDICTS = {"helps": BLUE, "hurts": RED, "equivalent": GREEN, "inconclusive": GRAY}
_VARIABLES = {
    BLUE: "var(--blue)",
    RED: "var(--red)",
    GREEN: "var(--green)",
    GRAY: "var(--gray)",
    ORANGE: "var(--orange)",
    BAND: "var(--band)",
    INK: "currentColor",
    PAPER: "var(--paper)",
}


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches, outside of pyplot's global list."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def clean(axes: Axes, left: bool = True) -> None:
    """Leave only the spines that carry ticks."""
    axes.spines[["top", "right"] if left else ["top", "right", "left"]].set_visible(False)


def whole_epochs(axes: Axes) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def svg(figure: Figure, text: str) -> str:
    """The figure as an element of a page, with *text* for those who cannot see it; equal figures give equal text.

    Fonts and colors are the page's. It has no address in it, so that it loads nothing.
    """
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "trickbox", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->| xmlns(:\w+)?=\"[^\"]*\"", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    for color, variable in _VARIABLES.items():
        drawn = drawn.replace(color, variable)
    return f'<svg role="img" aria-label="{escape(text)}"{drawn[drawn.index("<svg") + 4 :].strip()}'
