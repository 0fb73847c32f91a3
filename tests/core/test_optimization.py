"""The optimizer of a run: groups, scaled hyper-parameters, and an optimizer that existed before the run."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from attrs import field
from torch import nn
from torch.nn import functional as F

import trickbox as tb
from trickbox.authoring import Options, Rank, derive, flag, forked, hookimpl, integer, interval, text, trick


@trick
class Scale:
    """Scale a hyper-parameter by a factor of the step. Cost: none."""

    what: str = field(default="lr", validator=text())
    factor: float = field(default=0.5, validator=interval("(0, inf)"))
    power: int = field(default=0, validator=integer(0))

    @hookimpl
    def init(self, state):
        state.scale(self.what, lambda state: self.factor * (1 + state.step) ** self.power)


@trick
class Watch:
    """Write down what the groups hold when the optimizer steps. Cost: none."""

    handle: Any = field(default=None, init=False)

    @hookimpl
    def fit_start(self, state):
        self.handle = watch(state.optimizer)

    @hookimpl
    def fit_end(self, state):
        self.handle.remove()


def watch(optimizer):
    """Write down what the groups hold in each step; hooks run in the order in which they were registered."""

    def before(optimizer, args, kwargs):
        groups = [dict(group) for group in optimizer.param_groups]
        SEEN.append([{k: v.clone() if torch.is_tensor(v) else v for k, v in group.items()} for group in groups])

    return optimizer.register_step_pre_hook(before)


SEEN: list[list[dict]] = []


def settings_of(optimizer):
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@pytest.fixture(autouse=True)
def _clean():
    SEEN.clear()


@trick
class AddNorms:
    """Insert a layer norm after every linear layer. Cost: some."""

    @hookimpl
    def init(self, state):
        for site in state.surgery.sites(nn.Linear):
            state.surgery.insert(site, nn.LayerNorm(site.output_shape[-1]), Rank.NORM)


@trick
class SetOptions:
    """Set options of one parameter. Cost: none."""

    name: str = field(validator=text())
    lr: float = field(default=1.0, validator=interval("[0, inf)"))
    decay: bool = field(default=True, validator=flag())

    @hookimpl
    def init(self, state):
        state.options(self.name, Options(self.lr, self.decay))


# -- scaled hyper-parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [(0.1, 0.2, 0.3), (0.7, 1.1, 1.3)])
def test_factors_multiply_and_their_order_changes_no_bit(run, factors):
    a, b, c = factors
    assert len({a * b * c, b * c * a, c * a * b}) > 1, "with these factors the order would not matter anyway"
    found = set()
    for order in itertools.permutations(factors):
        SEEN.clear()
        result = run([*(Scale(factor=f) for f in order), Watch()], max_epochs=1, batch_size=20)
        found.add((SEEN[-1][0]["lr"], str(result.model[0].weight.tolist())))
        expected = 0.1 * factors[0] * factors[1] * factors[2]
        assert SEEN[-1][0]["lr"] == pytest.approx(expected)
        assert result.history["lr"] == [SEEN[-1][0]["lr"]]
    assert len(found) == 1


def test_a_scaled_rate_is_the_one_that_the_update_uses(run, data, same_bits):
    mine = run([Scale(factor=0.5, power=1)], max_epochs=1).model
    with forked(1):
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(derive(0, "order", 0)))
    for step, index in enumerate(order.split(8)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1 * (0.5 * (1 + step)))
        net.zero_grad()
        F.cross_entropy(net(data[0][index]), data[1][index]).backward()
        optimizer.step()
    same_bits(mine, net)


@pytest.mark.parametrize(
    ("optimizer", "read"),
    [
        (partial(torch.optim.SGD, lr=0.1, momentum=0.8), lambda group: group["momentum"]),
        (partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.99)), lambda group: group["betas"][0]),
        (partial(torch.optim.RMSprop, lr=0.1, momentum=0.8), lambda group: group["momentum"]),
    ],
)
def test_momentum_is_scaled_wherever_the_optimizer_keeps_it(run, optimizer, read):
    run([Scale("momentum", 0.5), Watch()], optimizer=optimizer)
    assert [read(groups[0]) for groups in SEEN] == [pytest.approx(0.4)] * 6
    if "betas" in SEEN[0][0]:
        assert SEEN[0][0]["betas"][1] == 0.99


def test_weight_decay_is_scaled_in_every_group(run):
    run([Scale("weight_decay", 0.5), Watch(), SetOptions("0.bias", decay=False)],
        optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.2))  # fmt: skip
    assert [group["weight_decay"] for group in SEEN[-1]] == [0.1, 0.0]


def test_outside_of_a_step_the_groups_hold_their_own_values(run, net):
    optimizer, found = two_groups(net), []
    before = settings_of(optimizer)

    @trick
    class Look:
        """Look at the groups in every hook of a batch. Cost: none."""

        @hookimpl
        def batch(self, state):
            found.append(settings_of(state.optimizer))

        @hookimpl(wrapper=True)
        def update(self, state):
            found.append(settings_of(state.optimizer))
            done = yield
            found.append(settings_of(state.optimizer))
            return done

    result = run([Scale(factor=0.5), Scale("momentum"), Look()], model=net, optimizer=optimizer)
    assert all(settings == before for settings in found)
    assert len(found) == 18
    assert result.history["lr"] == [0.05, 0.05]


def test_every_group_is_scaled_from_its_own_value(run, net):
    run([Scale(factor=0.5, power=1), Watch()], model=net, optimizer=two_groups(net))
    rates = [(0.1 * (0.5 * (1 + step)), 0.2 * (0.5 * (1 + step))) for step in range(6)]
    assert [tuple(group["lr"] for group in groups) for groups in SEEN] == rates


def test_history_holds_the_rate_of_the_last_update(run):
    assert run([Scale(factor=0.5, power=1)]).history["lr"] == [0.1 * (0.5 * step) for step in (3, 6)]
    assert run().history["lr"] == [0.1, 0.1]


def test_a_rate_in_a_tensor_is_scaled_in_place_and_put_back(run, net):
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    result = run([Scale(factor=0.5), Watch()], model=net, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.1)
    assert [groups[0]["lr"] for groups in SEEN] == [torch.tensor(0.05)] * 6
    assert result.history["lr"] == [torch.tensor(0.05).item()] * 2


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_one_tensor_that_is_the_rate_of_several_groups_is_scaled_once(run, net, optimizer):
    """What torch makes of a default: every group without a rate of its own holds the same tensor."""
    rate = torch.tensor(0.1)
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters()}]
    mine = optimizer(groups, lr=rate)
    run([Scale(factor=0.5), Watch()], model=net, optimizer=mine)
    assert [[group["lr"].item() for group in groups] for groups in SEEN] == [[torch.tensor(0.05).item()] * 2] * 6
    assert [group["lr"] for group in mine.param_groups] == [torch.tensor(0.1)] * 2


def test_a_scheduler_of_the_caller_s_own_goes_together_with_a_schedule(net, data, same_bits):
    """The caller steps it once an epoch; every update uses the product, bit for bit."""
    with forked(1):
        other = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.3)
    with tb.Session(net, data, loss=F.cross_entropy, optimizer=optimizer, tricks=[Scale(factor=0.5, power=1), Watch()],
                    max_epochs=3, batch_size=8, device="cpu") as session:  # fmt: skip
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
            scheduler.step()
    theirs, rate, step = torch.optim.SGD(other.parameters(), lr=0.0, momentum=0.9), 0.1, 0
    for epoch in range(3):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(derive(0, "order", epoch)))
        for index in order.split(8):
            theirs.param_groups[0]["lr"] = rate * (0.5 * (1 + step))
            assert SEEN[step][0]["lr"] == theirs.param_groups[0]["lr"]
            theirs.zero_grad()
            F.cross_entropy(other(data[0][index]), data[1][index]).backward()
            theirs.step()
            step += 1
        rate *= 0.3
    same_bits(net, other)
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0] == rate


@pytest.mark.parametrize("fused", [False, True])
def test_a_schedule_waits_where_a_scaler_skips_a_step(net, data, fused):
    """Not fused, the scaler does not step the optimizer; fused, it steps always, and the optimizer skips by itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with tb.attach(net, [Scale(factor=0.5, power=1)], data[0], epochs=1, steps_per_epoch=3) as run:
        optimizer = run.watch(torch.optim.SGD(net.parameters(), lr=0.1, fused=fused))
        watch(optimizer)
        made = []
        for factor in (1.0, float("inf"), 1.0, 1.0):
            before = net[0].weight.detach().clone()
            scaler.scale(factor * F.cross_entropy(net(data[0]), data[1])).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            made.append((not torch.equal(net[0].weight, before), run.state.step))
            assert optimizer.param_groups[0]["lr"] == 0.1
        run.epoch_end()
    assert made == [(True, 1), (False, 1), (True, 2), (True, 3)]
    tried = [0, 1, 1, 2] if fused else [0, 1, 2]
    assert [groups[0]["lr"] for groups in SEEN] == [0.1 * (0.5 * (1 + step)) for step in tried]
    assert run.state.history["lr"] == [0.1 * (0.5 * 3)]


