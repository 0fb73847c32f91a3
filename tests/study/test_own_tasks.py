"""A task of one's own, in one file: found by its place, sent to workers, known by its code and its data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from trickbox import tasks
from trickbox.errors import ConfigError
from trickbox.study import Study, answers
from trickbox.study.design import Arm
from trickbox.study.own import task_class
from trickbox.study.run import run_spec
from trickbox.study.spec import build_task, part_of_task, plan

HEAD = """
import attrs
import torch
from torch import nn
from trickbox.study import Metric, Splits
"""
CURVE = """
def task(seed, lr=0.02, max_epochs=3, file=None):
    x = torch.rand(60, 1)
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, ((x[:40], x[:40] ** 2), (x[40:], x[40:] ** 2)), nn.MSELoss(), torch.optim.Adam(model.parameters(), lr)
"""
KINDS = {
    "regression": CURVE,
    "arrays": """
def task(seed, max_epochs=2):
    x, y = torch.randn(60, 4).numpy(), (torch.arange(60) % 2).numpy()
    model = nn.Linear(4, 2)
    return model, ((x[:40], y[:40]), (x[40:], y[40:])), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1)
""",
    "classes": """
def task(seed, max_epochs=2):
    x, y = torch.randn(90, 4), torch.arange(90) % 3
    parts = [(x[part], y[part]) for part in (slice(30), slice(30, 60), slice(60, 90))]
    return lambda: nn.Linear(4, 3), parts, nn.CrossEntropyLoss(), lambda parameters: torch.optim.SGD(parameters, 0.1)
""",
    "several labels": """
def task(seed, max_epochs=2):
    x = torch.randn(60, 4)
    y = (x[:, :2] > 0).float()
    model = nn.Linear(4, 2)
    return model, ((x[:40], y[:40]), (x[40:], y[40:])), nn.BCEWithLogitsLoss(), torch.optim.SGD(model.parameters(), 0.1)
""",
    "sequences": """
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 9)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0]).transpose(1, 2)


def task(seed, max_epochs=2):
    x = torch.randint(9, (40, 5))
    return Words, ((x[:30], x[:30]), (x[30:], x[30:])), nn.CrossEntropyLoss(), torch.optim.Adam
""",
    "images": """
def task(seed, max_epochs=1):
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 2
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return make, Splits((x[:30], y[:30]), (x[30:], y[30:])), nn.CrossEntropyLoss(), torch.optim.Adam
""",
    "a metric of its own": """
def recall(outputs, targets):
    return (outputs.argmax(1)[targets == 1] == 1).float().mean()


@attrs.frozen
class task:
    max_epochs: int = 2
    batch_size: int = 16
    name = "own metric"
    metric = Metric("recall", margin=2.0)
    metrics = {"recall": recall}
    class_names = ("no", "yes")
    loss = nn.CrossEntropyLoss()

    def model(self):
        return nn.Linear(2, 2)

    def data(self, seed):
        x = torch.randn(80, 2, generator=torch.Generator().manual_seed(seed))
        y = (x.sum(1) > 0).long()
        return Splits((x[:40], y[:40]), (x[40:60], y[40:60]), (x[60:], y[60:]))

    def optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=0.1)
