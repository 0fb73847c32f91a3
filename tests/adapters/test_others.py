"""The pages about other trainers: their scripts run as they are printed, and do what they say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import trickbox as tb

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
LOOPS = {"accelerate": "accelerate", "fabric": "lightning", "ignite": "ignite"}
ALL = ["batch_norm", "mixup", "one_cycle", "ema", {"trick": "early_stopping", "patience": 1, "mode": "max"}]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Files would be seen, and what accelerate keeps for the whole process must not reach the next test."""
    monkeypatch.chdir(tmp_path)
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(True)
        sys.modules["accelerate.state"].GradientState._reset_state()


def script(page):
    (found,) = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    return found


def without_trickbox(text):
    """The script as it was before: without the marked lines, a marked block without its head."""
    kept = []
    for line in text.splitlines():
        if not line.endswith("# trickbox"):
            kept.append(line)
        elif line.strip().startswith("with "):
            kept.append(line[: len(line) - len(line.lstrip())] + "if True:")
    return "\n".join(kept)


def execute(text, **names):
    torch.manual_seed(0)
    exec(compile(text, "page", "exec"), names)
    return names


def weights(names):
    return names["model"].state_dict()


@pytest.mark.parametrize("page", LOOPS)
def test_a_loop_without_tricks_is_the_loop_as_it_was(page):
    pytest.importorskip(LOOPS[page], reason=f"{LOOPS[page]} is not installed")
    before, after = execute(without_trickbox(script(page))), execute(script(page), tricks=[])
    assert weights(before).keys() == weights(after).keys()
    for name, value in weights(before).items():
        assert torch.equal(value, weights(after)[name])
    assert 4 <= script(page).count("# trickbox") <= 12


@pytest.mark.parametrize("page", LOOPS)
def test_every_kind_of_trick_acts_in_a_loop(page):
    pytest.importorskip(LOOPS[page], reason=f"{LOOPS[page]} is not installed")
    state = execute(script(page), tricks=ALL)["run"].state
    assert state.history["step"] == [4, 8], "every update is counted, and the second epoch is the last"
    full = execute(script(page), tricks=["one_cycle"])["run"].state
    assert full.history["step"] == [4, 8, 12, 16]
    assert full.history["lr"][-1] == pytest.approx(0.1 / 25e4)
    with pytest.raises(tb.ConfigError, match=r"x, y = run\.batch"):
        execute(re.sub(r".*run\.batch.*\n", "", script(page)), tricks=["mixup"])


def test_skorch():
    pytest.importorskip("skorch", reason="skorch is not installed")
    tricks = [{"trick": "batch_norm", "dense": True}, "one_cycle", "sam", ALL[-1]]
    net = execute(script("skorch"), tricks=tricks)["net"]
    assert len(net.history) == 2
    assert not torch.equal(net.module_[0].trickbox.batch_norm.weight, torch.ones(16))
    net = execute(script("skorch"), tricks=["one_cycle"])["net"]
    assert dict(net.callbacks_)["tricks"].run.state.history["lr"][-1] == pytest.approx(0.1 / 25e4)
    for trick, line in (("mixup", r"x, y = run\.batch"), ("ema", r"run\.evaluating")):
        with pytest.raises(tb.ConfigError, match=line):
            execute(script("skorch"), tricks=[trick])


def test_lightning(capsys):
    pytest.importorskip("lightning", reason="the extra 'lightning' is not installed")
    names = execute(script("lightning"))
    assert names["tricks"].run.state.step > 4
    assert "val_loss" in capsys.readouterr().out
    assert not list(Path().iterdir()), "a training leaves no files behind"


def test_transformers(capsys):
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    names = execute(script("transformers"))
    assert names["trainer"].run.state.step > 8
    assert "eval_loss" in capsys.readouterr().out
