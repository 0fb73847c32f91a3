"""What is installed: found without import, loaded when named, and every fault said with its distribution."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import subprocess
import sys

import pytest

import trickbox as tb
from trickbox import catalog
from trickbox.authoring import hookimpl, trick
from trickbox.box import Box

TRICK = '''
"""A trick as its author would publish it."""
from trickbox.authoring import hookimpl, trick

@trick
class {name}:
    """Do nothing. Cost: none."""

    @hookimpl
    def batch(self, state): ...
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make a distribution that is found as an installed one, with one module and its entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(dist, version, points, **modules):
        info = tmp_path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        info.joinpath("entry_points.txt").write_text(f"[trickbox.tricks]\n{lines}\n")
        for module, source in modules.items():
            tmp_path.joinpath(f"{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)
        catalog.refresh()

    yield install
    monkeypatch.undo()
    catalog.refresh()


def test_a_new_distribution_is_found_after_refresh_and_gone_afterwards(install):
    before = tb.available()
    install("fake-tricks", "1.2", {"zebra": "fake_zebra:Zebra"}, fake_zebra=TRICK.format(name="Zebra"))
    assert tb.available() == sorted([*before, "zebra"])
    record = Box(["zebra"]).record()
    assert record[0]["distribution"] == "fake-tricks 1.2"
    assert record[0]["class"] == "fake_zebra:Zebra"


def test_installed_is_not_enabled_and_not_imported_before_it_is_named(install, run):
    install("fake-tricks", "1.2", {"zebra": "fake_zebra:Zebra"}, fake_zebra="raise SystemExit('imported')")
    assert "zebra" in tb.available()
    result = run(["dropout"])
    assert [entry["trick"] for entry in result.record["tricks"]] == ["dropout"]
    assert "fake_zebra" not in sys.modules


def test_a_name_in_two_distributions_is_an_error_with_the_spellings(install):
    for dist in ("fake-one", "fake-two"):
        module = dist.replace("-", "_")
        install(dist, "1.0", {"zebra": f"{module}:Zebra"}, **{module: TRICK.format(name="Zebra")})
    with pytest.raises(tb.ConfigError, match=r"several .* 'zebra'; name one of .*'fake-(one|two):zebra', 'fake-"):
        tb.get("zebra")
    for dist in ("fake-one", "fake-two"):
        assert tb.get(f"{dist}:zebra").__module__ == dist.replace("-", "_")
        assert Box([f"{dist}:zebra"]).record()[0]["distribution"] == f"{dist} 1.0"
    assert tb.available().count("zebra") == 1
    with pytest.raises(tb.ConfigError, match="no trick 'fake-three:zebra' is installed"):
        tb.get("fake-three:zebra")


def test_a_duplicate_of_a_built_in_trick_does_not_win_silently(install):
    install("fake-tricks", "1.0", {"dropout": "fake_drop:Dropout"}, fake_drop=TRICK.format(name="Dropout"))
    with pytest.raises(tb.ConfigError, match="'trickbox:dropout'"):
        Box(["dropout"])
    assert tb.get("trickbox:dropout").__module__ == "trickbox_tricks.dropout"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = 1", "AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_broken_import_names_trick_module_and_distribution(install, source, cause):
    install("fake-tricks", "1.2", {"zebra": "fake_zebra:Zebra"}, fake_zebra=source)
    with pytest.raises(tb.ConfigError, match=rf"trick 'zebra' \(fake_zebra:Zebra of fake-tricks 1.2\).*{cause}"):
        tb.get("zebra")
    assert tb.get("dropout").__name__ == "Dropout"  # one broken distribution harms no other


@pytest.mark.parametrize("source", ["class Zebra: ...", "Zebra = 3", "def Zebra(): ..."])
def test_an_entry_point_that_is_no_trick_is_said(install, source):
    install("fake-tricks", "1.2", {"zebra": "fake_zebra:Zebra"}, fake_zebra=source)
    with pytest.raises(tb.ConfigError, match="fake_zebra:Zebra is not a trick; decorate its class"):
        tb.get("zebra")


def test_an_unknown_name_has_the_near_match_and_the_command_that_lists():
    with pytest.raises(tb.ConfigError, match=r"Did you mean 'early_stopping'\? See: trickbox list"):
        tb.get("early_stoping")


def test_available_imports_no_trick():
    code = (
        "import sys, trickbox; trickbox.available(); print([m for m in sys.modules if m.startswith('trickbox_tricks')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_origin_is_that_of_the_class_not_of_the_name(install):
    """A class of the user's own that is called as an installed trick is not taken for it."""
    Dropout = trick(type("Dropout", (), {"__doc__": "Toy.", "batch": hookimpl(lambda self, state: None)}))
    assert Box([Dropout()]).record()[0]["distribution"] == "not registered"
