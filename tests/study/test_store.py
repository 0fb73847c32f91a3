"""Results are whole or not there, whatever happened while they were written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from trickbox.files import write_whole
from trickbox.study import store
from trickbox.study.store import FolderStore, MemoryStore, dumps, loads, open_store

KEY = "ab" + "0" * 62
RUN: dict[str, Any] = {"status": "diverged", "metrics": {"loss": math.inf, "low": -math.inf}, "curves": [1.5, 2.0]}


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_what_is_put_is_got(kind: str, tmp_path: Path) -> None:
    kept = MemoryStore() if kind == "memory" else FolderStore(tmp_path)

    assert kept.get(KEY) is None
    kept.put(KEY, RUN)

    assert kept.get(KEY) == RUN


def test_files_are_strict_json_named_by_key(tmp_path: Path) -> None:
    FolderStore(tmp_path).put(KEY, {**RUN, "mean": math.nan})

    text = (tmp_path / "runs" / "ab" / f"{KEY}.json").read_text()
    facts = json.loads(text, parse_constant=pytest.fail)

    assert facts["mean"] == "nan"
    assert math.isnan(loads(text)["mean"])
    assert [path.name for path in tmp_path.rglob("*.json")] == [f"{KEY}.json"]


@pytest.mark.parametrize("content", ["", '{"status": "o', "[1, 2]", "{}", "\udcff"])
def test_a_damaged_file_is_skipped_loudly_and_replaced(content: str, tmp_path: Path) -> None:
    kept = FolderStore(tmp_path)
    kept.put(KEY, RUN)
    (tmp_path / "runs" / "ab" / f"{KEY}.json").write_text(content, errors="surrogateescape")

    with pytest.warns(UserWarning, match="its run is made again"):
        assert kept.get(KEY) is None
    kept.put(KEY, RUN)

    assert kept.get(KEY) == RUN


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_plans_are_written_down_once_and_looks_are_counted(tmp_path: Path) -> None:
    first, second = {"margin": 1.0}, {"margin": 0.5}

    looks = [FolderStore(tmp_path).freeze(plan) for plan in (first, first, second)]

    assert looks == [1, 2, 3]
    assert [entry["plan"] for entry in json.loads((tmp_path / "study.json").read_text())["plans"]] == [first, second]


def test_a_path_opens_a_folder_and_a_store_is_itself(tmp_path: Path) -> None:
    kept = MemoryStore()

    assert open_store(kept) is kept
    assert isinstance(open_store(str(tmp_path)), FolderStore)


plain = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text("abc"),
    lambda inner: some.lists(inner) | some.dictionaries(some.text("abc"), inner),
    max_leaves=8,
)


@given(plain)
def test_json_comes_back_as_it_went(value: Any) -> None:
    assert loads(dumps(value)) == value
