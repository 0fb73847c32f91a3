"""Which call consumes what which other has made: the tape's numbers, what follows what, and recordings without a trace.

Chains of events are made up at random and searched by brute force too.
"""

# ruff: noqa: ARG005  # forwards have fixed signatures

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from trickbox.authoring import Surgery
from trickbox.surgery import record
from trickbox.surgery.flow import Flow
from trickbox.surgery.tape import Event, Tape
from trickbox.testing.zoo import ZOO, specimen

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A model whose layers are arguments and whose forward is a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def event_of(tape, name, call=0):
    return [event for event in tape.events if name in (event.path, event.name)][call]


def called(events):
    return [event.path if event.is_module else event.name for event in events]


# -- events made up ----------------------------------------------------------------------------------------------------


@st.composite
def tapes(draw):
    """A tape of functions and containers, which read tensors that there are and make new ones or change old ones."""
    events, tensors = [], [0, 1]

    def some(among, least=0):
        return tuple(draw(st.lists(st.sampled_from(among), min_size=least, max_size=2))) if among else ()

    def add(is_module, inputs, outputs, number):
        events[number] = Event("", 0, "", is_module, inputs, outputs, (), (), True, number, len(events) - 1)

    def step(depth):
        number, inputs = len(events), some(tensors)
        events.append(None)
        if depth < 2 and draw(st.booleans()):
            known = len(tensors)
            for _ in range(draw(st.integers(1, 4))):
                step(depth + 1)
            add(True, inputs, some([*tensors[known:], *inputs]), number)
        else:
            new = () if inputs and draw(st.integers(0, 3)) == 0 else (len(tensors),)
            tensors.extend(new)
            add(False, inputs, new or inputs[:1], number)

    for _ in range(draw(st.integers(1, 7))):
        step(0)
    return Tape(events, None, {}, some(tensors), before=2)


def search(tape, event):
    """The events that anything made of *event* goes into, by carrying a mark from tensor to tensor."""
    marked, found = set(), []
    for number in range(event.number, len(tape.events)):
        marked |= {t for e in (event, *found) if e.last < number for t in e.outputs}
        if number > event.last and marked & set(tape.events[number].inputs):
            found.append(tape.events[number])
    return found


@given(tapes(), st.data())
def test_what_follows_is_what_a_mark_is_carried_to(tape, data):
    event = data.draw(st.sampled_from(tape.events))
    assert list(tape.following(event)) == search(tape, event)


@given(tapes(), st.data())
def test_users_are_those_that_follow_directly_and_hold_no_others(tape, data):
    event = data.draw(st.sampled_from(tape.events))
    users = [e for e in tape.events[event.last + 1 :] if set(e.inputs) & set(event.outputs)]
    assert tape.users(event) == [e for e in users if e.last == e.number]


@given(tapes(), st.data())
def test_the_first_output_that_is_used_later_or_returned_is_the_one_in_use(tape, data):
    event = data.draw(st.sampled_from(tape.events))
    later = {tensor for e in tape.events[event.last + 1 :] for tensor in e.inputs}
    used = [n for n, tensor in enumerate(event.outputs) if tensor in later or tensor in tape.returned]
    assert tape.used(event) == (used[0] if used else 0)


@given(tapes(), st.data())
def test_the_events_of_a_flow_lead_where_a_mark_is_carried_through_what_is_looked_into(tape, data):
    """Without containers, which are only looked into, the flow and the tape agree on who made what of what."""
    flow = Flow(tape, set())
    for one in flow.nodes:
        leads = {other.number for other in search(tape, one)} & {node.number for node in flow.nodes}
        assert {node.number for node in flow.nodes if flow.leads(one.number, node.number)} == leads


@given(tapes())
def test_what_lies_between_two_events_comes_from_the_one_and_leads_to_the_other(tape):
    flow = Flow(tape, set())
    numbers = [node.number for node in flow.nodes]
    for one in numbers:
        for other in numbers:
            ways = [n for n in numbers if flow.leads(one, n) and (n == other or flow.leads(n, other))]
            assert flow.between(one, other) == ways


