"""The house of the design: who may import whom, how large things may grow, what start-up loads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = """
    errors files streams nest monitor ranks history
    surgery.recompute surgery.draws surgery.inside surgery.attach surgery.tape surgery.sites surgery.flow
    surgery.anatomy surgery.depths surgery.attention surgery.branches
    surgery.places surgery.ledger surgery.edits surgery.trial surgery.norms surgery.bake surgery.table surgery.picture
    surgery
    state hooks trick validators steps data metrics targets optimization catalog box checks run phases session
    loops saving engine
    adapters adapters.lightning adapters.transformers
    study.task study.guess study.own tasks study tasks.drawn tasks.waveforms tasks.series
    tasks.waveform21 tasks.real tasks.source tasks.lesson testing spelling cli
""".split()  # noqa: SIM905
"""Modules and packages of the core; each imports only what stands to its left, or its own package."""

CORE = sorted((ROOT / "trickbox").rglob("*.py"))
TRICKS = sorted((ROOT / "plugins" / "trickbox_tricks").glob("*.py"))

FACADES = ("trickbox", "trickbox.authoring")
"""What users and authors import from; they may import everything, and nothing in the core imports from them."""


def runtime_imports(path: Path) -> set[str]:
    """The modules that a file imports when it runs, also inside functions, but not for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(module: str) -> int | None:
    """Where a module of the core stands in the order; None for all others."""
    name = module.removeprefix("trickbox").lstrip(".")
    while name:
        if name in ORDER:
            return ORDER.index(name)
        name = name.rpartition(".")[0]
    return None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", [p for p in CORE if module_of(p) not in FACADES], ids=module_of)
def test_imports_point_to_the_left_only(path):
    here = place(module_of(path))
    assert here is not None, f"{path.name} has no place in the order"
    for imported in runtime_imports(path):
        there = place(imported) if imported.startswith("trickbox.") else None
        same_package = ORDER[here] in ("study", "testing") and there == here
        assert there is None or there < here or same_package, f"{module_of(path)} imports {imported}, to its right"


@pytest.mark.parametrize("path", CORE, ids=module_of)
def test_the_core_imports_nothing_from_its_facades(path):
    public = {f"{facade}.{name}" for facade in FACADES for name in importlib.import_module(facade).__all__}
    assert not runtime_imports(path) & {"trickbox.authoring", *public}


@pytest.mark.parametrize("path", CORE, ids=module_of)
def test_the_core_imports_no_trick(path):
    assert not [name for name in runtime_imports(path) if name.startswith("trickbox_tricks")]


@pytest.mark.parametrize("path", TRICKS, ids=lambda path: path.stem)
def test_tricks_use_public_names_only_and_no_other_trick(path):
    from trickbox import authoring

    public = {"trickbox.authoring", *(f"trickbox.authoring.{name}" for name in authoring.__all__)}
    for imported in runtime_imports(path):
        if imported.startswith("trickbox_tricks"):
            pytest.fail(f"{path.name} imports another trick: {imported}")
        if imported.partition(".")[0] == "trickbox":
            assert imported in public, f"{path.name} imports {imported}"


def test_the_core_trains_with_all_tricks_hidden():
    script = """
import sys
sys.modules["trickbox_tricks"] = None
import importlib.metadata as metadata
metadata.entry_points = lambda **_: metadata.EntryPoints()
import torch, trickbox as tb
data = torch.randn(8, 2), torch.arange(8) % 2
result = tb.fit(torch.nn.Linear(2, 2), data, loss=torch.nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, max_epochs=1)
assert tb.available() == [] and len(result.history) == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("path", [*CORE, *TRICKS], ids=module_of)
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path.name} is too long; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_the_wheel_holds_two_packages_and_nothing_else(tmp_path):
    import zipfile

    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"trickbox", "trickbox_tricks"}
    assert {"trickbox/py.typed", "trickbox_tricks/py.typed"} <= set(names)
    stubs = {"trickbox/__init__.pyi", "trickbox/study/__init__.pyi", "trickbox_tricks/__init__.pyi"}
    assert {name for name in names if name.endswith(".pyi")} == stubs, "no name is found without its stub"


def test_entry_points_in_pyproject_are_the_installed_ones():
    import tomllib

    from trickbox.catalog import entries

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["trickbox.tricks"]
    installed = {e.name: e.value for e in entries() if e.dist is not None and e.dist.name == "trickbox"}
    assert installed == declared, "entry points are frozen at installation: run pip install -e . again"
