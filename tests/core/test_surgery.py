"""Edits of a model: what they do, that `undo` takes back every bit, and that copies and checkpoints just work."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from attrs import field
from torch import nn
from torch.nn import functional as F

import trickbox as tb
from trickbox.authoring import NORMS, Rank, Surgery, forked, hookimpl, interval, norm_after, trick
from trickbox.surgery import Attachments, forget_trained, is_tricked, seal
from trickbox.testing import tiny_data, tiny_model


class Add(nn.Module):
    """Add a number: an edit that is easy to see."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, inputs):
        return inputs + self.number


class Times(Add):
    def forward(self, inputs):
        return inputs * self.number


class Chain(nn.Module):
    """Three linear layers, one of them shared."""

    def __init__(self):
        super().__init__()
        with forked(5):
            self.first, self.shared = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.shared(F.relu(self.shared(self.first(inputs))))


INPUTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def surgery_of(model, inputs=INPUTS, acting="toy"):
    surgery = Surgery.on(model, inputs)
    surgery.acting = acting
    return surgery


def site_of(surgery, path, call=0):
    return next(site for site in surgery.sites(nn.Module) if (site.path, site.call) == (path, call))


def identity(model):
    """Everything about a model that undo must give back."""
    return {
        "class": type(model),
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "parameters": [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()],
        "buffers": [(name, id(b), b.clone()) for name, b in model.named_buffers()],
        "hooks": [
            [list(getattr(module, kind).values()) for kind in vars(module) if kind.startswith("_forward")]
            + [list(getattr(module, kind)) for kind in vars(module) if kind.endswith("_with_kwargs")]
            for module in model.modules()
        ],
        "attributes": [(sorted(vars(module)), module.training) for module in model.modules()],
    }


def assert_same(one, other):
    for what in one:
        for a, b in zip(one[what], other[what], strict=True) if what in ("parameters", "buffers") else ():
            assert a[:-1] == b[:-1]
            assert torch.equal(a[-1], b[-1]), a[0]
        if what not in ("parameters", "buffers"):
            assert one[what] == other[what], what


# -- the verbs ---------------------------------------------------------------------------------------------------------


def insert(surgery):
    surgery.insert(site_of(surgery, "conv1"), Add(1), Rank.NORM)
    surgery.insert(site_of(surgery, "pool", 1), nn.Dropout(0.5), Rank.DROPOUT)


def insert_before(surgery):
    surgery.insert_before(site_of(surgery, "conv2"), Times(2), Rank.NORM)


def shortcut(surgery):
    surgery.shortcut(site_of(surgery, "conv2"), site_of(surgery, "conv2"), nn.Identity())


def long_shortcut(surgery):
    surgery.shortcut(site_of(surgery, "fc1"), site_of(surgery, "own_dropout"), nn.Identity())


def convert(surgery):
    surgery.convert(site_of(surgery, "own_dropout"), nn.Dropout(0.9))
    surgery.convert(site_of(surgery, "conv1"), nn.Conv1d(2, 4, 3, padding=1))


def write(surgery):
    surgery.write("conv1.weight", torch.zeros(4, 2, 3))
    surgery.write("fc2.bias", torch.ones(3))


def freeze(surgery):
    surgery.freeze("conv1")
    surgery.freeze("own_dropout")
    surgery.freeze("")


def everything(surgery):
    for verb in (insert, write, convert, freeze, shortcut, insert_before, long_shortcut, write):
        verb(surgery)


VERBS = [insert, insert_before, shortcut, long_shortcut, convert, write, freeze, everything]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("mode", [True, False])
def test_undo_gives_back_class_keys_bits_hooks_modes_and_attributes(verb, mode):
    model = tiny_model().train(mode)
    model.fc1.bias.requires_grad_(False)
    model.own_dropout.eval()
    before = identity(model)
    verb(surgery_of(model, tiny_data(5)[0]))
    assert is_tricked(model)
    model(tiny_data(5)[0])
    tb.undo(model)
    assert_same(before, identity(model))
    assert not is_tricked(model)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_does_something_and_says_so(verb):
    model = tiny_model().eval()
    inputs = tiny_data(5)[0]
    before = model(inputs)
    surgery = surgery_of(model, inputs)
    verb(surgery)
    assert surgery.notes
    assert all(note.trick == "toy" and note.kind == "edit" for note in surgery.notes)
    assert torch.equal(model(inputs), before) == (verb is freeze)