def test_a_step_that_a_trick_skips_is_not_counted_and_the_schedule_waits(run):
    done = []

    @trick
    class Skips:
        """Skip the second step of the optimizer. Cost: none."""

        @hookimpl
        def init(self, state):
            state.take_step = lambda optimizer: None if len(done) == 1 else optimizer.step()

        @hookimpl(wrapper=True)
        def update(self, state):
            done.append((yield))
            return done[-1]

    result = run([Scale(factor=0.5, power=1), Skips(), Watch()])
    assert done == [True, False, True, True, True, True]
    assert result.history["step"] == [2, 5]
    assert [groups[0]["lr"] for groups in SEEN] == [0.1 * (0.5 * (1 + step)) for step in range(5)]


class FailsInTheSecondStep(torch.optim.SGD):
    calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls == 2:
            raise KeyError


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_a_step_that_raises_leaves_the_groups_their_own_values(run, net, rate):
    optimizer = FailsInTheSecondStep(net.parameters(), lr=rate, momentum=0.8)
    before = [{k: v.clone() if torch.is_tensor(v) else v for k, v in settings_of(optimizer)[0].items()}]
    with pytest.raises(KeyError) as caught:
        run([Scale(factor=0.5), Scale("momentum"), Watch()], model=net, optimizer=optimizer)
    assert len(SEEN) == 2
    assert SEEN[1][0]["lr"] < rate
    assert settings_of(optimizer) == before
    assert caught.value.__notes__ == ["raised in hook update, epoch 0, step 1"]


