"""The gradient at the worst point near by, against formulas and a loop by hand, and what the second pass leaves."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trickbox_tricks import SAM, Accumulate, BatchNorm, Dropout, LabelSmoothing, Mixup
from trickbox_tricks.sharpness import climb

from trickbox import ConfigError, Session, attach, fit
from trickbox.authoring import State, hookimpl, trick

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
LOSSES: list[float] = []


@trick
class Watch:
    """Write down the loss of every pass. Cost: a host sync."""

    @hookimpl(wrapper=True)
    def compute_loss(self, state: State) -> Any:
        loss = yield
        LOSSES.append(float(loss.detach()))
        return loss


def data(samples: int = 20) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 5, generator=torch.Generator().manual_seed(0)), torch.arange(samples) % 3


def batches(count: int = 5, samples: int = 4) -> list[tuple[Tensor, Tensor]]:
    inputs, targets = data(count * samples)
    return list(zip(inputs.split(samples), targets.split(samples), strict=True))


def net(*more: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), *more, nn.ReLU(), nn.Linear(8, 3))


def train(tricks: list[Any], model: nn.Module | None = None, given: Any = None, **settings: Any) -> nn.Module:
    LOSSES.clear()
    return fit(
        model or net(), given or batches(), loss=nn.CrossEntropyLoss(), tricks=tricks,
        **{"optimizer": SGD, "max_epochs": 2, **settings},
    ).model  # fmt: skip


def by_hand(model: nn.Module, rho: float, adaptive: bool = False) -> nn.Module:
    """The usual two passes; the statistics of the second one are thrown away."""
    optimizer = SGD(model.parameters())
    for inputs, targets in batches() * 2:
        F.cross_entropy(model(inputs), targets).backward()
        weights = [p.detach().clone() for p in model.parameters()]
        measures = [w.abs() if adaptive else torch.ones(()) for w in weights]
        gradients = [p.grad for p in model.parameters()]
        norm = torch.stack([(m * g).norm() for m, g in zip(measures, gradients, strict=True)]).norm()
        with torch.no_grad():
            for parameter, measure, gradient in zip(model.parameters(), measures, gradients, strict=True):
                parameter.add_(measure**2 * gradient * (rho / (norm + 1e-12)))
        optimizer.zero_grad()
        statistics = [b.clone() for b in model.buffers()]
        F.cross_entropy(model(inputs), targets).backward()
        with torch.no_grad():
            for tensor, kept in zip([*model.parameters(), *model.buffers()], [*weights, *statistics], strict=True):
                tensor.copy_(kept)
        optimizer.step()
        optimizer.zero_grad()
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == named and torch.equal(value, valued) for (name, value), (named, valued) in pairs)


# -- the update --------------------------------------------------------------------------------------------------------


def test_on_a_quadratic_the_gradient_is_the_analytic_one_up_the_hill() -> None:
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

        def forward(self, matrices: Tensor) -> Tensor:
            return 0.5 * (self.w * (matrices @ self.w)).sum(-1)

    a = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 4.0]], dtype=torch.float64)
    model = Quadratic()
    w = model.w.detach().clone()
    fit(
        model, [(a[None], torch.zeros(1))], loss=lambda outputs, _: outputs.mean(), tricks=[SAM(0.3)], max_epochs=1,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip
    gradient = a @ w
    torch.testing.assert_close(model.w.detach(), w - 0.1 * a @ (w + 0.3 * gradient / gradient.norm()))


@pytest.mark.parametrize("more", [(), (nn.BatchNorm1d(8),)], ids=["plain", "batch_norm"])
def test_it_is_the_hand_written_loop_bit_for_bit(more: tuple[nn.Module, ...]) -> None:
    more = tuple(type(module)(8) for module in more)
    found, expected = train([SAM(0.3)], net(*more)), by_hand(net(*(type(m)(8) for m in more)), 0.3)
    assert same(found, expected)
    assert not same(found, train([], net(*(type(m)(8) for m in more))))


def test_adaptive_is_the_hand_written_loop() -> None:
    found, expected = train([SAM(0.5, adaptive=True)]), by_hand(net(), 0.5, adaptive=True)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_steps_have_the_length_rho(adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,))]
    gradients = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    steps = climb(weights, gradients, 0.7, adaptive)
    lengths = [step / weight.abs() if adaptive else step for step, weight in zip(steps, weights, strict=True)]
    assert torch.cat([length.flatten() for length in lengths]).norm().item() == pytest.approx(0.7)
    assert all(bool((step * gradient >= 0).all()) for step, gradient in zip(steps, gradients, strict=True))


def test_without_a_gradient_there_is_nowhere_to_climb() -> None:
    zeros = [torch.zeros(3)]
    assert torch.equal(climb(zeros, zeros, 0.5)[0], zeros[0])


# -- what the second pass leaves ---------------------------------------------------------------------------------------


def test_the_weights_come_back_to_the_last_bit() -> None:
    model = train([SAM(0.37)], net(nn.BatchNorm1d(8)), optimizer=partial(torch.optim.SGD, lr=0.0))
    for one, other in zip(model.parameters(), net(nn.BatchNorm1d(8)).parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_weights_come_back_also_when_the_second_pass_raises() -> None:
    class FailsSecond(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls += torch.is_grad_enabled()
            if self.calls == 2:
                raise ArithmeticError
            return super().forward(outputs, targets)

    model = net()
    with pytest.raises(ArithmeticError):
        fit(model, batches(), loss=FailsSecond(), optimizer=SGD, tricks=[SAM(0.5)], max_epochs=1)
    assert same(model, net())


def test_norms_that_a_trick_inserts_see_every_batch_once() -> None:
    with Session(
        net(), batches(), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[SAM(0.3), BatchNorm(dense=True)],
        max_epochs=1,
    ) as session:  # fmt: skip
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
        counts = [v for name, v in session.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 5 for count in counts)


# -- the same batch, the same draws ------------------------------------------------------------------------------------


def loader() -> Any:
    """Draws its order from the global generator, in the middle of an epoch's first batch."""
    return DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True)


