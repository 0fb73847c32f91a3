"""Each operation against a reference, and the trick in whole runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from trickbox_tricks.augmentation import (
    OPERATIONS,
    Augment,
    circular_shift,
    jitter,
    scaling,
    sign_flip,
    time_mask,
    time_reverse,
    window_slice,
)

from trickbox import ConfigError, NoEffectError, Session, fit

ADAM = partial(torch.optim.Adam, lr=0.01)
STRENGTHS = {"slice": 0.6, "shift": 0.3, "reverse": 0.5, "flip": 0.5, "scale": 0.2, "jitter": 0.1, "mask": 0.25}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def series(samples: int = 64, channels: int = 3, length: int = 40) -> Tensor:
    return torch.randn(samples, channels, length, generator=seeded(9))


# -- operations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operations_keep_shape_and_dtype_change_samples_differently_and_mutate_nothing(
    name: str, dtype: torch.dtype
) -> None:
    x = series(1).expand(64, 3, 40).to(dtype)
    before = x.clone()
    got = OPERATIONS[name](x, STRENGTHS[name], seeded())
    assert (got.shape, got.dtype) == (x.shape, dtype)
    assert torch.equal(x, before)
    assert bool((got != got[:1]).any())
    assert torch.equal(got, OPERATIONS[name](x, STRENGTHS[name], seeded()))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_take_a_series_of_one_point_and_a_batch_of_one(name: str) -> None:
    x = torch.ones(1, 2, 1)
    assert OPERATIONS[name](x, STRENGTHS[name], seeded()).shape == x.shape


def test_jitter_adds_gaussian_noise_of_its_own_to_every_point() -> None:
    x = series()
    noise = (jitter(x, 0.5, seeded()) - x).flatten().double().numpy()
    assert stats.kstest(noise, stats.norm(0, 0.5).cdf).pvalue > 0.01


def test_scaling_multiplies_each_sample_by_a_gaussian_factor_around_one() -> None:
    x = series(2000, 2, 3)
    factors = scaling(x, 0.2, seeded()) / x
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))
    assert stats.kstest(factors[:, 0, 0].double().numpy(), stats.norm(1, 0.2).cdf).pvalue > 0.01


@pytest.mark.parametrize("operation", [sign_flip, time_reverse])
def test_flips_change_whole_samples_with_their_probability_and_undo_themselves(operation: Any) -> None:
    x = series(1000, 2, 5)
    full = -x if operation is sign_flip else x.flip(-1)
    got = operation(x, 0.3, seeded())
    changed = (got == full).flatten(1).all(1)
    assert bool((changed | (got == x).flatten(1).all(1)).all())
    assert stats.binomtest(int(changed.sum()), 1000, 0.3).pvalue > 0.01
    assert torch.equal(operation(operation(x, 1.0, seeded()), 1.0, seeded()), x)
    assert torch.equal(operation(x, 0.0, seeded()), x)


def test_circular_shift_rolls_all_channels_of_a_sample_by_up_to_its_fraction() -> None:
    x = series(300, 2, 20)
    got = circular_shift(x, 0.25, seeded())
    offsets = set()
    for old, new in zip(x, got, strict=True):
        fits = [offset for offset in range(-10, 10) if torch.equal(old.roll(offset, -1), new)]
        assert len(fits) == 1
        offsets.add(fits[0])
    assert offsets == set(range(-5, 6))


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.07])
def test_window_slice_is_linear_interpolation_of_a_window(keep: float) -> None:
    x = series(50, 2, 30)
    x[:, 1] = torch.arange(30.0)  # the second channel tells where the window lies
    got = window_slice(x, keep, seeded()).double().numpy()
    starts = got[:, 1, 0]
    for sample in range(50):
        position = np.clip(starts[sample] + np.linspace(0, keep * 29, 30), 0, 29)
        expected = np.interp(position, np.arange(30), x[sample, 0].double().numpy())
        np.testing.assert_allclose(got[sample, 0], expected, atol=2e-5)
        np.testing.assert_allclose(got[sample, 1], position, atol=2e-5)
    assert stats.kstest(starts, stats.uniform(0, (1 - keep) * 29).cdf).pvalue > 0.01


def test_time_mask_hides_one_window_of_its_fraction_in_all_channels() -> None:
    got = time_mask(torch.ones(200, 2, 20), 0.25, seeded())
    assert torch.equal(got[:, 0], got[:, 1])
    hidden = (got[:, 0] == 0).int()
    assert hidden.sum(1).tolist() == [5] * 200
    assert int(hidden.diff(dim=1).abs().sum(1).max()) <= 2
    assert hidden.argmax(1).unique().tolist() == list(range(16))


# -- whole runs ------------------------------------------------------------------------------------------------------


def data(samples: int = 20) -> tuple[Tensor, Tensor]:
    return series(samples, 1, 16), torch.arange(samples) % 2


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def batches(
    tricks: list[Any], train: Any, model: nn.Module | None = None, epochs: int = 1, **more: Any
) -> tuple[list[Any], list[Tensor]]:
    """The inputs and targets that the updates of a run train on."""
    with Session(
        model or net(), train, loss=nn.CrossEntropyLoss(), optimizer=ADAM, tricks=tricks, max_epochs=epochs,
        batch_size=8, **more,
    ) as session:  # fmt: skip
        inputs, targets = [], []
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
                inputs.append(batch.inputs)
                targets.append(batch.targets)
    return inputs, targets


def test_training_inputs_change_and_targets_and_the_users_tensors_do_not() -> None:
    train = data()
    before = train[0].clone()
    plain, plain_targets = batches([], train)
    changed, targets = batches([Augment()], train)
    assert all(not torch.equal(new, old) for new, old in zip(changed, plain, strict=True))
    assert all(torch.equal(new, old) for new, old in zip(targets, plain_targets, strict=True))
    assert torch.equal(train[0], before)


def test_every_epoch_draws_anew_and_every_run_draws_the_same() -> None:
    train = (torch.ones(8, 1, 16), torch.arange(8) % 2)
    first, _ = batches([Augment()], train, epochs=2)
    again, _ = batches([Augment()], train, epochs=2)
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_validation_data_is_not_touched() -> None:
    train, valid = data(), data(12)
    seen: list[Tensor] = []

    class Look(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                seen.append(x)
            return super().forward(x)  # type: ignore[no-any-return]

    fit(Look(*net()), train, valid, loss=nn.CrossEntropyLoss(), optimizer=ADAM, tricks=[Augment()], max_epochs=2)
    assert torch.equal(seen[-1], valid[0])


def test_off_leaves_the_batch_and_every_bit_alone() -> None:
    plain, tricked = net(), net()
    run = partial(fit, train=data(), loss=nn.CrossEntropyLoss(), optimizer=ADAM, max_epochs=2)
    off = Augment(**Augment.off)
    assert run(plain).history == run(tricked, tricks=[off]).history
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in tricked.state_dict().items())
    train = [data(4)]
    assert batches([off], train)[0][0] is train[0][0]


def test_one_operation_alone_does_only_that() -> None:
    changed, _ = batches([Augment(**{**Augment.off, "flip": 1.0})], data())
    plain, _ = batches([], data())
    assert all(torch.equal(new, -old) for new, old in zip(changed, plain, strict=True))


def test_augmentation_comes_before_mixup_whatever_the_list_says() -> None:
    one, _ = batches(["mixup", Augment()], data())
    other, _ = batches([Augment(), "mixup"], data())
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Two(nn.Module):
    """A model with a series and numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16 + 3, 2)

    def forward(self, signal: Tensor, numbers: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([signal.flatten(1), numbers.flatten(1)], 1))
        return out


