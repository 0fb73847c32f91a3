"""The runner trains what is missing, gives the same bits wherever it runs, and outlives what its workers do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import Any

import attrs
import pytest
import torch

from trickbox.errors import ConfigError, TrickboxError
from trickbox.streams import forked
from trickbox.study import runner
from trickbox.study.design import Arm, add_one
from trickbox.study.run import run_spec
from trickbox.study.runner import Lent, execute
from trickbox.study.spec import Part, Spec, part_of_task, plan
from trickbox.study.store import FolderStore, MemoryStore, dumps
from trickbox.tasks.waveforms import Waveforms

SMALL = Waveforms(samples=60, max_epochs=2, fresh_samples=30)


def bits(outcome: dict[str, Any]) -> str:
    """All of a result but its times."""
    return dumps({name: value for name, value in outcome.items() if "seconds" not in name})


# -- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_measures_everything_that_a_report_needs() -> None:
    outcome = run_spec(Spec("baseline", 0, part_of_task(SMALL)).to_json())

    assert outcome["status"] == "ok", outcome
    assert set(outcome["metrics"]) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "loss", "accuracy"}
    assert set(outcome["guess"]) == {"loss", "accuracy"}
    assert outcome["samples"] == 30
    assert len(outcome["curves"]["val_loss"]) == len(outcome["seconds"]) == outcome["epochs"] == 2
    assert len(outcome["predictions"]) == 6
    assert outcome["parameters"] == 17_283
    json.dumps(outcome, allow_nan=False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_run_depends_on_its_spec_alone_and_leaves_nothing_behind(two_threads: None) -> None:
    spec = plan(SMALL, [Arm("dropout", ["dropout"], control=None)], [3])[0].to_json()

    with forked(1):
        first = run_spec(spec)
    with forked(2):
        before = torch.get_rng_state()
        second = run_spec(spec)
        after = torch.get_rng_state()

    assert bits(first) == bits(second)
    assert torch.equal(before, after)
    assert torch.get_num_threads() == 2


def test_a_placebo_changes_no_bit() -> None:
    baseline, placebo = (run_spec(spec.to_json()) for spec in plan(SMALL, add_one([]).arms, [0]))

    assert baseline["metrics"] == placebo["metrics"]
    assert baseline["curves"] == placebo["curves"]


def test_a_run_that_blows_up_has_diverged(recwarn: pytest.WarningsRecorder) -> None:
    outcome = run_spec(Spec("x", 0, part_of_task(attrs.evolve(SMALL, lr=1e18, max_epochs=4))).to_json())

    assert outcome["status"] == "diverged"


def test_an_error_is_a_result() -> None:
    broken = Part("trickbox.tasks.waveforms:Wavelets", {}, "code")

    outcome = run_spec(Spec("x", 0, broken).to_json())

    assert outcome["status"] == "error"
    assert outcome["message"].startswith("ConfigError")
    assert "Wavelets" in outcome["traceback"]


# -- many runs -------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_not_trained_again(here: Any, tmp_path: Path) -> None:
    specs = plan(SMALL, add_one([]).arms, [0])
    done: list[str] = []

    first = execute(specs, FolderStore(tmp_path), executor=here, on_done=lambda spec, _: done.append(spec.arm))
    again = execute(specs, FolderStore(tmp_path), executor=here, on_done=lambda spec, _: done.append(spec.arm))

    assert here.count == 2
    assert dumps(first) == dumps(again)
    assert [sorted(done[:2]), done[2:]] == [["baseline", "placebo"]] * 2


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(3), RuntimeError("broken")])
def test_what_ends_a_run_is_its_result_and_is_made_again_when_asked(
    here: Any, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, kept = plan(SMALL, [Arm("a", control=None)], [0]), MemoryStore()

    def fails(self: Waveforms, seed: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Waveforms, "data", fails)
        (first,) = execute(specs, kept, executor=here).values()
    (stored,) = execute(specs, kept, executor=here).values()
    (again,) = execute(specs, kept, executor=here, retry=True).values()

    assert (first["status"], stored["status"], again["status"]) == ("error", "error", "ok")
    assert type(error).__name__ in first["message"]
    assert here.count == 2


def test_equal_specs_are_trained_once(here: Any) -> None:
    specs = plan(SMALL, [Arm("a", control=None), Arm("b", control="a")], [0])

    execute(specs, MemoryStore(), executor=here)

    assert here.count == 1


def test_executors_that_cannot_give_the_same_numbers_are_refused() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(ConfigError, match="threads share one random generator"):
        execute([], MemoryStore(), executor=threads)
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        execute([], MemoryStore(), workers=0)


class Fragile:
    """A pool that breaks, with everything in flight, as soon as a deadly run is submitted."""

    depth = 3

    def __init__(self, deadly: set[str], slow: set[str] = frozenset(), late: set[str] = frozenset()) -> None:
        self.deadly, self.slow, self.late = deadly, slow, late
        self.renewed = 0
        self.flying: list[Future[dict[str, Any]]] = []

    def submit(self, key: str, spec: Spec) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        self.flying.append(future)
        if spec.arm in self.deadly:
            for each in self.flying:
                if not each.done():
                    each.set_exception(BrokenExecutor())
        elif spec.arm in self.slow and not self.renewed:
            pass  # still at work when the pool breaks
        else:
            Timer(0.001, lambda: future.done() or future.set_result({"status": "ok"})).start()
        return future

    def received(self, outcome: dict[str, Any]) -> dict[str, Any]:
        return outcome

    def took_too_long(self, key: str) -> str | None:
        return "too long" if key in self.late else None

    def renew(self) -> None:
        self.renewed += 1
        self.flying.clear()


def test_only_the_run_that_kills_its_worker_is_given_up() -> None:
    todo = {arm: Spec(arm, 0, part_of_task(SMALL)) for arm in "abcdef"}
    pool = Fragile(deadly={"c", "e"}, slow={"b"})

    found = dict(runner._drain(todo, pool))  # type: ignore[arg-type]

    assert {arm: found[arm]["status"] for arm in sorted(found)} == {
        "a": "ok", "b": "ok", "c": "error", "d": "ok", "e": "error", "f": "ok",
    }  # fmt: skip
    assert "died twice" in found["c"]["message"]


def test_a_run_that_took_too_long_is_known_and_nobody_else_is_suspected() -> None:
    todo = {arm: Spec(arm, 0, part_of_task(SMALL)) for arm in "abcd"}
    pool = Fragile(deadly={"b"}, late={"b"})

    found = dict(runner._drain(todo, pool))  # type: ignore[arg-type]

    assert {arm: found[arm]["status"] for arm in sorted(found)} == {"a": "ok", "b": "error", "c": "ok", "d": "ok"}
    assert found["b"]["message"] == "too long"
    assert pool.renewed == 1, "it is not tried again"


def test_an_executor_of_the_user_is_not_mended() -> None:
    class Broken(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor())
            return future

    with Broken(1) as executor, pytest.raises(TrickboxError, match="what is stored is kept"):
        list(runner._drain({"a": Spec("a", 0, part_of_task(SMALL))}, Lent(executor)))


# -- in processes ----------------------------------------------------------------------------------------------------

SCRIPT = """
import ctypes, os, sys, torch
from typing import ClassVar
import attrs
from torch import nn
from trickbox.study import ACCURACY, Arm, Splits, Study
from trickbox.study.store import dumps
from trickbox.streams import derive