@pytest.mark.parametrize("verb", [insert, insert_before, shortcut, long_shortcut])
def test_attached_modules_keep_the_keys_of_the_model(verb):
    model = tiny_model()
    keys = list(model.state_dict())
    verb(surgery_of(model, tiny_data(5)[0]))
    assert [key for key in model.state_dict() if ".trickbox." not in key] == keys


def test_undo_is_harmless_without_tricks_and_may_be_repeated():
    model = tiny_model()
    before = identity(model)
    tb.undo(model)
    tb.undo(model)
    assert_same(before, identity(model))


def test_an_insert_changes_the_output_and_an_insert_before_the_input():
    model = nn.Sequential(nn.Linear(3, 2))
    plain = model[0](INPUTS), model[0](INPUTS * 5)
    surgery = surgery_of(model)
    site = site_of(surgery, "0")
    surgery.insert(site, Add(7), Rank.NORM)
    assert torch.equal(model(INPUTS), plain[0] + 7)
    surgery.insert_before(site, Times(5), Rank.NORM)
    assert torch.equal(model(INPUTS), plain[1] + 7)
    assert torch.equal(model[0](INPUTS), plain[1] + 7)


def test_layers_that_are_called_with_keywords_are_edited_too():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, inputs):
            return self.layer(input=inputs)

    model = Keywords()
    plain = model.layer(INPUTS * 2)
    surgery = surgery_of(model)
    site = site_of(surgery, "layer")
    surgery.insert_before(site, Times(2), Rank.NORM)
    assert torch.equal(model(INPUTS), plain)
    surgery.shortcut(site, site, nn.Identity())
    assert torch.equal(model(INPUTS), plain + 2 * INPUTS)


def test_rank_decides_the_stack_whatever_was_installed_first():
    found = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        model = nn.Sequential(nn.Linear(3, 3))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(3))
            model[0].bias.zero_()
        surgery = surgery_of(model)
        site = site_of(surgery, "0")
        edits = [
            lambda s=surgery, t=site: s.insert(t, Add(1), Rank.NORM),
            lambda s=surgery, t=site: s.insert(t, Times(10), Rank.DROPOUT),
            lambda s=surgery, t=site: s.shortcut(t, t, nn.Identity()),
        ]
        for position in order:
            edits[position]()
        found.append(model(INPUTS))
    assert all(torch.equal(output, (INPUTS + 1) * 10 + INPUTS) for output in found)


def test_of_equal_rank_the_earlier_is_nearer_to_the_layer():
    model = nn.Sequential(nn.Linear(3, 2))
    plain = model(INPUTS)
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, "0"), Add(1), Rank.NORM)
    surgery.insert(site_of(surgery, "0"), Times(10), Rank.NORM)
    assert torch.equal(model(INPUTS), (plain + 1) * 10)
    assert [key for key in model.state_dict() if "trickbox" in key] == [
        "0.trickbox.toy.number",
        "0.trickbox.toy_2.number",
    ]


def test_the_ranks_are_from_the_layer_outwards():
    assert list(Rank) == sorted(Rank)
    names = [rank.name for rank in Rank]
    assert names == ["ADAPTER", "NORM", "DROPOUT", "SQUEEZE", "GATE", "STOCHASTIC_DEPTH", "SHORTCUT"]


