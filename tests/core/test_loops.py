"""`attach`: a run in a loop that somebody else drives. See tests/loops for whole loops with every family."""

from __future__ import annotations

import gc
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trickbox as tb
from trickbox.authoring import derive, hookimpl, trick
from trickbox.testing import tiny_data, tiny_model

CRITERION = nn.CrossEntropyLoss()
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def net():
    model = tiny_model()
    model.own_dropout.p = 0.0  # it draws from the global generator, which only a session owns
    return model


def step(model, optimizer, batch, criterion=CRITERION):
    optimizer.zero_grad()
    loss = criterion(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss


MANY = ["batch_norm", {"trick": "dropout", "p": 0.3}, "one_cycle", "augment", "mixup", "residual",
        {"trick": "early_stopping", "patience": 1}, "reduce_on_plateau"]  # fmt: skip


# -- the same tricks in every loop ------------------------------------------------------------------------------------


def fitted(tricks, epochs):
    return tb.fit(
        net(), tiny_data(48), tiny_data(24, seed=1), loss=CRITERION, optimizer=SGD, tricks=tricks, max_epochs=epochs,
        batch_size=16, seed=5, device="cpu",
    )  # fmt: skip


def in_a_session(tricks, epochs):
    with tb.Session(
        net(), tiny_data(48), tiny_data(24, seed=1), loss=CRITERION, optimizer=SGD, tricks=tricks, max_epochs=epochs,
        batch_size=16, seed=5, device="cpu",
    ) as session:  # fmt: skip
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
    return session.result()


def in_a_plain_loop(tricks, epochs):
    model, (inputs, targets), valid = net(), tiny_data(48), tiny_data(24, seed=1)
    run = tb.attach(model, tricks, inputs[:16], targets=targets[:16], epochs=epochs, steps_per_epoch=3, seed=5)
    optimizer = run.watch(SGD(model.parameters()))
    for epoch in range(epochs):
        order = torch.randperm(48, generator=torch.Generator().manual_seed(derive(5, "order", epoch)))
        model.train()
        for index in order.split(16):
            step(model, optimizer, run.batch(inputs[index], targets[index]))
        model.eval()
        with torch.no_grad(), run.evaluating():
            val_loss = CRITERION(model(valid[0]), valid[1])
        if run.epoch_end(val_loss=val_loss):
            break
    run.close()
    return run


@pytest.mark.parametrize("tricks", [*([t] for t in MANY), MANY], ids=str)
def test_fit_session_and_a_plain_loop_end_in_the_same_bits(tricks):
    one, two, run = fitted(tricks, 4), in_a_session(tricks, 4), in_a_plain_loop(tricks, 4)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
        assert torch.equal(value, run.state.model.state_dict()[name]), name
    assert one.history["lr"] == two.history["lr"] == run.state.history["lr"]
    assert one.history["val_loss"] == two.history["val_loss"] == run.state.history["val_loss"]


# -- what the loop owes -----------------------------------------------------------------------------------------------


def test_a_loop_without_watch_is_told_so_at_the_end_of_its_first_epoch():
    run = tb.attach(net(), ["cosine_annealing"], tiny_data(4)[0], steps=10)
    with pytest.raises(tb.ConfigError, match=r"optimizer = run\.watch\(optimizer\)"):
        run.epoch_end(val_loss=1.0)


def test_a_loop_that_never_ends_an_epoch_is_told_so_by_its_steps():
    model = net()
    run = tb.attach(model, ["early_stopping"], tiny_data(4)[0], epochs=3, steps_per_epoch=2)
    optimizer = run.watch(SGD(model.parameters()))
    for _ in range(3):
        step(model, optimizer, tiny_data(4))
    with pytest.raises(tb.ConfigError, match=r"early_stopping acts at the end of an epoch.*run\.epoch_end"):
        step(model, optimizer, tiny_data(4))
    assert run.state.step == 3


def test_a_loop_that_never_ends_an_epoch_is_told_so_when_it_closes():
    model = net()
    run = tb.attach(model, ["early_stopping"], tiny_data(4)[0])
    step(model, run.watch(SGD(model.parameters())), tiny_data(4))
    with pytest.raises(tb.ConfigError, match="early_stopping acted nowhere"):
        run.close()


def test_a_metric_that_is_not_handed_over_is_named_with_those_that_are():
    model = net()
    run = tb.attach(model, [tb.get("early_stopping")("val_acc")], tiny_data(4)[0])
    step(model, run.watch(SGD(model.parameters())), tiny_data(4))
    with pytest.raises(tb.ConfigError, match=r"\(val_accuracy\), got 'val_acc'. Did you mean 'val_accuracy'"):
        run.epoch_end(val_accuracy=0.5)


def test_a_metric_of_unknown_direction_needs_a_mode():
    model = net()
    with tb.attach(model, [tb.get("early_stopping")("bleu")], tiny_data(4)[0]) as run:
        step(model, run.watch(SGD(model.parameters())), tiny_data(4))
        with pytest.raises(tb.ConfigError, match="set mode='min' or mode='max'"):
            run.epoch_end(bleu=0.5)
        run._box.members[0].trick.mode = "max"
        run.epoch_end(bleu=0.5)


def test_a_run_that_is_never_closed_says_so():
    model = net()
    run = tb.attach(model, ["early_stopping"], tiny_data(4)[0])
    step(model, run.watch(SGD(model.parameters())), tiny_data(4))
    run.epoch_end(val_loss=1.0)
    with pytest.warns(UserWarning, match=r"never closed.*run\.close\(\)"):
        run.__del__()
    run._closed = True


def test_an_unknown_length_is_refused_at_once_and_the_model_stays_as_it_was():
    model = net()
    with pytest.raises(tb.ConfigError, match=r"to attach, epochs and steps_per_epoch, or steps"):
        tb.attach(model, ["dropout", "one_cycle"], tiny_data(4)[0])
    assert not [name for name, _ in model.named_modules() if "trickbox" in name]
    assert "trickbox" not in str(model.__dict__.keys())


@pytest.mark.parametrize("setting", ["epochs", "steps_per_epoch", "steps"])
def test_lengths_are_whole_numbers(setting):
    with pytest.raises(tb.ConfigError, match=f"{setting} must be a whole number of at least 1, got 0"):
        tb.attach(net(), [], tiny_data(4)[0], **{setting: 0})


def test_inputs_that_the_model_cannot_take_are_named_as_inputs():
    with pytest.raises(tb.DataError, match=r"^inputs: the model cannot take inputs of shape \(4, 3\)"):
        tb.attach(net(), [], torch.zeros(4, 3))


# -- optimizers -------------------------------------------------------------------------------------------------------


def test_an_optimizer_from_before_is_repaired():
    model = net()
    optimizer = SGD(model.parameters())
    run = tb.attach(model, ["batch_norm"], tiny_data(4)[0])
    run.watch(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_two_optimizers_of_one_model_each_get_what_was_added_to_their_layers():
    model = net()
    first, second = SGD(model.conv1.parameters()), SGD([*model.conv2.parameters(), *model.fc1.parameters()])
    run = tb.attach(model, ["batch_norm"], tiny_data(4)[0])
    assert run.watch(first, second) == (first, second)
    assert model.conv1.trickbox.batch_norm.weight in set(first.param_groups[0]["params"])
    assert model.conv2.trickbox.batch_norm.weight in set(second.param_groups[0]["params"])


def test_two_optimizers_each_follow_their_own_steps():
    model = net()
    often, seldom = (torch.optim.SGD(p, lr=1.0) for p in (model.conv1.parameters(), model.fc2.parameters()))
    run = tb.attach(model, [tb.get("warm_up")(steps=4, start_factor=0.0)], tiny_data(4)[0])
    run.watch(often, seldom)
    rates = {often: [], seldom: []}
    for optimizer in (often, seldom):
        optimizer.register_step_pre_hook(lambda o, *_: rates[o].append(o.param_groups[0]["lr"]))
    for number in range(4):
        CRITERION(model(tiny_data(4)[0]), tiny_data(4)[1]).backward()
        often.step()
        if number % 2:
            seldom.step()
    assert rates == {often: [0.0, 0.25, 0.5, 0.75], seldom: [0.0, 0.25]}
    assert run.state.step == 2


def test_a_parameter_that_a_trick_added_and_no_optimizer_holds_is_named():
    model = net()
    run = tb.attach(model, ["batch_norm"], tiny_data(4)[0])
    optimizer = run.watch(SGD(model.parameters()))
    optimizer.param_groups[0]["params"] = list(model.fc2.parameters())
    with pytest.raises(tb.ConfigError, match=r"conv1\.trickbox\.batch_norm\.weight is in no optimizer"):
        step(model, optimizer, tiny_data(4))


def test_watch_takes_all_optimizers_at_once():
    model = net()
    run = tb.attach(model, [], tiny_data(4)[0])
    run.watch(SGD(model.parameters()))
    with pytest.raises(tb.ConfigError, match="in one call"):
        run.watch(SGD(model.parameters()))
    with pytest.raises(tb.ConfigError, match=r"must be a torch\.optim\.Optimizer"):
        tb.attach(net(), [], tiny_data(4)[0]).watch(model.parameters())


def test_a_rate_of_its_own_on_an_optimizer_from_before():
    model = net()
    optimizer = SGD(model.parameters())
    transfer = tb.get("transfer")(tiny_model(seed=7).state_dict(), backbone_lr=0.1)
    run = tb.attach(model, [transfer], tiny_data(4)[0])
    run.watch(optimizer)
    rates = {}

    def look(stepped, *_):
        rates.update({id(p): group["lr"] for group in stepped.param_groups for p in group["params"]})

    optimizer.register_step_pre_hook(look)
    model(tiny_data(4)[0]).sum().backward()
    optimizer.step()
    run.close()
    assert rates[id(model.conv1.weight)] == pytest.approx(0.01)
    assert rates[id(model.fc2.weight)] == 0.1


def test_an_optimizer_class_that_calls_the_step_of_its_base_is_scaled_once_and_counted_once():
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    seen, model = [], net()
    torch.optim.SGD(model.parameters(), lr=1.0)  # the first object of a class makes its step fire hooks
    run = tb.attach(model, [tb.get("warm_up")(steps=4, start_factor=0.0)], tiny_data(4)[0])
    optimizer = run.watch(Mine(model.parameters(), lr=1.0))
    for _ in range(3):
        step(model, optimizer, tiny_data(4))
    assert seen == [0.0, 0.25, 0.5]
    assert run.state.step == 3


def test_lbfgs_with_its_closure_counts_one_step_and_follows_the_schedule():
    model, batch = net(), tiny_data(16)
    expected = net()
    rates = []

    def train(model, optimizer, factor=None):
        for number in range(3):
            if factor:
                optimizer.param_groups[0]["lr"] = factor(number)

            def closure():
                optimizer.zero_grad()
                loss = CRITERION(model(batch[0]), batch[1])
                loss.backward()
                return loss

            optimizer.step(closure)

    run = tb.attach(model, [tb.get("warm_up")(steps=2, start_factor=0.5)], batch[0])
    optimizer = run.watch(torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4))
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    train(model, optimizer)
    train(expected, torch.optim.LBFGS(expected.parameters(), lr=0.1, max_iter=4), lambda n: 0.1 * min(1, 0.5 + n / 4))
    assert run.state.step == 3
    assert rates == [0.05, pytest.approx(0.075), 0.1]
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_scaler_that_skips_a_step_lets_the_schedule_wait():
    model, batch = net(), tiny_data(16)
    run = tb.attach(model, [tb.get("warm_up")(steps=4, start_factor=0.0)], batch[0])
    optimizer = run.watch(torch.optim.SGD(model.parameters(), lr=1.0))
    scaler = torch.amp.GradScaler("cpu")
    steps = []
    for number in range(5):
        optimizer.zero_grad()
        scaler.scale(CRITERION(model(batch[0]), batch[1])).backward()
        if number == 2:
            model.fc2.bias.grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        steps.append(run.state.step)
    assert steps == [1, 2, 2, 3, 4]
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_fused_optimizer_that_skips_by_itself_lets_the_schedule_wait():
    model, batch = net(), tiny_data(16)
    run = tb.attach(model, [tb.get("warm_up")(steps=4, start_factor=0.0)], batch[0])
    optimizer = run.watch(torch.optim.SGD(model.parameters(), lr=1.0, fused=True))
    steps = []
    for number in range(3):
        step(model, optimizer, batch) if number != 1 else None
        if number == 1:  # as a GradScaler does it for an optimizer that looks at the gradients itself
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        steps.append(run.state.step)
    assert steps == [1, 1, 2]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_step_follows_the_schedule():
    model = nn.Linear(2, 2)
    run = tb.attach(model, [tb.get("warm_up")(steps=4, start_factor=0.0)], torch.zeros(1, 2))
    optimizer = run.watch(torch.optim.SGD(model.parameters(), lr=torch.tensor(1.0)))
    torch._dynamo.reset()
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    moved = []
    for _ in range(3):
        before = model.weight.detach().clone()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        compiled()
        moved.append(round(float((before - model.weight.detach())[0, 0]), 4))
    assert moved == [0.0, 0.25, 0.5]


# -- phases -----------------------------------------------------------------------------------------------------------


@trick
class Recorder:
    """Write down when the wrapped phases begin and end. Cost: none."""

    @hookimpl(wrapper=True)
    def compute_loss(self, state):
        SEEN.append("forward")
        result = yield
        SEEN.append("loss")
        return result

    @hookimpl(wrapper=True)
    def update(self, state):
        SEEN.append(f"update {state.step}")
        result = yield
        SEEN.append(f"updated {state.step} {result}")
        return result


SEEN: list[str] = []


def test_phases_that_the_loop_opens_reach_the_wrappers():
    SEEN.clear()
    model = net()
    with tb.attach(model, [Recorder()], tiny_data(4)[0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        with run.phase("compute_loss"):
            loss = CRITERION(model(tiny_data(4)[0]), tiny_data(4)[1])
        loss.backward()
        optimizer.step()
    assert SEEN == ["forward", "loss", "update 0", "updated 1 True"]


def test_a_phase_that_ends_in_an_error_ends_for_the_wrappers_too():
    @trick
    class Careful:
        """Put something back. Cost: none."""

        @hookimpl(wrapper=True)
        def validate(self, state):
            SEEN.append("in")
            try:
                return (yield)
            finally:
                SEEN.append("out")

    SEEN.clear()
    model = net()
    with tb.attach(model, [Careful()], tiny_data(4)[0]) as run:
        with pytest.raises(ZeroDivisionError), run.evaluating():
            1 / 0  # noqa: B018
        assert SEEN == ["in", "out"]


def test_a_misspelt_phase_is_an_error():
    with tb.attach(net(), [], tiny_data(4)[0]) as run, pytest.raises(tb.ConfigError, match="a phase is one of"):
        run.phase("validation").__enter__()


def test_a_closure_hands_over_the_gradients_before_tricks_act_on_them():
    norms = []

    @trick
    class Look:
        """Look at the gradients. Cost: none."""

        @hookimpl(wrapper=True)
        def update(self, state):
            norms.append(float(state.model.fc2.weight.grad.norm()))
            again = float(state.replay())
            assert again == float(CRITERION(state.model(batch[0]), batch[1]).detach())
            return (yield)

    model, batch, calls = net(), tiny_data(16), []
    with tb.attach(model, [Look()], batch[0]) as run:
        optimizer = run.watch(SGD(model.parameters()))

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            loss = CRITERION(model(batch[0]), batch[1])
            loss.backward()
            return loss

        assert isinstance(optimizer.step(closure), torch.Tensor)
    assert norms[0] > 0
    assert len(calls) == 2


def test_without_a_closure_a_second_pass_is_refused():
    @trick
    class Again:
        """Ask for a second pass. Cost: a pass."""

        @hookimpl(wrapper=True)
        def update(self, state):
            state.replay()
            return (yield)

    model = net()
    before = model.fc2.weight.detach().clone()
    with tb.attach(model, [Again()], tiny_data(4)[0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        with pytest.raises(tb.ConfigError, match=r"hand a closure to optimizer\.step") as caught:
            step(model, optimizer, tiny_data(4))
    assert "trick 'again', hook update" in caught.value.__notes__[0]
    assert torch.equal(model.fc2.weight, before)


def test_mixed_precision_acts_where_the_loop_opens_its_phases():
    model, batch = net(), tiny_data(16)
    with tb.attach(model, [tb.get("mixed_precision")()], batch[0]) as run:
        optimizer = run.watch(SGD(model.parameters()))
        with run.phase("compute_loss"):
            outputs = model(batch[0])
            loss = CRITERION(outputs, batch[1])
        loss.backward()
        optimizer.step()
        with torch.no_grad(), run.evaluating():
            evaluated = model(batch[0])
        run.epoch_end(val_loss=CRITERION(evaluated, batch[1]))
    assert outputs.dtype == evaluated.dtype == torch.bfloat16
    assert model(batch[0]).dtype == torch.float32


def test_float16_is_refused_where_the_loop_scales_its_own_loss():
    model = net()
    run = tb.attach(model, [tb.get("mixed_precision")("float16")], tiny_data(4)[0])
    with pytest.raises(tb.ConfigError, match="mixed_precision"):
        run.watch(SGD(model.parameters()))


# -- wrap -------------------------------------------------------------------------------------------------------------


def test_a_compiled_model_is_trained_like_the_plain_one():
    losses = []
    for wrap in (None, partial(torch.compile, backend="aot_eager", fullgraph=True)):
        torch._dynamo.reset()
        model, batch = net(), tiny_data(16)
        with tb.attach(model, [*MANY[:2], "residual"], batch[0], seed=1, wrap=wrap) as run:
            optimizer = run.watch(SGD(model.parameters()))
            # Two batches share an update, as in a loop that accumulates: their masks must differ.
            for _ in range(2):
                for _ in range(2):
                    losses.append(CRITERION(run.model(batch[0]), batch[1]))
                    losses[-1].backward()
                optimizer.step()
                optimizer.zero_grad()
    plain, compiled = losses[:4], losses[4:]
    assert torch.equal(torch.stack(plain), torch.stack(compiled))
    assert len({loss.item() for loss in plain}) == 4


def test_the_attached_run_goes_with_its_loop():
    model = net()
    with tb.attach(model, ["dropout", "cosine_annealing"], tiny_data(4)[0], steps=3) as run:
        optimizer = run.watch(SGD(model.parameters()))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    del run
    gc.collect()
    F.cross_entropy(model(tiny_data(4)[0]), tiny_data(4)[1]).backward()