@pytest.mark.parametrize("given", [data, batches, loader])
@pytest.mark.parametrize(
    ("tricks", "more"),
    [
        ([Dropout(0.5)], ()),
        ([], (nn.Dropout(0.5),)),
        ([Mixup(1.0), LabelSmoothing(0.3)], ()),
        ([Accumulate(2), Mixup(1.0), Dropout(0.4)], (nn.Dropout(0.5),)),
    ],
    ids=["dropout", "own_dropout", "targets", "accumulate"],
)
def test_the_second_pass_repeats_the_first(tricks: list[Any], more: tuple[nn.Module, ...], given: Any) -> None:
    # So small a step changes the loss but little: other draws would change it a lot.
    train([SAM(1e-6), Watch(), *tricks], net(*more), given(), batch_size=4)
    accumulated = any(isinstance(trick, Accumulate) for trick in tricks)
    passes = torch.tensor(LOSSES).split([2, 2, 2, 2, 1, 1] * 2 if accumulated else [1] * 20)
    for first, second in zip(passes[::2], passes[1::2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_all_batches_of_an_update_are_passed_again() -> None:
    double = [(inputs.double(), targets) for inputs, targets in batches(6)]
    pairs = zip(double[::2], double[1::2], strict=True)
    large = [tuple(torch.cat(parts) for parts in zip(*pair, strict=True)) for pair in pairs]
    found = train([SAM(0.3), Accumulate(2)], net().double(), double)
    expected = train([SAM(0.3)], net().double(), large)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


# -- loops and optimizers ----------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_with_a_closure_trains_as_a_run_does() -> None:
    model = net()
    with attach(model, [SAM(0.3)], batches()[0][0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        for inputs, targets in batches() * 2:

            def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert same(model, by_hand(net(), 0.3))


def test_a_loop_of_ones_own_without_a_closure_is_refused_and_the_weights_are_back() -> None:
    model, (inputs, targets) = net(), batches()[0]
    run = attach(model, [SAM(0.3)], inputs)
    optimizer = run.watch(SGD(model.parameters()))
    F.cross_entropy(model(inputs), targets).backward()
    with pytest.raises(ConfigError, match=r"hand a closure to optimizer\.step"):
        optimizer.step()
    assert same(model, net())
    run.close()


def test_a_loss_that_the_caller_computes_cannot_be_computed_again() -> None:
    model = net()
    with Session(model, batches(), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[SAM()], max_epochs=1) as session:
        next(epochs := session.epochs())
        batch = next(session.batches())
        with pytest.raises(ConfigError, match="second pass"):
            session.step(batch, loss=model(batch.inputs).pow(2).mean())
        epochs.close()
    assert same(model, net())


def test_an_optimizer_that_makes_its_gradients_itself_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="sam: LBFGS computes its gradients inside its step"):
        train([SAM()], optimizer=torch.optim.LBFGS)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="sam and sam#2 cannot be in the same run"):
        train([SAM(), SAM(0.1)])
