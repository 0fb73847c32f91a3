"""Losses and metrics: averages over samples, against loops by hand and torchmetrics."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import trickbox as tb
from trickbox import metrics as module
from trickbox.authoring import derive
from trickbox.metrics import Meter, accuracy, default_metrics


def mean_output(outputs, targets):
    return outputs.mean()


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_loss_and_metrics_are_averages_over_samples_however_they_were_cut(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(sum(sizes), 3, generator=generator)
    targets = torch.randint(0, 3, (sum(sizes),), generator=generator)
    meter = Meter({"accuracy": accuracy, "mean": mean_output})
    for one, other in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        meter.add(one, other, F.cross_entropy(one, other), len(other))
    found = meter.result()
    assert found["loss"] == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == targets).double().mean().item())
    assert found["mean"] == pytest.approx(outputs.double().mean().item(), abs=1e-6)


def test_folding_early_changes_no_average(monkeypatch):
    outputs, targets = torch.randn(20, 3), torch.arange(20) % 3
    found = []
    for elements, batches in ((1 << 20, 1024), (1, 1024), (1 << 20, 2)):
        monkeypatch.setattr(module, "PENDING_ELEMENTS", elements)
        monkeypatch.setattr(module, "PENDING_BATCHES", batches)
        meter = Meter({"accuracy": accuracy, "f1": torchmetrics.F1Score("multiclass", num_classes=3, average="macro")})
        for one, other in zip(outputs.split(7), targets.split(7), strict=True):
            meter.add(one, other, F.cross_entropy(one, other), len(other))
        found.append(meter.result())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-6)


def test_pending_batches_do_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr(module, "PENDING_BATCHES", 3)
    meter = Meter({})
    for _ in range(7):
        meter.add(torch.zeros(1, 2), torch.zeros(1), torch.tensor(0.0), 1)
    assert len(meter._pending) == 1


def test_outputs_of_different_shapes_are_measured_batch_by_batch():
    """Sequences of different lengths cannot be joined; the averages are still over samples."""
    meter = Meter({"mean": mean_output})
    meter.add(torch.ones(2, 5), torch.zeros(2, 5), torch.tensor(1.0), 2)
    meter.add(torch.zeros(6, 3), torch.zeros(6, 3), torch.tensor(0.0), 6)
    assert meter.result() == {"loss": 0.25, "mean": 0.25}


def test_reset_forgets_and_an_empty_meter_has_no_result():
    meter = Meter({"mean": mean_output})
    assert meter.result() == {}
    meter.add(torch.ones(2, 5), torch.zeros(2), torch.tensor(1.0), 2)
    meter.result()
    meter.reset()
    assert meter.result() == {}


def test_the_meter_holds_no_graph():
    weight = torch.ones(2, 3, requires_grad=True)
    meter = Meter({"mean": mean_output})
    outputs = weight * 2
    meter.add(outputs, torch.zeros(2), outputs.sum(), 2)
    assert not any(t.requires_grad for t in meter._pending[0][:2])


def test_accuracy_is_the_share_of_right_classes_also_for_segmentation():
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert accuracy(outputs, torch.tensor([0, 1, 1, 1])) == 0.5
    dense, classes = torch.randn(2, 3, 5, 4), torch.randint(0, 3, (2, 5, 4))
    expected = torchmetrics.functional.accuracy(dense.argmax(1), classes, "multiclass", num_classes=3)
    assert accuracy(dense, classes) == pytest.approx(expected.item())


def test_metrics_see_the_most_probable_class_where_a_trick_made_probabilities_of_classes():
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    meter = Meter({"accuracy": accuracy}, classes=True)
    meter.add(outputs, mixed, torch.tensor(1.0), 4)
    assert meter.result() == {"loss": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), ["accuracy"]),
        (torch.zeros(4, 3, 5), torch.zeros(4, 5, dtype=torch.long), ["accuracy"]),
        (torch.zeros(4, 3), torch.zeros(4, 3), []),
        (torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.long), []),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), []),
        ({"logits": torch.zeros(4, 3)}, torch.zeros(4, dtype=torch.long), []),
    ],
)
def test_accuracy_is_there_by_default_for_class_numbers_only(outputs, targets, expected):
    assert list(default_metrics(outputs, targets)) == expected


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_training_metrics_are_weighted_by_samples_on_a_ragged_last_batch(run):
    """360 = 11 * 32 + 8, as in the lesson: the last batch must not count four times."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(360, 4, generator=generator), torch.randint(0, 3, (360,), generator=generator)
    frozen = run(train=(inputs, targets), batch_size=32, max_epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    with torch.no_grad():
        outputs = frozen.model(inputs)
    assert frozen.metrics["train_loss"] == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-5)
    right = (outputs.argmax(1) == targets).double().mean().item()
    assert frozen.metrics["train_accuracy"] == pytest.approx(right, rel=1e-6)
    # A mean of batch means would be another number; otherwise this test shows nothing.
    order = torch.randperm(360, generator=torch.Generator().manual_seed(derive(0, "order", 0)))
    by_batch = torch.stack([F.cross_entropy(outputs[i], targets[i]) for i in order.split(32)]).mean().item()
    assert abs(by_batch - F.cross_entropy(outputs, targets).item()) > 1e-4


