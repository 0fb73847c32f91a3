"""The record of a run: one row an epoch, as columns, a table, a CSV file and curves."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field

from trickbox.errors import ConfigError, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@define
class History:
    """One row an epoch. ``history["val_loss"]`` is a column; ``print(history)`` a table.

    >>> history = History([{"epoch": 0, "train_loss": 1.25}, {"epoch": 1, "train_loss": 1.0}])
    >>> history["train_loss"]
    [1.25, 1.0]
    >>> print(history)
    epoch  train_loss
        0      1.2500
        1      1.0000
    """

    rows: list[dict[str, float]] = field(factory=list)

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order in which they first appeared."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[float]:
        if column not in self.columns:
            known = ", ".join(self.columns) or "none yet"
            raise ConfigError(f"history has no column {column!r}; it has {known}.{near(column, self.columns)}")
        return [row.get(column, float("nan")) for row in self.rows]

    def table(self) -> str:
        """The rows as aligned text."""
        header = self.columns
        lines = [header] + [[_cell(row.get(name)) for name in header] for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)

    __str__ = table

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a CSV file, with all digits."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curves, training and validation of one metric in one panel; with *path*, write the picture.

        Draws on no screen and changes no setting of matplotlib.
        """
        from matplotlib.figure import Figure

        panels = list(dict.fromkeys(_panel(name) for name in self.columns if name not in ("epoch", "step")))
        if not panels:
            raise ConfigError("history is empty: there is nothing to plot before the first epoch has ended")
        figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name in (column for column in self.columns if _panel(column) == panel):
                axes.plot(self["epoch"], self[name], label=name, marker="." if len(self) < 40 else None)
            axes.set_xlabel("epoch")
            axes.set_title(panel)
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(Path(path), dpi=120)
        return figure


def _panel(column: str) -> str:
    return column.removeprefix("train_").removeprefix("val_")


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return (
        str(value) if isinstance(value, int) else f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"
    )