@pytest.mark.parametrize("name", ["train", "call", "forward", "a.b", "x#2", "weights", "slots", "stash", "1"])
def test_a_trick_may_have_any_name(name):
    model = nn.Sequential(nn.Linear(3, 2))
    plain = model(INPUTS)
    surgery = surgery_of(model, acting=name)
    surgery.insert(site_of(surgery, "0"), Add(1), Rank.NORM)
    surgery.insert(site_of(surgery, "0"), Add(2), Rank.NORM)
    assert torch.equal(model(INPUTS), plain + 1 + 2)
    assert len([key for key in model.state_dict() if "trickbox" in key]) == 2
    model.train().eval()
    tb.undo(model)
    assert torch.equal(model(INPUTS), plain)


# -- calls -------------------------------------------------------------------------------------------------------------


def test_two_calls_of_one_module_get_their_own_children():
    model = Chain()
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, "shared", 0), Add(1), Rank.NORM)
    surgery.insert(site_of(surgery, "shared", 1), Times(2), Rank.NORM)
    w = nn.Linear(3, 3)
    w.load_state_dict({key: model.shared.state_dict()[key] for key in ("weight", "bias")})
    expected = w(F.relu(w(model.first(INPUTS)) + 1)) * 2
    for _ in range(3):
        assert torch.equal(model(INPUTS), expected)


@pytest.mark.parametrize("call", [0, 1])
def test_an_insert_before_and_a_shortcut_act_at_their_own_call_only(call):
    model = Chain()
    w = nn.Linear(3, 3)
    w.load_state_dict(model.shared.state_dict())
    surgery = surgery_of(model)
    surgery.insert_before(site_of(surgery, "shared", call), Times(2), Rank.NORM)
    surgery.shortcut(site_of(surgery, "first"), site_of(surgery, "shared", call), nn.Identity())
    factors = [2 if call == 0 else 1, 2 if call == 1 else 1]
    hidden = w(model.first(INPUTS) * factors[0]) + (INPUTS if call == 0 else 0)
    expected = w(F.relu(hidden) * factors[1]) + (INPUTS if call == 1 else 0)
    for _ in range(2):
        assert torch.equal(model(INPUTS), expected)


def test_a_shortcut_may_lead_from_one_call_of_a_module_to_the_next():
    model = Chain()
    plain = model(INPUTS)
    surgery = surgery_of(model)
    surgery.shortcut(site_of(surgery, "shared", 0), site_of(surgery, "shared", 1), nn.Identity())
    assert not torch.equal(model(INPUTS), plain)
    w = nn.Linear(3, 3)
    w.load_state_dict({key: model.shared.state_dict()[key] for key in ("weight", "bias")})
    inputs = model.first(INPUTS)
    assert torch.equal(model(INPUTS), w(F.relu(w(inputs))) + inputs)


def test_an_aborted_forward_does_not_shift_the_call_counter():
    model = Chain()
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, "shared", 1), Add(1), Rank.NORM)
    expected = model(INPUTS)

    handle = model.shared.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        model(INPUTS)
    handle.remove()
    assert torch.equal(model(INPUTS), expected)


def test_a_forward_with_fewer_calls_does_not_shift_the_next_one():
    class Sometimes(Chain):
        short = False

        def forward(self, inputs):
            return self.shared(inputs) if self.short else super().forward(inputs)

    model = Sometimes()
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, "shared", 1), Add(1), Rank.NORM)
    expected = model(INPUTS)
    model.short = True
    model(INPUTS)
    model.short = False
    assert torch.equal(model(INPUTS), expected)


# -- shortcuts ---------------------------------------------------------------------------------------------------------


def test_a_shortcut_over_several_layers_adds_the_input_of_the_first():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    plain = model(INPUTS)
    surgery = surgery_of(model)
    surgery.shortcut(site_of(surgery, "0"), site_of(surgery, "2"), Times(2))
    output = model(INPUTS)
    assert torch.equal(output, plain + 2 * INPUTS)
    output.sum().backward()
    assert model[2].trickbox.toy.number.grad == pytest.approx(INPUTS.sum().item(), rel=1e-4)
    assert model[0].trickbox.slots[0].stash.value is None


