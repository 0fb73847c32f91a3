"""The command line, as a user types it."""

from __future__ import annotations

import re
import string
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trickbox.catalog import available
from trickbox.cli import cache_folder, main
from trickbox.errors import ConfigError
from trickbox.spelling import parse_tricks
from trickbox.surgery.places import fault


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
    assert re.search(r"\bconv1 .*dropout: StreamDropout\(p=0\.3.*\bconv2 ", out, re.DOTALL)
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
        (["compare", "--limit", "soon"], "a time is written as '10 min'"),
        (["recommend", "--budget", "soon"], "a time is written as '10 min'"),
        (["recommend", "wavefroms"], "Did you mean 'waveforms'?"),
        (["compare", "waveforms", "--tricks", "dropout,mixup", "--design", "screen"], "takes 5 to 19 tricks"),
        (["compare", "waveforms", "--tricks", "batch_norm,layer_norm", "--design", "shapley"], "cannot be in the"),
        (["info", "dropuot"], "Did you mean 'dropout'?"),
        (["explain", "mixupp"], "Did you mean 'mixup'?"),
        (["sites", "wavefroms"], "Did you mean 'waveforms'?"),
        (["site"], "Did you mean 'sites'?"),
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


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ('p=0.2, at="(model)"', {"p": 0.2, "at": "(model)"}),
        ('at=["conv*", ":Linear"], not_at="fc2"', {"at": ["conv*", ":Linear"], "not_at": "fc2"}),
        ("at=('a', 'b')", {"at": ("a", "b")}),
        ("at='pool[1]'", {"at": "pool[1]"}),
        ("at='[!a]?.**'", {"at": "[!a]?.**"}),
        ("""at='he said "a, b)"'""", {"at": 'he said "a, b)"'}),
        ("at='a),dropout(p=0.3'", {"at": "a),dropout(p=0.3"}),
        ("at='a\\')'", {"at": "a')"}),
        ("p=(0.1)", {"p": 0.1}),
        ("at=(('a'), )", {"at": ("a",)}),
        (" p = 0.1 , ", {"p": 0.1}),
        ("conv=None, p=1e-1", {"conv": None, "p": 0.1}),
        ("", None),
        ("  ", None),
    ],
)
def test_settings_hold_parentheses_commas_brackets_and_quotes(text, settings):
    expected = "dropout" if settings is None else {"trick": "dropout", **settings}
    assert parse_tricks(f"dropout({text})") == [expected]
    assert parse_tricks(f" mixup,dropout ( {text} ) ,dropout({text}), batch_norm ") == [
        "mixup", expected, expected, "batch_norm",
    ]  # fmt: skip


def test_the_name_of_a_distribution_may_stand_in_front_of_a_trick():
    assert parse_tricks("trickbox:dropout,trickbox:dropout(p=0.2)") == [
        "trickbox:dropout",
        {"trick": "trickbox:dropout", "p": 0.2},
    ]