def test_in_a_nest_only_the_series_changes() -> None:
    train = ({"signal": data(8)[0], "numbers": torch.ones(8, 3)}, torch.arange(8) % 2)
    (inputs,), _ = batches([Augment()], train, Two())
    assert torch.equal(inputs["numbers"], torch.ones(8, 3))
    (plain,), _ = batches([], train, Two())
    assert not torch.equal(inputs["signal"], plain["signal"])


def test_two_series_are_refused_before_training() -> None:
    train = ({"signal": data(8)[0], "numbers": torch.ones(8, 1, 3)}, torch.arange(8) % 2)
    with pytest.raises(ConfigError, match=r"one tensor of shape \(N, C, L\), found .*\(8, 1, 16\).*\(8, 1, 3\)"):
        batches([Augment()], train, Two())


@pytest.mark.parametrize("shape", [(8, 16), (8, 1, 4, 4)])
def test_inputs_that_are_no_series_are_refused_before_training(shape: tuple[int, ...]) -> None:
    train = torch.zeros(shape), torch.arange(8) % 2
    with pytest.raises(NoEffectError, match=r"augment acted nowhere: .*found torch.float32"):
        batches([Augment()], train)


@pytest.mark.parametrize("settings", [{"flip": 1.5}, {"slice": 0.0}, {"jitter": -1.0}, {"shift": 0.9}, {"mask": 1.0}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"augment: {next(iter(settings))} must be in"):
        Augment(**settings)
