"""Small batches with one update between them, against the large batch that they are together."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trickbox_tricks import Accumulate, CosineAnnealing

from trickbox import ConfigError, Session, apply, attach, explain, fit
from trickbox.authoring import State, hookimpl, trick

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
GRADIENTS: list[list[Tensor]] = []


@trick
class Watch:
    """Write down the gradients of every update. Cost: a copy."""

    @hookimpl(wrapper=True)
    def update(self, state: State) -> Any:
        GRADIENTS.append([parameter.grad.clone() for parameter in state.model.parameters()])
        return (yield)


def data(samples: int = 23, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 5, generator=torch.Generator().manual_seed(0)).to(kind), torch.arange(samples) % 3


def net(kind: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(kind)


def train(tricks: list[Any], batch_size: int, kind: torch.dtype = torch.float64, **settings: Any) -> Any:
    GRADIENTS.clear()
    return fit(
        net(kind), data(kind=kind), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[*tricks, Watch()],
        batch_size=batch_size, **{"max_epochs": 3, **settings},
    )  # fmt: skip


# 23 samples: the last window has less batches, the last batch less samples, or both.
@pytest.mark.parametrize(("batch_size", "batches"), [(5, 3), (5, 4), (4, 3), (2, 100), (7, 2)])
def test_every_gradient_is_the_one_of_the_large_batch(batch_size: int, batches: int) -> None:
    large = train([], batch_size * batches)
    expected = list(GRADIENTS)
    small = train([Accumulate(batches)], batch_size)
    assert len(GRADIENTS) == len(expected) == large.history["step"][-1] == small.history["step"][-1]
    torch.testing.assert_close(GRADIENTS, expected, rtol=1e-11, atol=1e-12)
    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert small.history["train_loss"] == pytest.approx(large.history["train_loss"], rel=1e-12), "a mean over samples"
    assert small.history["train_accuracy"] == large.history["train_accuracy"]


def test_in_single_precision_it_is_equal_to_six_digits() -> None:
    large, small = train([], 15, torch.float32), train([Accumulate(3)], 5, torch.float32)
    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_schedules_count_updates() -> None:
    large, small = train([CosineAnnealing()], 15), train([CosineAnnealing(), Accumulate(3)], 5)
    assert small.history["lr"] == large.history["lr"]
    with Session(
        net(), data(), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[Accumulate(3)], max_epochs=4, batch_size=5
    ) as session:
        assert session.state.total_steps == 4 * 2, "five batches an epoch are two updates"


def test_the_length_of_a_run_in_steps_counts_updates() -> None:
    result = train([Accumulate(2)], 5, max_epochs=None, max_steps=4)
    assert result.history["step"] == [3, 4]
    assert len(GRADIENTS) == 4


def test_an_epoch_that_is_left_early_loses_no_batch() -> None:
    GRADIENTS.clear()
    with Session(
        net(), data(), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[Accumulate(4), Watch()], max_epochs=1,
        batch_size=5,
    ) as session:  # fmt: skip
        for _ in session.epochs():
            for index, batch in enumerate(session.batches()):
                session.step(batch)
                if index == 1:
                    break
    accumulated = GRADIENTS.pop()
    assert not GRADIENTS
    train([], 10, max_epochs=1)
    torch.testing.assert_close(accumulated, GRADIENTS[0], rtol=1e-11, atol=1e-12)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accumulate and accumulate#2 cannot be in the same run"):
        train([Accumulate(2), Accumulate(3)], 5)


def test_a_loop_that_steps_its_optimizer_itself_is_told_to_accumulate_there() -> None:
    model = net()
    with pytest.raises(ConfigError, match="accumulates gradients, but your loop does that itself"):
        attach(model, [Accumulate(2)], data()[0])
    with pytest.raises(ConfigError, match="needs a loop"):
        apply(model, [Accumulate(2)], data()[0])
    assert list(model.state_dict()) == list(net().state_dict())


def test_explain_says_what_it_does() -> None:
    assert "accumulate: updates: one for 8 batches" in explain(net(), data()[0], [Accumulate(8)])