def test_after_a_step_that_raised_the_next_one_is_scaled_from_the_groups_own_values(net, data):
    with tb.attach(net, [Scale(factor=0.5, power=1), Scale("momentum")], data[0]) as run:
        optimizer = run.watch(FailsInTheSecondStep(net.parameters(), lr=0.1, momentum=0.8))
        watch(optimizer)
        before = settings_of(optimizer)
        optimizer.step()
        with pytest.raises(KeyError):
            optimizer.step()
        optimizer.step()
        assert settings_of(optimizer) == before
        assert run.state.step == 2
    assert [groups[0]["lr"] for groups in SEEN] == [0.1 * 0.5, 0.1 * (0.5 * 2), 0.1 * (0.5 * 2)]
    assert [groups[0]["momentum"] for groups in SEEN] == [0.8 * 0.5] * 3


def test_a_group_that_comes_late_is_scaled_from_its_own_base_value(run):
    @trick
    class Late:
        """Add a group in the second epoch. Cost: none."""

        @hookimpl
        def epoch_start(self, state):
            if state.epoch == 1:
                state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 8.0})

    run([Scale(factor=0.5), Late(), Watch()])
    assert [[group["lr"] for group in groups] for groups in (SEEN[0], SEEN[-1])] == [[0.05], [0.05, 4.0]]


def test_base_values_are_there_after_the_run_also_after_an_error(run, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.8, weight_decay=0.3)
    before = settings_of(optimizer)
    tricks = [Scale(), Scale("momentum"), Scale("weight_decay"), Watch()]

    def fails(outputs, targets):
        if len(SEEN) == 8:
            raise KeyError
        return F.cross_entropy(outputs, targets)

    run(tricks, model=net, optimizer=optimizer)
    assert settings_of(optimizer) == before
    tb.undo(net)
    with pytest.raises(KeyError):
        run(tricks, model=net, optimizer=optimizer, loss=fails)
    assert settings_of(optimizer) == before
    assert all(groups[0]["lr"] == 0.05 for groups in SEEN)


