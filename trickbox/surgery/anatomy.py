"""What a tape means: which layers carry weights, where branches join the trunk, which blocks repeat, what is the head.

Nothing here knows an architecture by name. A residual join is a sum of a tensor with something that was made from it
through a weight layer; all else follows from the joins and from the order of the calls.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import cached_property

from attrs import define, evolve, frozen
from torch import Size, nn

from trickbox.surgery.attach import Attachments
from trickbox.surgery.flow import Flow
from trickbox.surgery.sites import CONVOLUTIONS, NORMS, WEIGHT_LAYERS, Site, element_of, sites_of
from trickbox.surgery.tape import Event, Shape, Tape

_SUMS = ("add", "iadd", "radd")
_CONCATENATIONS = ("cat", "concat", "concatenate")
_SQUASHES = ("softmax", "sigmoid", "hardsigmoid")
_PRODUCTS = ("mul", "imul", "rmul", "multiply", "matmul", "bmm", "einsum")
_PICKS = ("getitem", "topk")
_RESHAPES = ("view", "reshape", "flatten", "unsqueeze", "squeeze", "transpose", "permute", "expand")
_MAPS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d")
"""Functions that map features where one of their arguments is a parameter."""


@frozen
class Join:
    """A sum by which a branch comes back to the trunk."""

    event: Event
    block: str
    """The path of the repeated block that it belongs to, or of the module whose forward adds."""
    branch: tuple[Site, ...]
    """The weight layers of the branch, in order."""
    ends: tuple[Site, ...]
    """Those of them that no other follows: one, or several where layers work side by side.

    What only weighs other features, such as a gate, is not counted. Where a function of parameters comes last, none.
    """
    skip: tuple[Site, ...]
    """The weight layers on the way around the branch: none, or one projection."""
    entries: tuple[tuple[Event, int], ...]
    """Where a branch comes in: the sum, and which of its inputs it is. One, or several for branches side by side."""

    @property
    def spatial(self) -> bool:
        """Whether the branch holds convolutions."""
        return any(isinstance(site.module, CONVOLUTIONS) for site in self.branch)


@define(slots=False)
class Anatomy:
    """The parts of a model, as one forward has shown them.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
    ...     def forward(self, x):
    ...         return x + self.down(self.up(x).relu())
    >>> net = nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Linear(4, 2))
    >>> anatomy = Anatomy(net, record(net, torch.zeros(5, 3)))
    >>> [(join.block, [site.path for site in join.branch]) for join in anatomy.joins]
    [('1', ['1.up', '1.down']), ('2', ['2.up', '2.down'])]
    >>> [site.path for site in anatomy.stem], [site.path for site in anatomy.heads]
    (['0'], ['3'])
    """

    model: nn.Module
    tape: Tape

    @cached_property
    def layers(self) -> list[Site]:
        """The weight layers, call by call, in the order of execution, without what tricks attached."""
        return [site for site in self._sites if is_weight_layer(site)]

    @cached_property
    def norms(self) -> list[Site]:
        """The norms, also of a class of the model's own."""
        return [site for site in self._sites if is_norm(site)]

    @cached_property
    def embeddings(self) -> list[Site]:
        """The embeddings of what is fed to the model, without those of positions and kinds that are added to them."""
        added: set[int] = set()
        for event in self._flow.nodes:
            sides = [self._looked_up[number] for number in self._flow.before(event)]
            if event.name in _SUMS and len(sides) == 2 and all(sides) and sides[0].isdisjoint(sides[1]):
                added |= max(sides, key=lambda side: (side.isdisjoint(self._flow.fed), min(side)))
        return [s for s in self._sites if is_embedding(s) and s.event.number in self._flow.fed - added]

    @cached_property
    def heads(self) -> list[Site]:
        """The weight layers that make the outputs; the last one where a sum or anything else of several parts does."""
        found = {self._maker(tensor) for tensor in self.tape.returned}
        return [site for site in self.layers if site.event.number in found] or self.layers[-1:]

    @property
    def maps(self) -> Collection[int]:
        """The numbers of all events that map features by weights: layers, recurrent ones, attention, functions."""
        return self._mapping.keys()

    @cached_property
    def gates(self) -> list[Site]:
        """The weight layers whose output, squashed, weighs other features: of experts, of channels."""
        return [site for site in self.layers if self._is_gate(site)]

    @cached_property
    def hidden(self) -> list[Site]:
        """The weight layers that make features: all but heads, gates and what leads to gates alone."""
        others = {site.event.number for site in self.heads} | self._weighing
        return [site for site in self.layers if site.event.number not in others]

    @cached_property
    def recurrent(self) -> list[Site]:
        """The recurrent layers of torch."""
        return [site for site in self._sites if isinstance(site.module, nn.RNNBase)]

    @cached_property
    def concatenations(self) -> list[Event]:
        """The calls that put together what was computed at several places of the model from the same features."""
        return [event for event in self._flow.nodes if self._concatenates(event)]

    @cached_property
    def joins(self) -> list[Join]:
        """The residual connections that the model has, in the order of execution.

        Branches side by side that come back one sum after the other are one connection.
        """
        found: dict[int, Join] = {}
        for event in self._sums.values():
            terms, within = self._flow.terms(event.number, self._sums.keys())
            trunk, branch = self._around(terms)
            for number in within if branch else ():
                found.pop(number, None)
            ways = ([], branch) if branch else self._ways(event)
            if ways is not None and (join := self._joined(event, *ways)) is not None:
                ends = [term for term in terms if term != trunk] if branch else [self._branch(event, ways[1])]
                entries = [entry for number in (*sorted(within), event.number) for entry in self._entries(number, ends)]
                found[event.number] = evolve(join, entries=tuple(entries))
        return list(found.values())

    @cached_property
    def blocks(self) -> list[str]:
        """The paths of the blocks with residual connections, in the order of execution."""
        return list(dict.fromkeys(join.block for join in self.joins))

    @cached_property
    def stem(self) -> list[Site]:
        """The weight layers that run before the first block."""
        if not self.joins:
            return []
        first = min(join.branch[0].event.number for join in self.joins)
        return [site for site in self.layers if site.event.number < first and site not in self.skips]

    @cached_property
    def skips(self) -> list[Site]:
        """The weight layers on skip paths."""
        return [site for join in self.joins for site in join.skip]

    @cached_property
    def bottleneck(self) -> list[Site]:
        """The weight layers of the lowest resolution, where the model brings earlier tensors back by concatenation."""
        between = [site for event in self._flow.nodes for site in self._under(event)]
        least = min((_positions(site.output_shape) for site in between), default=0)
        lowest = {site.event.number for site in between if _positions(site.output_shape) == least}
        return [site for site in self.layers if site.event.number in lowest]

    def block_of(self, site: Site) -> str | None:
        """The path of the block that *site* lies in, or None."""
        inside = (block for block in self.blocks if f"{site.path}.".startswith(f"{block}." if block else ""))
        return max(inside, key=len, default=None)

    # -- how it is found -----------------------------------------------------------------------------------------------

    @cached_property
    def _sites(self) -> list[Site]:
        found = sites_of(self.model, self.tape, (nn.Module,))
        return [site for site in found if not site.attached and ".parametrizations." not in f".{site.path}."]

    @cached_property
    def _flow(self) -> Flow:
        return Flow(self.tape, {site.event.number for site in self._sites if _is_whole(site)})

    @cached_property
    def _mapping(self) -> dict[int, Site | None]:
        """The events that map features by weights: layers, and functions of parameters, which are no sites."""
        found: dict[int, Site | None] = {site.event.number: site for site in self.layers}
        for site in self._sites:
            if _is_opaque(site.module):
                found[site.event.number] = site
        for event in self._flow.nodes:
            if event.name in _MAPS and not self._flow.weights.isdisjoint(event.inputs):
                found.setdefault(event.number, None)
        return found

    @cached_property
    def _looked_up(self) -> dict[int, set[int]]:
        """For what every event made: the embeddings that it is made from, with no weight layer between."""
        tables = {site.event.number for site in self._sites if is_embedding(site)}
        found: dict[int, set[int]] = defaultdict(set)
        for event in self._flow.nodes:
            if event.number in tables:
                found[event.number] = {event.number}
            elif event.number not in self._mapping:
                found[event.number] = set().union(*(found[number] for number in self._flow.before(event)))
        return found

    @cached_property
    def _sums(self) -> dict[int, Event]:
        """The functions that add without spreading one part over another."""
        sums = (event for event in self._flow.nodes if not event.is_module and event.name in _SUMS)
        return {event.number: event for event in sums if set(event.input_shapes) == set(event.output_shapes)}

    @cached_property
    def _weighing(self) -> set[int]:
        """The maps that make weights for other features and nothing else: gates, and what leads to gates alone."""
        gates = {site.event.number for site in self.gates}
        return self._mapping.keys() - self._flow.reaching(without=gates)

    def _around(self, terms: list[int]) -> tuple[int | None, list[int]]:
        """Of three or more terms the trunk that all others left, and the maps of these branches."""
        for trunk in terms if len(terms) > 2 else ():
            others = [term for term in terms if term != trunk]
            last = self._flow.common(*others)
            start = None if last is None else self._flow.common(trunk, last)
            if last is None or start is None or self._maps(start, trunk):
                continue
            branches = [self._maps(start, other) for other in others]
            if all(branches) and self._weighing.issuperset(self._maps(start, last)):
                return trunk, sorted(set().union(*branches))
        return None, []

    def _branch(self, event: Event, branch: list[int]) -> int:
        """Which of the parts of a sum was made last from the maps of its branch."""
        return next(
            part for part in self._flow.before(event) if part == branch[-1] or self._flow.leads(branch[-1], part)
        )

    def _entries(self, number: int, ends: list[int]) -> Iterator[tuple[Event, int]]:
        event = self.tape.events[number]
        made = [n for n, tensor in enumerate(event.inputs) if tensor not in self.tape.given]
        parts = dict(zip(self._flow.before(event), made, strict=True))
        yield from ((event, parts[end]) for end in ends if end in parts)

    def _ways(self, event: Event) -> tuple[list[int], list[int]] | None:
        """The maps on the ways of a skip and of a branch into a sum, from where they part."""
        parts = list(dict.fromkeys(self._flow.before(event)))
        if len(parts) != 2 or (start := self._flow.common(*parts)) is None:
            return None
        skip, branch = sorted((self._maps(start, part) for part in parts), key=len)
        projected = len(skip) == 1 < len(branch) and self._once([*skip, *branch]) and self._bends(branch)
        return (skip, branch) if not skip or projected else None

    def _bends(self, branch: list[int]) -> bool:
        """Whether anything but changes of shape lies between the maps of a branch: else they are one map in parts."""
        between = (self.tape.events[n] for n in self._flow.between(branch[0], branch[-1]) if n not in self._mapping)
        return not all(any(part in _plain(event) for part in (*_RESHAPES, "dropout", "identity")) for event in between)

    def _joined(self, event: Event, skip: list[int], branch: list[int]) -> Join | None:
        around, through = (tuple(s for n in way if (s := self._mapping[n]) is not None) for way in (skip, branch))
        if not through:
            return None
        features = [number for number in branch if number not in self._weighing]
        ends = (s for s in through if s.event.number in features)
        last = tuple(s for s in ends if not any(self._flow.leads(s.event.number, n) for n in features))
        return Join(event, element_of(self.model, event.path), through, last, around, ())

    def _maps(self, start: int, end: int) -> list[int]:
        return [number for number in self._flow.between(start, end) if number in self._mapping]

    def _is_gate(self, site: Site) -> bool:
        following = (e for e in self.tape.following(site.event) if not self.tape.holds_others(e))
        following = (e for e in following if not any(part in _plain(e) for part in _RESHAPES))
        first, second = next(following, None), next(following, None)
        if first is None or second is None or _plain(first) not in _SQUASHES:
            return False
        number, factors = site.event.number, self._flow.parents(second.number)
        others = any(factor != number and not self._flow.leads(number, factor) for factor in factors)
        return second.name in _PICKS or (second.name in _PRODUCTS and others)

    def _concatenates(self, event: Event) -> bool:
        if event.is_module or event.name not in _CONCATENATIONS:
            return False
        parts = list(dict.fromkeys(self._flow.before(event)))
        for one, other in itertools.combinations(parts, 2):
            start = self._flow.common(one, other)
            if start is not None and (self._maps(start, one) or self._maps(start, other)):
                return True
        return False

    def _once(self, numbers: list[int]) -> bool:
        """Whether each of these is called once: in a recurrence, sums of two products are no shortcut."""
        return all(self.tape.calls(self.tape.events[number].path) == 1 for number in numbers)

    def _maker(self, tensor: int) -> int | None:
        """The weight layer that a tensor comes out of, through operations on it alone."""
        event = self._flow.maker(tensor)
        while event is not None and event not in self._mapping:
            before = set(self._flow.parents(event))
            event = before.pop() if len(before) == 1 else None
        return event

    def _under(self, event: Event) -> Iterator[Site]:
        """The weight layers between a tensor and its return by concatenation, where they lie at lower resolutions."""
        if event.is_module or event.name not in _CONCATENATIONS:
            return
        whole = _positions(event.output_shapes[0])
        for one, other in itertools.permutations(self._flow.before(event), 2):
            if self._flow.common(one, other) == one:
                between = [s for n in self._maps(one, other) if (s := self._mapping[n]) is not None]
                spatial = (site for site in between if len(weight_shape(site.module) or ()) > 2)
                yield from (site for site in spatial if 0 < _positions(site.output_shape) < whole)