@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,), (4, 3, 1)])
def test_a_shortcut_never_broadcasts(shape):
    model = nn.Sequential(nn.Linear(3, 3))
    surgery = surgery_of(model)

    class Wrong(nn.Module):
        def forward(self, inputs):
            return torch.zeros(shape)

    surgery.shortcut(site_of(surgery, "0"), site_of(surgery, "0"), Wrong())
    with pytest.raises(tb.SurgeryError, match="adding would broadcast"):
        model(INPUTS)


def test_an_aborted_forward_leaves_nothing_that_copies_stumble_over():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    surgery = surgery_of(model)
    surgery.shortcut(site_of(surgery, "1"), site_of(surgery, "3"), nn.Identity())
    expected = model(INPUTS)
    handle = model[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        model(INPUTS)
    handle.remove()
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(INPUTS), expected)


# -- convert, write, freeze --------------------------------------------------------------------------------------------


def test_a_conversion_replaces_a_layer_everywhere_and_keeps_its_mode():
    norm = nn.BatchNorm1d(3).eval()
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})
    surgery = Surgery.on(model, INPUTS, forward=lambda model, inputs: model["b"](model["a"](inputs)))
    surgery.convert(site_of(surgery, "a"), nn.GroupNorm(1, 3))
    assert model["a"] is model["b"][0]
    assert type(model["a"]) is nn.GroupNorm
    assert not model["a"].training
    assert [site.event.name for site in surgery.sites(*NORMS)] == ["GroupNorm", "GroupNorm"]
    tb.undo(model)
    assert model["a"] is model["b"][0] is norm


def test_the_model_itself_cannot_be_converted():
    model = nn.Linear(3, 2)
    before = identity(model)
    surgery = surgery_of(model)
    with pytest.raises(tb.SurgeryError, match=r"wrap it in nn\.Sequential"):
        surgery.convert(site_of(surgery, ""), nn.Linear(3, 2))
    assert_same(before, identity(model))


def test_a_model_that_is_one_layer_takes_attachments():
    model = nn.Linear(3, 2)
    plain = model(INPUTS)
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, ""), Add(1), Rank.NORM)
    assert torch.equal(model(INPUTS), plain + 1)
    assert list(model.state_dict()) == ["weight", "bias", "trickbox.toy.number"]


@pytest.mark.parametrize("trained", [None, "0.weight", "1.weight"])
@pytest.mark.parametrize("freed", [True, False])
def test_what_was_written_comes_back_unless_the_model_has_been_trained(trained, freed):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    surgery = surgery_of(model)
    surgery.write("0.weight", torch.zeros(2, 3))
    surgery.write("0.bias", torch.zeros(2))
    assert surgery.written() == {"0.weight", "0.bias"}
    seal(model)
    if trained:
        with torch.no_grad():
            model.get_parameter(trained).view(-1)[0] = 1e-30
    after = {name: value.clone() for name, value in model.state_dict().items()}
    if freed:
        forget_trained(model)
    tb.undo(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, (after if trained else before)[name]), name


@pytest.mark.parametrize("sealed", [True, False])
def test_a_parameter_written_twice_gets_its_first_value_back(sealed):
    model = nn.Sequential(nn.Linear(3, 2))
    before = model[0].bias.detach().clone()
    surgery = surgery_of(model)
    surgery.write("0.bias", torch.zeros(2))
    surgery.write("0.bias", torch.ones(2))
    if sealed:
        seal(model)
        forget_trained(model)
    tb.undo(model)
    assert torch.equal(model[0].bias, before)


def test_what_was_written_to_be_kept_is_told_apart():
    surgery = surgery_of(nn.Sequential(nn.Linear(3, 2)))
    surgery.write("0.bias", torch.zeros(2), keep=False)
    assert (surgery.written(), surgery.kept()) == ({"0.bias"}, set())
    surgery.write("0.weight", torch.zeros(2, 3))
    assert surgery.kept() == {"0.weight"}


def test_buffers_and_numbers_can_be_written():
    model = nn.Sequential(nn.BatchNorm1d(3))
    surgery = surgery_of(model)
    surgery.write("0.running_mean", torch.ones(3))
    surgery.write("0.num_batches_tracked", torch.tensor(9))
    assert model[0].num_batches_tracked == 9
    tb.undo(model)
    assert model[0].num_batches_tracked == 0
    assert torch.equal(model[0].running_mean, torch.zeros(3))