@attrs.frozen
class Blobs:
    fatal: int = -1
    endless: int = -1
    lr: float = 0.01
    max_epochs: int = {epochs}
    batch_size: int = 32
    name: ClassVar = "blobs"
    metric: ClassVar = ACCURACY
    class_names: ClassVar = ("left", "right")
    loss: ClassVar = nn.CrossEntropyLoss()

    def model(self):
        return nn.Linear(2, 2)

    def data(self, seed):
        if self.fatal >= 0 and seed == derive(self.fatal, "split"):
            os._exit(9)
        if self.endless >= 0 and seed == derive(self.endless, "split"):
            ctypes.PyDLL(None).sleep(1000)  # without letting any other thread of Python run
        targets = torch.arange(200) % 2
        inputs = targets[:, None] + torch.randn(200, 2, generator=torch.Generator().manual_seed(seed))
        return Splits(*((inputs[part], targets[part]) for part in (slice(80), slice(80, 120), slice(120, 200))))

    def optimizer(self, parameters):
        return torch.optim.Adam(parameters, lr=self.lr)

def main():
    arms = [Arm("deadly", overrides={{"fatal": 0}}), Arm("endless", overrides={{"endless": 1}})] if {deadly} else []
    outcome = Study(Blobs(), arms, seeds=2, costs=False).run(workers=2, store=sys.argv[1], limit=10.0)
    print(dumps({{arm.name: [run["status"] for run in outcome.runs(arm.name)] for arm in outcome.arms}}))
{call}
"""
GUARDED = "if __name__ == '__main__':\n    main()"


def start(folder: Path, **facts: Any) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(**{"epochs": 1, "deadly": False, "call": GUARDED} | facts))
    command = [sys.executable, str(script), str(folder / "store")]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def is_gone(group: int) -> bool:
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_results_are_the_same_bits_here_and_in_any_number_of_processes(here: Any) -> None:
    specs = plan(SMALL, add_one(["dropout"]).arms, [0, 1])
    variable = os.environ.get("OMP_NUM_THREADS")

    inside = execute(specs, MemoryStore(), executor=here)
    one = execute(specs, MemoryStore(), workers=1)
    two = execute(list(reversed(specs)), MemoryStore(), workers=2)

    assert {outcome["status"] for outcome in inside.values()} == {"ok"}
    for key, outcome in inside.items():
        assert bits(outcome) == bits(one[key]) == bits(two[key])
    assert os.environ.get("OMP_NUM_THREADS") == variable


@pytest.mark.slow
def test_a_script_runs_its_own_task_and_outlives_workers_that_die_or_hang(tmp_path: Path) -> None:
    output, errors = start(tmp_path, deadly=True).communicate(timeout=300)

    assert json.loads(output) == {
        "baseline": ["ok", "ok"],
        "placebo": ["ok", "ok"],
        "deadly": ["error", "ok"],
        "endless": ["ok", "error"],
    }, errors
    said = [json.loads(file.read_text())["result"]["message"] for file in tmp_path.rglob("runs/*/*.json")]
    ended = [message for message in said if "longer than its limit of 0:00:10" in message]
    assert len(ended) == 1
    assert re.search(r"it was at File .*script.py.*line \d+ in data", ended[0]), ended


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    process = start(tmp_path, call="main()")
    _, errors = process.communicate(timeout=300)

    assert process.returncode != 0
    assert "ConfigError: study: a file with a task or a trick is imported by every worker" in errors
    assert "if __name__ == '__main__':" in errors


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_finished_and_ends_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, epochs=300)
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("runs/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)

    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert "KeyboardInterrupt" in errors
    kept = list(tmp_path.rglob("runs/*/*.json"))
    assert kept
    assert all(json.loads(file.read_text())["result"]["status"] == "ok" for file in kept)
    assert is_gone(process.pid), "a worker goes on alone"
