"""docs/how-to/write-a-trick.md, followed to the letter: a package whose tests pass and whose name is found."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "write-a-trick.md").read_text()
FILES = dict(re.findall(r"^```\w+\n# ([\w./-]+\.\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


def test_the_page_shows_a_whole_package():
    assert sorted(FILES) == ["pyproject.toml", "test_gradient_noise.py", "trickbox_gradient_noise.py"]


def test_the_entry_point_leads_to_the_class():
    tricks = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"]["trickbox.tricks"]
    assert tricks == {"gradient_noise": "trickbox_gradient_noise:GradientNoise"}
    assert "class GradientNoise:" in FILES["trickbox_gradient_noise.py"]


@pytest.mark.slow
def test_the_package_installs_passes_its_tests_and_is_found_by_name(tmp_path, monkeypatch):
    from hatchling.builders.wheel import WheelBuilder

    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in FILES.items():
        (source / name).write_text(text)
    wheel = next(iter(WheelBuilder(str(source)).build(directory=str(tmp_path), versions=["standard"])))
    zipfile.ZipFile(wheel).extractall(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    script = """
import sys, trickbox as tb
assert "gradient_noise" in tb.available() and "trickbox_gradient_noise" not in sys.modules
from trickbox.catalog import resolve
assert resolve({"trick": "gradient_noise", "eta": 0.1}).eta == 0.1
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_gradient_noise.py"]
    subprocess.run(tests, cwd=source, check=True, timeout=120)