def test_a_value_of_another_shape_is_refused_and_nothing_is_written():
    model = nn.Sequential(nn.Linear(3, 2))
    before = model[0].bias.detach().clone()
    with pytest.raises(tb.SurgeryError, match=r"toy: 0.bias has shape \(2,\), cannot write \(1,\)"):
        surgery_of(model).write("0.bias", torch.zeros(1))
    assert torch.equal(model[0].bias, before)


def test_what_is_frozen_is_not_trained_and_its_norms_and_dropouts_stay_in_eval_mode(run):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    @trick
    class Ice:
        """Freeze all but the head. Cost: less than nothing."""

        @hookimpl
        def init(self, state):
            for path in "012":
                state.surgery.freeze(path)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    run([Ice()], model=net, optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5))
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["3.weight", "3.bias"]
    net.train()
    assert torch.equal(net(torch.ones(2, 4)), net(torch.ones(2, 4)))
    tb.undo(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    net.train()
    assert not torch.equal(net(torch.ones(2, 4)), net(torch.ones(2, 4)))


@pytest.mark.parametrize("mode", [True, False])
def test_undo_gives_frozen_modules_the_mode_of_the_model_back_but_keeps_those_with_their_own(mode):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train(mode)
    model[2].train(not mode)
    surgery_of(model).freeze("")
    model(INPUTS)
    assert not model[1].training
    tb.undo(model)
    assert model[1].training == mode
    model.train()
    surgery_of(model).freeze("")
    model.eval()
    tb.undo(model)
    assert not any(module.training for module in model.modules())


# -- copies and checkpoints --------------------------------------------------------------------------------------------


def tricked():
    model = Chain()
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, "first"), nn.BatchNorm1d(3), Rank.NORM)
    surgery.insert(site_of(surgery, "shared", 0), Add(1), Rank.NORM)
    surgery.insert(site_of(surgery, "shared", 1), Times(2), Rank.NORM)
    surgery.shortcut(site_of(surgery, "first"), site_of(surgery, "shared", 1), nn.Identity())
    return model.eval()


def through_torch(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch])
def test_a_copy_behaves_alike_and_is_independent_of_the_original(clone):
    model = tricked()
    expected = model(INPUTS)
    twin = clone(model)
    assert torch.equal(twin(INPUTS), expected)
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "trickbox" in name:
                parameter.add_(1)
    assert torch.equal(model(INPUTS), expected)
    assert not torch.equal(twin(INPUTS), expected)
    tb.undo(twin)
    assert list(twin.state_dict()) == list(Chain().state_dict())
    assert torch.equal(twin(INPUTS), Chain()(INPUTS))
    assert torch.equal(model(INPUTS), expected)


def test_the_call_counter_of_a_copy_is_its_own():
    model = tricked()
    twin = copy.deepcopy(model)
    model.shared(INPUTS)  # a call outside of a forward shifts nothing but the model's own counter
    assert twin.shared.trickbox.call == 0
    assert torch.equal(twin(INPUTS), model(INPUTS))


def test_a_plain_checkpoint_loads_strictly_and_attached_values_stay():
    model = tricked()
    plain = {key: value + 1 for key, value in Chain().state_dict().items()}
    added = {key: value.clone() for key, value in model.state_dict().items() if ".trickbox." in key}
    keys = list(plain)
    model.load_state_dict(plain)
    assert list(plain) == keys, "the caller's checkpoint was changed"
    for key, value in model.state_dict().items():
        assert torch.equal(value, (plain | added)[key]), key


def test_a_full_checkpoint_loads_strictly():
    model, other = tricked(), tricked()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(INPUTS), model(INPUTS))


def test_a_checkpoint_with_a_part_of_what_is_attached_fails_strictly():
    model = tricked()
    partial = {key: value for key, value in model.state_dict().items() if key != "first.trickbox.toy.running_var"}
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.trickbox\.toy\.running_var"):
        model.load_state_dict(partial)


