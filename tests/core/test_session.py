"""The session: when which hook fires, what a trick may do there, and how errors come out."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from attrs import field
from torch import nn
from torch.nn import functional as F

import trickbox as tb
from trickbox import hooks
from trickbox.authoring import Batch, Rank, derive, forked, hookimpl, integer, trick
from trickbox.hooks import HOOKS, PHASES


def open_session(model, train, valid=None, tricks=(), **changes):
    arguments = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "max_epochs": 2,
        "batch_size": 8,
        "device": "cpu",
    }
    return tb.Session(model, train, valid, tricks=tricks, **(arguments | changes))


def go(session):
    for _ in session.epochs():
        for batch in session.batches():
            session.step(batch)


def recording(log, name="recorder", skip=()):
    """A trick that writes every hook into *log*, and wraps the phases."""

    def moment(hook):
        def function(self, state):
            log.append((name, hook))

        return function

    def phase(hook):
        def function(self, state):
            log.append((name, hook))
            try:
                return (yield)
            finally:
                log.append((name, f"{hook} done"))

        return function

    body = {}
    for hook in HOOKS:
        function = (phase if hook in PHASES else moment)(hook)
        function.__name__ = hook
        if hook not in skip:
            body[hook] = hookimpl(wrapper=hook in PHASES)(function)
    return trick(type(name.title(), (), {"__doc__": "Write down every hook. Cost: none.", **body}))


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_run_fires_what_the_pseudocode_says(data, valid, net):
    """One epoch of two batches, against the docstring that everybody is told to read first."""
    code = hooks.__doc__.split("    record the tape", 1)[1].split("*Moments*")[0].splitlines()
    rows = [(row, re.findall(rf"\b({'|'.join(HOOKS)})\b {{2,}}", row)) for row in code]
    assert [hook for _, found in rows for hook in found] == list(HOOKS)
    start = next(i for i, (row, _) in enumerate(rows) if "for batch in train" in row)
    inside = [hook for row, found in rows[start:] for hook in found if hook not in ("validate", "epoch_end", "fit_end")]
    assert inside == ["batch", "compute_loss", "backward", "update"]
    expected = ["init", "fit_start", "epoch_start", *inside * 2, "validate", "epoch_end", "fit_end"]

    log = []
    inputs, targets = data
    with open_session(net, (inputs[:16], targets[:16]), valid, [recording(log)()], max_epochs=1) as session:
        go(session)
    assert [hook for _, hook in log if "done" not in hook] == expected
    for position, (_, hook) in enumerate(log):  # a phase that nothing else interrupts ends where it began
        if hook in PHASES:
            assert log[position + 1] == ("recorder", f"{hook} done")


def test_what_the_state_knows_at_each_hook(data, valid, net):
    seen = {}

    def watch(hook):
        def function(self, state):
            seen.setdefault(hook, []).append(
                (state.epoch, state.batch_index, state.step, state.optimizer is not None, dict(state.metrics),
                 len(state.history), state.batch.size, state.model.training)
            )  # fmt: skip

        function.__name__ = hook
        return hookimpl(function)

    moments = {hook: watch(hook) for hook in hooks.MOMENTS}
    watcher = trick(type("Watch", (), {"__doc__": "Watch. Cost: none.", **moments}))
    net.eval()
    with open_session(net, data, valid, [watcher()]) as session:
        assert session.state.total_steps == 6
        go(session)
        assert session.state.progress == 1
    assert seen["init"] == [(0, 0, 0, False, {}, 0, 8, False)]
    assert seen["fit_start"] == [(0, 0, 0, True, {}, 0, 8, False)]
    assert [found[:3] for found in seen["epoch_start"]] == [(0, 0, 0), (1, 0, 3)]
    assert [found[-1] for found in seen["epoch_start"]] == [True, True]
    assert [found[:3] for found in seen["batch"]] == [(e, b, 3 * e + b) for e in (0, 1) for b in (0, 1, 2)]
    assert [found[-2] for found in seen["batch"]] == [8, 8, 4, 8, 8, 4]
    assert [found[1:3] for found in seen["epoch_end"]] == [(2, 3), (2, 6)]
    assert [found[5] for found in seen["epoch_end"]] == [0, 1]
    assert set(seen["epoch_end"][0][4]) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert seen["fit_end"][0][5] == 2


def test_several_tricks_nest_in_the_order_of_the_list(data, net):
    log = []
    tricks = [recording(log, "one")(), recording(log, "two")()]
    with open_session(net, data, None, tricks, max_epochs=1, batch_size=20) as session:
        go(session)
    around = [(name, hook) for name, hook in log if hook.startswith("compute_loss")]
    assert around == [("one", "compute_loss"), ("two", "compute_loss"), ("two", "compute_loss done"),
                      ("one", "compute_loss done")]  # fmt: skip
    assert [name for name, hook in log if hook == "batch"] == ["one", "two"]


# -- phases ------------------------------------------------------------------------------------------------------------


def phase_trick(hook, function, wrapper=False):
    function.__name__ = hook
    body = {hook: hookimpl(wrapper=wrapper)(function)}
    return trick(type("Toy", (), {"__doc__": "Toy. Cost: none.", **body}))()


def test_a_wrapper_around_compute_loss_changes_the_loss_that_is_trained_and_recorded(run, same_bits):
    def wrap(self, state):
        return 3 * (yield)

    mine = run([phase_trick("compute_loss", wrap, wrapper=True)])
    other = run(loss=lambda o, t: 3 * F.cross_entropy(o, t))
    same_bits(mine.model, other.model)
    assert mine.history["train_loss"] == other.history["train_loss"]


def test_a_wrapper_around_backward_may_write_gradients(run, same_bits):
    def wrap(self, state):
        done = yield
        for parameter in state.model.parameters():
            parameter.grad.mul_(0.5)
        return done

    same_bits(
        run([phase_trick("backward", wrap, wrapper=True)]).model,
        run(optimizer=lambda p: torch.optim.SGD(p, lr=0.05)).model,
    )


def test_a_wrapper_around_update_may_write_parameters_after_the_step(run):
    def wrap(self, state):
        done = yield
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.clamp_(-0.01, 0.01)
        return done

    result = run([phase_trick("update", wrap, wrapper=True)])
    assert all(parameter.abs().max() <= 0.01 for parameter in result.model.parameters())


def test_a_wrapper_around_update_sees_the_step_counted_after_it(run):
    seen = []

    def wrap(self, state):
        before = state.step
        done = yield
        seen.append((before, done, state.step))
        return done

    run([phase_trick("update", wrap, wrapper=True)])
    assert seen == [(step, True, step + 1) for step in range(6)]


def test_a_wrapper_around_validate_may_change_weights_for_the_duration_and_add_metrics(run, valid):
    def wrap(self, state):
        kept = [parameter.detach().clone() for parameter in state.model.parameters()]
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.zero_()
        metrics = yield
        with torch.no_grad():
            for parameter, value in zip(state.model.parameters(), kept, strict=True):
                parameter.copy_(value)
        return metrics | {"val_zero": 1.0}

    result = run([phase_trick("validate", wrap, wrapper=True)], valid=valid)
    assert result.history["val_loss"] == pytest.approx([torch.tensor(3.0).log().item()] * 2)
    assert result.history["val_zero"] == [1.0, 1.0]
    assert result.history["train_loss"] == run().history["train_loss"]


def test_a_phase_may_be_replaced(run, data, same_bits):
    def compute_loss(self, state):
        state.outputs = state.model(state.batch.inputs)
        return F.mse_loss(state.outputs, F.one_hot(state.batch.targets, 3).float())

    mine = run([phase_trick("compute_loss", compute_loss)])
    other = run(train=(data[0], F.one_hot(data[1], 3).float()), loss=F.mse_loss)
    same_bits(mine.model, other.model)


def test_a_phase_that_is_declined_goes_to_the_core(run, same_bits):
    def declines(self, state):
        return None

    same_bits(run([phase_trick("backward", declines), phase_trick("update", declines)]).model, run().model)


def test_an_update_that_is_not_yet_counts_no_step_and_keeps_gradients(run, same_bits):
    """Accumulation by hand: two batches of 10 in halves of 5 are two batches of 10."""

    def update(self, state):
        return False if state.batch_index % 2 == 0 else None

    def wrap(self, state):
        return (yield) / 2

    tricks = [phase_trick("update", update), phase_trick("compute_loss", wrap, wrapper=True)]
    mine, other = run(tricks, batch_size=5), run(batch_size=10)
    assert mine.history["step"] == other.history["step"] == [2, 4]
    for one, two in zip(mine.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def accumulating(batches):
    def init(self, state):
        state.batches_per_update = batches
        state.surgery.note("update", f"of {batches} batches")

    return phase_trick("init", init)


@pytest.mark.parametrize(("small", "batches", "large"), [(4, 2, 8), (6, 2, 12), (5, 4, 20), (4, 9, 20)])
def test_batches_that_share_an_update_are_one_large_batch_also_at_the_end_of_an_epoch(run, small, batches, large):
    mine, other = run([accumulating(batches)], batch_size=small), run(batch_size=large)
    assert mine.history["step"] == other.history["step"]
    assert mine.history["train_loss"] == pytest.approx(other.history["train_loss"], rel=1e-5)
    for one, two in zip(mine.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_the_length_of_a_run_counts_updates_and_not_batches(data, net):
    seen = []

    def wrap(self, state):
        done = yield
        seen.append((state.batch_index, state.step))
        return done

    tricks = [accumulating(3), ("watch", phase_trick("update", wrap, wrapper=True))]
    with open_session(net, data, None, tricks, batch_size=4) as session:
        assert session.state.total_steps == 4
        go(session)
    assert seen == [(2, 1), (4, 2), (2, 3), (4, 4)]


@pytest.mark.parametrize("batches", [1, 2])
def test_a_replay_repeats_the_passes_of_an_update_bit_for_bit(run, same_bits, batches):
    """Same batches, same draws of tricks and of the model's own dropout: so all goes on as if nothing had been."""
    seen = []

    def wrap(self, state):
        kept = state.batch, state.outputs, [p.grad.clone() for p in state.model.parameters()]
        loss = state.replay()
        same = [torch.equal(p.grad, g) for p, g in zip(state.model.parameters(), kept[2], strict=True)]
        seen.append((state.batch is kept[0], state.outputs is kept[1], torch.equal(loss, state.batch_loss), all(same)))
        return (yield)

    def model():
        with forked(1):
            return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))

    tricks = [Noise(), "dropout", accumulating(batches)]
    replay = ("replay", phase_trick("update", wrap, wrapper=True))
    mine, other = run([*tricks, replay], model=model()), run(tricks, model=model())
    assert len(seen) == other.history["step"][-1]
    assert set(seen) == {(True, True, True, True)}
    same_bits(mine.model, other.model)


