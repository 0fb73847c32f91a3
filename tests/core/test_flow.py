"""Which call consumes what which other has made: the tape's numbers, what follows what, and recordings without a trace.

Chains of events are made up at random and searched by brute force too.
"""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from trickbox.authoring import Surgery
from trickbox.surgery import record
from trickbox.surgery.flow import Flow
from trickbox.surgery.tape import Event, Tape
from trickbox.testing.zoo import ZOO, specimen

few = settings(max_examples=40)
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


def search(events, event):
    """Those of *events* that anything made of *event* goes into, by carrying a mark from tensor to tensor."""
    found = []
    for later in events:
        marked = {tensor for e in (event, *found) if e.last < later.number for tensor in e.outputs}
        if later.number > event.last and marked & set(later.inputs):
            found.append(later)
    return found


def one_of(data, events):
    return data.draw(st.sampled_from(events))


@few
@given(tapes(), st.data())
def test_what_follows_is_what_a_mark_is_carried_to(tape, data):
    event = one_of(data, tape.events)
    assert list(tape.following(event)) == search(tape.events, event)


@few
@given(tapes(), st.data())
def test_users_are_those_that_follow_directly_and_hold_no_others(tape, data):
    event = one_of(data, tape.events)
    users = [e for e in tape.events[event.last + 1 :] if set(e.inputs) & set(event.outputs)]
    assert tape.users(event) == [e for e in users if e.last == e.number]


@few
@given(tapes(), st.data())
def test_the_first_output_that_is_used_later_or_returned_is_the_one_in_use(tape, data):
    event = one_of(data, tape.events)
    later = {tensor for e in tape.events[event.last + 1 :] for tensor in e.inputs}
    used = [n for n, tensor in enumerate(event.outputs) if tensor in later or tensor in tape.returned]
    assert tape.used(event) == (used[0] if used else 0)


@few
@given(tapes(), st.data())
def test_one_event_leads_to_those_that_a_mark_is_carried_to_through_what_containers_hold(tape, data):
    flow = Flow(tape, set())
    assert flow.nodes == [event for event in tape.events if event.last == event.number]
    one = one_of(data, flow.nodes)
    assert [node for node in flow.nodes if flow.leads(one.number, node.number)] == search(flow.nodes, one)


@few
@given(tapes(), st.data())
def test_what_lies_between_two_events_comes_from_the_one_and_leads_to_the_other(tape, data):
    flow = Flow(tape, set())
    one, other = one_of(data, flow.nodes).number, one_of(data, flow.nodes).number
    ways = [n.number for n in flow.nodes if flow.leads(one, n.number)]
    assert flow.between(one, other) == [n for n in ways if n == other or flow.leads(n, other)]


@few
@given(tapes(), st.data())
def test_the_last_that_events_have_in_common_is_the_last_that_leads_to_all_or_is_one_of_them(tape, data):
    flow = Flow(tape, set())
    ends = [one_of(data, flow.nodes).number for _ in range(data.draw(st.integers(1, 3)))]
    shared = [n.number for n in flow.nodes if all(n.number == end or flow.leads(n.number, end) for end in ends)]
    common = flow.common(*ends)
    assert common == max(shared) if shared else common is None or common >= len(tape.events)


@few
@given(tapes())
def test_events_are_fed_where_a_mark_is_carried_to_them_from_the_inputs(tape):
    """The inputs are those of the first module, and of the functions before it."""
    first = next((event.number for event in tape.events if event.is_module), len(tape.events))
    inputs = {tensor for event in tape.events[: first + 1] for tensor in event.inputs}
    fed, made, marked = set(), set(), set()
    flow = Flow(tape, set())
    for event in flow.nodes:
        marked |= set(event.inputs) & inputs - made
        made.update(event.outputs)
        if marked & set(event.inputs):
            fed.add(event.number)
            marked.update(event.outputs)
    assert fed == {number for number in flow.fed if number < len(tape.events)}


# -- the graph of a forward --------------------------------------------------------------------------------------------


