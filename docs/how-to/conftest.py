"""Lets the pages of this folder import the files that they show: code blocks that begin with ``# name.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _files_of_the_page(request, tmp_path, monkeypatch):
    page = Path(request.node.path).read_text()
    files = dict(re.findall(r"^```python\n# ([\w./-]+\.py)\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)