def test_a_batch_that_is_replaced_is_what_the_model_sees_and_the_caller_keeps_the_data(run, data, same_bits):
    def batch(self, state):
        inputs, targets = state.batch
        state.batch = Batch(inputs * 2, targets, state.batch.size)

    kept = data[0].clone()
    mine = run([phase_trick("batch", batch)], train=data)
    assert torch.equal(data[0], kept)
    same_bits(mine.model, run(train=(data[0] * 2, data[1])).model)


def test_a_trick_may_set_the_loss_function_in_init(run, same_bits):
    def init(self, state):
        state.loss = lambda o, t: 3 * F.cross_entropy(o, t)
        state.surgery.note("loss", "times three")

    same_bits(run([phase_trick("init", init)]).model, run(loss=lambda o, t: 3 * F.cross_entropy(o, t)).model)


def test_a_trick_stops_the_run_and_the_first_reason_stays(run):
    def epoch_end(self, state):
        if state.epoch == 1:
            state.stop("enough")
            state.stop("more than enough")

    result = run([phase_trick("epoch_end", epoch_end)], max_epochs=5)
    assert len(result.history) == 2
    assert result.stop_reason == "enough"


def test_metrics_written_in_epoch_end_are_recorded(run):
    def epoch_end(self, state):
        state.metrics["mine"] = 3.0

    result = run([phase_trick("epoch_end", epoch_end)])
    assert result.history["mine"] == [3.0, 3.0]
    assert result.metrics["mine"] == 3