WRITE = "write name(setting=value, other=value)"
VALUES = "a value is a number, a 'text', True, False, None or a [list] of these"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the trick ''; write a name or name(setting=value)"),
        ("dropout,", "cannot read the trick ''; write a name or name(setting=value)"),
        ("dropout,,mixup", "cannot read the trick ''; write a name or name(setting=value)"),
        ("dropout mixup", "cannot read the trick 'dropout mixup'; write a name or name(setting=value)"),
        ("dropout(p=0.2) mixup", "cannot read the trick 'dropout(p=0.2) mixup'; write a name or name(setting=value)"),
        ("dropout(p=0.2)(p=0.3)", "cannot read the trick 'dropout(p=0.2)(p=0.3)'; write a name or name(setting=value)"),
        ("mixup, dropout(p=0.2", f"cannot read the settings of 'dropout(p=0.2'; {WRITE}"),
        ("dropout(p=0.2))", "cannot read the trick 'dropout(p=0.2))'; write a name or name(setting=value)"),
        ("dropout(at='a), mixup", f'cannot read the settings of "dropout(at=\'a), mixup"; {WRITE}'),
        ("dropout(p=0.2 at='a')", f"cannot read the settings of \"dropout(p=0.2 at='a')\"; {WRITE}"),
        ("dropout(0.5)", f"cannot read the settings of 'dropout(0.5)'; {WRITE}"),
        ("dropout(*[0.5])", f"cannot read the settings of 'dropout(*[0.5])'; {WRITE}"),
        ("dropout(**{'p': 1})", f"cannot read the settings of \"dropout(**{{'p': 1}})\"; {WRITE}"),
        ("dropout(p=0.1, p=0.2)", f"cannot read the settings of 'dropout(p=0.1, p=0.2)'; {WRITE}"),
        ("dropout(trick='mixup')", f"cannot read the settings of \"dropout(trick='mixup')\"; {WRITE}"),
        ("dropout(p:=0.1)", f"cannot read the settings of 'dropout(p:=0.1)'; {WRITE}"),
        ("dropout(at=nn.Linear)", f"cannot read 'nn.Linear' in 'dropout(at=nn.Linear)'; {VALUES}"),
        ("dropout(kind=channel)", f"cannot read 'channel' in 'dropout(kind=channel)'; {VALUES}"),
        ("dropout(at=f'{1}')", f"""cannot read "f'{{1}}'" in "dropout(at=f'{{1}}')"; {VALUES}"""),
        ("dropout(at={[]: 1})", f"cannot read '{{[]: 1}}' in 'dropout(at={{[]: 1}})'; {VALUES}"),
        ("dropout(p=__import__('os').getpid())", "cannot read \"__import__('os').getpid()\" in "),
        ("dropout(at=[])", "dropout: at must be at least one place, or None, got []"),
        ("dropout(at='a..b')", "dropout: at must be a path without empty parts"),
        ("dropout(att='fc')", "Did you mean 'at'?"),
    ],
)
def test_what_cannot_be_read_is_shown_with_what_to_write(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_tricks(text)
    assert message in str(caught.value)


@given(st.lists(st.none() | st.text(string.printable, min_size=1), min_size=1, max_size=4))
def test_any_text_in_quotes_comes_through_as_it_is(names):
    wanted = [n for n in names if n is None or not fault(n)]
    assume(wanted)
    text = ", ".join("dropout" if name is None else f"dropout(p=0.2, at={name!r})" for name in wanted)
    assert parse_tricks(text) == [
        "dropout" if name is None else {"trick": "dropout", "p": 0.2, "at": name} for name in wanted
    ]


def test_explain_takes_places_as_a_user_writes_them(capsys):
    status, out, _ = run(capsys, "explain", 'dropout(p=0.2, at=["conv*", ":Linear"], not_at="fc2")')
    assert status == 0
    assert [line.split()[1] for line in out.splitlines() if "StreamDropout(p=0.2" in line] == ["conv1", "conv2", "fc1"]


def test_sites_lists_what_explain_takes_as_places(capsys):
    status, out, _ = run(capsys, "sites", "waveforms", "--set", "noise=0.3")
    assert status == 0
    assert out.splitlines()[:3] == [
        "label    class      output        part",
        "(model)  PlainNet   (32, 3)",
        "conv1    Conv1d     (32, 16, 62)",
    ]
    assert run(capsys, "sites") == (0, out, "")
    labels = [line.split()[0] for line in out.splitlines()[2:]]
    assert labels == ["conv1", "pool[0]", "conv2", "pool[1]", "fc1", "fc2"]
    status, out, _ = run(capsys, "explain", f"dropout(at={labels})")
    assert (status, out.count("StreamDropout(p=0.1, element)")) == (0, 6)


@pytest.mark.slow
def test_compare_trains_once_then_answers_from_the_store(capsys, tmp_path):
    arguments = [
        "compare", "waveforms", "--tricks", "batch_norm,step_decay(epochs=1)", "--seeds", "2",
        "--set", "max_epochs=2", "--set", "samples=60", "--set", "fresh_samples=60", "--out", str(tmp_path),
    ]  # fmt: skip
    status, first, _ = run(capsys, *arguments)
    assert status == 0
    assert "batch_norm" in first
    assert "step_decay" in first
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")}
    assert len(files) == 16  # four arms on two seeds, and a timed pass of each
    assert (tmp_path / "report.html").stat().st_size > 10_000
    status, second, _ = run(capsys, *arguments)
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")} == files
