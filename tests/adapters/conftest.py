"""Frameworks take seconds to import, so their files are not even looked at where slow tests are not wanted."""

from __future__ import annotations

FRAMEWORKS = ("test_lightning.py", "test_transformers.py")


def pytest_ignore_collect(collection_path, config):
    return True if collection_path.name in FRAMEWORKS and config.getoption("markexpr") == "not slow" else None