""",
}
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(source: str) -> str:
        (tmp_path / "mine.py").write_text(HEAD + source)
        return f"{tmp_path / 'mine.py'}:task"

    return written


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_of_any_kind_is_compared(kind: str, write: Write, here: Any, tmp_path: Path) -> None:
    study = Study(write(KINDS[kind]), ["one_cycle"], seeds=2)
    found = study.run(executor=here)

    assert all(run["status"] == "ok" for run in found.results.values()), found.results
    assert found.metric.name == {"regression": "loss", "several labels": "loss", "a metric of its own": "recall"}.get(
        kind, "accuracy"
    )
    assert not [line for line in found.table().splitlines() if len(line) > 100]
    assert found.save(tmp_path / "report.html").is_file()


def test_a_function_starts_all_arms_alike_and_all_seeds_differently(write: Write) -> None:
    task = tasks.get(write(CURVE))

    first, again, other = (task.data(seed).train[0] for seed in (1, 1, 2))
    models = []
    for seed in (1, 1, 2):
        task.data(seed)
        models.append(next(task.model().parameters()))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_its_settings_are_fields_that_arms_override(write: Write) -> None:
    place = write(CURVE)
    arms = [Arm("slow", control=None), Arm("fast", control="slow", overrides={"lr": 0.5})]

    slow, fast = (build_task(spec.task) for spec in plan(tasks.get(place, max_epochs=1), arms, [0]))

    assert (slow.lr, fast.lr, slow.max_epochs) == (0.02, 0.5, 1)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"no option 'rate'; options: lr, max_epochs, file"):
        tasks.get(place, rate=1)
    with pytest.raises(ConfigError, match="overrides 'rate', which task does not have"):
        plan(tasks.get(place), [Arm("a", overrides={"rate": 1})], [0])


def test_results_are_known_by_code_and_data_and_not_by_where_they_lie(write: Write, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("1,2")

    def key(place: str, file: Path = data) -> str:
        return plan(tasks.get(place, file=str(file)), [Arm("a", control=None)], [0])[0].key

    first = key(write(CURVE))
    (tmp_path / "else").mkdir()
    shutil.copy(tmp_path / "mine.py", tmp_path / "else" / "mine.py")
    shutil.copytree(data, tmp_path / "else" / "data")
    assert key(f"{tmp_path / 'else' / 'mine.py'}:task", tmp_path / "else" / "data") == first
    (data / "a.csv").write_text("1,20")
    assert key(write(CURVE)) != first
    (data / "a.csv").write_text("1,2")
    assert key(write(CURVE + "\n# edited\n")) != first


def test_a_worker_makes_it_again_from_its_file(write: Write) -> None:
    spec = plan(tasks.get(write(CURVE)), [Arm("a", control=None)], [0])[0]

    first, again = run_spec(spec.to_json()), run_spec(spec.to_json())

    assert first["status"] == "ok", first
    assert first["weights"] == again["weights"]


def test_without_a_test_set_the_winner_is_confirmed_on_fresh_seeds_alone(write: Write, here: Any) -> None:
    arms = [Arm("short", control=None), Arm("long", overrides={"max_epochs": 6}, control="short")]
    study = Study(write(CURVE), arms, seeds=2)
    asked: Any = {"name": "long", "question": study.questions[-1]}
    helps: Any = SimpleNamespace(verdict="helps", inference=SimpleNamespace(mean=1.0), **asked)

    confirmed = study.confirm(cast(Any, SimpleNamespace(comparisons=[helps], arms=study.arms)), executor=here)

    assert confirmed is not None
    assert answers.confirmation(confirmed)[0].startswith("On fresh seeds: long ")
    assert "test set" not in confirmed.table()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def task(): pass", "must take a seed first, such as def task"),
        ("def task(seed=3): pass", "must take a seed first"),
        ("def task(seed, lr): pass", "the setting 'lr' needs a default"),
        ("class task: pass", "task must be an attrs class"),
        ("task = 3", "must be a class or a function of a seed, got 3"),
        ("tusk = 3", "has no 'task'. Did you mean 'tusk'"),
    ],
)
def test_what_is_no_task_is_refused_by_name(source: str, message: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=message):
        task_class(write(source))


def test_a_function_must_return_four_things(write: Write) -> None:
    with pytest.raises(ConfigError, match="the function must return model, data, loss, optimizer, got None"):
        tasks.get(write("def task(seed): pass")).data(0)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere.py:task", "No such file or directory.*write file.py:name or module:name"),
        ("no_such_module:task", "No module named 'no_such_module'"),
        ("nowhere.py", r"task 'nowhere.py' is unknown; .* a task of your own is file.py:name"),
    ],
)
def test_a_place_that_is_not_there_is_said(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.get(place)


def test_a_part_says_where_the_file_is(write: Write) -> None:
    place = write(CURVE)

    assert part_of_task(tasks.get(place)).place == place
