"""Smoothed targets against torch's own smoothing, and what cannot be smoothed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks import LabelSmoothing, Mixup
from trickbox_tricks.mixup import mix
from trickbox_tricks.smoothing import smooth, smooths_alike

from trickbox import ConfigError, attach, explain, fit
from trickbox.authoring import probabilities

SGD = partial(torch.optim.SGD, lr=0.5, momentum=0.9)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(samples: int = 23, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 5, generator=seeded()).to(kind), torch.arange(samples) % 3


def net(kind: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(kind)


def train(
    tricks: list[Any], loss: Any = None, model: nn.Module | None = None, pair: Any = None, valid: Any = None
) -> Any:
    return fit(
        model or net(), pair or data(), valid, loss=loss or nn.CrossEntropyLoss(), optimizer=SGD, tricks=tricks,
        max_epochs=2, batch_size=10, device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 4), (5, 4, 6), (2, 4, 3, 3)])
@pytest.mark.parametrize("eps", [0.1, 0.6])
def test_loss_and_gradients_are_those_of_torchs_own_smoothing(shape: tuple[int, ...], eps: float) -> None:
    logits = torch.randn(shape, generator=seeded(), dtype=torch.float64).requires_grad_()
    hard = torch.randint(0, 4, (shape[0], *shape[2:]), generator=seeded())
    soft = torch.randn(shape, generator=seeded(1), dtype=torch.float64).softmax(1)
    for targets, given in ((hard, probabilities(hard, 4, torch.float64)), (soft, soft)):
        expected = F.cross_entropy(logits, targets, label_smoothing=eps)
        found = F.cross_entropy(logits, smooth(given, eps))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        for one, other in zip(*(torch.autograd.grad(loss, logits) for loss in (found, expected)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_smoothing_and_mixing_commute() -> None:
    targets, partners, share = probabilities(torch.arange(6) % 3, 3), torch.arange(6).roll(1), torch.tensor(0.3)
    torch.testing.assert_close(smooth(mix(targets, partners, share), 0.2), mix(smooth(targets, 0.2), partners, share))


@pytest.mark.parametrize("others", [[], [Mixup(0.4)]], ids=["alone", "mixup"])
def test_a_run_is_the_one_whose_loss_smooths(others: list[Any]) -> None:
    double = data(kind=torch.float64)
    ours = train([LabelSmoothing(0.2), *others], model=net(torch.float64), pair=double)
    torchs = train(others, nn.CrossEntropyLoss(label_smoothing=0.2), net(torch.float64), double)
    assert ours.history["train_loss"] == pytest.approx(torchs.history["train_loss"], rel=1e-12)
    assert ours.history["train_accuracy"] == torchs.history["train_accuracy"], "the hard class counts"
    for one, other in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_validation_has_the_hard_targets() -> None:
    result = train([LabelSmoothing(0.5)], valid=data(12))
    model, (inputs, targets) = result.model.eval(), data(12)
    assert result.metrics["val_loss"] == pytest.approx(F.cross_entropy(model(inputs), targets).item(), rel=1e-6)


def test_the_users_targets_stay_as_they_are() -> None:
    pair = data(), data()
    train([LabelSmoothing()], pair=[pair[0]])
    assert torch.equal(pair[0][1], pair[1][1])


# -- what cannot be smoothed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), "must not smooth already, got label_smoothing=0.1"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0])), r"write nn.CrossEntropyLoss\(weight=\.\.\., label"),
        (nn.CrossEntropyLoss(ignore_index=1), "must not ignore a class, got ignore_index=1"),
        (nn.NLLLoss(), "must take class probabilities, got NLLLoss"),
    ],
    ids=["twice", "weights", "ignored", "nll"],
)
def test_a_loss_for_which_it_would_be_wrong_is_refused_before_training(loss: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=f"label_smoothing: .*{message}"):
        train([LabelSmoothing()], loss)


def test_class_weights_that_are_all_one_are_no_weights() -> None:
    (inputs, targets), even = data(), nn.CrossEntropyLoss(weight=torch.ones(3))
    assert smooths_alike(even, net()(inputs), targets, eps=0.3)
    assert not smooths_alike(nn.CrossEntropyLoss(weight=torch.arange(1.0, 4)), net()(inputs), targets, eps=0.3)
    train([LabelSmoothing()], even)


def test_a_target_that_the_loss_ignores_is_refused_before_training() -> None:
    inputs, targets = data()
    targets[4] = -100
    with pytest.raises(ConfigError, match="label_smoothing: targets must be class numbers from 0 to 2, got -100"):
        train([LabelSmoothing()], pair=(inputs, targets))


def test_floating_targets_that_are_no_probabilities_are_refused_before_training() -> None:
    inputs = data()[0]
    with pytest.raises(
        ConfigError, match=r"must be class numbers .*, or class probabilities, got torch.float32 \(10, 3\)"
    ):
        train([LabelSmoothing()], nn.MSELoss(), pair=(inputs, inputs[:, :3].clone()))


def test_outputs_without_a_class_axis_are_refused_before_training() -> None:
    model = nn.Sequential(net(), nn.Flatten(0))
    with pytest.raises(ConfigError, match=r"label_smoothing: for class targets .* shape \(N, C\), got \(30,\)"):
        fit(
            model, data(), loss=lambda outputs, _: outputs.mean(), optimizer=SGD, tricks=[LabelSmoothing()],
            max_epochs=1, batch_size=10,
        )  # fmt: skip


class OwnLoss(nn.Module):
    """Computes its loss by itself, from labels that it takes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        outputs = self.inner(x)
        return {"logits": outputs} if labels is None else {"loss": F.cross_entropy(outputs, labels)}


