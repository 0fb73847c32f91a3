"""The two namespaces: what a user of tricks types, and what an author of tricks needs; and that the first is light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import trickbox as tb
from trickbox import authoring

USER = """
    Arm ConfigError DataError History NoEffectError Result Session Study SurgeryError TrickboxError
    apply attach available bake evaluate explain fit get load optional save sites strip undo
""".split()  # noqa: SIM905
LAZY = ("trickbox", "trickbox.study", "trickbox_tricks")
NAMESPACES = (*LAZY, "trickbox.authoring")
CONSTANTS = {"MakeNorm", "CONVOLUTIONS", "DROPOUTS", "NORMS", "POOLS", "ACCURACY", "LOSS"}


def python(code):
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def declared(namespace):
    """What the type checker sees of a namespace: names to modules, from its stub or else its source."""
    file = Path(importlib.import_module(namespace).__file__)
    tree = ast.parse((file.with_suffix(".pyi") if namespace in LAZY else file).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.name: f"{namespace}.{node.module}" if node.level else node.module
        for node in imports
        for alias in node.names
    }


@pytest.mark.parametrize("use", ["", "trickbox.available()", "dir(trickbox)", "trickbox.get; trickbox.ConfigError"])
def test_neither_torch_nor_matplotlib_nor_a_trick_is_imported_before_it_is_needed(use):
    code = f"import sys, trickbox; {use}\n"
    code += "heavy = ('torch', 'matplotlib', 'numpy', 'scipy', 'trickbox_tricks', 'trickbox.authoring')\n"
    code += "print([m for m in heavy if m in sys.modules])"
    assert python(code) == "[]"


@pytest.mark.parametrize("package", ["trickbox.study", "trickbox_tricks"])
def test_the_other_lazy_packages_are_light_too(package):
    code = f"import sys, {package}\nprint([m for m in ('torch', 'matplotlib', 'numpy', 'scipy') if m in sys.modules])"
    assert python(code) == "[]"


def test_trickbox_shows_what_a_user_types_and_no_more():
    assert tb.__all__ == dir(tb) == USER


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_what_the_type_checker_sees_is_what_is_exported(namespace):
    module = importlib.import_module(namespace)
    assert sorted(declared(namespace)) == sorted(module.__all__)
    if namespace in LAZY:
        stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text()).body[-1]
        assert isinstance(stub, ast.Assign)
        assert sorted(ast.literal_eval(stub.value)) == module.__all__


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_name_is_the_object_of_the_module_that_the_type_checker_sees(namespace):
    module = importlib.import_module(namespace)
    for name, home in declared(namespace).items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name), name


@pytest.mark.parametrize("package", LAZY)
def test_no_public_name_is_the_name_of_a_module(package):
    """Importing a module puts it into its package under its name: a function of that name would be gone."""
    module = importlib.import_module(package)
    assert not {path.stem for path in Path(module.__file__).parent.iterdir()} & set(module.__all__)


def test_all_modules_imported_in_whatever_order_leave_every_name_in_its_place():
    homes = sorted({home for namespace in NAMESPACES for home in declared(namespace).values()})
    code = "import importlib, types\n"
    code += f"[importlib.import_module(name) for name in {homes}]\n"
    code += f"spaces = [importlib.import_module(name) for name in {NAMESPACES}]\n"
    code += "print([n for s in spaces for n in s.__all__ if isinstance(getattr(s, n), types.ModuleType)])"
    assert python(code) == "[]"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_dir_lists_every_public_name(namespace):
    module = importlib.import_module(namespace)
    assert set(module.__all__) <= set(dir(module))
    assert [name for name in dir(module) if not name.startswith("_")] == sorted(module.__all__)


def test_names_of_both_namespaces_are_the_same_objects():
    shared = set(tb.__all__) & set(authoring.__all__)
    assert shared == {"ConfigError", "DataError", "NoEffectError", "SurgeryError"}
    assert all(getattr(tb, name) is getattr(authoring, name) for name in shared)


def test_what_is_for_authors_is_no_attribute_of_trickbox():
    for name in set(authoring.__all__) - set(tb.__all__):
        assert isinstance(getattr(tb, name, types), types.ModuleType), name


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="trickbox attribute fitt"):
        tb.fitt  # noqa: B018
    assert not hasattr(tb, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'hookimpl' from 'trickbox'"):
        from trickbox import hookimpl  # noqa: F401


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_public_name_has_a_docstring(namespace):
    module = importlib.import_module(namespace)
    names = set(module.__all__) - CONSTANTS
    assert [name for name in names if not (getattr(module, name).__doc__ or "").strip()] == []


def test_all_errors_are_trickbox_errors_and_bad_settings_are_value_errors():
    for error in (tb.ConfigError, tb.DataError, tb.NoEffectError, tb.SurgeryError):
        assert issubclass(error, tb.TrickboxError)
    assert issubclass(tb.ConfigError, ValueError)
    assert issubclass(tb.DataError, ValueError)