def is_weight_layer(site: Site) -> bool:
    """Whether a call maps features by a weight of the module's own: by what it does, whatever its class.

    A weight of two axes that joins the last axes of input and output, either way round; one of three or more whose
    first axis are the channels of the output. Nothing is read that is computed.
    """
    module = site.module
    if isinstance(module, WEIGHT_LAYERS):
        return True
    shape = weight_shape(module)
    if shape is None or is_norm(site) or _is_opaque(module) or not site.event.floating or _has_parts(module):
        return False
    start, end = site.input_shape, site.output_shape
    if len(shape) == 2:
        return bool(start and end) and sorted(shape) == sorted((start[-1], end[-1])) and len(start) == len(end)
    return len(shape) == len(start) == len(end) and shape[0] == end[1]


def weight_shape(module: nn.Module) -> Size | None:
    """The shape of the one weight of a module, parametrized or not, without computing it; None without one.

    >>> weight_shape(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    torch.Size([2, 3])
    """
    own = {name: p.shape for name, p in module._parameters.items() if p is not None and p.ndim > 1}
    own.pop("weight_g", None)  # the lengths of an older weight norm, whose directions are weight_v
    if isinstance(computed := module._modules.get("parametrizations"), nn.ModuleDict):
        for name, part in computed.items():
            shapes = [p.shape for p in part.parameters(recurse=False) if p.ndim > 1]
            own |= {name: max(shapes, key=math.prod)} if shapes else {}
    return next(iter(own.values())) if len(own) == 1 else None