@given(tapes())
def test_the_last_that_events_have_in_common_is_the_last_that_leads_to_all(tape):
    flow = Flow(tape, set())
    numbers = [node.number for node in flow.nodes]
    for one in numbers:
        for other in numbers:
            shared = [n for n in numbers if all(n == end or flow.leads(n, end) for end in (one, other))]
            common = flow.common(one, other)
            assert common == max(shared) if shared else common is None or common >= len(tape.events)


@given(tapes())
def test_events_are_fed_where_a_way_leads_to_them_from_an_input(tape):
    flow = Flow(tape, set())
    first = next((n for n, e in enumerate(tape.events) if e.is_module), len(tape.events) - 1)
    inputs = {tensor for event in tape.events[: first + 1] for tensor in event.inputs}
    sources = {flow.maker(tensor) for tensor in inputs} - {node.number for node in flow.nodes}
    fed = {n.number for n in flow.nodes if any(flow.leads(source, n.number) for source in sources - {None})}
    assert fed == {n for n in flow.fed if n < len(tape.events)}


# -- the graph of a forward --------------------------------------------------------------------------------------------


def test_modules_that_are_whole_are_not_looked_into():
    model = Model(lambda self, x: self.b(self.a(x)), a=nn.Sequential(nn.Linear(6, 6), nn.ReLU()), b=nn.Linear(6, 2))
    tape = record(model, X)
    whole = {event_of(tape, "a").number}
    assert called(Flow(tape, set()).nodes) == ["a.0", "a.1", "b"]
    assert called(Flow(tape, whole).nodes) == ["a", "b"]


def test_what_parameters_alone_make_is_a_weight():
    def forward(self, x):
        return x @ (self.w * self.w.exp()).t() + self.v.sum() + x.mean()

    tape = record(Model(forward, w=nn.Parameter(torch.ones(2, 6)), v=nn.Parameter(torch.ones(2))), X)
    weights = Flow(tape, set()).weights
    made = [event.name for event in tape.events if weights.issuperset(event.outputs)]
    assert made == ["exp", "mul", "t", "sum"]


def test_an_in_place_sum_is_the_maker_from_then_on():
    def forward(self, x):
        y = self.a(x)
        y += self.b(x)
        return self.c(y)

    tape = record(Model(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2)), X)
    flow, last = Flow(tape, set()), event_of(tape, "c")
    assert called(tape.events[n] for n in flow.before(last)) == ["iadd"]
    assert called(tape.events[n] for n in flow.parents(flow.before(last)[0])) == ["a", "b"]


def test_what_ran_before_an_in_place_sum_does_not_follow_it():
    """It shares its tensor with the sum, but not its value."""

    def forward(self, x):
        trunk = self.stem(x)
        a = self.a(trunk)
        early = self.early(trunk)
        trunk += a
        return self.late(trunk), early

    tape = record(Model(forward, **{name: nn.Linear(6, 6) for name in ("stem", "a", "early", "late")}), X)
    assert called(tape.following(event_of(tape, "a"))) == ["iadd", "late"]
    assert called(tape.following(event_of(tape, "stem"))) == ["a", "early", "iadd", "late"]


def test_what_is_written_into_a_tensor_is_followed_there():
    def forward(self, x):
        out = torch.zeros(4, 8)
        out[:, :6] = self.a(x)
        return self.b(out)

    tape = record(Model(forward, a=nn.Linear(6, 6), b=nn.Linear(8, 2)), X)
    assert called(tape.following(event_of(tape, "a"))) == ["setitem", "b"]


def test_users_do_not_count_the_containers_that_only_hold_them():
    model = Model(lambda self, x: self.b(self.a(x)) + self.a(x), a=nn.Linear(6, 6), b=nn.Sequential(nn.Linear(6, 6)))
    tape = record(model, X)
    assert called(tape.users(event_of(tape, "a"))) == ["b.0"]
    assert called(tape.following(event_of(tape, "a"))) == ["b", "b.0", "add"]