def test_a_plain_checkpoint_with_a_missing_key_of_the_model_fails_strictly():
    model = tricked()
    plain = Chain().state_dict()
    plain.pop("first.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.bias"):
        model.load_state_dict(plain)


def test_a_tricked_checkpoint_does_not_load_into_the_plain_model():
    with pytest.raises(RuntimeError, match=r"Unexpected key.*trickbox"):
        Chain().load_state_dict(tricked().state_dict())


# -- the user's own things ---------------------------------------------------------------------------------------------


def test_hooks_of_the_user_stay_in_place_and_order():
    model, calls = nn.Sequential(nn.Linear(3, 2)), []
    plain = model(INPUTS)
    handles = [
        model[0].register_forward_hook(lambda m, a, out: calls.append("early") or out * 2),
        model[0].register_forward_pre_hook(lambda *_: calls.append("pre")),
    ]
    surgery = surgery_of(model)
    calls.clear()
    surgery.insert(site_of(surgery, "0"), Add(1), Rank.NORM)
    surgery.insert_before(site_of(surgery, "0"), Times(1), Rank.NORM)
    assert torch.equal(model(INPUTS), plain * 2 + 1)
    assert calls == ["pre", "early"]
    tb.undo(model)
    assert torch.equal(model(INPUTS), plain * 2)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(INPUTS), plain)


class OwnAttribute(nn.Module):
    """A model whose author had the same idea for a name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.trickbox = nn.Sequential(nn.Linear(3, 3))

    def forward(self, inputs):
        return self.trickbox(self.layer(inputs))


def test_a_model_with_an_attribute_called_trickbox_keeps_it():
    model = OwnAttribute()
    before = identity(model)
    surgery = surgery_of(model)
    assert [site.path for site in surgery.sites(nn.Linear)] == ["layer", "trickbox.0"]
    for site in surgery.sites(nn.Linear):
        surgery.insert(site, Add(1), Rank.NORM)
    tb.undo(model)
    assert_same(before, identity(model))


def test_a_layer_with_an_attribute_called_trickbox_cannot_be_a_host():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].trickbox = "mine"
    surgery = surgery_of(model)
    with pytest.raises(tb.SurgeryError, match="Linear has its own attribute 'trickbox', which trickbox needs"):
        surgery.insert(site_of(surgery, "0"), Add(1), Rank.NORM)
    tb.undo(model)
    assert model[0].trickbox == "mine"


# -- finding and explaining --------------------------------------------------------------------------------------------


def test_what_tricks_attached_is_no_site():
    model = nn.Sequential(nn.Linear(3, 3))
    surgery = surgery_of(model)
    surgery.insert(site_of(surgery, "0"), nn.Sequential(nn.Linear(3, 3)), Rank.NORM)
    again = Surgery.on(model, INPUTS)
    assert [site.path for site in again.sites(nn.Linear)] == ["0"]
    assert [site.path for site in again.sites(nn.Module)] == ["", "0"]


def test_an_attached_norm_is_found_behind_its_host():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    surgery = surgery_of(model)
    event = site_of(surgery, "0").event
    assert norm_after(model, surgery.tape, event) is None
    surgery.insert(site_of(surgery, "0"), nn.BatchNorm1d(3), Rank.NORM)
    assert norm_after(model, surgery.tape, event).path == "0.trickbox.toy"


def test_a_model_without_a_layer_has_no_head():
    with pytest.raises(
        tb.NoEffectError, match=r"toy acted nowhere: it looked for a layer that makes .*; the model ran .*ReLU"
    ):
        surgery_of(nn.Sequential(nn.ReLU())).head()


def test_attached_modules_follow_device_and_mode_of_the_host():
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    surgery = surgery_of(model)
    child = nn.Dropout(0.5)
    surgery.insert(site_of(surgery, "0"), child, Rank.DROPOUT)
    assert not child.training
    model.train()
    assert child.training
    assert isinstance(model[0].trickbox, Attachments)


def test_attached_modules_act_in_a_transformer_layer_in_eval_mode_too():
    """torch has a fast path that calls no layer at all; a layer with hooks must not take it."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0).eval()
    inputs = torch.randn(2, 5, 4)
    with torch.no_grad():
        before = layer(inputs)
        surgery = surgery_of(layer, inputs)
        surgery.insert(site_of(surgery, "linear1"), Times(0), Rank.NORM)
        assert not torch.allclose(layer(inputs), before)
        assert torch.allclose(layer(inputs), layer.train()(inputs), atol=1e-6)


