"""What once trained something wrong in silence, row by row: each is now right, or refused by name.

Activation checkpointing is in test_recompute.py, compilation in test_draws.py, many processes in tests/ranks.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import trickbox as tb
from trickbox.authoring import hookimpl, trick
from trickbox.testing import tiny_data, tiny_model

CRITERION = nn.CrossEntropyLoss()
SGD = partial(torch.optim.SGD, lr=0.1)


def session(tricks=(), model=None, **changes):
    settings = {"loss": CRITERION, "optimizer": SGD, "max_epochs": 2, "batch_size": 16, "device": "cpu"} | changes
    return tb.Session(model or tiny_model(), tiny_data(48), tricks=tricks, **settings)


def rates_of(optimizer):
    found = []
    optimizer.register_step_pre_hook(lambda o, *_: found.append(o.param_groups[0]["lr"]))
    return found


@trick
class Answers:
    """Do the update by itself, as a trick with a scaler would. Cost: none."""

    @hookimpl
    def update(self, state):
        state.optimizer.step()
        state.optimizer.zero_grad()
        return True


def test_a_trick_that_answers_update_does_not_switch_schedules_off():
    warm_up = tb.get("warm_up")(steps=6, start_factor=0.0)
    with session([warm_up, Answers()]) as run:
        rates = rates_of(run.state.optimizer)
        for _ in run.epochs():
            for batch in run.batches():
                run.step(batch)
    assert rates == pytest.approx([0.1 * step / 6 for step in range(6)])
    assert run.state.step == 6


def test_the_callers_scheduler_in_a_session_goes_together_with_a_schedule():
    with session([tb.get("step_decay")(epochs=1, factor=0.5)]) as run:
        scheduler = torch.optim.lr_scheduler.StepLR(run.state.optimizer, 1, gamma=0.1)
        rates = rates_of(run.state.optimizer)
        for _ in run.epochs():
            for batch in run.batches():
                run.step(batch)
            scheduler.step()
    assert rates == pytest.approx([0.1] * 3 + [0.1 * 0.1 * 0.5] * 3)


def test_the_callers_own_step_in_a_session_is_scaled_counted_and_wrapped():
    seen = []

    @trick
    class Around:
        """Look around the update. Cost: none."""

        @hookimpl(wrapper=True)
        def update(self, state):
            seen.append(state.step)
            return (yield)

    with session([tb.get("warm_up")(steps=6, start_factor=0.0), Around()]) as run:
        optimizer = run.state.optimizer
        rates = rates_of(optimizer)
        for _ in run.epochs():
            for batch in run.batches():
                CRITERION(run.model(batch.inputs), batch.targets).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert rates == pytest.approx([0.1 * step / 6 for step in range(6)])
    assert run.state.step == 6
    assert seen == list(range(6))


def test_after_apply_a_users_seeds_vary_the_masks_and_repeat_them():
    inputs = tiny_data(16)[0]
    found = []
    with torch.random.fork_rng():
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            model = tiny_model()
            model.own_dropout.p = 0.0
            model = tb.apply(model, [tb.get("dropout")(p=0.5)], inputs).train()
            found.append(model(inputs))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_seed_after_apply_varies_the_masks_too():
    inputs = tiny_data(16)[0]
    model = tiny_model()
    model.own_dropout.p = 0.0
    tb.apply(model, [tb.get("dropout")(p=0.5)], inputs, seed=0).train()
    found = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(model(inputs))
    assert not torch.equal(found[0], found[1])


def test_a_scaled_loss_is_not_what_the_history_shows():
    plain, scaled = (
        tb.fit(tiny_model(), tiny_data(48), loss=CRITERION, optimizer=SGD, tricks=tricks, max_epochs=1, device="cpu",
               batch_size=16)
        for tricks in ([], [tb.get("mixed_precision")("float16")])
    )  # fmt: skip
    assert scaled.history["train_loss"][0] == pytest.approx(plain.history["train_loss"][0], rel=0.02)


def test_accumulation_does_not_divide_what_the_history_shows():
    plain, shared = (
        tb.fit(tiny_model(), tiny_data(48), loss=CRITERION, optimizer=partial(torch.optim.SGD, lr=1e-9), tricks=tricks,
               max_epochs=1, device="cpu", batch_size=16)
        for tricks in ([], [tb.get("accumulate")(3)])
    )  # fmt: skip
    assert shared.history["train_loss"][0] == pytest.approx(plain.history["train_loss"][0], rel=1e-6)
    assert (plain.history["step"], shared.history["step"]) == ([3], [1])


def test_a_run_that_ended_early_says_how_far_its_schedules_came():
    with session(["cosine_annealing"]) as run:
        for _ in run.epochs():
            for number, batch in enumerate(run.batches()):
                run.step(batch)
                if number == 1:
                    break
            break
    reason = run.result().stop_reason
    assert reason.startswith("the loop ended early")
    assert "2 steps of 6" in reason
    assert "33%" in reason


def test_lbfgs_trains_in_fit_through_its_closure():
    losses = tb.fit(
        tiny_model(), tiny_data(48), loss=CRITERION, optimizer=partial(torch.optim.LBFGS, lr=0.1, max_iter=4),
        tricks=[tb.get("dropout")(p=0.1)], max_epochs=3, batch_size=48, device="cpu",
    ).history["train_loss"]  # fmt: skip
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0]


def test_an_error_where_batches_unpack_says_what_to_hand_over():
    with session() as run:
        for _ in run.epochs():
            for inputs, targets in run.batches():
                run.step((inputs, targets))
            break
    assert run.state.step == 3