def test_validation_metrics_are_those_of_the_trained_weights_in_eval_mode(run, valid):
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    result = run(model=net, valid=valid, metrics={"mean": mean_output, "accuracy": accuracy})
    with torch.no_grad():
        outputs = net.eval()(valid[0])
    assert result.metrics["val_loss"] == pytest.approx(F.cross_entropy(outputs, valid[1]).item(), rel=1e-6)
    assert result.metrics["val_mean"] == pytest.approx(outputs.mean().item(), rel=1e-5)
    assert result.metrics["val_accuracy"] == pytest.approx((outputs.argmax(1) == valid[1]).float().mean().item())


def test_torchmetrics_objects_equal_one_call_on_everything_and_stay_as_they_were(run, data, valid):
    mine = torchmetrics.F1Score("multiclass", num_classes=3, average="macro")
    mine.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
    before = mine.compute()
    result = run(valid=valid, metrics={"f1": mine}, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    for (inputs, targets), side in ((data, "train"), (valid, "val")):
        with torch.no_grad():
            outputs = result.model(inputs)
        expected = torchmetrics.functional.f1_score(outputs, targets, "multiclass", num_classes=3, average="macro")
        assert result.metrics[f"{side}_f1"] == pytest.approx(expected.item(), rel=1e-6)
        assert result.history[f"{side}_f1"] == pytest.approx([expected.item()] * 2, rel=1e-6)
    assert torch.equal(mine.compute(), before)


class Dictionary(nn.Module):
    """Outputs as Hugging Face models give them: a mapping that begins with a number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs):
        logits = self.layer(inputs)
        return {"penalty": logits.square().mean(), "logits": logits}


def test_metrics_and_loss_on_outputs_in_a_mapping(run, data):
    result = run(
        model=Dictionary(),
        loss=lambda outputs, targets: F.cross_entropy(outputs["logits"], targets),
        metrics={"right": lambda outputs, targets: accuracy(outputs["logits"], targets)},
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
    )
    with torch.no_grad():
        expected = accuracy(result.model(data[0])["logits"], data[1]).item()
    assert result.metrics["train_right"] == pytest.approx(expected, rel=1e-6)
    assert "train_accuracy" not in result.metrics


def test_a_loss_of_shape_one_counts_as_one_number(run):
    one = run(loss=lambda o, t: F.cross_entropy(o, t).reshape(1))
    other = run(loss=F.cross_entropy)
    assert one.history.rows == other.history.rows


def test_a_metric_may_give_a_plain_number(run):
    assert run(metrics={"seven": lambda outputs, targets: 7}).metrics["train_seven"] == 7


def test_no_metrics_on_request(run):
    assert set(run(metrics={}).metrics) == {"train_loss"}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"f": 3}, "'f' must be a function of"),
        ({"loss": mean_output}, "the name 'loss' is taken"),
        (["accuracy"], "must map names to functions"),
    ],
)
def test_metrics_that_cannot_work_are_refused(run, net, untouched, metrics, message):
    with untouched(net), pytest.raises(tb.ConfigError, match=message):
        run(model=net, metrics=metrics)
    with pytest.raises(tb.ConfigError, match=message):
        tb.evaluate(net, (torch.zeros(2, 4), torch.zeros(2).long()), loss=nn.CrossEntropyLoss(), metrics=metrics)


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_evaluate_equals_a_loop_by_hand_and_touches_nothing(net, data, untouched):
    with untouched(net):
        found = tb.evaluate(net, data, loss=nn.CrossEntropyLoss(), batch_size=1)
    with torch.no_grad():
        outputs = net(data[0])
    assert found["loss"] == pytest.approx(F.cross_entropy(outputs, data[1]).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == data[1]).float().mean().item())


def test_evaluate_puts_back_the_mode_of_each_module(data):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    net[1].eval()
    buffers = net[1].running_mean.clone()
    tb.evaluate(net, data, loss=nn.CrossEntropyLoss())
    assert [m.training for m in net.modules()] == [True, True, False, True, True]
    assert torch.equal(net[1].running_mean, buffers)


def test_modes_come_back_after_an_exception_in_evaluation(data):
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

    def fails(outputs, targets):
        raise KeyError

    with pytest.raises(KeyError):
        tb.evaluate(net, data, loss=fails)
    assert all(m.training for m in net.modules())
