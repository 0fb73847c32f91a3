"""The package itself: what it exports, and that importing it loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trickbox as tb


def python(code):
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.parametrize(
    "use", ["", "trickbox.available()", "dir(trickbox)", "trickbox.interval; trickbox.ConfigError"]
)
def test_neither_torch_nor_matplotlib_nor_a_trick_is_imported_before_it_is_needed(use):
    code = f"import sys, trickbox; {use}\n"
    code += "heavy = ('torch', 'matplotlib', 'numpy', 'scipy', 'trickbox_tricks')\n"
    code += "print([m for m in heavy if m in sys.modules])"
    assert python(code) == "[]"


def declared():
    """What the type checker sees: names to modules, from the source."""
    tree = ast.parse(Path(tb.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in [*tree.body, *block.body] if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.startswith("trickbox.")]
    return {alias.asname: (node.module, alias.name) for node in ours for alias in node.names}


def test_what_the_type_checker_sees_is_what_is_exported():
    assert sorted(declared()) == tb.__all__
    assert all(name == original for name, (_, original) in declared().items())


def test_every_name_is_the_object_of_the_module_that_the_type_checker_sees():
    for name, (module, _) in declared().items():
        assert getattr(tb, name) is getattr(sys.modules[module], name), name


def test_importing_a_module_puts_no_module_in_the_place_of_a_name():
    """`trickbox.trick` is a decorator and a module: whichever is imported first, the name means the decorator."""
    homes = sorted({module for module, _ in declared().values()})
    code = "import importlib, types, trickbox\n"
    code += f"[importlib.import_module(name) for name in {homes}]\n"
    code += "print([n for n in trickbox.__all__ if isinstance(getattr(trickbox, n), types.ModuleType)])"
    assert python(code) == "[]"


def test_dir_lists_every_public_name():
    assert set(tb.__all__) <= set(dir(tb))
    assert dir(tb) == sorted(dir(tb))


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trickbox' has no attribute 'fitt'"):
        tb.fitt  # noqa: B018
    assert not hasattr(tb, "__wrapped__")


def test_every_public_name_has_a_docstring():
    constants = {"CONVOLUTIONS", "DROPOUTS", "NORMS", "POOLS", "WEIGHT_LAYERS"}
    assert [
        name for name in tb.__all__ if name not in constants and not (getattr(tb, name).__doc__ or "").strip()
    ] == []


def test_all_errors_are_trickbox_errors_and_bad_settings_are_value_errors():
    for error in (tb.ConfigError, tb.DataError, tb.NoEffectError, tb.SurgeryError):
        assert issubclass(error, tb.TrickboxError)
    assert issubclass(tb.ConfigError, ValueError)
    assert issubclass(tb.DataError, ValueError)
