"""The record of a run: columns, table, CSV, pictures."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trickbox as tb


@pytest.fixture
def history():
    return tb.History(
        [
            {"epoch": 0, "step": 3, "train_loss": 1.5, "val_loss": 1 / 3, "lr": 0.1},
            {"epoch": 1, "step": 6, "train_loss": math.nan, "val_loss": 2e-5, "lr": 0.0, "extra": 7.0},
        ]
    )


def test_columns_stand_in_the_order_of_first_appearance(history):
    assert history.columns == ["epoch", "step", "train_loss", "val_loss", "lr", "extra"]
    assert len(history) == 2


def test_a_column_is_a_list_with_nan_where_a_row_has_nothing(history):
    assert history["val_loss"] == [1 / 3, 2e-5]
    assert math.isnan(history["extra"][0])
    assert history["extra"][1] == 7


def test_an_unknown_column_has_a_near_match(history):
    with pytest.raises(tb.ConfigError, match=r"no column 'val_los'; it has epoch, .*Did you mean 'val_loss'\?"):
        history["val_los"]
    with pytest.raises(tb.ConfigError, match="none yet"):
        tb.History()["loss"]


def test_the_table_is_aligned_and_keeps_small_numbers_readable(history):
    lines = str(history).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == history.columns
    assert lines[1].split() == ["0", "3", "1.5000", "0.3333", "0.1000"]
    assert lines[2].split() == ["1", "6", "nan", "2.00e-05", "0.0000", "7.0000"]


@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_the_csv_file_keeps_all_digits(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "history.csv"
    tb.History([{"epoch": i, "loss": value} for i, value in enumerate(values)]).to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == values
    assert [int(row["epoch"]) for row in rows] == list(range(len(values)))


def test_a_row_without_a_column_leaves_its_cell_empty(history, tmp_path):
    history.to_csv(tmp_path / "h.csv")
    with (tmp_path / "h.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["extra"] for row in rows] == ["", "7.0"]


def test_the_plot_has_one_panel_a_metric_with_training_and_validation_in_it(history, tmp_path):
    before = dict(mpl.rcParams)
    figure = history.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [axes.get_title() for axes in figure.axes] == ["loss", "lr", "extra"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["train_loss", "val_loss"]
    assert list(figure.axes[0].lines[1].get_ydata()) == [1 / 3, 2e-5]
    assert list(figure.axes[0].lines[1].get_xdata()) == [0, 1]
    assert dict(mpl.rcParams) == before


def test_a_plot_touches_no_pyplot(tmp_path):
    code = (
        "import sys; from trickbox.history import History\n"
        f"History([dict(epoch=0, loss=1.0)]).plot({str(tmp_path / 'x.png')!r})\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_an_empty_history_cannot_be_plotted():
    with pytest.raises(tb.ConfigError, match="nothing to plot"):
        tb.History().plot()


def test_a_run_writes_one_row_an_epoch(run, valid):
    history = run(valid=valid, max_epochs=3).history
    expected = ["epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    assert history.columns == expected
    assert history["epoch"] == [0, 1, 2]
    assert history["step"] == [3, 6, 9]
    assert history["lr"] == [0.1] * 3
    assert all(type(value) in (int, float) for row in history.rows for value in row.values())
