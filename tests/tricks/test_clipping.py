"""Clipped gradients against a hand-written loop, and what exactly is clipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from trickbox_tricks import SAM, Accumulate, ClipGradients

from trickbox import ConfigError, Session, attach, fit
from trickbox.authoring import State, hookimpl, trick

SGD = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
NORMS: list[float] = []


@trick
class Watch:
    """Write down the norm of the gradients that the optimizer gets. Cost: a norm."""

    after = ("clipping",)

    @hookimpl(wrapper=True)
    def update(self, state: State) -> Any:
        NORMS.append(float(get_total_norm([p.grad for p in state.model.parameters()])))
        return (yield)


def batches(count: int = 6, samples: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(samples, 5, generator=generator), torch.arange(samples) % 3) for _ in range(count)]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def train(tricks: list[Any], optimizer: Any = SGD) -> nn.Module:
    NORMS.clear()
    return fit(
        net(), batches(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=[*tricks, Watch()], max_epochs=2
    ).model


def by_hand(clip: Callable[[Any], Any]) -> nn.Module:
    model = net()
    optimizer = SGD(model.parameters())
    for inputs, targets in batches() * 2:
        F.cross_entropy(model(inputs), targets).backward()
        clip(model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "clip"),
    [
        ((0.2,), partial(clip_grad_norm_, max_norm=0.2)),
        ((0.05, "value"), partial(clip_grad_value_, clip_value=0.05)),
    ],
)
def test_it_is_the_hand_written_loop_bit_for_bit(settings: tuple[Any, ...], clip: Callable[[Any], Any]) -> None:
    model = train([ClipGradients(*settings)])
    assert same(model, by_hand(clip))
    assert not same(model, by_hand(lambda _: None))


def test_no_norm_is_above_the_limit_and_a_small_one_stays() -> None:
    train([])
    plain = sorted(NORMS)
    train([ClipGradients(0.2)])
    assert max(NORMS) <= 0.2 < plain[-1]
    assert same(train([ClipGradients(1e6)]), train([]))


def test_the_complete_gradient_of_an_accumulated_update_is_clipped_once() -> None:
    model = train([ClipGradients(0.2), Accumulate(3)])
    expected = net()
    optimizer = SGD(expected.parameters())
    given = batches() * 2
    for start in range(0, 12, 3):
        inputs, targets = (torch.cat(part) for part in zip(*given[start : start + 3], strict=True))
        F.cross_entropy(expected(inputs), targets).backward()
        clip_grad_norm_(expected.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("swap", [False, True])
def test_with_sam_the_second_gradient_is_clipped_and_the_climb_is_not(swap: bool) -> None:
    rho, limit = 0.5, 0.01
    tricks = [SAM(rho), ClipGradients(limit)]
    found = train(tricks[::-1] if swap else tricks)
    model = net()
    optimizer = SGD(model.parameters())
    for inputs, targets in batches() * 2:
        F.cross_entropy(model(inputs), targets).backward()
        weights = [p.detach().clone() for p in model.parameters()]
        gradients = [p.grad.clone() for p in model.parameters()]
        scale = rho / (get_total_norm(gradients) + 1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.add_(gradient * scale)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(weight)
        clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()
    assert same(found, model)
    assert max(NORMS) <= limit


def test_a_loop_of_ones_own_is_clipped_too() -> None:
    model = net()
    with attach(model, [ClipGradients(0.2)], batches()[0][0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        for inputs, targets in batches() * 2:
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same(model, by_hand(partial(clip_grad_norm_, max_norm=0.2)))


def test_a_scaler_of_ones_own_has_unscaled_before() -> None:
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with attach(model, [ClipGradients(0.2)], batches()[0][0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        for inputs, targets in batches() * 2:
            scaler.scale(F.cross_entropy(model(inputs), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert same(model, by_hand(partial(clip_grad_norm_, max_norm=0.2)))


def test_an_optimizer_that_makes_its_gradients_itself_is_refused_before_training() -> None:
    with pytest.raises(
        ConfigError, match="clip_gradients: LBFGS computes its gradients inside its step, where nothing"
    ):
        train([ClipGradients()], torch.optim.LBFGS)
    model, (inputs, targets) = net(), batches(1)[0]
    run = attach(model, [ClipGradients()], inputs)
    _, lbfgs = run.watch(SGD(model[0].parameters()), torch.optim.LBFGS(model[2].parameters()))
    with pytest.raises(ConfigError, match="clip_gradients: LBFGS"):
        lbfgs.step(lambda: F.cross_entropy(model(inputs), targets))


def test_parameters_without_a_gradient_are_passed_by() -> None:
    model = net()
    model[0].requires_grad_(False)
    with Session(
        model, batches(), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[ClipGradients(0.1)], max_epochs=1
    ) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
    assert torch.equal(model[0].weight, net()[0].weight)


@pytest.mark.parametrize("settings", [{"limit": 0.0}, {"limit": -1}, {"limit": float("inf")}, {"by": "size"}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"clip_gradients: {next(iter(settings))} must be"):
        ClipGradients(**settings)