class Twice(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_the_one_of_its_base_class_is_one_step(run, net, same_bits):
    """torch fires the hooks of both, if an optimizer of the base class has been built before."""
    torch.optim.SGD(net.parameters(), lr=0.1)
    mine, other = run([Scale(power=1)], optimizer=partial(Twice, lr=0.1)), run([Scale(power=1)])
    assert mine.history.rows == other.history.rows
    same_bits(mine.model, other.model)


def test_after_the_run_its_schedule_acts_no_more(run, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run([Scale(factor=0.5)], model=net, optimizer=optimizer)
    watch(optimizer)
    optimizer.step()
    assert [groups[0]["lr"] for groups in SEEN] == [0.1]


def test_what_cannot_be_scaled_is_refused_before_any_training(run, net, untouched):
    with untouched(net), pytest.raises(tb.ConfigError, match=r"only lr, .* got 'momentun'\. Did you mean 'momentum'"):
        run([Scale("momentun")], model=net)
    net.eval()  # training would begin with net.train()
    with untouched(net), pytest.raises(tb.ConfigError, match="scales momentum, which this optimizer does not have"):
        run([Scale("momentum")], model=net, optimizer=torch.optim.Adagrad)
    optimizer = torch.optim.Adagrad(net.parameters())
    with untouched(net), pytest.raises(tb.ConfigError, match="scales momentum"):
        run([AddNorms(), Scale("momentum")], model=net, optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]


# -- groups ------------------------------------------------------------------------------------------------------------


def parameters_seen(result_model, groups):
    names = {id(p): name for name, p in result_model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def test_without_options_there_is_one_group_in_the_order_of_the_model(run):
    result = run([Watch()])
    assert parameters_seen(result.model, SEEN[0]) == [["0.weight", "0.bias", "2.weight", "2.bias"]]


def test_options_become_groups_of_equal_options_with_the_factory_s_own_rate(run):
    result = run(
        [Watch(), ("a", SetOptions("2.bias", 0.5)), ("b", SetOptions("0.bias", 0.5)),
         ("c", SetOptions("2.weight", 2.0, decay=False))],
        optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.3),
    )  # fmt: skip
    assert parameters_seen(result.model, SEEN[0]) == [["0.weight"], ["0.bias", "2.bias"], ["2.weight"]]
    assert [group["lr"] for group in SEEN[0]] == pytest.approx([0.1, 0.05, 0.2])
    assert [group["weight_decay"] for group in SEEN[0]] == [0.3, 0.3, 0.0]


def test_options_of_no_parameter_are_refused_with_a_near_match(run, net, untouched):
    with (
        untouched(net),
        pytest.raises(tb.ConfigError, match=r"'0\.wait', which is no parameter\. Did you mean '0\.weight'"),
    ):
        run([SetOptions("0.wait")], model=net)


def test_the_order_of_parameters_does_not_depend_on_the_list_of_tricks(run):
    for order in (("b", "a"), ("a", "b")):
        SEEN.clear()
        result = run([*((alias, AddNorms()) for alias in order), Watch()])
        added = [name for name in parameters_seen(result.model, SEEN[0])[0] if "trickbox" in name]
        assert parameters_seen(result.model, SEEN[0])[0][:4] == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert added == sorted(added)
        assert len(added) == 8


# -- factories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (0.1, "optimizer must be an optimizer or a function of the parameters"),
        (None, "partial"),
        (lambda parameters: None, "the function must give a torch.optim.Optimizer, got None"),
    ],
)
def test_what_gives_no_optimizer_is_refused(run, net, untouched, optimizer, message):
    with untouched(net), pytest.raises(tb.ConfigError, match=message):
        run(model=net, optimizer=optimizer)


def test_a_model_without_parameters_is_refused(run):
    with pytest.raises(tb.ConfigError, match="no parameters"):
        run(model=nn.Identity(), train=(torch.zeros(4, 3), torch.zeros(4).long()))