def test_explain_changes_nothing_and_lists_every_edit(untouched, data):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with untouched(net):
        text = tb.explain(net, data[0], ["layer_norm", {"trick": "dropout", "p": 0.25}])
    norm = "layer_norm: LayerNorm((6,), eps=1e-05, elementwise_affine=True, bias=True), +12 parameters"
    assert f"|- 0  Linear  (20, 6)        {norm}" in text.splitlines()
    assert "|                            dropout: StreamDropout(p=0.25, element)" in text.splitlines()
    assert text.splitlines()[-1] == f"Parameters: {4 * 6 + 6 + 6 * 3 + 3} before, {4 * 6 + 6 + 6 * 3 + 3 + 12} after"


def test_surgery_alone_returns_the_same_model_and_undo_takes_it_back(data):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    before = identity(net)
    assert tb.apply(net, ["layer_norm"], data[0]) is net
    assert is_tricked(net)
    tb.undo(net)
    assert_same(before, identity(net))


def test_surgery_that_fails_halfway_is_taken_back(data):
    @trick
    class Fails:
        """Fail after others. Cost: none."""

        @hookimpl
        def init(self, state):
            raise KeyError

    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    before = identity(net)
    with pytest.raises(KeyError):
        tb.apply(net, ["layer_norm", Fails()], data[0])
    assert_same(before, identity(net))


# -- surgery on a model that has tricks on -----------------------------------------------------------------------------


@trick
class Fails:
    """Insert, write, convert and freeze, then fail. Cost: none."""

    @hookimpl
    def init(self, state):
        surgery = state.surgery
        site = surgery.sites(nn.Linear)[0]
        surgery.insert(site, Times(2), Rank.DROPOUT)
        surgery.write("0.bias", torch.full((6,), 9.0))
        surgery.convert(surgery.sites(nn.ReLU)[0], nn.Tanh())
        surgery.freeze("2")
        raise KeyError


@trick
class Write:
    """Write a bias. Cost: none."""

    value: float = field(default=1.0, validator=interval("[0, 9]"))

    @hookimpl
    def init(self, state):
        state.surgery.write("0.bias", torch.full((6,), self.value))


class Masked(nn.Module):
    def __init__(self, draws):
        super().__init__()
        self.draws = draws

    def forward(self, inputs):
        return inputs * self.draws.bernoulli(inputs.shape, 0.5, inputs)


@trick
class Mask:
    """Mask the output of the first linear layer, in eval mode too. Cost: one draw and one product an element."""

    @hookimpl
    def init(self, state):
        site = state.surgery.sites(nn.Linear)[0]
        state.surgery.insert(site, Masked(state.draws(site)), Rank.DROPOUT)


def small():
    with forked(1):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_surgery_on_a_model_that_has_tricks_on_adds_to_them_and_undo_takes_all_back(data):
    net = small()
    before = identity(net)
    for tricks in (["layer_norm", Write(value=1.0)], [{"trick": "dropout", "p": 0.5}], [Write(value=2.0)]):
        assert tb.apply(net, tricks, data[0]) is net
    assert [name for name, _ in net.named_modules() if name.startswith("0.trickbox.")] == [
        "0.trickbox.layer_norm",
        "0.trickbox.dropout",
    ]
    together = small()
    tb.apply(together, ["layer_norm", Write(value=2.0), {"trick": "dropout", "p": 0.5}], data[0])
    assert torch.equal(net.eval()(data[0]), together.eval()(data[0]))
    tb.undo(net.train())
    assert_same(before, identity(net))


