"""docs/reference/places.md: what it shows in JSON and for a shell works too, and no trick with places is missing."""

from __future__ import annotations

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest

import trickbox as tb
from trickbox.catalog import available, get
from trickbox.cli import main
from trickbox.spelling import parse_tricks
from trickbox.surgery.ledger import Added, ledger
from trickbox.trick import fields_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "places.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def page():
    """The models and inputs of the page, by name."""
    found = {}
    for example in doctest.DocTestParser().get_examples(PAGE):
        if example.source.startswith(("import ", "from ", "class ", "resnet =", "images =", "gpt =", "tokens =")):
            exec(example.source, found)
    return found


def hosts(model):
    paths = {id(module): path for path, module in model.named_modules()}
    return [paths[id(edit.host)] for edit in ledger(model).edits if isinstance(edit, Added)]


def test_the_json_on_the_page_means_the_places_that_it_names(page):
    (text,) = blocks("json")
    config, model = json.loads(text), page["gpt"]
    tb.apply(model, [config], page["tokens"])
    assert hosts(model) == ["wte", "h.1.mlp.c_proj", "h.2.mlp.c_proj"]
    assert model.wte.trickbox.dropout.p == config["p"]
    tb.undo(model)


def test_the_commands_on_the_page_run_and_say_where(capsys):
    (text,) = blocks("sh")
    for line in text.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "trickbox"
        assert main(arguments) == 0
        out = capsys.readouterr().out
        acted = [row.split()[1] for row in out.splitlines() if "StreamDropout(p=0.2" in row]
        assert acted == ["conv1", "conv2", "fc1"]


def test_the_command_and_the_json_are_two_spellings_of_one_trick():
    (text,) = blocks("json")
    config = json.loads(text)
    settings = ", ".join(f"{name}={value!r}" for name, value in config.items() if name != "trick")
    assert parse_tricks(f"{config['trick']}({settings})") == [config]


def test_every_trick_that_takes_places_is_in_the_table():
    takes = {get(name).__name__ for name in available() if {"at", "not_at"} <= set(fields_of(get(name)))}
    (section,) = re.findall(r"^## What each trick does with it\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == takes
    assert len(takes) == 20


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/how-to/write-a-trick.md"])
def test_the_pages_that_list_pages_link_to_it(page):
    (link,) = set(re.findall(r"\(([\w./]*reference/places\.md)\)", (ROOT / page).read_text()))
    assert ((ROOT / page).parent / link).resolve() == ROOT / "docs" / "reference" / "places.md"