# -- randomness --------------------------------------------------------------------------------------------------------


@trick
class Noise:
    """Add noise to the inputs. Cost: some."""

    _generator: torch.Generator | None = field(default=None, init=False)

    @hookimpl
    def init(self, state):
        self._generator = state.stream()

    @hookimpl
    def batch(self, state):
        inputs, targets = state.batch
        DRAWN.append(torch.rand(inputs.shape, generator=self._generator))
        state.batch = Batch(inputs + DRAWN[-1], targets, state.batch.size)


DRAWN: list[torch.Tensor] = []


def test_the_stream_of_a_trick_is_a_function_of_seed_name_epoch_and_batch(run):
    DRAWN.clear()
    run([("mine", Noise())], seed=3)
    found = [draw[0, 0].item() for draw in DRAWN]
    expected = [
        torch.rand(1, generator=torch.Generator().manual_seed(derive(3, "trick:mine", epoch) + batch)).item()
        for epoch in (0, 1)
        for batch in (0, 1, 2)
    ]
    assert found == expected


@trick
class Grow:
    """Insert a fresh linear layer. Cost: some."""

    @hookimpl
    def init(self, state):
        site = state.surgery.head()
        state.surgery.insert(site, nn.Linear(3, 3), Rank.DROPOUT)


def test_what_a_trick_draws_in_init_depends_on_seed_and_name_only(run, untouched):
    found = []
    for noise, others in ((1, []), (2, [("other", Grow())])):
        torch.manual_seed(noise)
        with untouched(None):
            model = run([*others, ("mine", Grow())], optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).model
        found.append(model[2].trickbox.mine.weight.tolist())
    assert found[0] == found[1]
    assert run([("mine", Grow())], seed=1).model[2].trickbox.mine.weight.tolist() != found[0]


