"""The README's example runs as it is printed, and its two commands are the ones that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_and_leaves_the_model_as_it_was(capsys):
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "val_accuracy" in capsys.readouterr().out
    assert not [key for key in names["result"].model.state_dict() if "trickbox" in key]


def test_there_are_exactly_two_commands():
    compare, tests = blocks("console")
    assert compare.strip().endswith("trickbox compare --out results")
    assert "pytest" in tests


def test_every_trick_in_the_table_exists_and_none_is_missing():
    import trickbox_tricks

    table = README[README.index("| chapter | tricks |") : README.index("`trickbox list`")]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(trickbox_tricks.__all__)


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
