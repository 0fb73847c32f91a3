"""Where a trick can act: sites on the tape, and the questions about them that several tricks ask."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import evolve, frozen
from torch import nn

from trickbox.surgery.attach import CHILD, Attachments, Rank, attachments
from trickbox.surgery.tape import Event, Shape, Tape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHT_LAYERS = (*CONVOLUTIONS, nn.Linear)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)

_ACTIVATIONS = {
    "relu": "relu", "relu6": "relu", "threshold": "relu",
    "leakyrelu": "leaky_relu", "rrelu": "leaky_relu", "prelu": "leaky_relu",
    "tanh": "tanh", "hardtanh": "tanh",
    "sigmoid": "sigmoid", "hardsigmoid": "sigmoid", "logsigmoid": "sigmoid",
    "selu": "selu",
    "elu": "relu", "celu": "relu", "gelu": "relu", "silu": "relu", "mish": "relu",
    "softplus": "relu", "hardswish": "relu",
}  # fmt: skip
"""Functions and modules, in lower case without underscores, to the activation whose gain `calculate_gain` knows."""

_TRANSPARENT = (
    "pool", "norm", "dropout", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "contiguous",
    "identity", "getitem", "chunk", "split", "interpolate", "upsample",
)  # fmt: skip
"""Parts of the names of ops that leave a gain as it is: what follows them decides."""

_RESHAPES = ("flatten", "reshape", "view", "transpose", "permute")
"""Names of ops that leave all values as they are."""

_CASTS = ("to", "float", "double", "half", "bfloat16", "pad")
"""Whole names of such ops, too short to be looked for in other names."""


@frozen
class Site:
    """One call of one module, or of a function in its forward: where, the call's number, what went in and out."""

    path: str
    """The path of the module; for a function, of the one whose forward calls it."""
    call: int
    module: nn.Module
    event: Event
    calls: int
    """How often the module is called in one forward; for a function, how often that forward calls it."""
    attached: bool = False
    """Whether a trick attached this module, or something around it."""
    host_calls: int = 1
    """For a function: how often the module is called whose forward calls it."""

    @property
    def function(self) -> str:
        """The name of the function; empty for a module."""
        return "" if self.event.is_module else self.event.name

    @property
    def host_call(self) -> int:
        """Which call of the module this is, or lies in."""
        return self.event.call if self.function else self.call

    @property
    def label(self) -> str:
        """The path, with the call's number where there are several: ``pool[1]``; ``(model)`` for the model itself.

        A function follows the path of its module after a colon: ``encoder.attention:softmax``, ``block:add[1]``.
        """
        name = self.path or "(model)"
        if self.function:
            host = f"{name}[{self.event.call}]" if self.host_calls > 1 else name
            name = f"{host}:{self.function}"
        return f"{name}[{self.call}]" if self.calls > 1 else name

    @property
    def input_shape(self) -> Shape:
        """The shape of the first input."""
        return self.event.input_shapes[0] if self.event.input_shapes else ()

    @property
    def output_shape(self) -> Shape:
        """The shape of the first output."""
        return self.event.output_shapes[0] if self.event.output_shapes else ()


def sites_of(model: nn.Module, tape: Tape, kinds: tuple[type, ...]) -> list[Site]:
    """The calls of modules of the given kinds, in the order of execution."""
    modules = dict(model.named_modules())
    ours = tuple(f"{path}." for path, module in modules.items() if isinstance(module, Attachments))
    return [
        Site(event.path, event.call, modules[event.path], event, tape.calls(event.path), event.path.startswith(ours))
        for event in tape.modules()
        if isinstance(modules.get(event.path), kinds)
    ]


def functions_of(model: nn.Module, tape: Tape) -> list[Site]:
    """The calls of functions in the forwards of the model's own modules, in the order of execution.

    Also the one in which a recurrent layer of torch does its work, such as ``lstm``.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return (x.relu() + torch.relu(-x)).sum(1)
    >>> net = Net()
    >>> [site.label for site in functions_of(net, record(net, torch.zeros(4, 2)))]
    ['(model):relu[0]', '(model):neg', '(model):relu[1]', '(model):add', '(model):sum']
    """
    modules = dict(model.named_modules())
    events = [e for e in tape.events if e.path in modules and f".{CHILD}." not in f".{e.path}."]
    found = ((modules[event.path], event) for event in events)
    return [
        _function(host, tape, _recurrence(host, event) if event.is_module else event)
        for host, event in found
        if not event.is_module or isinstance(host, nn.RNNBase)
    ]


def _recurrence(layer: nn.Module, event: Event) -> Event:
    """The call of the function in which a recurrent layer of torch does its work, of which the tape holds no event."""
    return evolve(event, is_module=False, name=str(layer.mode).lower())


