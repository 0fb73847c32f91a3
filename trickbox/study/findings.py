"""What a study found, to be read: as sentences, as a table, as a report."""

from __future__ import annotations

from pathlib import Path

from attrs import define

from trickbox.study import tables, words
from trickbox.study.outcome import Outcome


@define(eq=False, slots=False)
class Findings(Outcome):
    """An outcome that can be read. `confirmed` is what the winner did on fresh seeds and the test set, if it was."""

    confirmed: Findings | None = None

    def sentences(self) -> list[str]:
        """One plain sentence for each comparison."""
        return [words.sentence(comparison) for comparison in self.comparisons]

    def table(self) -> str:
        """The comparisons as a table for the terminal, at most 100 columns wide."""
        return tables.table(self)

    def save(self, path: str | Path) -> Path:
        """Write the report, one HTML file that needs nothing else, and return its path. Takes a few seconds."""
        from trickbox.study import report  # matplotlib is slow to import, and not every study is printed

        return report.save(self, self.confirmed, Path(path))
