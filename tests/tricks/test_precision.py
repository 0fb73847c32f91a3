"""Half precision against hand-written loops, with and without updates that are skipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from trickbox_tricks import EMA, SAM, Accumulate, ClipGradients, CosineAnnealing, MixedPrecision
from trickbox_tricks.averaging import average_, kept_share
from trickbox_tricks.precision import autocast
from trickbox_tricks.schedules import cosine
from trickbox_tricks.sharpness import climb

from trickbox import ConfigError, NoEffectError, attach, fit
from trickbox.authoring import State, hookimpl, trick
from trickbox.testing import parametrize_with_checks

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
HUGE = 2.0**22
"""A scale at which the first gradients of the net below are not finite in float16."""


def batches(count: int = 6, samples: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(samples, 5, generator=generator), torch.arange(samples) % 3) for _ in range(count)]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(tricks: list[Any], model: nn.Module | None = None, **settings: Any) -> Any:
    return fit(
        model or net(), **{"train": batches(), "optimizer": SGD, "loss": nn.CrossEntropyLoss(), **settings},
        tricks=tricks, max_epochs=2,
    )  # fmt: skip


def by_hand(
    dtype: torch.dtype, scale: float = 1.0, before: Callable[[Any], Any] = id, made: Callable[[Any], Any] = id
) -> tuple[nn.Module, int]:
    """The loop of torch's own documentation; also gives how many updates were made."""
    model, count = net(), 0
    optimizer = SGD(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype is torch.float16)
    for inputs, targets in batches() * 2:
        with torch.autocast("cpu", dtype):
            loss = F.cross_entropy(model(inputs), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        before(model)
        finite = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if finite:
            made(model)
            count += 1
    return model, count


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# -- the hand-written loop ---------------------------------------------------------------------------------------------


def test_bfloat16_is_the_hand_written_loop_bit_for_bit() -> None:
    found = train([MixedPrecision()]).model
    assert same(found, by_hand(torch.bfloat16)[0])
    assert not same(found, train([]).model)


@pytest.mark.parametrize("scale", [1024.0, HUGE])
def test_float16_is_the_hand_written_loop_bit_for_bit(scale: float) -> None:
    result = train([MixedPrecision("float16", scale)])
    model, made = by_hand(torch.float16, scale)
    assert same(result.model, model)
    assert result.history["step"][-1] == made
    assert (made < 12) is (scale == HUGE), "updates whose gradients are not finite are skipped"
    assert not same(result.model, train([]).model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_is_close_to_single_precision_and_losses_are_recorded_unscaled(dtype: str) -> None:
    plain, mixed = train([]), train([MixedPrecision(dtype)])
    assert mixed.history["train_loss"] == pytest.approx(plain.history["train_loss"], abs=0.02)
    for one, other in zip(mixed.model.parameters(), plain.model.parameters(), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.02)


def test_what_the_model_gives_is_half_and_the_loss_is_not() -> None:
    seen: list[Any] = []

    @trick
    class Watch:
        """Look at what comes out. Cost: none."""

        after = ("precision",)

        @hookimpl(wrapper=True)
        def update(self, state: State) -> Any:
            seen.append((state.outputs.dtype, state.batch_loss.dtype, float(state.batch_loss.detach())))
            return (yield)

    result = train([MixedPrecision("float16"), Watch()])
    assert {one[:2] for one in seen} == {(torch.float16, torch.float32)}
    assert sum(value for *_, value in seen[:6]) / 6 == pytest.approx(result.history["train_loss"][0], rel=1e-6)


def test_validation_computes_in_the_precision_of_training() -> None:
    kinds: list[Any] = []

    def kind(outputs: Tensor, targets: Tensor) -> Tensor:
        kinds.append(outputs.dtype)
        return torch.zeros(())

    result = train([MixedPrecision()], valid=batches(1), metrics={"kind": kind})
    assert set(kinds) == {torch.bfloat16}
    model = result.model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).item()
    assert result.metrics["val_loss"] == expected


# -- with others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("scale", [1024.0, HUGE])
def test_what_is_clipped_is_the_true_gradient(scale: float, swap: bool) -> None:
    tricks = [MixedPrecision("float16", scale), ClipGradients(0.2)]
    found = train(tricks[::-1] if swap else tricks).model
    assert same(found, by_hand(torch.float16, scale, before=lambda m: clip_grad_norm_(m.parameters(), 0.2))[0])
    assert not same(found, train([MixedPrecision("float16", scale)]).model)


def test_schedules_wait_for_updates_that_are_skipped() -> None:
    result = train([MixedPrecision("float16", HUGE), CosineAnnealing()])
    made = result.history["step"]
    assert made[-1] < 12
    assert result.history["lr"] == [pytest.approx(0.1 * cosine(1.0, 0.0, (step - 1) / 12)) for step in made]


def test_averages_do_not_count_updates_that_are_skipped() -> None:
    averages: list[Tensor] = []
    counted = iter(range(12))

    def made(model: nn.Module) -> None:
        weights = [p.detach().clone() for p in model.parameters()]
        share = kept_share(next(counted), 12, 0.3)
        average_(averages, weights, share) if averages else averages.extend(weights)

    _, updates = by_hand(torch.float16, HUGE, made=made)
    assert updates < 12
    found = train([EMA(0.3), MixedPrecision("float16", HUGE)]).model
    for one, other in zip(found.parameters(), averages, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("scale", [1024.0, HUGE])
def test_with_sam_both_passes_are_scaled_and_only_the_second_is_unscaled(scale: float, swap: bool) -> None:
    tricks = [SAM(0.2), ClipGradients(0.5), MixedPrecision("float16", scale)]
    found = train(tricks[::-1] if swap else tricks)
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer, parameters = SGD(model.parameters()), list(model.parameters())

    def one_pass(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(inputs), targets)
        scaler.scale(loss).backward()

    for inputs, targets in batches() * 2:
        one_pass(inputs, targets)
        kept = [t.detach().clone() for t in [*parameters, *model.buffers()]]
        with torch.no_grad():
            for parameter, step in zip(parameters, climb(parameters, [p.grad for p in parameters], 0.2), strict=True):
                parameter.add_(step)
        one_pass(inputs, targets)
        with torch.no_grad():
            for tensor, value in zip([*parameters, *model.buffers()], kept, strict=True):
                tensor.copy_(value)
        scaler.unscale_(optimizer)
        clip_grad_norm_(parameters, 0.5)
        scaler.step(optimizer)
        scaler.update()
    assert same(found.model, model)
    assert all(bool(torch.isfinite(p).all()) for p in parameters)
    assert (found.history["step"][-1] < 12) is (scale == HUGE)


def test_an_accumulated_gradient_is_unscaled_once() -> None:
    mixed = train([MixedPrecision("float16"), Accumulate(4)])
    plain = train([Accumulate(4)])
    assert mixed.history["step"] == plain.history["step"]
    for one, other in zip(mixed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.02)


@parametrize_with_checks([MixedPrecision("float16", HUGE)])
def test_conformance_of_float16(trick: Any, check: Any) -> None:
    check(trick)


# -- what cannot be, and what is left ----------------------------------------------------------------------------------


def test_nothing_is_left_on_after_an_error() -> None:
    class Fails(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            if outputs.dtype == torch.bfloat16:
                raise ArithmeticError
            return super().forward(outputs, targets)

    with pytest.raises(ArithmeticError):
        train([MixedPrecision()], loss=Fails())
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_without_single_precision_is_refused_before_training() -> None:
    given = [(inputs.double(), targets) for inputs, targets in batches()]
    with pytest.raises(NoEffectError, match=r"mixed_precision acted nowhere: .* found torch\.float64"):
        train([MixedPrecision()], net().double(), train=given)


def test_a_device_that_cannot_is_named() -> None:
    with pytest.raises(ConfigError, match="mixed_precision: a device of type meta has no autocast"):
        autocast("meta", "bfloat16")


def test_an_optimizer_that_makes_its_gradients_itself_is_refused_for_float16() -> None:
    with pytest.raises(ConfigError, match="mixed_precision: LBFGS computes its gradients inside its step"):
        train([MixedPrecision("float16")], optimizer=torch.optim.LBFGS)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixed_precision and mixed_precision#2 cannot be in the same run"):
        train([MixedPrecision(), MixedPrecision("float16")])


# -- loops of one's own ------------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_computes_in_bfloat16_inside_a_phase() -> None:
    model = net()
    with attach(model, [MixedPrecision()], batches()[0][0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        for inputs, targets in batches() * 2:
            with run.phase("compute_loss"):
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same(model, by_hand(torch.bfloat16)[0])


def test_a_loop_of_ones_own_keeps_its_own_scaler() -> None:
    model = net()
    run = attach(model, [MixedPrecision("float16")], batches()[0][0])
    with pytest.raises(ConfigError, match=r"this loop calls backward itself; use dtype='bfloat16', or a torch\.amp"):
        run.watch(SGD(model.parameters()))
