"""docs/reference/loops.md counts the lines that the loops of the tests really have."""

from __future__ import annotations

import re
from pathlib import Path

from loops.variants import FRAMEWORKS, PLAIN, marked

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "loops.md").read_text()
FOUND = re.findall(r"^\| `(\w+)`.*? \| (\d) \| (\d) \| (\d) \|", PAGE, re.MULTILINE)
ROWS = {name: tuple(map(int, numbers)) for name, *numbers in FOUND}


def test_every_loop_has_its_row_and_no_row_is_without_a_loop():
    assert sorted(ROWS) == sorted([*PLAIN, *FRAMEWORKS, "distributed"])


def test_the_numbers_of_lines_are_those_of_the_loops():
    for name, (always, batches, validation) in ROWS.items():
        lines = marked(name)
        assert (always, batches, validation) == (
            lines[""],
            lines[""] + lines["batches"],
            lines[""] + lines["batches"] + lines["validation"],
        ), name
