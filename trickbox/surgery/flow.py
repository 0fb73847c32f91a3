"""Which call of a forward consumes what which other call has made."""

from __future__ import annotations

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Collection

from torch import nn

from trickbox.surgery.attach import CHILD
from trickbox.surgery.tape import Event, Tape


class Flow:
    """The calls of a tape as a graph. Modules whose calls are *whole* are not looked into.

    What tricks attached is passed over: its output is what went into it. A tensor that no call was seen to make, such
    as one from compiled code, was made from all that its container had by then.
    """

    def __init__(self, tape: Tape, whole: set[int]) -> None:
        self.nodes: list[Event] = []
        """The calls that are not looked into, modules and functions, in order."""
        self.fed: set[int] = set()
        """The events that were made from what the model was given."""
        self.weights = set(tape.given)
        """The tensors that are parameters, or made from parameters alone."""
        self._made: dict[int, int] = {}
        self._parents: dict[int, list[int]] = {}
        self._children: dict[int, set[int]] = {}
        self._ancestors: dict[int, int] = {}
        self._given = tape.given
        self._before = tape.before
        self._inputs = _inputs(tape)
        self._opened: list[Event] = []
        self._attached: Event | None = None
        self._sources = 0
        self._first_source = len(tape.events)
        self._read(tape, whole)
        self.returned = {self._made[tensor] for tensor in tape.returned if tensor in self._made}
        """What made the outputs."""

    def before(self, event: Event) -> list[int]:
        """What made the inputs of *event*: numbers of events, or of sources where no event did."""
        return self._parents[event.number]

    def parents(self, number: int) -> list[int]:
        """What made the inputs of an event or source."""
        return self._parents.get(number, [])

    def maker(self, tensor: int) -> int | None:
        """What made a tensor, last of all, or None."""
        return self._made.get(tensor)

    def common(self, *numbers: int) -> int | None:
        """The last of all that these were made from; one of them where the others were made from it."""
        shared = functools.reduce(operator.and_, map(self._up_to, numbers))
        events = shared & ((1 << self._first_source) - 1)
        last = events or shared
        return last.bit_length() - 1 if last else None

    def leads(self, start: int, end: int) -> bool:
        """Whether *end* was made from *start*."""
        return bool(self._ancestors[end] >> start & 1)

    def between(self, start: int, end: int) -> list[int]:
        """The events on the ways from *start*, without it, to *end*, in order."""
        bits = self._up_to(end) & ((1 << self._first_source) - 1)
        return [e.number for e in self.nodes if bits >> e.number & 1 and self._ancestors[e.number] >> start & 1]

    def terms(self, number: int, sums: Collection[int]) -> tuple[list[int], list[int]]:
        """What the sum *number* adds up, through those of *sums* that go into nothing else, and those."""
        terms: list[int] = []
        within: list[int] = []
        for part in dict.fromkeys(self._parents[number]):
            if part in sums and self._children[part] == {number} and part not in self.returned:
                parts, inner = self.terms(part, sums)
                terms += parts
                within += [part, *inner]
            else:
                terms.append(part)
        return terms, within

    def reaching(self, without: set[int]) -> set[int]:
        """The events from which a way leads to an end of the forward that passes none of *without*."""
        found: set[int] = set()
        for number in (event.number for event in reversed(self.nodes) if event.number not in without):
            children = self._children.get(number)
            if not children or number in self.returned or not found.isdisjoint(children):
                found.add(number)
        return found

    def _up_to(self, number: int) -> int:
        return self._ancestors[number] | 1 << number

    def _read(self, tape: Tape, whole: set[int]) -> None:
        number = 0
        while number < len(tape.events):
            event = tape.events[number]
            if event.is_module and number not in whole and tape.holds_others(event):
                self._opened.append(event)
                number += 1
            else:
                if not self._passed_over(event):
                    self._add(event, event.outputs)
                number = event.last + 1
            while self._opened and self._opened[-1].last < number:
                self._close(self._opened.pop())

    def _add(self, event: Event, outputs: tuple[int, ...]) -> None:
        parents = [self._origin(tensor) for tensor in event.inputs if tensor not in self._given]
        self.nodes.append(event)
        self._parents[event.number] = parents
        self._ancestors[event.number] = functools.reduce(operator.or_, map(self._up_to, parents), 0)
        for parent in parents:
            self._children.setdefault(parent, set()).add(event.number)
        if not self.fed.isdisjoint(parents):
            self.fed.add(event.number)
        if event.inputs and self.weights.issuperset(event.inputs):
            self.weights.update(outputs)
        self._made.update(dict.fromkeys(outputs, event.number))

    def _passed_over(self, event: Event) -> bool:
        """Whether a trick made this call, or is adding what it attached as a shortcut."""
        last, self._attached = self._attached, event if f".{CHILD}." in f".{event.path}." else None
        shortcut = last is not None and event.name == "add" and event.inputs[1:] == last.outputs
        if shortcut and last is not None:
            host = f".{last.path}".rpartition(f".{CHILD}.")[0].lstrip(".")
            shortcut = (event.path, event.number) == (host, last.last + 1)
        if event.inputs and (shortcut or self._attached is not None):
            self._made.update(dict.fromkeys(event.outputs, self._origin(event.inputs[0])))
            return True
        return False

    def _close(self, event: Event) -> None:
        """What a container puts out, and nothing inside it has been seen to make, was made by the container."""
        unseen = tuple(t for t in event.outputs if t not in self._made and t not in event.inputs)
        if unseen:
            inside = self._inside(event)
            self._add(event, unseen)
            self._ancestors[event.number] |= functools.reduce(operator.or_, map(self._up_to, inside), 0)

    def _inside(self, container: Event) -> list[int]:
        """All that was made in a container so far."""
        later = itertools.takewhile(lambda event: event.number > container.number, reversed(self.nodes))
        return [event.number for event in later]

    def _origin(self, tensor: int) -> int:
        if tensor not in self._made:
            number = self._made[tensor] = self._first_source + self._sources
            self._sources += 1
            self._ancestors[number] = 0
            if tensor in self._inputs:
                self.fed.add(number)
            elif tensor >= self._before and self._opened:
                container = self._opened[-1]
                there = [*self._inside(container), *map(self._origin, set(container.inputs) - set(self._given))]
                self._ancestors[number] = functools.reduce(operator.or_, map(self._up_to, there), 0)
                if not self.fed.isdisjoint(there):
                    self.fed.add(number)
        return self._made[tensor]


def _inputs(tape: Tape) -> set[int]:
    """The tensors that went into the model, also where the batch was changed by functions before."""
    found: set[int] = set()
    for event in tape.events:
        found.update(event.inputs)
        if event.is_module:
            break
    return found


def parameter_users(model: nn.Module, tape: Tape) -> dict[str, set[str]]:
    """By the name of every parameter, the paths of the modules that own it or use it in a function.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    >>> net[1].weight = net[0].weight
    >>> users = parameter_users(net, record(net, torch.zeros(2, 3, dtype=torch.long)))
    >>> [(name, sorted(paths)) for name, paths in users.items()]
    [('0.weight', ['0', '1']), ('1.weight', ['0', '1'])]
    """
    users: dict[int, set[str]] = defaultdict(set)
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in named.items():
        users[id(parameter)].add(name.rpartition(".")[0])
    for event in tape.events:
        for name in (tape.given.get(tensor, "") for tensor in event.inputs if not event.is_module):
            if name in named:
                users[id(named[name])].add(event.path)
    return {name: users[id(parameter)] for name, parameter in named.items()}
