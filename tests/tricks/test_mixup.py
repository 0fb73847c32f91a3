"""Mixtures of samples: what they are, what they are drawn from, and what they leave alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.mixup import Mixup, draw_lambda, draw_partners, mix

from trickbox import ConfigError, NoEffectError, Session, fit
from trickbox.authoring import probabilities

ADAM = partial(torch.optim.Adam, lr=0.01)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    generator = seeded()
    drawn = torch.stack([draw_lambda(alpha, generator) for _ in range(4000)]).double()
    assert stats.kstest(drawn.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-4, 1e4])
def test_lambda_is_a_number_at_extreme_alphas(alpha: float) -> None:
    generator = seeded()
    drawn = torch.stack([draw_lambda(alpha, generator) for _ in range(200)])
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    middle = ((drawn > 0.4) & (drawn < 0.6)).float().mean()
    assert middle == (1 if alpha > 1 else 0)


def test_one_generator_gives_one_lambda() -> None:
    assert torch.equal(draw_lambda(0.3, seeded(1)), draw_lambda(0.3, seeded(1)))


@pytest.mark.parametrize("size", [2, 3, 7, 32])
def test_nobody_is_its_own_partner_and_everyone_is_somebodys(size: int) -> None:
    for seed in range(50):
        partners = draw_partners(size, seeded(seed))
        assert not bool((partners == torch.arange(size)).any())
        assert partners.sort().values.tolist() == list(range(size))


def test_partners_are_uniform_among_the_others() -> None:
    generator = seeded()
    counts = torch.stack([draw_partners(5, generator) for _ in range(2000)])
    for sample in range(5):
        seen = torch.bincount(counts[:, sample], minlength=5)
        assert stats.chisquare(seen[torch.arange(5) != sample].numpy()).pvalue > 0.001


def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses() -> None:
    logits, targets, partners = torch.randn(7, 3, generator=seeded()), torch.arange(7) % 3, draw_partners(7, seeded())
    lam = torch.tensor(0.3)
    mixed = mix(probabilities(targets, 3), partners, lam)
    expected = lam * F.cross_entropy(logits, targets) + (1 - lam) * F.cross_entropy(logits, targets[partners])
    torch.testing.assert_close(F.cross_entropy(logits, mixed), expected)
    torch.testing.assert_close(mixed.sum(1), torch.ones(7))


def test_all_floating_tensors_are_mixed_with_one_lambda_and_nothing_is_mutated() -> None:
    nest = {"a": torch.randn(5, 2, 3, generator=seeded()), "b": [torch.randn(5, generator=seeded(1)).double()]}
    nest["ids"] = torch.arange(5)
    before = {"a": nest["a"].clone(), "b": nest["b"][0].clone()}  # type: ignore[union-attr]
    partners, lam = draw_partners(5, seeded()), torch.tensor(0.25)
    mixed = mix(nest, partners, lam)
    for got, x in ((mixed["a"], before["a"]), (mixed["b"][0], before["b"])):
        torch.testing.assert_close(got, 0.25 * x + 0.75 * x[partners])
        assert got.dtype == x.dtype
    assert mixed["ids"] is nest["ids"]
    assert torch.equal(nest["a"], before["a"])  # type: ignore[arg-type]


# -- whole runs ------------------------------------------------------------------------------------------------------


def data(samples: int = 23) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 12, generator=seeded()), torch.arange(samples) % 3


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(trick: Any, train: Any, loss: Any = None, model: nn.Module | None = None) -> list[tuple[Tensor, Tensor]]:
    """What the updates of one epoch train on."""
    with Session(
        model or net(), train, loss=loss or nn.CrossEntropyLoss(), optimizer=ADAM, tricks=[trick], max_epochs=1,
        batch_size=11,
    ) as session:  # fmt: skip
        seen = []
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
                seen.append((batch.inputs, batch.targets))
    return seen


def test_inputs_and_targets_are_mixed_alike_each_of_two_samples_also_in_odd_batches() -> None:
    # Every sample is the one-hot code of a class of its own, so inputs and targets must mix to the same numbers.
    train = torch.eye(22)[:, None], torch.arange(22)
    model = nn.Sequential(nn.Flatten(), nn.Linear(22, 22))
    for inputs, targets in batches(Mixup(1.0), train, model=model):
        assert len(inputs) == 11
        torch.testing.assert_close(inputs[:, 0], targets)
        torch.testing.assert_close(targets.sum(1), torch.ones(11))
        assert (targets > 0).sum(1).tolist() == [2] * 11


def test_a_batch_of_one_stays_as_it_is() -> None:
    inputs, targets = batches(Mixup(1.0), data(12))[-1]
    assert len(inputs) == 1
    assert bool((inputs == data(12)[0]).all(-1).any())
    assert targets.sort().values.tolist() == [[0.0, 0.0, 1.0]]


def test_the_users_tensors_stay_as_they_are() -> None:
    train = data()
    before = train[0].clone(), train[1].clone()
    batches(Mixup(1.0), train)
    assert torch.equal(train[0], before[0])
    assert torch.equal(train[1], before[1])


def test_floating_targets_are_mixed_linearly_under_any_loss() -> None:
    inputs, _ = data()
    train = inputs, inputs.flatten(1).sum(1, keepdim=True).expand(-1, 3).contiguous()
    for mixed, targets in batches(Mixup(0.5), train, nn.MSELoss()):
        torch.testing.assert_close(mixed.flatten(1).sum(1), targets[:, 0], rtol=1e-4, atol=1e-5)


def test_off_leaves_the_batch_and_every_bit_alone() -> None:
    plain, tricked = net(), net()
    run = partial(fit, train=data(), loss=nn.CrossEntropyLoss(), optimizer=ADAM, max_epochs=2)
    assert run(plain).history == run(tricked, tricks=[Mixup(0.0)]).history
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in tricked.state_dict().items())
    train = [data(4)]
    ((inputs, targets),) = batches(Mixup(0.0), train)
    assert inputs is train[0][0]
    assert targets is train[0][1]


def test_training_accuracy_and_validation_go_on_working() -> None:
    result = fit(net(), data(), data(), loss=nn.CrossEntropyLoss(), optimizer=ADAM, tricks=[Mixup()], max_epochs=2)
    assert 0 <= result.metrics["train_accuracy"] <= 1
    assert "val_accuracy" in result.metrics


def test_a_loss_that_wants_class_numbers_is_refused_before_training() -> None:
    model = nn.Sequential(net(), nn.LogSoftmax(1))
    with pytest.raises(ConfigError, match=r"mixup: the loss must take class probabilities, got NLLLoss.*CrossEntropy"):
        batches(Mixup(), data(), nn.NLLLoss(), model)


def test_inputs_that_cannot_be_mixed_are_refused_before_training() -> None:
    ids = torch.randint(0, 5, (8, 4), generator=seeded())
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(NoEffectError, match=r"floating inputs, found torch.int64 \(8, 4\)"):
        batches(Mixup(), (ids, torch.arange(8) % 3), model=model)


def test_targets_of_another_kind_are_refused_before_training() -> None:
    model, train = nn.Conv1d(1, 3, 1), (data(6)[0], torch.zeros(6, 12, dtype=torch.int32))
    with pytest.raises(
        ConfigError, match=r"must be class numbers \(N, ...\) of dtype int64, .* got torch.int32 \(6, 12\)"
    ):
        batches(Mixup(), train, lambda outputs, _: outputs.mean(), model)


def test_outputs_of_another_shape_are_refused_before_training() -> None:
    model, train = nn.Conv1d(1, 3, 1), (data(6)[0], torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"must give outputs of shape \(N, C\), got \(6, 3, 12\)"):
        batches(Mixup(), train, lambda outputs, _: outputs.mean(), model)


def test_a_class_for_every_time_is_mixed_like_one_for_the_whole() -> None:
    targets = torch.arange(22 * 12).reshape(22, 12) % 3
    for _, mixed in batches(Mixup(1.0), (data(22)[0], targets), model=nn.Conv1d(1, 3, 1)):
        assert mixed.shape == (11, 3, 12)
        torch.testing.assert_close(mixed.sum(1), torch.ones(11, 12))


def test_a_class_that_the_loss_ignores_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="mixup: the loss must not ignore a class, got ignore_index=2"):
        batches(Mixup(), data(), nn.CrossEntropyLoss(ignore_index=2))


def test_two_mixers_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be in the same run"):
        fit(net(), data(), loss=nn.CrossEntropyLoss(), optimizer=ADAM, tricks=[Mixup(), Mixup()], max_epochs=1)