def test_a_model_that_is_all_frozen_is_refused(run, net):
    net.requires_grad_(False)
    with pytest.raises(tb.ConfigError, match="every parameter is frozen"):
        run(model=net)


# -- an optimizer that exists ------------------------------------------------------------------------------------------


def two_groups(net):
    return torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters(), "lr": 0.2}], momentum=0.9
    )


def test_new_parameters_join_the_group_of_their_host_and_are_trained(run, net):
    optimizer = two_groups(net)
    result = run([AddNorms()], model=net, optimizer=optimizer)
    assert parameters_seen(result.model, optimizer.param_groups) == [
        ["0.weight", "0.bias", "0.trickbox.add_norms.bias", "0.trickbox.add_norms.weight"],
        ["2.weight", "2.bias", "2.trickbox.add_norms.bias", "2.trickbox.add_norms.weight"],
    ]
    for name, parameter in result.model.named_parameters():
        assert parameter in optimizer.state, name
        if "trickbox" in name:
            assert not torch.equal(parameter, torch.ones_like(parameter) if "weight" in name else 0 * parameter)


def test_survivors_keep_their_state_bit_for_bit(run, net, data, same_bits):
    """Two epochs in two runs on one optimizer are two epochs of a hand-written loop, momentum and all."""
    optimizer = two_groups(net)
    with forked(1):
        other = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    theirs = two_groups(other)
    for seed in (0, 1):
        run(model=net, optimizer=optimizer, max_epochs=1, seed=seed)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(derive(seed, "order", 0)))
        for index in order.split(8):
            theirs.zero_grad()
            F.cross_entropy(other(data[0][index]), data[1][index]).backward()
            theirs.step()
    same_bits(net, other)


@trick
class Convert:
    """Turn batch norms into group norms. Cost: none."""

    @hookimpl
    def init(self, state):
        for site in state.surgery.sites(nn.BatchNorm1d):
            state.surgery.convert(site, nn.GroupNorm(1, site.output_shape[1]))


def test_a_replaced_layer_leaves_and_its_successor_joins_the_same_group(run):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(
        [{"params": [*net[0].parameters(), *net[2].parameters()]}, {"params": net[1].parameters(), "lr": 0.5}],
        lr=0.1, momentum=0.9,
    )  # fmt: skip
    run(model=net, optimizer=optimizer, max_epochs=1)
    gone = list(net[1].parameters())
    run([Convert()], model=net, optimizer=optimizer, max_epochs=1)
    assert parameters_seen(net, optimizer.param_groups) == [
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        ["1.weight", "1.bias"],
    ]
    assert not any(parameter in optimizer.state for parameter in gone)
    optimizer.state_dict()  # would raise for state of a parameter that no group holds


def test_an_optimizer_of_another_model_is_refused(run, net, untouched):
    stranger = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)
    with untouched(net), pytest.raises(tb.ConfigError, match="2 parameter tensors that are not of this model"):
        run(model=net, optimizer=stranger)


def test_options_move_parameters_of_an_optimizer_that_exists_to_groups_of_their_own(run, net):
    optimizer = two_groups(net)
    optimizer.param_groups[1]["weight_decay"] = 0.3
    tricks = [("a", SetOptions("0.bias", 0.5)), ("b", SetOptions("2.weight", 0.5, decay=False)),
              ("c", SetOptions("2.bias", 0.5)), Watch()]  # fmt: skip
    run(tricks, model=net, optimizer=optimizer)
    assert parameters_seen(net, SEEN[0]) == [["0.weight"], [], ["0.bias"], ["2.weight"], ["2.bias"]]
    assert [group["lr"] for group in SEEN[0]] == [0.1, 0.2, 0.05, 0.1, 0.1]
    assert [group["weight_decay"] for group in SEEN[0]] == [0.0, 0.3, 0.0, 0.0, 0.3]
    assert {group["momentum"] for group in SEEN[0]} == {0.9}
    assert [set(group) for group in SEEN[0]] == [set(SEEN[0][0])] * 5


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Adam])
def test_options_on_an_optimizer_that_exists_equal_options_on_a_factory(run, net, same_bits, optimizer):
    tricks = [("a", SetOptions("0.bias", 0.5)), ("b", SetOptions("2.weight", 3.0))]
    same_bits(
        run(tricks, model=net, optimizer=optimizer(net.parameters())).model, run(tricks, optimizer=optimizer).model
    )


