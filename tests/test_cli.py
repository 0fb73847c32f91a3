"""The command line, as a user types it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trickbox.catalog import available
from trickbox.cli import cache_folder, main, parse_tricks


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_list_names_every_trick_and_imports_neither_torch_nor_matplotlib(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == available()
    script = (
        "import sys; from trickbox.cli import main; main(['list']); print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"


def test_info_tells_promise_settings_hooks_and_origin(capsys):
    status, out, _ = run(capsys, "info", "early_stopping")
    assert status == 0
    assert out.startswith("early_stopping: Stop when")
    assert "patience" in out
    assert "Hooks: init, epoch_end, fit_end" in out
    assert "trickbox_tricks.early_stopping:EarlyStopping" in out


def test_explain_lists_order_sites_and_parameters(capsys):
    status, out, _ = run(capsys, "explain", "dropout(p=0.3), batch_norm", "--set", "noise=0.3")
    assert status == 0
    assert "dropout: after batch_norm" in out
    assert "after conv1" in out
    assert "Parameters: 17283 before, 17379 after" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comapre"], "Did you mean 'compare'?"),
        (["compare", "--sedes", "3"], "Did you mean '--seeds'?"),
        (["compare", "--seeds", "1"], "must be a whole number of at least 2, got '1'"),
        (["compare", "wavefroms", "--tricks", "dropout"], "Did you mean 'waveforms'?"),
        (["compare", "waveforms", "--tricks", "dropuot"], "Did you mean 'dropout'?"),
        (["compare", "waveforms", "--tricks", "dropout(q=0.3)"], "dropout: no setting 'q'"),
        (["compare", "waveforms", "--tricks", "dropout(p=1.5)"], "dropout: p must be in [0, 1), got 1.5"),
        (["compare", "waveforms", "--tricks", "dropout(0.5)"], "name(setting=value"),
        (["compare", "waveforms", "--tricks", "dropout", "--set", "nosie=0.3"], "Did you mean 'noise'?"),
        (["compare", "waveforms", "--tricks", "dropout", "--set", "noise"], "--set takes name=value"),
        (["compare", "waveforms", "--tricks", "dropout", "--margin", "0"], "margin must be > 0"),
        (["compare", "waveforms", "--tricks", "dropout", "--design", "add_on"], "Did you mean 'add_one'?"),
        (["compare", "waveforms"], "name the tricks to compare"),
        (["compare", "--course", "--tricks", "dropout"], "leave out --tricks"),
        (["info", "dropuot"], "Did you mean 'dropout'?"),
        (["explain", "mixupp"], "Did you mean 'mixup'?"),
    ],
)
def test_mistakes_are_answered_with_the_fix_before_anything_runs(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, out, error = run(capsys, *arguments)
    assert status == 2
    assert error.startswith("trickbox: ")
    assert message in error
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_results_go_to_the_cache_and_never_to_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trickbox" / "compare"


def test_tricks_with_settings_of_every_kind():
    assert parse_tricks("augment(jitter=0.1, flip=0), step_decay( epochs=2 ),dropout(kind='channel')") == [
        {"trick": "augment", "jitter": 0.1, "flip": 0},
        {"trick": "step_decay", "epochs": 2},
        {"trick": "dropout", "kind": "channel"},
    ]


@pytest.mark.slow
def test_compare_trains_once_then_answers_from_the_store(capsys, tmp_path):
    arguments = [
        "compare", "waveforms", "--tricks", "batch_norm,step_decay(epochs=1)", "--seeds", "2",
        "--set", "max_epochs=2", "--set", "samples=60", "--set", "test_samples=60", "--out", str(tmp_path),
    ]  # fmt: skip
    status, first, _ = run(capsys, *arguments)
    assert status == 0
    assert "batch_norm" in first
    assert "step_decay" in first
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")}
    assert len(files) == 8
    assert (tmp_path / "report.html").stat().st_size > 10_000
    status, second, _ = run(capsys, *arguments)
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")} == files
