"""`fit`: equal to a hand-written loop bit for bit, and a clean end whatever ends it."""

from __future__ import annotations

import io
import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trickbox.authoring import derive, forked, hookimpl, trick


def build(dropout):
    with forked(1):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), nn.Linear(6, 3))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01), partial(torch.optim.Adam, lr=0.05)],
    ids=["sgd", "adam"],
)
def test_a_run_without_tricks_equals_a_hand_written_loop_bit_for_bit(run, data, valid, same_bits, dropout, optimizer):
    seed, model, losses = 3, build(dropout), []
    mine = optimizer(model.parameters())
    with forked():
        for epoch in range(3):
            model.train()
            order = torch.randperm(20, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))
            for batch, index in enumerate(order.split(8)):
                torch.manual_seed(derive(seed, "noise", epoch) + batch)
                mine.zero_grad()
                loss = F.cross_entropy(model(data[0][index]), data[1][index])
                loss.backward()
                mine.step()
            model.eval()
            with torch.no_grad():
                losses.append(F.cross_entropy(model(valid[0]), valid[1]).item())
    result = run(model=build(dropout), optimizer=optimizer, valid=valid, max_epochs=3, seed=seed)
    same_bits(result.model, model)
    assert result.history["val_loss"] == pytest.approx(losses, rel=1e-6)


def test_the_same_seed_twice_gives_the_same_bits_and_another_seed_others(run, same_bits):
    found = []
    for noise, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(noise)
        found.append(run(model=build(True), seed=seed))
    same_bits(found[0].model, found[1].model)
    assert found[0].history.rows == found[1].history.rows
    assert not torch.equal(found[0].model[0].weight, found[2].model[0].weight)


def test_validation_changes_no_bit_of_training(run, valid, same_bits):
    same_bits(run(model=build(True), valid=valid).model, run(model=build(True)).model)


def test_a_run_leaves_nothing_global_behind(run, valid, untouched):
    with untouched(None):
        run(["dropout"], model=build(True), valid=valid)


def test_the_model_that_was_passed_is_the_one_that_is_trained(run, net):
    before = net[0].weight.detach().clone()
    assert run(model=net).model is net
    assert not torch.equal(net[0].weight, before)


@trick
class Watch:
    """Write down the modes of all modules after validation. Cost: none."""

    @hookimpl(wrapper=True)
    def validate(self, state):
        before = [module.training for module in state.model.modules()]
        metrics = yield
        MODES.append((before, [module.training for module in state.model.modules()]))
        return metrics

    @hookimpl
    def epoch_start(self, state):
        state.model[1].eval()


MODES: list[tuple[list[bool], list[bool]]] = []


def test_validation_leaves_the_mode_of_each_module_as_it_was(run, valid):
    MODES.clear()
    run([Watch()], model=nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), valid=valid)
    assert MODES == [([True, True, False, True],) * 2] * 2


# -- batches by name, and losses of the model's own --------------------------------------------------------------------


class Own(nn.Module):
    """A model that takes its batch by name and computes its own loss."""

    def __init__(self, outputs=dict):
        super().__init__()
        self.net, self.outputs = build(dropout=True), outputs

    def forward(self, x, labels):
        logits = self.net(x)
        return self.outputs(loss=F.cross_entropy(logits, labels), logits=logits)


def by_name(data, batch_size=8):
    inputs, labels = data
    return [{"x": x, "labels": y} for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True)]