def _function(host: nn.Module, tape: Tape, event: Event) -> Site:
    several = max(tape.calls_inside(event.path, event.call, event.name), 1)
    return Site(event.path, event.nth, host, event, several, host_calls=max(tape.calls(event.path), 1))


def element_of(model: nn.Module, path: str) -> str:
    """The innermost element of a list of modules of its kind that *path* lies in, or *path* itself.

    >>> element_of(nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(3, 2))), "1.0")
    '1'
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        inner, outer = ".".join(parts[:length]), ".".join(parts[: length - 1])
        element, parent = model.get_submodule(inner), model.get_submodule(outer)
        alike = sum(type(child) is type(element) for child in parent.children())
        is_list = isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        if is_list and alike > 1 and any(True for _ in element.children()):
            return inner
    return path


def gain_after(model: nn.Module, tape: Tape, event: Event) -> float:
    """The gain of the activation that really follows, through pools, norms and reshapes; 1 where none does.

    As of `torch.nn.init.calculate_gain`; GELU, SiLU, ELU and their kin count as ReLU. The slope of a leaky ReLU is that
    of its module; of a function, whose arguments are on no tape, it counts as 0.01.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    >>> tape = record(net, torch.zeros(4, 2))
    >>> [round(gain_after(net, tape, event), 3) for event in tape.modules() if event.name == "Linear"]
    [1.667, 1.0]
    """
    for later in tape.following(event):
        if tape.holds_others(later):
            continue
        name = later.name.lower().replace("_", "")
        if name in _ACTIVATIONS:
            slope = _slope(model.get_submodule(later.path)) if later.is_module else None
            return nn.init.calculate_gain(_ACTIVATIONS[name], slope)  # type: ignore[arg-type]
        transparent = name in _CASTS or any(part in name for part in _TRANSPARENT)
        if "conv" in name or not transparent:
            break
    return 1.0


def _slope(activation: nn.Module) -> float | None:
    """The slope for negative inputs, where a module has one; the root of the mean square where it has several."""
    if isinstance(activation, nn.PReLU):
        return float(activation.weight.detach().square().mean().sqrt())
    if isinstance(activation, nn.RReLU):  # uniform between the two
        low, high = activation.lower, activation.upper
        return math.sqrt((low * low + low * high + high * high) / 3)
    return activation.negative_slope if isinstance(activation, nn.LeakyReLU) else None


def norm_after(model: nn.Module, tape: Tape, event: Event) -> Site | None:
    """The norm that works directly on the output of *event*: an attached one, or the next module; None without one.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    >>> tape = record(net, torch.zeros(4, 2))
    >>> [getattr(norm_after(net, tape, event), "path", None) for event in tape.modules() if event.name == "Linear"]
    ['1', None]
    """
    found = attachments(model.get_submodule(event.path))
    for slot in found.slots if found else ():
        if slot.rank is Rank.NORM and slot.way == "after" and slot.call == event.call:
            path = f"{event.path}.{CHILD}.{slot.name}".lstrip(".")
            return Site(path, 0, model.get_submodule(path), event, 1, attached=True)
    later = next(_after(tape, event), None)
    if later is None or not later.is_module or not isinstance(model.get_submodule(later.path), NORMS):
        return None
    return site_of(model, tape, later)


def norm_before(model: nn.Module, tape: Tape, event: Event) -> Site | None:
    """The norm of the model's own whose output goes directly into *event*, and nowhere else; None without one.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> tape = record(net, torch.zeros(4, 2))
    >>> [getattr(norm_before(net, tape, event), "path", None) for event in tape.modules() if event.name == "Linear"]
    [None, '1']
    """
    norms = (site for site in sites_of(model, tape, NORMS) if not site.attached)
    alone = (norm for norm in norms if len(tape.users(norm.event)) == 1)
    return next((norm for norm in alone if next(_after(tape, norm.event), None) is event), None)


def behind_norm(model: nn.Module, tape: Tape, site: Site) -> Site:
    """The norm that follows *site*, unless something else uses its output too, such as the skip around a branch.

    What acts on a layer's output acts there: in front of a norm, the norm would undo it or learn wrong statistics.
    """
    norm = norm_after(model, tape, site.event)
    follows = norm is not None and not norm.attached and len(tape.users(site.event)) == 1
    return norm if norm is not None and follows else site


def site_of(model: nn.Module, tape: Tape, event: Event) -> Site:
    """The site of a call that is on the tape."""
    if not event.is_module:
        return _function(model.get_submodule(event.path), tape, event)
    return Site(event.path, event.call, model.get_submodule(event.path), event, tape.calls(event.path))


def _after(tape: Tape, event: Event) -> Iterator[Event]:
    """The calls that follow directly, or behind nothing but a change of shape of what nobody else uses."""
    for later in tape.following(event):
        if later.name == "Identity" or tape.holds_others(later):
            continue
        if later.name in _RESHAPES and len(tape.users(event)) == len(tape.users(later)) == 1:
            continue
        yield later