@pytest.mark.parametrize("tricks", [[LabelSmoothing()], [Mixup()]], ids=["label_smoothing", "mixup"])
def test_a_loss_inside_the_model_is_refused_before_training(tricks: list[Any]) -> None:
    batch = {"x": data(8)[0], "labels": data(8)[1]}
    with pytest.raises(ConfigError, match="takes its labels by name and computes the loss by itself"):
        fit(OwnLoss(), [batch], optimizer=SGD, tricks=tricks, max_epochs=1)
    with pytest.raises(ConfigError, match="takes its labels by name and computes the loss by itself"):
        attach(OwnLoss(), tricks, batch)


# -- a loop of somebody else -------------------------------------------------------------------------------------------


def test_a_loop_that_hands_over_its_batches_trains_as_a_run_does() -> None:
    model, train_data = net(), data(20)
    with attach(model, [LabelSmoothing(0.3)], train_data[0][:10]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        for rows in torch.arange(20).split(10):
            inputs, targets = run.batch(train_data[0][rows], train_data[1][rows])
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    plain = net()
    optimizer = SGD(plain.parameters())
    for rows in torch.arange(20).split(10):
        F.cross_entropy(plain(train_data[0][rows]), train_data[1][rows], label_smoothing=0.3).backward()
        optimizer.step()
        optimizer.zero_grad()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tricks", [[LabelSmoothing()], [Mixup()]], ids=["label_smoothing", "mixup"])
@pytest.mark.parametrize("targets", [None, torch.full((10,), 7)], ids=["none", "no class"])
def test_targets_that_come_late_are_checked_when_they_come(tricks: list[Any], targets: Tensor | None) -> None:
    inputs = data()[0][:10]
    run = attach(net(), tricks, inputs)
    with pytest.raises(ConfigError, match=r"targets must be .*got (None|7)"):
        run.batch(inputs, targets)


@pytest.mark.parametrize("tricks", [[LabelSmoothing(), Mixup()], [Mixup(), LabelSmoothing()]])
def test_smoothing_comes_after_mixing_whatever_the_list_says(tricks: list[Any]) -> None:
    said = explain(net(), data()[0], tricks)
    assert "batch         mixup, label_smoothing" in said
    assert "label_smoothing: after mixup" in said
