"""Schedules against torch's own, over whole runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler
from trickbox_tricks.schedules import (
    CosineAnnealing,
    ExponentialDecay,
    OneCycle,
    ReduceOnPlateau,
    StepDecay,
    WarmUp,
    cosine,
    exponential_decay,
    one_cycle,
    plateau,
    step_decay,
    warm_up,
)

from trickbox import ConfigError, Session, fit

STEPS = 240
EPOCHS, BATCHES = 6, 5


def sgd(lr: float = 1.0, momentum: float = 0.95) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)


def reference(build: Callable[[Any], Any], steps: int = STEPS) -> tuple[list[float], list[float]]:
    """The rates and momenta that a scheduler of torch would use in each update of a rate of 1."""
    optimizer = sgd()
    scheduler = build(optimizer)
    rates, momenta = [], []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return rates, momenta


def model_and_data() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    data = torch.randn(4 * BATCHES, 3, generator=generator)
    return net, (data, torch.arange(4 * BATCHES) % 2)


def rates_used(tricks: list[Any], optimizer: Any = None, valid: bool = False) -> tuple[list[float], list[Any]]:
    """The rates and momenta that the updates of a real run use."""
    net, data = model_and_data()
    rates, momenta = [], []
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.5, momentum=0.95)

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group.get("momentum", group.get("betas")))

    with Session(
        net, data, data if valid else None, loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=tricks,
        max_epochs=EPOCHS, batch_size=4,
    ) as session:  # fmt: skip
        assert session.state.optimizer is not None
        session.state.optimizer.register_step_pre_hook(look)  # it runs after the one that scales
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
    assert len(rates) == EPOCHS * BATCHES
    return rates, momenta


# -- pure functions against torch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "factor"), [(5, 0.7), (1, 0.9), (30, 0.1)])
def test_step_decay_is_torchs(epochs: int, factor: float) -> None:
    expected, _ = reference(partial(lr_scheduler.StepLR, step_size=epochs, gamma=factor))
    assert [step_decay(epoch, epochs, factor) for epoch in range(STEPS)] == pytest.approx(expected, rel=1e-12)


def test_exponential_decay_is_torchs() -> None:
    expected, _ = reference(partial(lr_scheduler.ExponentialLR, gamma=0.95))
    assert [exponential_decay(epoch, 0.95) for epoch in range(STEPS)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_cosine_is_torchs(floor: float) -> None:
    expected, _ = reference(partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS, eta_min=floor))
    got = [cosine(1.0, floor, step / STEPS) for step in range(STEPS)]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("pct_start", [0.3, 0.25, 0.0, 0.001])
@pytest.mark.parametrize("total", [STEPS, 7])
def test_one_cycle_is_torchs_in_rate_and_momentum(pct_start: float, total: int) -> None:
    rates, momenta = reference(
        partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=total, pct_start=pct_start), total
    )
    cycle = partial(one_cycle, total_steps=total, pct_start=pct_start)
    assert [cycle(s, start=1 / 25, peak=1.0, end=1 / 25e4) for s in range(total)] == pytest.approx(rates, rel=1e-9)
    got = [0.95 * cycle(step, start=1.0, peak=0.85 / 0.95, end=1.0) for step in range(total)]
    assert got == pytest.approx(momenta, rel=1e-12)


@pytest.mark.parametrize("start", [0.01, 1 / 3])
def test_warm_up_is_torchs(start: float) -> None:
    expected, _ = reference(partial(lr_scheduler.LinearLR, start_factor=start, total_iters=50))
    assert [warm_up(step, 50, start) for step in range(STEPS)] == pytest.approx(expected, rel=1e-12)


def test_past_the_end_factors_keep_their_last_value() -> None:
    assert cosine(1.0, 0.1, 1.5) == cosine(1.0, 0.1, 1.0) == pytest.approx(0.1)
    assert one_cycle(30, 10, pct_start=0.3, start=0.04, peak=1.0, end=1e-6) == pytest.approx(1e-6)
    assert warm_up(10**9, 5, 0.1) == 1.0


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_is_finite_in_tiny_runs(total: int) -> None:
    factors = [one_cycle(s, total, pct_start=p, start=0.04, peak=1.0, end=0.0) for s in range(total) for p in (0, 0.5)]
    assert all(0 <= factor <= 1 for factor in factors)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([*[x / 8 for x in range(-4, 12)], math.nan]), max_size=40),
    mode=st.sampled_from(["min", "max"]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.3]),
    floor=st.sampled_from([0.0, 0.05, 0.6]),
)
def test_plateau_is_torchs(
    values: list[float], mode: Any, patience: int, cooldown: int, threshold: float, floor: float
) -> None:
    optimizer = sgd(lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=patience, cooldown=cooldown, threshold=threshold, min_lr=floor, eps=0
    )
    for count, value in enumerate(values, 1):
        scheduler.step(value)
        got = plateau(
            values[:count], mode=mode, factor=0.5, patience=patience, cooldown=cooldown, threshold=threshold,
            min_factor=floor,
        )  # fmt: skip
        assert got == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


# -- whole runs ------------------------------------------------------------------------------------------------------


def test_rates_of_a_run_count_epochs_for_decays() -> None:
    rates, _ = rates_used([StepDecay(epochs=2, factor=0.5)])
    expected = [0.5 * 0.5 ** (epoch // 2) for epoch in range(EPOCHS) for _ in range(BATCHES)]
    assert rates == pytest.approx(expected, rel=1e-12)
    rates, _ = rates_used([ExponentialDecay(0.5)])
    assert rates == pytest.approx([0.5 * 0.5**epoch for epoch in range(EPOCHS) for _ in range(BATCHES)], rel=1e-12)


def test_rates_of_a_run_count_updates_for_cosine() -> None:
    total = EPOCHS * BATCHES
    expected, _ = reference(partial(lr_scheduler.CosineAnnealingLR, T_max=total, eta_min=0.1), total)
    assert rates_used([CosineAnnealing(floor=0.1)])[0] == pytest.approx([0.5 * rate for rate in expected], rel=1e-9)


def test_one_cycle_of_a_run_is_torchs_in_rate_and_momentum() -> None:
    total = EPOCHS * BATCHES
    rates, momenta = reference(partial(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=total), total)
    got_rates, got_momenta = rates_used([OneCycle()])
    assert got_rates == pytest.approx(rates, rel=1e-9)
    assert got_momenta == pytest.approx(momenta, rel=1e-12)


def test_one_cycle_moves_the_first_beta_of_adam() -> None:
    _, betas = rates_used([OneCycle()], partial(torch.optim.Adam, lr=0.1, betas=(0.95, 0.99)))
    assert min(beta for beta, _ in betas) == pytest.approx(0.85)
    assert {second for _, second in betas} == {0.99}


def test_warm_up_multiplies_with_a_schedule_in_any_order() -> None:
    total = EPOCHS * BATCHES
    tricks = [WarmUp(steps=8), CosineAnnealing(), StepDecay(epochs=2)]
    rates, _ = rates_used(tricks)
    assert rates == rates_used(tricks[::-1])[0]
    expected = [
        0.5 * warm_up(s, 8, 0.01) * cosine(1.0, 0.0, s / total) * step_decay(s // BATCHES, 2, 0.7) for s in range(total)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_plateau_cuts_in_a_run_when_torch_would() -> None:
    net, data = model_and_data()
    trick = ReduceOnPlateau("val_accuracy", factor=0.5, patience=0)
    result = fit(
        net, data, data, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.5), tricks=[trick],
        max_epochs=EPOCHS, batch_size=4,
    )  # fmt: skip
    optimizer = sgd(lr=0.5)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=0)
    for rate, accuracy in zip(result.history["lr"], result.history["val_accuracy"], strict=True):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        scheduler.step(accuracy)
    assert result.history["lr"][-1] < 0.5
    assert trick.values == []  # the run worked on a copy


OFF = [
    StepDecay(factor=1.0),
    ExponentialDecay(1.0),
    CosineAnnealing(floor=1.0),
    OneCycle(div_factor=1, final_div_factor=1, momentum=1),
    WarmUp(steps=0),
    ReduceOnPlateau("train_loss", factor=1.0, patience=0),
]


@pytest.mark.parametrize("trick", OFF, ids=lambda trick: type(trick).__name__)
def test_off_gives_exactly_the_base_rate(trick: Any) -> None:
    assert all(getattr(trick, name) == value for name, value in type(trick).off.items())
    rates, momenta = rates_used([trick])
    assert set(rates) == {0.5}
    assert set(momenta) == {0.95}


class Endless:
    """Batches without a length."""

    def __iter__(self) -> Any:
        _, (inputs, targets) = model_and_data()
        yield inputs, targets


@pytest.mark.parametrize("trick", [CosineAnnealing(), OneCycle()], ids=lambda trick: type(trick).__name__)
def test_a_run_of_unknown_length_is_refused_before_training(trick: Any) -> None:
    net, _ = model_and_data()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ConfigError, match="the length of the run is asked for, but nothing tells it: give max_steps"):
        fit(net, Endless(), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, tricks=[trick], max_epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_run_of_so_many_steps_takes_a_schedule_to_its_end() -> None:
    net, _ = model_and_data()
    with Session(
        net, Endless(), loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.5),
        tricks=[CosineAnnealing()], max_steps=8,
    ) as session:  # fmt: skip
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
    assert session.result().history["step"] == [*range(1, 9)]
    assert session.result().history["lr"] == pytest.approx([0.5 * cosine(1.0, 0.0, step / 8) for step in range(8)])


def test_torchs_own_scheduler_multiplies_with_ours() -> None:
    """The caller steps theirs once an epoch; ours counts updates."""
    net, data = model_and_data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    with Session(
        net, data, loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=[WarmUp(steps=8)], max_epochs=3, batch_size=4
    ) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
            scheduler.step()
    expected = [0.5 * 0.5**epoch * warm_up(BATCHES * (epoch + 1) - 1, 8, 0.01) for epoch in range(3)]
    assert session.result().history["lr"] == pytest.approx(expected, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == 0.5**4


@pytest.mark.parametrize(
    ("monitor", "message"), [("val_loss", "Give validation data"), ("train_los", "Did you mean 'train_loss'")]
)
def test_a_metric_that_is_not_recorded_is_refused_before_training(monitor: str, message: str) -> None:
    net, data = model_and_data()
    with pytest.raises(ConfigError, match=message):
        fit(
            net, data, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, tricks=[ReduceOnPlateau(monitor)],
            max_epochs=2,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "settings_"),
    [
        (StepDecay, {"epochs": 0}), (StepDecay, {"factor": 1.5}), (ExponentialDecay, {"factor": 0.0}),
        (CosineAnnealing, {"floor": -0.1}), (OneCycle, {"pct_start": 1.0}), (OneCycle, {"momentum": 0.0}),
        (WarmUp, {"steps": -1}), (ReduceOnPlateau, {"mode": "up"}), (ReduceOnPlateau, {"threshold": 1.0}),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(cls: Any, settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings_))):
        cls(**settings_)