def test_parameters_that_move_to_another_group_keep_their_state(run, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run(model=net, optimizer=optimizer)
    kept = {name: optimizer.state[parameter] for name, parameter in net.named_parameters()}
    run([SetOptions("0.bias", 0.5)], model=net, optimizer=optimizer)
    assert all(optimizer.state[parameter] is kept[name] for name, parameter in net.named_parameters())
    optimizer.load_state_dict(optimizer.state_dict())


def test_options_and_scales_multiply_on_an_optimizer_that_exists(run, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.1))
    run([SetOptions("0.bias", 0.5), Scale(factor=0.5), Watch()], model=net, optimizer=optimizer)
    assert [group["lr"].item() for group in SEEN[-1]] == pytest.approx([0.05, 0.025])
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx([0.1])


def test_after_a_run_the_groups_are_those_that_the_caller_had(run, net):
    optimizer = two_groups(net)
    before = settings_of(optimizer), [list(map(id, group["params"])) for group in optimizer.param_groups]
    for _ in range(2):
        run([SetOptions("0.bias", 0.5), Watch()], model=net, optimizer=optimizer)
        assert (settings_of(optimizer), [list(map(id, group["params"])) for group in optimizer.param_groups]) == before
        assert [group["lr"] for group in SEEN[-1]] == [0.1, 0.2, 0.05]


def test_options_of_no_parameter_leave_an_optimizer_that_exists_alone(run, net, untouched):
    optimizer = two_groups(net)
    before = settings_of(optimizer), [list(map(id, group["params"])) for group in optimizer.param_groups]
    with untouched(net), pytest.raises(tb.ConfigError, match=r"'0\.wait', which is no parameter"):
        run([AddNorms(), ("a", SetOptions("0.bias", 0.5)), ("b", SetOptions("0.wait"))], model=net, optimizer=optimizer)
    assert (settings_of(optimizer), [list(map(id, group["params"])) for group in optimizer.param_groups]) == before


# -- surgery alone -----------------------------------------------------------------------------------------------------


def test_surgery_alone_repairs_an_optimizer_that_exists(net, data):
    """Survivors keep their state, and every parameter that was added changes in the next step."""
    optimizer = two_groups(net)
    F.cross_entropy(net(data[0]), data[1]).backward()
    optimizer.step()
    kept = {name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in net.named_parameters()}
    assert tb.apply(net, [AddNorms()], data[0], optimizer=optimizer) is net
    assert parameters_seen(net, optimizer.param_groups) == [
        ["0.weight", "0.bias", "0.trickbox.add_norms.bias", "0.trickbox.add_norms.weight"],
        ["2.weight", "2.bias", "2.trickbox.add_norms.bias", "2.trickbox.add_norms.weight"],
    ]
    parameters = dict(net.named_parameters())
    assert all(optimizer.state[parameters[name]]["momentum_buffer"] is buffer for name, buffer in kept.items())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.zero_grad()
    F.cross_entropy(net(data[0]), data[1]).backward()
    optimizer.step()
    assert [name for name, value in before.items() if torch.equal(parameters[name], value)] == []


def test_surgery_alone_sets_options_of_an_optimizer_that_exists_and_needs_one_for_them(net, data, untouched):
    tricks = [AddNorms(), SetOptions("0.bias", 0.5)]
    with untouched(net), pytest.raises(tb.ConfigError, match="sets how parameters are optimized and needs a loop"):
        tb.apply(net, tricks, data[0])
    optimizer = two_groups(net)
    tb.apply(net, tricks, data[0], optimizer=optimizer)
    assert parameters_seen(net, optimizer.param_groups)[2] == ["0.bias"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.05]


def test_surgery_alone_that_replaces_a_layer_takes_it_out_of_the_optimizer(data):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(net(data[0]), data[1]).backward()
    optimizer.step()
    gone = list(net[1].parameters())
    tb.apply(net, [Convert()], data[0], optimizer=optimizer)
    assert parameters_seen(net, optimizer.param_groups) == [
        ["0.weight", "0.bias", "2.weight", "2.bias", "1.weight", "1.bias"]
    ]
    assert not any(parameter in optimizer.state for parameter in gone)
    optimizer.state_dict()


