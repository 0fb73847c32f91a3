"""Which call of a forward consumes what which other call has made."""

from __future__ import annotations

from trickbox.surgery.tape import Event, Tape


class Flow:
    """The calls of a tape as a graph. Modules whose calls are *whole* are not looked into."""

    def __init__(self, tape: Tape, whole: set[int]) -> None:
        self.nodes: list[Event] = []
        """The calls that are not looked into, modules and functions, in order."""
        self.fed: set[int] = set()
        """The events that were made from what the model was given."""
        self._made: dict[int, int] = {}
        self._parents: dict[int, list[int]] = {}
        self._ancestors: dict[int, int] = {}
        self._given = tape.given
        self._inputs = set(tape.events[0].inputs) if tape.events else set()
        self._sources = 0
        self._first_source = len(tape.events)
        self._read(tape, whole)

    def before(self, event: Event) -> list[int]:
        """What made the inputs of *event*: numbers of events, or of sources where no event did."""
        return self._parents[event.number]

    def parents(self, number: int) -> list[int]:
        """What made the inputs of an event or source."""
        return self._parents.get(number, [])

    def maker(self, tensor: int) -> int | None:
        """What made a tensor, last of all, or None."""
        return self._made.get(tensor)

    def common(self, one: int, other: int) -> int | None:
        """The last of all that both were made from; one of them where the other was made from it."""
        shared = (self._ancestors[one] | 1 << one) & (self._ancestors[other] | 1 << other)
        events = shared & ((1 << self._first_source) - 1)
        last = events or shared
        return last.bit_length() - 1 if last else None

    def leads(self, start: int, end: int) -> bool:
        """Whether *end* was made from *start*."""
        return bool(self._ancestors[end] >> start & 1)

    def between(self, start: int, end: int) -> list[int]:
        """The events on the ways from *start*, without it, to *end*, in order."""
        bits = (self._ancestors[end] | 1 << end) & ((1 << self._first_source) - 1)
        return [e.number for e in self.nodes if bits >> e.number & 1 and self._ancestors[e.number] >> start & 1]

    def _read(self, tape: Tape, whole: set[int]) -> None:
        opened: list[Event] = []
        number = 0
        while number < len(tape.events):
            event = tape.events[number]
            if event.is_module and number not in whole and tape.holds_others(event):
                opened.append(event)
                number += 1
            else:
                self._add(event)
                number = event.last + 1
            while opened and opened[-1].last < number:
                self._close(opened.pop())

    def _add(self, event: Event) -> None:
        parents = [self._origin(tensor) for tensor in event.inputs if tensor not in self._given]
        self.nodes.append(event)
        self._parents[event.number] = parents
        self._ancestors[event.number] = 0
        for parent in parents:
            self._ancestors[event.number] |= self._ancestors[parent] | 1 << parent
            if parent in self.fed:
                self.fed.add(event.number)
        for tensor in event.outputs:
            self._made[tensor] = event.number

    def _close(self, event: Event) -> None:
        """What a container puts out, and nothing inside it has been seen to make, was made by the container."""
        if any(tensor not in self._made and tensor not in event.inputs for tensor in event.outputs):
            self._add(event)

    def _origin(self, tensor: int) -> int:
        if tensor not in self._made:
            number = self._made[tensor] = self._first_source + self._sources
            self._sources += 1
            if tensor in self._inputs:
                self.fed.add(number)
            self._ancestors[number] = 0
        return self._made[tensor]