def test_surgery_alone_leaves_the_global_generators_alone(net, data, untouched):
    with untouched(None):
        tb.explain(net, data[0], [Grow()])
        tb.apply(net, [Grow()], data[0])


def test_two_sessions_interleaved_equal_two_in_a_row(data, same_bits):
    def make():
        with forked(1):
            return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    shared, alone, together = Noise(), [make(), make()], [make(), make()]
    for seed, model in enumerate(alone):
        with open_session(model, data, None, [shared], seed=seed) as session:
            go(session)
    one, other = (open_session(model, data, None, [shared], seed=seed) for seed, model in enumerate(together))
    with one, other:
        for _ in zip(one.epochs(), other.epochs(), strict=True):
            for first, second in zip(one.batches(), other.batches(), strict=True):
                one.step(first)
                other.step(second)
    for model, expected in zip(together, alone, strict=True):
        same_bits(model, expected)


# -- hand-written loops ------------------------------------------------------------------------------------------------


def test_a_hand_written_loop_equals_fit(run, data, valid, net, same_bits):
    result = run([Noise(), "dropout"], valid=valid)
    with open_session(net, data, valid, [Noise(), "dropout"]) as session:
        epochs = []
        for epoch in session.epochs():
            epochs.append(epoch)
            for batch in session.batches():
                loss = session.step(batch)
                assert loss.requires_grad
    assert epochs == [0, 1]
    same_bits(net, result.model)
    mine = session.result()
    assert mine.history.rows == result.history.rows
    assert (mine.metrics, mine.stop_reason) == (result.metrics, result.stop_reason)
    assert mine.record == result.record
    assert len(mine.seconds) == 2
    assert all(seconds > 0 for seconds in mine.seconds)


