"""Kill studies with SIGKILL at random moments, let them go on, and count what was lost, done twice or blamed.

    python benchmarks/kills.py [kills] [seed]

Each round starts a small study on two workers and kills a worker, the parent, or all of them at once, at a moment drawn
from the time that an undisturbed one takes: while it starts, trains or writes. Then the study is started again until it
is complete. Its results must be those of the undisturbed study, to the last bit but for the times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from trickbox.streams import derive
from trickbox.study.design import add_one
from trickbox.study.runner import execute
from trickbox.study.spec import Spec, plan
from trickbox.study.store import FolderStore, dumps
from trickbox.study.task import ACCURACY, Splits

LOG = "TRICKBOX_KILLS_LOG"
SEEDS = range(4)
PATIENCE = 120.0


@attrs.frozen
class Blobs:
    """Two clouds; it writes down when its data are asked for, which is when a run begins."""

    lr: float = 0.01
    max_epochs: int = 20
    batch_size: int = 16
    name: ClassVar = "blobs"
    metric: ClassVar = ACCURACY
    class_names: ClassVar = ("left", "right")
    loss: ClassVar = nn.CrossEntropyLoss()

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))

    def data(self, seed: int) -> Splits:
        log = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, f"{time.time()} {seed}\n".encode())
        os.close(log)
        targets = torch.arange(300) % 2
        inputs = targets[:, None] + torch.randn(300, 2, generator=torch.Generator().manual_seed(seed))
        return Splits(*((inputs[part], targets[part]) for part in (slice(160), slice(160, 230), slice(230, 300))))

    def optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


def specs() -> list[Spec]:
    """The runs of the study: the baseline alone, so that a seed is a run."""
    return plan(Blobs(), add_one([]).arms[:1], SEEDS)


def results(folder: Path) -> dict[str, str]:
    """What is stored, without the times."""
    store, found = FolderStore(folder), {}
    for spec in specs():
        run = store.get(spec.key)
        if run is not None:
            found[spec.key] = dumps({name: value for name, value in run.items() if "seconds" not in name})
    return found


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "study", str(folder)]
    environment = {**os.environ, LOG: str(folder / "log")}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def family(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [*found, *(grandchild for child in found for grandchild in family(child))]


def kill(process: subprocess.Popen[bytes], whom: str) -> bool:
    """Whether there was anybody to kill."""
    try:
        if whom == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif whom == "parent":
            process.kill()
        else:
            workers = [pid for pid in family(process.pid) if b"popen_loky" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(random.choice(workers), signal.SIGKILL)
    except (OSError, IndexError):
        return False
    return True


def left_over(group: int) -> bool:
    """Whether anybody of a group still runs after some seconds; who has ended and waits to be collected does not."""
    for _ in range(150):
        if not any(_runs_in(group, path) for path in Path("/proc").glob("[0-9]*/stat")):
            return False
        time.sleep(0.1)
    return True


def _runs_in(group: int, path: Path) -> bool:
    try:
        state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
    except OSError:  # it has ended meanwhile
        return False
    return int(its_group) == group and state != "Z"


def repeated(folder: Path) -> int:
    """How many runs began after their result was stored."""
    stored = {
        derive(spec.seed, "split"): (folder / "runs" / spec.key[:2] / f"{spec.key}.json").stat().st_mtime
        for spec in specs()
    }
    began = [line.split() for line in (folder / "log").read_text().splitlines()]
    return sum(float(moment) > stored[int(seed)] for moment, seed in began)


def rounds(kills: int, duration: float, expected: dict[str, str]) -> Iterator[tuple[str, str]]:
    """For each kill, whom it hit, and what was wrong afterwards, if anything."""
    done = 0
    while done < kills:
        with tempfile.TemporaryDirectory() as name:
            folder, whom = Path(name), random.choice(["worker", "parent", "all"])
            process = start(folder)
            time.sleep(random.uniform(0.0, duration))
            if not kill(process, whom):
                process.wait(PATIENCE)
                continue
            process.wait(PATIENCE)
            wrong = ["left processes behind"] * (whom == "parent" and left_over(process.pid))
            start(folder).wait(PATIENCE)
            found = results(folder)
            wrong += ["lost or changed results"] * (found != expected)
            wrong += ["did a run twice"] * (repeated(folder) > 0 if found == expected else 0)
            done += 1
            yield whom, ", ".join(wrong)


def main(kills: int = 200, seed: int = 0) -> None:
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        start(Path(name)).wait(PATIENCE)
        duration, expected = time.perf_counter() - began, results(Path(name))
    assert len(expected) == len(SEEDS)
    counts = {"worker": 0, "parent": 0, "all": 0}
    wrong = []
    for whom, what in rounds(kills, duration, expected):
        counts[whom] += 1
        wrong += [what] if what else []
    import scipy.stats  # not in the processes that are killed

    bound = scipy.stats.binomtest(len(wrong), kills).proportion_ci().high
    print(f"{kills} kills, seed {seed}, torch {torch.__version__}, {os.cpu_count()} cores, {duration:.1f} s a study")
    print(f"killed: {', '.join(f'{whom} {count}' for whom, count in counts.items())}")
    print(f"wrong afterwards: {len(wrong)} (at most {100 * bound:.1f} % with 95 % confidence) {' '.join(wrong)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["study"]:
        execute(specs(), FolderStore(sys.argv[2]), workers=2)
    else:
        main(*map(int, sys.argv[1:]))
