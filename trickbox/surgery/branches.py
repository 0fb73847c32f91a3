"""The residual branches of a model, its own and those that tricks made, and where something can act on each."""

from __future__ import annotations

from itertools import takewhile

from attrs import frozen
from torch import nn

from trickbox.surgery.anatomy import Anatomy, Join
from trickbox.surgery.sites import Site, site_of
from trickbox.surgery.tape import Event, Shape, Tape

_TURNS = ("transpose", "permute", "t", "T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "einsum")
"""Functions after which the features may lie on another axis."""


_DEPTHS = ("DropPath", "StochasticDepth")
"""The classes by which libraries call their own stochastic depth."""


@frozen
class Branch:
    """What is added to the trunk at one sum."""

    end: Site
    """The last weight layer of the branch."""
    place: Site
    """Where something can act on the branch alone: the module that makes what is added, or the sum itself."""
    tensor: int
    """Which output of that module, or which input of the sum, comes from the branch."""
    sites: tuple[Site, ...]
    """The sites by which the branch can be named."""
    block: str
    """The path of the block in which it lies."""
    turned: bool
    """Whether axes change places between the last layer and the sum."""
    spatial: bool
    """Whether it has convolutions."""

    @property
    def shape(self) -> Shape:
        """The shape of what is added."""
        event = self.place.event
        return (event.input_shapes if self.place.function else event.output_shapes)[self.tensor]

    @property
    def is_lost(self) -> bool:
        """Whether nothing can act on it: what the sum adds to is changed in place, and no module makes it."""
        return bool(self.place.function) and self.tensor == 0 and self.place.event.in_place

    @property
    def channels(self) -> int | None:
        """The axis of the features in what is added; None where its shape does not tell."""
        shape, made = self.shape, self.end.output_shape
        axis = features_of(self.end)
        if shape == made and not self.turned:
            return axis
        same = [n for n, length in enumerate(shape) if n and length == made[axis]]
        return same[0] if len(same) == 1 else None


def is_stochastic_depth(module: nn.Module) -> bool:
    """Whether *module* drops whole branches, by the name of its class or a base."""
    return any(kind.__name__ in _DEPTHS for kind in type(module).__mro__)


def features_of(site: Site) -> int:
    """The axis of the features in the output of a layer: the second of a convolution, the last of any other.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> from trickbox.surgery.sites import sites_of
    >>> net = nn.Conv1d(2, 3, 1)
    >>> features_of(sites_of(net, record(net, torch.zeros(4, 2, 5)), (nn.Conv1d,))[0])
    1
    """
    spatial = isinstance(site.module, nn.modules.conv._ConvNd)
    return len(site.output_shape) - 1 - (len(site.module.kernel_size) if spatial else 0)  # type: ignore[arg-type]


def branches_of(model: nn.Module, tape: Tape, anatomy: Anatomy) -> list[Branch]:
    """The branches of the model's own residual connections that end in a weight layer, in the order of execution."""
    return [
        _branch(model, tape, join, event, tensor)
        for join in anatomy.joins
        for event, tensor in join.entries
        if join.ends
    ]


def branch_at(site: Site) -> Branch:
    """The branch that ends in the output of *site*, to which a trick adds a shortcut."""
    spatial = isinstance(site.module, nn.modules.conv._ConvNd)
    return Branch(site, site, 0, (site,), site.path, turned=False, spatial=spatial)


def _branch(model: nn.Module, tape: Tape, join: Join, event: Event, tensor: int) -> Branch:
    maker, total = _maker(tape, event, tensor), site_of(model, tape, event)
    before = [end for end in join.ends if end.event.number < event.number]
    end = next((e for e in before if maker is not None and maker.number <= e.event.number <= maker.last), before[-1])
    inside = (e for e in tape.modules() if e.path == join.block and e.number < event.number <= e.last)
    sites = [site_of(model, tape, e) for e in inside]
    way = takewhile(lambda e: e.number < event.number, tape.following(end.event))
    turned = any(e.name in _TURNS for e in way)
    if maker is None:
        return Branch(end, total, tensor, (*sites, total), join.block, turned, join.spatial)
    place = site_of(model, tape, maker)
    return Branch(
        end, place, maker.outputs.index(event.inputs[tensor]), (*sites, place, total), join.block, turned, join.spatial
    )


def _maker(tape: Tape, event: Event, tensor: int) -> Event | None:
    """The outermost module that makes an input of *event* and hands it over unchanged, to nobody else."""
    number = event.inputs[tensor]
    made = [e for e in tape.events[: event.number] if number in e.outputs and e.last < event.number]
    last = max((e.number for e in made if not tape.holds_others(e)), default=-1)
    found = next((e for e in made if e.is_module and e.number <= last <= e.last), None)
    if found is None:
        return None
    others = [e for e in tape.users(found) if e.number < event.number or number not in event.outputs]
    return None if [e for e in others if e.number != event.number] else found