def test_a_loss_of_the_caller_s_own_is_trained_and_measured(run, data, net, same_bits):
    with open_session(net, data) as session:
        for _ in session.epochs():
            for inputs, targets in session.batches():
                outputs = session.state.model(inputs)
                session.step(session.state.batch, 2 * F.cross_entropy(outputs, targets), outputs)
    other = run(loss=lambda o, t: 2 * F.cross_entropy(o, t))
    same_bits(net, other.model)
    assert session.result().history.rows == other.history.rows


def test_without_outputs_a_loss_of_the_caller_s_own_has_no_metrics(data, net):
    with open_session(net, data, max_epochs=1) as session:
        for _ in session.epochs():
            for inputs, targets in session.batches():
                session.step(session.state.batch, F.cross_entropy(net(inputs), targets))
    assert set(session.result().metrics) == {"train_loss"}


def test_a_loss_of_the_caller_s_own_is_refused_when_a_trick_acts_on_the_loss(data, net):
    def wrap(self, state):
        return (yield)

    with open_session(net, data, None, [phase_trick("compute_loss", wrap, wrapper=True)]) as session:
        batch = next(iter(session.batches()))
        before = [parameter.detach().clone() for parameter in net.parameters()]
        with pytest.raises(tb.ConfigError, match="a trick acts in compute_loss"):
            session.step(batch, torch.tensor(0.0, requires_grad=True))
        assert session.state.step == 0
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def doubling():
    def batch(self, state):
        inputs, targets = state.batch
        state.batch = Batch(inputs * 2, targets, state.batch.size)

    return phase_trick("batch", batch)


def test_a_batch_of_the_caller_s_own_goes_through_the_batch_hooks(data, net, same_bits):
    with forked(1):
        other = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    inputs, targets = data
    with open_session(net, data, None, [doubling()], max_epochs=1) as session:
        for _ in session.epochs():
            session.step((inputs[:8], targets[:8]))
            session.step([inputs[8:].numpy(), targets[8:].numpy()])
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for part in (slice(0, 8), slice(8, None)):
        optimizer.zero_grad()
        F.cross_entropy(other(inputs[part] * 2), targets[part]).backward()
        optimizer.step()
    same_bits(net, other)
    assert session.result().history["step"] == [2]
    assert torch.equal(inputs, data[0])


def test_a_batch_of_the_caller_s_own_is_mixed_up_as_one_of_the_data_would_be(data, run, net, same_bits):
    """One batch an epoch: what tricks draw is at the same place whoever brings the batch."""
    mine = data[0][:8], data[1][:8]
    with open_session(net, data, None, ["mixup", "dropout", Noise()]) as session:
        for _ in session.epochs():
            session.step(mine)
            assert session.state.batch.targets.shape == (8, 3)
    other = run(["mixup", "dropout", Noise()], train=[mine])
    same_bits(net, other.model)
    assert session.result().history.rows == other.history.rows


def test_batches_of_the_caller_s_own_do_not_draw_the_same(data, net):
    DRAWN.clear()
    with open_session(net, data, None, [Noise()], max_epochs=1) as session:
        for _ in session.epochs():
            session.step(data)
            session.step(data)
    assert len(DRAWN) == 2
    assert not torch.equal(*DRAWN)


def test_a_replay_repeats_batches_of_the_caller_s_own_too(data, net):
    seen = []

    def wrap(self, state):
        seen.append((state.batch_loss.item(), state.replay().item()))
        return (yield)

    tricks = [{"trick": "dropout", "p": 0.5}, phase_trick("update", wrap, wrapper=True)]
    with open_session(net, data, None, tricks, max_epochs=1) as session:
        for _ in session.epochs():
            for _ in range(3):
                session.step(data)
    assert [once for once, _ in seen] == [again for _, again in seen]
    assert len(seen) == 3