@pytest.mark.parametrize(
    ("forward", "used"),
    [
        (lambda self, x: self.rnn(x)[0][:, -1], 0),
        (lambda self, x: self.rnn(x)[1][0], 1),
        (lambda self, x: self.rnn(x)[1], 1),
        (lambda self, x: self.rnn(x), 0),
        (lambda self, x: [self.rnn(x), x][1], 0),
    ],
)
def test_the_output_of_a_recurrent_layer_that_the_model_uses(forward, used):
    tape = record(Model(forward, rnn=nn.GRU(6, 3, batch_first=True)), X[None])
    assert tape.used(event_of(tape, "rnn")) == used


@pytest.mark.parametrize(
    ("training", "evaluating", "more"),
    [
        ("abc", "ab", True),
        ("ab", "ab", False),
        ("b", "ab", False),
        ("abc", "abb", False),
        ("abbc", "abb", True),
        ("abb", "ab", False),
        ("acb", "ba", True),
    ],
)
def test_a_tape_shows_more_where_it_has_all_calls_of_the_other_and_other_modules_too(training, evaluating, more):
    def forward(self, x):
        for name in training if self.training else evaluating:
            x = getattr(self, name)(x)
        return x

    model = Model(forward, **{name: nn.Linear(6, 6) for name in "abc"})
    assert record(model, X, training=True).shows_more(record(model, X)) == more


class Own(nn.Module):
    """A norm of one's own, written in functions."""

    def forward(self, x):
        return x / x.std(-1, keepdim=True)


def test_a_replaced_layer_changes_its_name_at_all_calls_and_nothing_else():
    tape = record(Model(lambda self, x: self.a(self.b(self.a(x))), a=Own(), b=nn.Linear(6, 6)), X)
    replaced = tape.replaced("a", nn.LayerNorm(6))
    assert [event.name for event in replaced.modules()] == ["Model", "LayerNorm", "Linear", "LayerNorm"]
    assert [e for e in replaced.events if not e.is_module] == [e for e in tape.events if not e.is_module]
    assert [event.name for event in tape.modules()] == ["Model", "Own", "Linear", "Own"]
    assert (replaced.returned, replaced.given, replaced.calls("a")) == (tape.returned, tape.given, 2)


# -- numbers of tensors ------------------------------------------------------------------------------------------------


def test_numbers_stay_unique_when_memory_is_used_again():
    """Tensors that are thrown away at once come to lie where others lay, also with the same address as an object."""
    addresses = []

    def forward(self, x):
        for _ in range(50):
            y = x + 1
            addresses.append((id(y), y.data_ptr()))
            del y
        return x

    tape = record(Model(forward), X)
    made = [event.outputs[0] for event in tape.events if event.name == "add"]
    assert len(set(addresses)) < 50
    assert len(set(made)) == 50


