"""Averaged weights against torch's own and a closed form, and where they are and are not to be seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from trickbox_tricks import EMA, Accumulate, EarlyStopping
from trickbox_tricks.averaging import average_, kept_share

from trickbox import ConfigError, Session, attach, evaluate, fit
from trickbox.authoring import State, hookimpl, trick

SGD = partial(torch.optim.SGD, lr=0.3, momentum=0.9)
UPDATES = 12


def batches(count: int = 6, samples: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(samples, 5, generator=generator), torch.arange(samples) % 3) for _ in range(count)]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(tricks: list[Any], model: nn.Module | None = None, **settings: Any) -> Any:
    return fit(
        model or net(), batches(), **{"valid": batches(2), "max_epochs": 2, **settings}, loss=nn.CrossEntropyLoss(),
        optimizer=SGD, tricks=tricks,
    )  # fmt: skip


def by_hand(model: nn.Module, average: Any) -> Any:
    optimizer = SGD(model.parameters())
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    for inputs, targets in batches() * 2:
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
    return averaged.module


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


# -- what the averages are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_life", [0.01, 0.1, 0.5, 1.0])
def test_they_are_the_weighted_mean_of_all_weights_so_far(half_life: float) -> None:
    decay = 0.5 ** (1 / (half_life * 40))
    weights = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    average = weights[0].clone()
    for update in range(1, 40):
        average_([average], [weights[update]], kept_share(update, 40, half_life))
        ages = torch.arange(update, -1, -1, dtype=torch.float64)[:, None]
        expected = (decay**ages * weights[: update + 1]).sum(0) / (decay**ages).sum()
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-13)


def test_they_are_torchs_but_for_what_torchs_keep_of_the_first_weights() -> None:
    decay = 0.5 ** (1 / (0.2 * UPDATES))
    found, torchs = floating(train([EMA(0.2)]).model), floating(by_hand(net(), get_ema_multi_avg_fn(decay)))
    begin = floating(by_hand(net(), lambda *_: None))
    left = decay**UPDATES
    for name, value in torchs.items():
        torch.testing.assert_close(value, left * begin[name] + (1 - left) * found[name])


def test_along_a_run_they_are_torchs_with_the_same_shares_bit_for_bit() -> None:
    def average(averages: list[Tensor], weights: list[Tensor], seen: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - kept_share(int(seen), UPDATES, 0.3))

    assert same(floating(train([EMA(0.3)]).model), floating(by_hand(net(), average)))


def test_behind_a_linear_drift_they_lag_by_the_closed_form() -> None:
    share, drift, average = 0.9, 0.25, torch.tensor([3.0], dtype=torch.float64)
    for update in range(1, 60):
        weight = torch.tensor([3.0 + drift * update], dtype=torch.float64)
        average_([average], [weight], share)
        lag = drift * share * (1 - share**update) / (1 - share)
        assert (weight - average).item() == pytest.approx(lag, rel=1e-12)


def test_a_run_along_a_linear_drift_ends_in_the_closed_form() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    begin, ones = model.weight.item(), [(torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1))] * 20
    fit(
        model, ones, loss=lambda outputs, _: outputs.mean(), optimizer=partial(torch.optim.SGD, lr=0.5),
        tricks=[EMA(0.25)], max_epochs=1,
    )  # fmt: skip
    decay = 0.5 ** (1 / 5)
    age = sum(n * decay**n for n in range(20)) / sum(decay**n for n in range(20))
    assert model.weight.item() == pytest.approx(begin - 0.5 * (20 - age), rel=1e-12)


def test_only_updates_count_and_not_batches() -> None:
    seen = AveragesSeen.of([EMA(0.5), Accumulate(4)], max_epochs=1)  # 4 batches, then 2
    optimizer = SGD((model := net()).parameters())
    weights = []
    for several in (batches()[:4], batches()[4:]):
        for inputs, targets in several:
            (F.cross_entropy(model(inputs), targets) / len(several)).backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.append(model[0].weight.detach().clone())
    torch.testing.assert_close(seen[0]["0.weight"], torch.lerp(weights[1], weights[0], kept_share(1, 2, 0.5)))


def test_other_buffers_stay_the_models_own() -> None:
    model = net()
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    mask = model.mask.clone()
    result = train([EMA()], model)
    assert torch.equal(model.mask, mask), "minus infinity has no average"
    assert result.model[1].num_batches_tracked == UPDATES


def test_half_precision_is_averaged_in_single_precision() -> None:
    given = [(inputs.bfloat16(), targets) for inputs, targets in batches()]
    seen = AveragesSeen.of([EMA()], net().bfloat16(), train=given, valid=given)
    assert {value.dtype for name, value in seen[0].items() if name != "1.num_batches_tracked"} == {torch.float32}


# -- where they are seen -----------------------------------------------------------------------------------------------


@trick
class AveragesSeen:
    """Write down what validation was measured with. Cost: a copy."""

    after = ("averaging",)
    seen = []  # noqa: RUF012

    @hookimpl
    def epoch_end(self, state: State) -> None:
        assert state.evaluated is not None
        self.seen.append({name: value.clone() for name, value in state.evaluated.items()})

    @classmethod
    def of(cls, tricks: list[Any], model: nn.Module | None = None, **settings: Any) -> list[dict[str, Tensor]]:
        cls.seen.clear()
        given = {"train": batches(), "valid": batches(2), "max_epochs": 2, **settings}
        fit(model or net(), **given, loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[*tricks, cls()])
        return cls.seen


def test_validation_is_measured_with_them_and_training_goes_on_without() -> None:
    plain, result = train([]), train([EMA(0.5)])
    assert result.history["train_loss"] == plain.history["train_loss"]
    assert result.history["val_loss"] != plain.history["val_loss"]
    assert evaluate(result.model, batches(2), loss=nn.CrossEntropyLoss())["loss"] == result.metrics["val_loss"]
    assert list(result.model.state_dict()) == list(plain.model.state_dict())
    assert same(snapshot(result.model), AveragesSeen.of([EMA(0.5)])[-1])


class Planted(Exception):  # noqa: N818
    """Raised in the middle of a validation."""


class FailsIn(nn.CrossEntropyLoss):
    """Raises at one of its calls without gradients."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= not torch.is_grad_enabled()
        if self.left == 0:
            raise Planted
        return super().forward(outputs, targets)