@pytest.mark.parametrize("outputs", [dict, SimpleNamespace])
def test_a_model_with_its_own_loss_equals_a_hand_written_loop_bit_for_bit(run, data, valid, same_bits, outputs):
    model, losses = Own(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with forked():
        for epoch in range(2):
            model.train()
            for batch, named in enumerate(by_name(data)):
                torch.manual_seed(derive(0, "noise", epoch) + batch)
                optimizer.zero_grad()
                model(**named)["loss"].backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                losses.append(model(*valid)["loss"].item())
    result = run(model=Own(outputs), train=by_name(data), valid=by_name(valid, 4), loss=None)
    same_bits(result.model, model)
    assert result.history["val_loss"] == pytest.approx(losses, rel=1e-6)
    assert result.history.columns == ["epoch", "step", "train_loss", "val_loss", "lr"]


def test_metrics_get_the_outputs_and_the_labels_of_a_batch_by_name(run, data):
    def right(outputs, labels):
        return (outputs["logits"].argmax(1) == labels).float().mean()

    named = by_name(data, 6)
    result = run(model=Own(), train=named, valid=named, loss=None, metrics={"right": right}, max_epochs=1)
    with torch.no_grad():
        expected = right(result.model.eval()(*data), data[1])
    assert result.metrics["val_right"] == pytest.approx(expected.item())


def test_a_loss_that_is_given_gets_the_labels_and_wins_over_the_model_s_own(run, data, same_bits):
    mine = run(model=Own(), train=by_name(data), loss=lambda o, labels: 2 * F.cross_entropy(o["logits"], labels))
    other = run(model=Own(), train=by_name(data), loss=None, optimizer=partial(torch.optim.SGD, lr=0.2))
    same_bits(mine.model, other.model)
    assert mine.history["train_loss"] == pytest.approx([2 * loss for loss in other.history["train_loss"]])


def test_without_a_loss_tensors_in_pairs_work_too(run, data, same_bits):
    named = {"x": data[0], "labels": data[1]}
    mine, other = run(model=Own(), train=(named, data[1]), loss=None), run(model=build(dropout=True), train=data)
    same_bits(mine.model.net, other.model)
    assert mine.history["train_loss"] == other.history["train_loss"]


# -- how a run ends ----------------------------------------------------------------------------------------------------


@trick
class Interrupt:
    """Press Ctrl-C in the second epoch. Cost: the run."""

    @hookimpl
    def batch(self, state):
        if state.step == 4:
            raise KeyboardInterrupt

    @hookimpl
    def fit_end(self, state):
        ENDED.append(state.step)


ENDED: list[int] = []


def test_ctrl_c_ends_the_run_cleanly_with_what_there_is(run, untouched):
    ENDED.clear()
    with untouched(None):
        result = run([Interrupt()], max_epochs=5)
    assert result.stop_reason == "interrupted in epoch 1, step 4"
    assert ENDED == [4]
    assert len(result.history) == 1
    assert len(result.seconds) == 1
    once = run(max_epochs=1)
    assert result.history.rows == once.history.rows
    assert not torch.equal(result.model[0].weight, once.model[0].weight)


def test_all_epochs_done_is_a_reason_too(run):
    assert run(max_epochs=3).stop_reason == "max_epochs: all 3 epochs are done"


@trick
class Length:
    """Write down how long the run says that it is. Cost: none."""

    @hookimpl(wrapper=True)
    def update(self, state):
        LENGTHS.append((state.total_steps, state.progress))
        return (yield)


LENGTHS: list[tuple[int, float]] = []


@pytest.mark.parametrize(("steps", "rows"), [(1, [1]), (3, [3]), (5, [3, 5]), (6, [3, 6])])
def test_a_run_of_so_many_steps_ends_after_exactly_them(run, valid, same_bits, steps, rows):
    LENGTHS.clear()
    result = run([Length()], max_epochs=None, max_steps=steps, valid=valid)
    expected = [(steps, step / steps) for step in range(steps)]
    assert expected == LENGTHS
    assert result.history["step"] == rows
    assert result.stop_reason == f"max_steps: all {steps} steps are done"
    assert len(result.seconds) == len(rows)
    assert all(math.isfinite(loss) for loss in result.history["val_loss"])
    longer = run(max_epochs=3, max_steps=steps, valid=valid)
    same_bits(longer.model, result.model)
    assert longer.history.rows == result.history.rows
    assert longer.stop_reason == result.stop_reason


def test_steps_in_whole_epochs_are_epochs(run, same_bits):
    mine, other = run(max_epochs=None, max_steps=6), run(max_epochs=2)
    same_bits(mine.model, other.model)
    assert mine.history.rows == other.history.rows


def test_of_two_lengths_the_shorter_one_counts(run):
    LENGTHS.clear()
    result = run([Length()], max_epochs=2, max_steps=100)
    assert result.stop_reason == "max_epochs: all 2 epochs are done"
    assert result.history["step"] == [3, 6]
    assert {total for total, _ in LENGTHS} == {6}


def test_divergence_stops_with_a_warning_and_a_reason(run):
    ENDED.clear()
    with pytest.warns(UserWarning, match=r"diverged: train_loss is (nan|inf) in epoch 0; .* smaller learning rate"):
        result = run([Interrupt()], optimizer=partial(torch.optim.SGD, lr=1e20), max_epochs=9, train=(
            100 * torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3))  # fmt: skip
    assert result.stop_reason.startswith("diverged")
    assert len(result.history) == 1
    assert not math.isfinite(result.metrics["train_loss"])
    assert ENDED == [3]


def test_the_result_of_a_run_that_ended_early_is_that_of_a_shorter_run(run, same_bits):
    @trick
    class Stop:
        """Stop after two epochs. Cost: none."""

        @hookimpl
        def epoch_end(self, state):
            if state.epoch == 1:
                state.stop("two are enough")

    mine, other = run([Stop()], max_epochs=7), run(max_epochs=2)
    same_bits(mine.model, other.model)
    assert mine.history.rows == other.history.rows


def test_the_record_is_json_and_tells_what_ran(run):
    record = json.loads(json.dumps(run([("mine", {"trick": "dropout", "p": 0.25})], seed=7).record))
    assert record["seed"] == 7
    assert record["max_epochs"] == 2
    assert record["device"] == "cpu"
    assert record["tricks"][0]["name"] == "mine"
    assert record["tricks"][0]["p"] == 0.25
    assert record["versions"]["torch"] == torch.__version__


# -- progress ----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, run, terminal, **options):
    monkeypatch.setattr(sys, "stderr", terminal)
    run(**options)
    return terminal.getvalue()


def test_on_a_terminal_there_is_a_bar_with_the_metrics(run, valid, monkeypatch):
    text = shown(monkeypatch, run, Terminal(), progress=None, valid=valid)
    history = run(valid=valid).history
    for name in ("train_loss", "val_loss", "val_accuracy"):
        assert f"{name}={history[name][-1]:.4g}" in text
    assert "epoch 2/2" in text
    assert "6/6" in text


def test_elsewhere_there_is_none_unless_asked_for(run, monkeypatch):
    assert shown(monkeypatch, run, io.StringIO(), progress=None) == ""
    assert shown(monkeypatch, run, Terminal(), progress=False) == ""
    assert "6/6" in shown(monkeypatch, run, io.StringIO(), progress=True)


def test_a_bar_without_known_length_and_one_that_is_interrupted_end_well(run, monkeypatch):
    class Batches:
        def __iter__(self):
            yield torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)

    assert "2step" in shown(monkeypatch, run, Terminal(), progress=True, train=Batches())
    assert "2/2" in shown(monkeypatch, run, Terminal(), progress=True, train=Batches(), max_epochs=None, max_steps=2)
    text = shown(monkeypatch, run, Terminal(), progress=True, tricks=[Interrupt()], max_epochs=5)
    assert "4/15" in text
    assert text.endswith("\n")