def test_a_loss_of_the_caller_s_own_keeps_the_batch_hooks_away_from_the_caller_s_own_batch(data, net):
    with open_session(net, data, None, [doubling()], max_epochs=1) as session:
        for _ in session.epochs():
            session.step(data, F.cross_entropy(net(data[0]), data[1]))
            assert session.state.batch.inputs is data[0]


def test_a_batch_of_the_caller_s_own_that_is_none_is_said(data, net):
    with open_session(net, data) as session, pytest.raises(tb.DataError, match=r"step must give pairs .* a Tensor"):
        session.step(data[0])


# -- how a loop ends ---------------------------------------------------------------------------------------------------


def test_a_loop_that_breaks_off_its_epochs_says_how_far_it_came(data, net):
    with open_session(net, data) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
                break
    assert session.result().stop_reason == (
        "the loop ended early: 2 of 2 epochs, 2 of them broken off, 2 steps of 6; schedules came to 33% of their way"
    )
    assert session.result().history["step"] == [1, 2]


def test_a_loop_that_breaks_off_the_run_says_how_far_it_came(data, net):
    with open_session(net, data, max_epochs=4) as session:
        for epoch in session.epochs():
            for batch in session.batches():
                session.step(batch)
            if epoch == 1:
                break
    assert session.result().stop_reason == (
        "the loop ended early: 1 of 4 epochs, 0 of them broken off, 6 steps of 12; schedules came to 50% of their way"
    )


def test_a_loop_that_breaks_off_a_run_of_so_many_steps_says_how_far_it_came(data, net):
    with open_session(net, data, max_epochs=None, max_steps=10) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
            break
    reason = "the loop ended early: 0 epochs, 0 of them broken off, 3 steps of 10; schedules came to 30% of their way"
    assert session.result().stop_reason == reason


def test_a_loop_of_unknown_length_that_ends_early_has_no_schedules_to_speak_of(data, net):
    class Batches:
        def __iter__(self):
            return iter([data, data])

    with open_session(net, Batches()) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
                break
            break
    assert session.result().stop_reason == "the loop ended early: 0 of 2 epochs, 1 of them broken off, 1 steps"


def test_a_trick_that_stops_is_the_reason_also_where_the_loop_was_broken_off(data, net):
    def epoch_end(self, state):
        state.stop("enough")

    with open_session(net, data, None, [phase_trick("epoch_end", epoch_end)]) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
                break
    assert session.result().stop_reason == "enough"


def test_a_session_that_is_not_open_says_so(data, net):
    with pytest.raises(tb.ConfigError, match="use it in a with statement"):
        open_session(net, data).state  # noqa: B018
    with pytest.raises(tb.ConfigError, match="use it in a with statement"):
        open_session(net, data).result()


def test_a_session_is_one_run(data, net, same_bits):
    session = open_session(net, data, None, [Noise()])
    with session:
        go(session)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(tb.ConfigError, match="make a new Session"):
        session.__enter__()
    same_bits(net, trained)


# -- errors ------------------------------------------------------------------------------------------------------------


class PlantedError(Exception):
    pass


def raising(hook, wrapper=False, when="before", error=PlantedError):
    def plain(self, state):
        raise error(hook)

    def wraps(self, state):
        if when == "before":
            raise error(hook)
        yield
        raise error(hook)

    return phase_trick(hook, wraps if wrapper else plain, wrapper)


WHERE = {
    "validate": "epoch 0, step 3",
    "epoch_end": "epoch 0, step 3",
    "fit_end": "epoch 1, step 6",
    ("update", "after"): "epoch 0, step 1",  # the step is counted when it is made
}