def one_epoch(session: Session) -> Iterator[int]:
    epochs = session.epochs()
    next(epochs)
    for batch in session.batches():
        session.step(batch)
    return epochs


@pytest.mark.parametrize("call", [0, 4], ids=["it ends", "it raises"])
def test_after_a_validation_the_weights_are_back_bit_for_bit(call: int) -> None:
    model = net()
    with Session(
        model, batches(), batches(2), loss=FailsIn(call), optimizer=SGD, tricks=[EMA(0.5)], max_epochs=2
    ) as session:
        epochs = one_epoch(session)
        weights = snapshot(model)
        if call:
            with pytest.raises(Planted):
                next(epochs)
        else:
            next(epochs)
        assert same(snapshot(model), weights)
    assert not same(snapshot(model), weights), "in the end the model has the averages, also after an error"


def test_without_an_update_the_model_stays_as_it_is() -> None:
    @trick
    class Never:
        """Make no update. Cost: the run."""

        @hookimpl
        def update(self, state: State) -> bool:
            return False

    model = net()
    train([EMA(0.5), Never()], model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))
    assert model[1].num_batches_tracked == UPDATES


# -- with early stopping -----------------------------------------------------------------------------------------------


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[3].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [net, tied])
def test_early_stopping_brings_the_evaluated_weights_back_in_any_order(make: Any) -> None:
    torch.manual_seed(0)
    kept, runs = make(), []
    for tricks in ([EMA(0.3), EarlyStopping(patience=2)], [EarlyStopping(patience=2), EMA(0.3)]):
        model = make()
        model.load_state_dict(kept.state_dict())
        runs.append(train(tricks, model, max_epochs=30))
    one, other = runs
    best = min(one.history["val_loss"])
    assert len(one.history) < 30
    assert one.history["val_loss"][-1] != best == one.metrics["val_loss"]
    assert evaluate(one.model, batches(2), loss=nn.CrossEntropyLoss())["loss"] == best
    assert one.history.rows == other.history.rows
    assert same(snapshot(one.model), snapshot(other.model))


# -- loops of one's own ------------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_validates_with_them_and_gets_them_in_the_end() -> None:
    model, expected = net(), train([EMA(0.5)])
    with attach(model, [EMA(0.5)], batches()[0][0], epochs=2, steps_per_epoch=6) as run:
        optimizer = run.watch(SGD(model.parameters()))
        losses = []
        for _ in range(2):
            for inputs, targets in batches():
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()
            weights = snapshot(model)
            with run.evaluating():
                losses.append(evaluate(model, batches(2), loss=nn.CrossEntropyLoss())["loss"])
            assert same(snapshot(model), weights)
            run.epoch_end(val_loss=losses[-1])
    assert losses == expected.history["val_loss"]
    assert same(snapshot(model), snapshot(expected.model))


def test_a_loop_that_does_not_tell_when_it_validates_is_told_the_line() -> None:
    model = net()
    run = attach(model, [EMA()], batches()[0][0], steps=4)
    optimizer = run.watch(SGD(model.parameters()))
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    with pytest.raises(ConfigError, match=r"ema acts in 'validate'.*with run.evaluating\(\)"):
        run.epoch_end(val_loss=1.0)
    run.close()


def test_a_run_of_unknown_length_is_refused_before_training() -> None:
    endless = type("Endless", (), {"__iter__": lambda _: iter(batches())})()
    with pytest.raises(ConfigError, match="the length of the run is asked for") as caught:
        fit(net(), endless, loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[EMA()], max_epochs=1)
    assert any("'ema'" in note for note in caught.value.__notes__)


def test_two_averages_are_refused() -> None:
    with pytest.raises(ConfigError, match="ema and ema#2 cannot be in the same run"):
        train([EMA(), EMA(0.2)])
