"""The same bits from executors that are not ours."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import pytest

from trickbox.study.design import add_one
from trickbox.study.runner import execute
from trickbox.study.spec import plan
from trickbox.study.store import MemoryStore, dumps
from trickbox.tasks.waveforms import Waveforms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what dask imports
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SPECS = plan(Waveforms(samples=90, max_epochs=2, fresh_samples=60), add_one(["dropout"]).arms, [0, 1])


def bits(executor: Executor) -> str:
    """All results but their times."""
    found = execute(SPECS, MemoryStore(), executor=executor)
    return dumps({k: {n: v for n, v in run.items() if "seconds" not in n} for k, run in found.items()})


def test_loky_gives_the_same_bits(here: Any) -> None:
    loky = pytest.importorskip("loky", reason="loky is missing: pip install 'trickbox[executors]'")

    with loky.ProcessPoolExecutor(2) as executor:
        assert bits(executor) == bits(here)


def test_dask_gives_the_same_bits(here: Any) -> None:
    distributed = pytest.importorskip("distributed", reason="dask is missing: pip install 'trickbox[executors]'")
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}

    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        assert bits(client.get_executor(pure=False)) == bits(here)