def test_modules_that_are_whole_are_not_looked_into():
    model = Model(lambda self, x: self.b(self.a(x)), a=nn.Sequential(nn.Linear(6, 6), nn.ReLU()), b=nn.Linear(6, 2))
    tape = record(model, X)
    whole = {event_of(tape, "a").number}
    assert called(Flow(tape, set()).nodes) == ["a.0", "a.1", "b"]
    assert called(Flow(tape, whole).nodes) == ["a", "b"]


def test_the_maker_of_a_tensor_is_the_call_that_is_not_looked_into():
    model = Model(lambda self, x: self.a(x), a=nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    tape = record(model, X)
    flow = Flow(tape, set())
    assert called([tape.events[flow.maker(tape.returned[0])]]) == ["a.1"]
    assert called(tape.events[n] for n in flow.returned) == ["a.1"]
    assert flow.maker(-1) is None


@pytest.mark.parametrize(
    ("forward", "terms", "within"),
    [
        (lambda self, x: self.a(x) + self.b(x), ["a", "b"], 0),
        (lambda self, x: self.a(x) + self.b(x) + self.c(x), ["a", "b", "c"], 1),
        (lambda self, x: self.c(x) + (self.a(x) + self.b(x)), ["a", "b", "c"], 1),
        (lambda self, x: (self.a(x) + self.b(x)).add_(self.c(x)).add_(self.a(x)), ["a", "a", "b", "c"], 2),
        (lambda self, x: self.c(y := self.a(x) + self.b(x)) + y, ["add", "c"], 0),
        (lambda self, x: [y := self.a(x) + self.b(x), y + self.c(x)], ["add", "c"], 0),
        (lambda self, x: F.relu(self.a(x) + self.b(x)) + self.c(x), ["c", "relu"], 0),
        (lambda self, x: (y := self.a(x)) + y, ["a"], 0),
    ],
    ids=["two", "three", "another order", "in place", "used elsewhere", "returned", "changed", "the same"],
)
def test_the_terms_of_a_sum_are_found_through_sums_that_go_into_nothing_else(forward, terms, within):
    tape = record(Model(forward, **{name: nn.Linear(6, 6) for name in "abc"}), X)
    sums = [event.number for event in tape.events if event.name == "add"]
    found, through = Flow(tape, set()).terms(sums[-1], sums)
    assert sorted(called(tape.events[n] for n in found)) == terms
    assert len(through) == within
    assert set(through) < set(sums)


def test_what_reaches_an_output_or_a_dead_end_does_so_without_passing_some_events():
    def forward(self, x):
        self.dead(x)
        y = self.a(x)
        return y * torch.sigmoid(self.gate(F.relu(self.only(y)))), self.returned(x) + self.gate(self.returned(x))

    tape = record(Model(forward, **{name: nn.Linear(6, 6) for name in ("dead", "a", "only", "gate", "returned")}), X)
    flow = Flow(tape, set())
    gates = {event.number for event in tape.events if event.path == "gate"}
    reaching = called(tape.events[n] for n in sorted(flow.reaching(without=gates)))
    assert reaching == ["dead", "a", "sigmoid", "mul", "returned", "add"]


def test_an_output_reaches_the_end_also_where_it_goes_on_to_what_does_not():
    tape = record(Model(lambda self, x: [y := self.a(x), self.b(y)], a=nn.Linear(6, 6), b=nn.Linear(6, 6)), X)
    flow = Flow(tape, set())
    assert called(tape.events[n] for n in flow.reaching(without={event_of(tape, "b").number})) == ["a"]


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
    assert called(tape.events[n] for n in flow.before(last)) == ["add"]
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
    assert called(tape.following(event_of(tape, "a"))) == ["add", "late"]
    assert called(tape.following(event_of(tape, "stem"))) == ["a", "early", "add", "late"]


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
            addresses.append(id(y))
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
        nn.BatchNorm1d(6), nn.BatchNorm1d(6, momentum=None), nn.Dropout(0.5),
        parametrizations.spectral_norm(nn.Linear(6, 6)), parametrizations.weight_norm(nn.Linear(6, 6)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_recording_leaves_statistics_vectors_and_modes_as_they_were(layer, mode, training, untouched):
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
