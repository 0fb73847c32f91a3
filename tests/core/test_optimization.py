"""The optimizer of a run: groups, scaled hyper-parameters, and an optimizer that existed before the run."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import itertools
from functools import partial

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
    """Write down what the groups hold after each update. Cost: none."""

    @hookimpl(wrapper=True)
    def update(self, state):
        done = yield
        SEEN.append([dict(group) for group in state.optimizer.param_groups])
        return done


SEEN: list[list[dict]] = []


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
        result = run([*(Scale(factor=f) for f in order), Watch()], max_epochs=1)
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


def test_a_rate_in_a_tensor_is_scaled_in_place_and_put_back(run, net):
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    run([Scale(factor=0.5)], model=net, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.1)


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


def test_base_values_are_restored_after_the_run_also_after_an_error(run, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.8, weight_decay=0.3)
    before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    tricks = [Scale(), Scale("momentum"), Scale("weight_decay")]

    def fails(outputs, targets):
        if torch.is_grad_enabled() and net[0].weight.grad is None and optimizer.param_groups[0]["lr"] < 0.1:
            raise KeyError
        return F.cross_entropy(outputs, targets)

    run(tricks, model=net, optimizer=optimizer)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == before
    tb.undo(net)
    with pytest.raises(KeyError):
        run(tricks, model=net, optimizer=optimizer, loss=fails)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == before


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


def test_options_need_a_factory(run, net, untouched):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with untouched(net), pytest.raises(tb.ConfigError, match="pass a factory"):
        run([SetOptions("0.bias", 0.5)], model=net, optimizer=optimizer)


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


def test_gradients_from_before_the_run_do_not_count(run, net, data, same_bits):
    F.cross_entropy(net(data[0]), data[1]).backward()
    same_bits(run(model=net).model, run().model)
