"""docs/explanation/design.md names every module, every test that it names exists, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from trickbox.testing import CHECKS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "explanation" / "design.md").read_text()
TREE = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)


def named_modules(package: str) -> list[str]:
    assert TREE is not None
    (part,) = re.findall(rf"^{package}/\n((?:  .*\n)*)", TREE[1], re.MULTILINE)
    return re.findall(r"^  (\S+\.py)  +\S", part, re.MULTILINE)


@pytest.mark.parametrize(
    ("package", "folder"), [("trickbox", ROOT / "trickbox"), ("trickbox_tricks", ROOT / "plugins" / "trickbox_tricks")]
)
def test_every_module_has_its_line_and_no_line_has_no_module(package, folder):
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    assert sorted(named_modules(package)) == there


def test_the_line_of_a_family_names_its_tricks():
    assert TREE is not None
    lines = dict(re.findall(r"^  (\w+)\.py +(.*)$", TREE[1].split("trickbox_tricks/\n")[1], re.MULTILINE))
    del lines["__init__"]
    assert {home: sorted(line.split(", ")) for home, line in lines.items()} == {
        node.module: sorted(alias.name for alias in node.names)
        for node in ast.parse((ROOT / "plugins" / "trickbox_tricks" / "__init__.pyi").read_text()).body
        if isinstance(node, ast.ImportFrom)
    }


def test_every_test_on_the_page_exists():
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named
    assert named <= defined, named - defined
    assert set(re.findall(r"`(check_\w+)`", PAGE)) <= set(CHECKS)


def test_there_are_thirteen_promises():
    assert [int(number) for number in re.findall(r"^\| (\d+)\. \*\*", PAGE, re.MULTILINE)] == list(range(1, 14))


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{target}#{anchor}"