@pytest.mark.parametrize(
    ("hook", "how"),
    [(hook, "plain") for hook in HOOKS] + [(hook, how) for hook in PHASES for how in ("before", "after")],
)
def test_an_error_keeps_its_type_and_says_trick_hook_epoch_and_step(run, valid, hook, how):
    where = WHERE.get((hook, how)) or WHERE.get(hook, "epoch 0, step 0")
    bad = raising(hook, how != "plain", how)
    with pytest.raises(PlantedError, match=hook) as caught:
        run([recording([], skip=["fit_end"])(), ("mine", bad)], valid=valid)
    assert caught.value.__notes__ == [f"raised in trick 'mine', hook {hook}, {where}"]


def test_two_objects_of_one_class_are_told_apart(run):
    @trick
    class Late:
        """Fail late. Cost: none."""

        step: int = field(validator=integer(0))

        @hookimpl
        def batch(self, state):
            if state.step == self.step:
                raise PlantedError

    for tricks, name, step in (([Late(9), Late(2)], "late#2", 2), ([Late(1), Late(2)], "late", 1)):
        with pytest.raises(PlantedError) as caught:
            run(tricks)
        assert caught.value.__notes__ == [f"raised in trick '{name}', hook batch, epoch 0, step {step}"]


def test_an_error_of_the_user_s_own_loss_is_not_blamed_on_a_trick_around_it(run):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) == 3:
            raise PlantedError
        return F.cross_entropy(outputs, targets)

    with pytest.raises(PlantedError) as caught:
        run([recording([])()], loss=loss)
    assert caught.value.__notes__ == ["raised in hook compute_loss, epoch 0, step 1"]


def test_fit_end_of_every_trick_runs_also_when_one_raises(run):
    log = []
    tricks = [recording(log, "one")(), ("bad", raising("fit_end")), recording(log, "two")(), raising("fit_end")]
    with pytest.raises(PlantedError) as caught:
        run(tricks)
    assert [name for name, hook in log if hook == "fit_end"] == ["one", "two"]
    assert caught.value.__notes__ == ["raised in trick 'bad', hook fit_end, epoch 1, step 6"]


def test_ctrl_c_in_fit_end_does_not_stop_the_others(run):
    log = []
    with pytest.raises(KeyboardInterrupt):
        run([raising("fit_end", error=KeyboardInterrupt), recording(log)()])
    assert ("recorder", "fit_end") in log


def test_the_error_that_ended_the_run_is_the_one_that_comes_out(run):
    with pytest.raises(PlantedError, match="batch") as caught:
        run([raising("batch"), raising("fit_end", error=KeyError)])
    assert caught.value.__notes__[-1] == "then fit_end failed too: KeyError: 'fit_end'"


@pytest.mark.parametrize("hook", ["init", "fit_start"])
def test_an_error_before_training_leaves_the_model_as_it_was(run, net, untouched, hook):
    with untouched(net), pytest.raises(PlantedError):
        run([Grow(), "layer_norm", raising(hook)], model=net)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in ("init", "fit_start")])
def test_an_error_in_training_leaves_nothing_global_behind_and_undo_works(run, net, valid, untouched, hook):
    keys = list(net.state_dict())
    with untouched(None), pytest.raises(PlantedError):
        run([Grow(), raising(hook)], model=net, valid=valid)
    tb.undo(net)
    assert list(net.state_dict()) == keys
    assert all(not module._forward_hooks for module in net.modules())


def test_every_epoch_seeds_all_global_generators_and_every_batch_torch_s(net, data):
    """Promised to the user's own loaders and layers; the seeds are written out here."""
    found, expected = [], []
    with open_session(net, data, batch_size=8, seed=5, max_epochs=2) as session:
        for _ in session.epochs():
            found.append((random.random(), np.random.rand(), torch.rand(()).item()))
            for batch in session.batches():
                found.append(torch.rand(()).item())
                session.step(batch)
    with forked():
        for epoch in (0, 1):
            seed = derive(5, "order", epoch)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            expected.append((random.random(), np.random.rand(), torch.rand(()).item()))
            for batch in range(session.state.batches_per_epoch):
                torch.manual_seed(derive(5, "noise", epoch) + batch)
                expected.append(torch.rand(()).item())
    assert found == expected