def is_norm(site: Site) -> bool:
    """Whether a call normalizes: a norm of torch, or a class that says so and keeps the shape."""
    if isinstance(site.module, (*NORMS, *WEIGHT_LAYERS)):
        return isinstance(site.module, NORMS)
    named = "norm" in type(site.module).__name__.lower()
    return named and site.input_shape == site.output_shape and not _has_parts(site.module)


def is_embedding(site: Site) -> bool:
    """Whether a call looks up rows of a table by whole numbers."""
    if isinstance(site.module, (nn.Embedding, nn.EmbeddingBag)):
        return True
    shape = weight_shape(site.module)
    other = shape is None or site.event.floating or _has_parts(site.module)
    return not other and site.output_shape[-1:] == (shape or ())[1:]


def _is_whole(site: Site) -> bool:
    """Whether a call counts as one step, whatever happens inside."""
    return is_weight_layer(site) or is_norm(site) or is_embedding(site) or _is_opaque(site.module)


def _is_opaque(module: nn.Module) -> bool:
    """Whether a module of torch does by itself what others do with several layers."""
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))


def _has_parts(module: nn.Module) -> bool:
    """Whether children of the module have parameters of their own."""
    return any(
        next(child.parameters(), None) is not None
        for name, child in module.named_children()
        if name != "parametrizations" and not isinstance(child, Attachments)
    )


def _plain(event: Event) -> str:
    return event.name.lower().replace("_", "")


def _positions(shape: Shape) -> int:
    """How many positions an output (N, C, ...) has; 0 without such axes."""
    return math.prod(shape[2:]) if len(shape) > 2 else 0