def test_no_tensor_is_kept_alive_but_the_output():
    made = []

    def forward(self, x):
        for layer in (self.a, F.relu, self.b, torch.exp):
            x = layer(x)
            made.append(weakref.ref(x))
        return x

    model = Model(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    tape = record(model, X)
    gc.collect()
    assert [tensor() is not None for tensor in made] == [False, False, False, True]
    assert made[-1]() is tape.output


def test_tensors_die_as_soon_as_in_a_plain_forward():
    alive = []

    def forward(self, x):
        made = []
        for _ in range(5):
            x = self.a(x)
            made.append(weakref.ref(x))
            alive.append(sum(tensor() is not None for tensor in made))
        return x

    record(Model(forward, a=nn.Linear(6, 6)), X)
    assert alive == [1] * 5


def test_inputs_parameters_and_buffers_were_there_before_and_nothing_else():
    def forward(self, x, y):
        return self.norm(x * self.w + self.constant) + y

    model = Model(forward, norm=nn.BatchNorm1d(6), w=nn.Parameter(torch.ones(6)), constant=torch.ones(6))
    tape = record(model, {"x": X, "y": X + 1})
    old = {tensor for event in tape.events for tensor in event.inputs if tensor < tape.before}
    made = {tensor for event in tape.events for tensor in event.outputs}
    assert len(old) == 4
    assert old.isdisjoint(made)
    assert sorted(tape.given.values()) == ["norm.bias", "norm.weight", "w"]


def test_the_returned_tensors_are_those_of_the_output_in_order():
    tape = record(Model(lambda self, x: {"a": self.a(x), "b": [x]}, a=nn.Linear(6, 6)), X)
    assert tape.returned == (*event_of(tape, "a").outputs, *event_of(tape, "a").inputs)


# -- no trace ----------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A module whose every forward leaves traces: in attributes and buffers, new and old, and in random states."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None
        self.register_buffer("steps", torch.zeros(2))
        self.register_buffer("window", torch.zeros(4, 6))
        self.register_buffer("spread", torch.zeros(1, 6).expand(4, 6))
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.steps += 1
        self.window = self.window + x
        self.register_buffer("cache", torch.ones(3))
        return self.layer(x) + torch.rand(6)


@pytest.mark.parametrize("training", [True, False])
def test_a_recording_leaves_attributes_and_buffers_as_they_were(training, untouched):
    model = Counting()
    model.steps[:] = 7
    with untouched(model):
        record(model, X, training=training)
    assert (model.calls, model.last, list(dict(model.named_buffers()))) == (0, None, ["steps", "window", "spread"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(6), nn.BatchNorm1d(6, momentum=None), nn.SyncBatchNorm(6), nn.Dropout(0.5),
        parametrizations.spectral_norm(nn.Linear(6, 6)), parametrizations.weight_norm(nn.Linear(6, 6)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_recording_leaves_statistics_vectors_and_modes_as_they_were(layer, mode, training, untouched):
    if isinstance(layer, nn.SyncBatchNorm) and training:
        pytest.skip("it trains on accelerators only")
    model = nn.Sequential(layer, nn.Linear(6, 2))
    model.train(mode)
    model[1].train(not mode)
    with untouched(model):
        record(model, X, training=training)


def test_a_recording_in_training_mode_runs_in_training_mode():
    modes = []
    model = Model(lambda self, x: modes.append(self.training) or self.a(x), a=nn.Linear(6, 6)).eval()
    record(model, X)
    record(model, X, training=True)
    assert modes == [False, True]


def test_a_recording_leaves_buffers_of_inference_mode_alone(untouched):
    with torch.inference_mode():
        kept = torch.ones(6)
    model = Model(lambda self, x: self.a(x), a=nn.Linear(6, 6))
    model.register_buffer("kept", kept)
    with untouched(model):
        record(model, X, training=True)


@pytest.mark.parametrize("training", [True, False])
def test_a_lazy_layer_becomes_what_it_is_to_be_and_is_on_the_tape_as_that(training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Flatten())
    tape = record(model, X, training=training)
    assert [event.name for event in tape.modules()] == ["Sequential", "Linear", "BatchNorm1d", "Flatten"]
    assert (type(model[0]), type(model[1]), model[0].weight.shape) == (nn.Linear, nn.BatchNorm1d, (4, 6))


@pytest.mark.parametrize("name", ZOO)
def test_a_specimen_is_recorded_in_training_mode_without_a_trace(name, untouched):
    model, inputs = specimen(name)
    model.eval()
    with untouched(model):
        record(model, inputs, training=True)


def test_a_model_that_needs_targets_in_training_is_read_in_eval_mode_alone(untouched):
    def forward(self, x, y=None):
        x = self.norm(self.a(x))
        return F.cross_entropy(x, y) if self.training else x

    model = Model(forward, a=nn.Linear(6, 2), norm=nn.BatchNorm1d(2))
    with untouched(model):
        surgery = Surgery.on(model, X)
    assert surgery.trained is None
    assert called(surgery.tape.modules()) == ["", "a", "norm"]


def test_a_surgery_takes_the_tape_of_training_where_that_shows_more_and_the_output_of_eval_mode():
    model = Model(lambda self, x: self.a(x) + (self.b(x) if self.training else 0), a=nn.Linear(6, 2), b=nn.Linear(6, 2))
    surgery = Surgery.on(model, X)
    assert called(surgery.tape.modules()) == ["", "a", "b"]
    assert torch.equal(surgery.tape.output, model.a(X))