def test_surgery_alone_that_fails_leaves_the_optimizer_as_it_was(net, data, untouched):
    @trick
    class Fails:
        """Fail after others. Cost: none."""

        @hookimpl
        def init(self, state):
            state.options("0.wait", Options(0.5))

    optimizer = two_groups(net)
    F.cross_entropy(net(data[0]), data[1]).backward()
    optimizer.step()
    before = [list(map(id, group["params"])) for group in optimizer.param_groups], list(map(id, optimizer.state))
    with untouched(net), pytest.raises(tb.ConfigError, match="which is no parameter"):
        tb.apply(net, [AddNorms(), Fails()], data[0], optimizer=optimizer)
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == before[0]
    assert list(map(id, optimizer.state)) == before[1]


def test_what_is_added_to_a_layer_that_is_in_no_group_joins_the_first_one(net, data):
    net[2].requires_grad_(False)
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    tb.apply(net, [AddNorms()], data[0], optimizer=optimizer)
    added = ["2.trickbox.add_norms.bias", "2.trickbox.add_norms.weight"]
    assert parameters_seen(net, optimizer.param_groups)[0][-2:] == added


# -- a run that does not start, or has seen gradients before -----------------------------------------------------------


def test_an_optimizer_is_as_it_was_when_the_run_does_not_start(run, untouched):
    @trick
    class Fails:
        """Fail when the optimizer is there. Cost: none."""

        @hookimpl
        def fit_start(self, state):
            state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
            raise KeyError

    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run(model=net, optimizer=optimizer)
    members, state = list(optimizer.param_groups[0]["params"]), dict(optimizer.state)
    with untouched(net), pytest.raises(KeyError):
        run([AddNorms(), Convert(), Fails()], model=net, optimizer=optimizer)
    assert len(optimizer.param_groups) == 1
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in members]
    assert {id(p): id(s) for p, s in optimizer.state.items()} == {id(p): id(s) for p, s in state.items()}


@trick
class FailsAtTheStart:
    """Fail once the optimizer is there. Cost: none."""

    @hookimpl
    def fit_start(self, state):
        raise KeyError


def test_the_schedule_of_a_run_that_does_not_start_acts_on_no_step(run, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(KeyError):
        run([Scale(factor=0.5), FailsAtTheStart()], model=net, optimizer=optimizer)
    watch(optimizer)
    optimizer.step()
    assert [groups[0]["lr"] for groups in SEEN] == [0.1]
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_that_could_not_be_watched_is_as_it_was(net, data):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with tb.attach(net, [Scale(factor=0.5), AddNorms(), FailsAtTheStart()], data[0]) as run:
        with pytest.raises(KeyError):
            run.watch(optimizer)
        watch(optimizer)
        optimizer.step()
        assert [groups[0]["lr"] for groups in SEEN] == [0.1]
        assert len(optimizer.param_groups[0]["params"]) == 4
        with pytest.raises(KeyError):  # it may be tried again
            run.watch(optimizer)


def test_gradients_from_before_the_run_do_not_count(run, net, data, same_bits):
    F.cross_entropy(net(data[0]), data[1]).backward()
    same_bits(run(model=net).model, run().model)


class KeepsCount(torch.optim.SGD):
    """An optimizer that clears gradients in a way of its own."""

    cleared = 0

    def zero_grad(self, set_to_none=True):
        self.cleared += 1
        super().zero_grad(set_to_none)


def test_an_optimizer_that_clears_gradients_in_its_own_way_does_so(run, net, same_bits):
    mine = KeepsCount(net.parameters(), lr=0.1)
    counted = run(model=net, optimizer=mine)
    assert mine.cleared == 1 + counted.history["step"][-1]
    same_bits(counted.model, run(optimizer=partial(torch.optim.SGD, lr=0.1)).model)


def test_a_run_leaves_no_gradients(run, net):
    run(model=net)
    assert all(parameter.grad is None for parameter in net.parameters())
