"""The same bits from executors that are not ours."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from processes import finished

from trickbox.study.design import add_one
from trickbox.study.runner import execute
from trickbox.study.spec import plan
from trickbox.study.store import MemoryStore, dumps
from trickbox.tasks.waveforms import Waveforms

pytestmark = pytest.mark.slow
SPECS = plan(Waveforms(samples=90, max_epochs=2, fresh_samples=60), add_one(["dropout"]).arms, [0, 1])

LOKY = """
from loky import ProcessPoolExecutor
from study.test_executors import bits

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        print(bits(executor))
"""
DASK = """
from distributed import Client, LocalCluster
from study.test_executors import bits

if __name__ == "__main__":
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        print(bits(client.get_executor(pure=False)))
"""


def bits(executor: Executor) -> str:
    """A hash of all results but their times."""
    found = execute(SPECS, MemoryStore(), executor=executor)
    kept = {key: {name: value for name, value in run.items() if "seconds" not in name} for key, run in found.items()}
    return hashlib.sha256(dumps(kept).encode()).hexdigest()


@pytest.mark.parametrize(("package", "script"), [("loky", LOKY), ("distributed", DASK)])
def test_an_executor_of_others_gives_the_same_bits(package: str, script: str, here: Any, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is missing: pip install 'trickbox[executors]'")
    (tmp_path / "script.py").write_text(script)
    tests = str(Path(__file__).parents[1])

    done = finished([sys.executable, "script.py"], timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": tests})

    assert done.stdout.strip() == bits(here), done.stderr[-2000:]