def test_layers_that_draw_from_two_surgeries_share_one_clock_and_no_mask(data):
    net = small()
    for alias in ("one", "two"):
        tb.apply(net, [(alias, Mask())], data[0])
    one, two = net[0].trickbox.one.draws, net[0].trickbox.two.draws
    assert one.clock is two.clock
    one.clock.set(3)
    mask = torch.ones(50)
    assert not torch.equal(one.bernoulli((50,), 0.5, mask), two.bernoulli((50,), 0.5, mask))


@pytest.mark.parametrize("first", [["layer_norm"], [Mask()], [Write()], ["layer_norm", Write()]])
def test_surgery_that_fails_on_a_model_that_has_tricks_on_leaves_those_of_before(data, first):
    net = small()
    plain = identity(net)
    tb.apply(net, first, data[0])
    before = identity(net)
    with pytest.raises(KeyError):
        tb.apply(net, [{"trick": "dropout", "where": "before_head"}, Fails()], data[0])
    assert_same(before, identity(net))
    tb.undo(net)
    assert_same(plain, identity(net))


@trick
class Scales:
    """Write and insert, then ask for what surgery alone cannot do. Cost: none."""

    @hookimpl
    def init(self, state):
        state.surgery.insert(state.surgery.sites(nn.Linear)[1], Times(2), Rank.DROPOUT)
        state.surgery.write("0.bias", torch.full((6,), 7.0))
        state.surgery.freeze("2")
        state.scale("lr", lambda state: 0.5)


@pytest.mark.parametrize("trained", [False, True])
def test_surgery_that_is_refused_when_all_is_done_leaves_what_was_before(data, trained):
    net = small()
    plain = identity(net)
    tb.apply(net, ["layer_norm", Write()], data[0])
    if trained:
        with torch.no_grad():
            net[2].weight.add_(1)
    net(data[0]).sum().backward()
    before, grads = identity(net), [p.grad for p in net.parameters()]
    with pytest.raises(tb.ConfigError, match="needs a loop"):
        tb.apply(net, [Scales()], data[0])
    assert_same(before, identity(net))
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))
    tb.undo(net)
    if trained:
        assert list(net[0].bias) == [1.0] * 6
    else:
        assert_same(plain, identity(net))


def test_what_a_surgery_wrote_stays_after_training_also_when_another_surgery_followed(data):
    net = small()
    tb.apply(net, [Write()], data[0])
    with torch.no_grad():
        net[2].weight.add_(1)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    tb.apply(net, ["layer_norm"], data[0])
    tb.undo(net)
    for name, value in net.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_what_a_surgery_wrote_after_training_is_taken_back_to_what_was_trained(data):
    net = small()
    tb.apply(net, [Write(value=1.0)], data[0])
    with torch.no_grad():
        net[2].weight.add_(1)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    tb.apply(net, [Write(value=2.0)], data[0])
    tb.undo(net)
    for name, value in net.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_what_is_attached_to_a_layer_goes_over_to_what_takes_its_place():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 2)), torch.randn(4, 3)
    seen = []
    net[1].register_forward_hook(lambda *call: seen.append(type(call[0]).__name__))
    plain = net(x)
    surgery = Surgery.on(net, x)
    identity = next(site for site in surgery.sites(nn.Identity))
    surgery.insert(identity, nn.Hardtanh(), Rank.NORM)
    attached = net(x)
    surgery.convert(identity, nn.Flatten(1))
    seen.clear()
    assert torch.equal(net(x), attached)
    assert seen == ["Flatten"]
    surgery.insert(next(site for site in surgery.sites(nn.Flatten)), nn.ReLU(), Rank.DROPOUT)
    assert [slot.rank for slot in net[1].trickbox.slots] == [Rank.NORM, Rank.DROPOUT]
    tb.undo(net)
    assert type(net[1]) is nn.Identity
    assert torch.equal(net(x), plain)
    assert seen[-1] == "Identity"
    assert not net[1]._forward_pre_hooks
    assert len(net[1]._forward_hooks) == 1
