"""Results are whole or not there, whatever happened while they were written."""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from trickbox.errors import ConfigError
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

    assert facts["result"]["mean"] == "nan"
    assert math.isnan(loads(text)["result"]["mean"])
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


def test_looks_are_counted_with_their_plans(tmp_path: Path) -> None:
    first, second = {"margin": 1.0}, {"margin": 0.5}

    looks = [FolderStore(tmp_path).look(plan) for plan in (first, first, second)]

    assert looks == [[first], [first, first], [first, first, second]]
    assert sorted(path.name for path in (tmp_path / "looks").iterdir()) == ["000001.json", "000002.json", "000003.json"]


def test_looks_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: FolderStore(tmp_path).look({"number": n}), range(120)))

    kept = FolderStore(tmp_path).look({"number": 120})
    assert sorted(plan["number"] for plan in kept) == list(range(121))
    assert sorted(map(len, found)) == list(range(1, 121))


def test_a_damaged_look_is_an_error_and_no_new_beginning(tmp_path: Path) -> None:
    FolderStore(tmp_path).look({"margin": 1.0})
    (tmp_path / "looks" / "000001.json").write_text('{"margin": 1')

    with pytest.raises(ConfigError, match=r"000001.json cannot be read .* what was looked at before; bring the file"):
        FolderStore(tmp_path).look({"margin": 1.0})


def test_a_look_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderStore(tmp_path).look({"margin": 1.0})

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(UserWarning, match="this look cannot be counted: .*Read-only"):
        assert len(FolderStore(tmp_path).look({"margin": 1.0})) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"key": "cd" + "0" * 62}, "holds the result of cd0.*another run"), ({"form": 99}, "has form 99, this version")],
)
def test_a_foreign_or_future_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    kept = FolderStore(tmp_path)
    kept.put(KEY, RUN)
    path = tmp_path / "runs" / "ab" / f"{KEY}.json"
    path.write_text(dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(ConfigError, match=message):
        kept.get(KEY)


def test_a_number_that_was_changed_is_noticed(tmp_path: Path) -> None:
    kept = FolderStore(tmp_path)
    kept.put(KEY, RUN)
    path = tmp_path / "runs" / "ab" / f"{KEY}.json"
    path.write_text(path.read_text().replace("2.0", "3.0"))

    with pytest.warns(UserWarning, match="its digest does not fit.*its run is made again"):
        assert kept.get(KEY) is None


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
