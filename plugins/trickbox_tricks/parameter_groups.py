"""Which parameters learn slower, which without weight decay, and which only later: by their depth and their kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import ClassVar

from attrs import field
from torch import nn

from trickbox.authoring import (
    CONVOLUTIONS,
    NORMS,
    Options,
    Places,
    State,
    Surgery,
    at_depth,
    by_depth,
    flag,
    hookimpl,
    integer,
    places,
    trick,
)

ADDING = (
    *("transfer", "initialization", "normalization", "dropout", "residual"),
    *("gate", "stochastic depth", "attention", "adapter"),
)
"""The families that add parameters, replace layers or freeze them."""
TABLES = (nn.Embedding, nn.EmbeddingBag)
LAYERS = (*CONVOLUTIONS, nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def kinds(surgery: Surgery) -> dict[str, set[str]]:
    """What every parameter is, by its name: ``norm``, ``bias``, ``gain``, ``embedding`` or ``weight``.

    All parameters of a norm are ``norm``. Other vectors, of which at most one axis is longer than 1, are ``bias`` where
    they are called so, and else ``gain``, as the scales of branches and class tokens are. An ``embedding`` is the table
    of one, or a parameter outside of layers that nothing maps features with, as learned positions are. What modules
    share may be several of these.

    >>> import torch
    >>> net = nn.Sequential(nn.Embedding(5, 2), nn.LayerNorm((4, 2)), nn.Linear(2, 1))
    >>> [(name, *kind) for name, kind in kinds(Surgery.on(net, torch.zeros(3, 4, dtype=torch.long))).items()]
    [('0.weight', 'embedding'), ('1.weight', 'norm'), ('1.bias', 'norm'), ('2.weight', 'weight'), ('2.bias', 'bias')]
    """
    found, mapping = defaultdict[int, set[str]](set), _mapping(surgery)
    norms = {id(site.module) for site in surgery.anatomy.norms}
    for name, parameter in surgery.model.named_parameters(remove_duplicate=False):
        path = f".{name}".partition(".parametrizations.")[0].removesuffix(f".{name.rpartition('.')[2]}").lstrip(".")
        owner, rest = surgery.model.get_submodule(path), name.removeprefix(path)
        if isinstance(owner, NORMS) or id(owner) in norms:
            kind = "norm"
        elif isinstance(owner, LAYERS) or path in mapping:
            kind = "weight" if parameter.ndim > 1 else _vector(rest)
        elif isinstance(owner, TABLES) or parameter.numel() > max(parameter.shape, default=1):
            kind = "weight" if name in mapping else "embedding"
        else:
            kind = _vector(rest)
        found[id(parameter)].add(kind)
    return {name: found[id(parameter)] for name, parameter in surgery.model.named_parameters()}


def _vector(name: str) -> str:
    return "bias" if "bias" in name else "gain"


def _mapping(surgery: Surgery) -> set[str]:
    """The paths of the modules that map features, and the names of the parameters with which functions do."""
    tape = surgery.tape
    events = [tape.events[number] for number in surgery.anatomy.maps]
    used = {tensor for event in events if not event.is_module for tensor in event.inputs}
    return {event.path for event in events if event.is_module} | {
        tape.given[tensor] for tensor in used & tape.given.keys()
    }


def inside(surgery: Surgery, at: Places | None, not_at: Places | None) -> Callable[[str], bool]:
    """Whether a path, of a module or parameter, lies in one of the modules at *at*, and in none of those at *not_at*.

    Raises `ConfigError` for a place at which the model calls no module.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    >>> test = inside(Surgery.on(net, torch.zeros(4, 2)), at="1", not_at="1.1")
    >>> [name for name, _ in net.named_parameters() if test(name)]
    ['1.0.weight', '1.0.bias']
    """
    calls = surgery.sites(nn.Module)
    kept = {site.label for site in surgery.choose(calls, calls, None, not_at)}
    spared = {site.path for site in calls if site.label not in kept}
    named = {""} if at is None else {site.path for site in surgery.choose(calls, calls, at, None)}

    def test(path: str) -> bool:
        parts = path.split(".")
        around = {"", *(".".join(parts[:length]) for length in range(1, len(parts) + 1))}
        return not named.isdisjoint(around) and spared.isdisjoint(around)

    return test


def parameters(surgery: Surgery, test: Callable[[str], bool]) -> list[str]:
    """The names of the parameters that pass a *test* of their names; a shared one passes by any of them."""
    passed = {id(p) for name, p in surgery.model.named_parameters(remove_duplicate=False) if test(name)}
    return [name for name, p in surgery.model.named_parameters() if id(p) in passed]


@trick
class LayerwiseDecay:
    """Let early layers learn slower: each step of depth towards the input multiplies the rate once more.

    decay        the factor for one step of depth, in (0, 1]; the last depth keeps the optimizer's rate. Or a function
                 that gives the whole factor for a depth, from 0.0 for the first to 1.0 for the last
    at, not_at   the modules whose parameters learn slower, with all inside them, and those whose do not

    The stem and the embeddings are depth 0, each block with a residual connection is one more, with what runs between
    it and the block before, and final norms and the head are last. In a model without such blocks each weight layer is
    one more, in the order of execution, with the norm behind it. All parameters of a module have its depth, also those
    of its norms and gains, and what tricks add to it; parameters of the model itself, such as class tokens and
    positions, are of the stem. A weight that layers share has the depth of the last: a head that is also the embedding
    keeps the full rate. It multiplies with the `backbone_lr` of Transfer and with schedules. 1 is off. Raises
    `NoEffectError` where all there is has one depth. Cost: one parameter group for each depth.
    Source: Howard & Ruder 2018 (ULMFiT); per block, Clark et al. 2020 (ELECTRA), Bao et al. 2021 (BEiT).

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    >>> _ = trickbox.apply(net, [LayerwiseDecay(0.5)], torch.zeros(4, 2), optimizer=optimizer)
    >>> {group["lr"]: len(group["params"]) for group in optimizer.param_groups}
    {1.0: 2, 0.25: 2, 0.5: 2}
    """

    family: ClassVar = "parameter groups"
    after: ClassVar = ADDING
    off: ClassVar = {"decay": 1.0}
    tunes: ClassVar = ("decay",)

    decay: float | Callable[[float], float] = field(default=0.75, validator=by_depth("(0, 1]"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Set the rate of every parameter that is not of the last depth."""
        if self.decay == 1:
            return
        surgery = state.surgery
        depths, chosen = surgery.depths, parameters(surgery, inside(surgery, self.at, self.not_at))
        slower = [name for name in chosen if depths.parameters[name] < depths.last]
        if not slower:
            surgery.require([], "parameters in front of the last depth")
        for name in slower:
            state.options(name, Options(lr=self._factor(depths.parameters[name], depths.last)))

    def _factor(self, depth: int, last: int) -> float:
        """What the rate of a depth is multiplied with."""
        if callable(self.decay):
            return at_depth(self, "decay", depth / last)
        return float(self.decay ** (last - depth))


@trick
class NoDecayOnNorms:
    """Spare norms, gains and biases from weight decay, which is meant for what maps features.

    bias         biases too, also those of weight layers
    embeddings   embeddings too: tables, and learned positions that are parameters outside of layers
    at, not_at   the modules whose parameters are spared, with all inside them, and those whose are not

    Told by what a module does, not by its class or shape: norms of the model's own count, and all parameters of a norm,
    of whatever shape. Gains are other vectors outside of weight layers, such as the scales of branches and class
    tokens, also those that tricks add. A shared weight is spared where any of its uses is. Where the optimizer has no
    weight decay nothing changes. Raises `NoEffectError` where there is nothing to spare. Cost: one parameter group
    more. Source: Goyal et al. 2017; He et al. 2019 (bag of tricks).

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.1)
    >>> _ = trickbox.apply(net, [NoDecayOnNorms()], torch.zeros(4, 2), optimizer=optimizer)
    >>> {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    {0.1: 2, 0.0: 3}
    """

    family: ClassVar = "parameter groups"
    after: ClassVar = ADDING

    bias: bool = field(default=True, validator=flag())
    embeddings: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Take the parameters of these kinds out of weight decay."""
        surgery = state.surgery
        spared = {"norm", "gain", *(["bias"] if self.bias else []), *(["embedding"] if self.embeddings else [])}
        kind, chosen = kinds(surgery), parameters(surgery, inside(surgery, self.at, self.not_at))
        found = [name for name in chosen if not spared.isdisjoint(kind[name])]
        if not found:
            surgery.require([], f"parameters of these kinds: {', '.join(sorted(spared))}")
        for name in found:
            state.options(name, Options(weight_decay=False))


@trick
class GradualUnfreeze:
    """Train the head first, then, from the end, one more depth every few epochs, until all of the model trains.

    epochs       how many epochs pass before the next depth joins; 0 is off
    at, not_at   the modules that wait for their depth, with all inside them, and those that train from the start

    What waits is frozen: it gets no gradients and no weight decay, and its norms and dropouts stay in eval mode. It is
    in its parameter group all the time. The depths are those of LayerwiseDecay; first the last one trains that has
    anything to train. Parameters that you, or Freeze, have frozen stay so, and a depth that has no others is passed
    over. A run that ends early leaves what still waits frozen, `undo` trains it again.

    The freezing begins with the first epoch, so that an optimizer built before it holds all parameters. A compiled
    model is compiled anew for each depth: beyond ``torch._dynamo.config.recompile_limit`` it runs uncompiled, or fails
    where the whole graph is asked for. DistributedDataParallel needs ``find_unused_parameters=True``, and says so.
    Raises `NoEffectError` where nothing trains in front of the last depth that has anything to train. Cost:
    negative, as no gradients are made for what waits. Source: Howard & Ruder 2018 (ULMFiT).

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with trickbox.attach(net, [GradualUnfreeze()], torch.zeros(4, 2)) as run:
    ...     _ = run.watch(torch.optim.SGD(net.parameters(), lr=0.1))
    ...     print([p.requires_grad for p in net.parameters()], run.epoch_end(), net[0].weight.requires_grad)
    [False, False, True, True] False True
    """

    family: ClassVar = "freezing"
    after: ClassVar = (*ADDING, "freeze")
    conflicts: ClassVar = ("gradual_unfreeze",)
    off: ClassVar = {"epochs": 0}
    tunes: ClassVar = ("epochs",)

    epochs: int = field(default=1, validator=integer(0))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    waiting: list[tuple[list[str], list[str]]] = field(init=False, repr=False, factory=list)
    """For each depth that waits, the first ones last: its parameters, and its modules."""

    @hookimpl
    def init(self, state: State) -> None:
        """Plan which depth waits for how long."""
        if self.epochs == 0:
            state.decline("epoch_start")
            return
        surgery, test = state.surgery, inside(state.surgery, self.at, self.not_at)
        self.waiting = waiting(surgery, set(parameters(surgery, test)), test)
        if not self.waiting:
            surgery.require([], "trainable parameters in front of the last depth that is trained")
        for n, (names, _) in enumerate(reversed(self.waiting), 1):
            for name in names:
                surgery.note(name, f"frozen until epoch {n * self.epochs}")

    @hookimpl
    def epoch_start(self, state: State) -> None:
        """Freeze the depths that still have to wait, and train the others."""
        still = len(self.waiting) - state.epoch // self.epochs
        for n, (names, modules) in enumerate(self.waiting):
            if n < still:
                state.surgery.pause(f"depth {n}", names, modules)
            else:
                state.surgery.thaw(f"depth {n}")


def waiting(surgery: Surgery, chosen: set[str], test: Callable[[str], bool]) -> list[tuple[list[str], list[str]]]:
    """The depths that wait, from the stem on: the *chosen* parameters to train, and the modules that pass a *test*.

    All but the last depth of those that have anything to train.
    """
    depths, model = surgery.depths, surgery.model
    trained = [name for name in depths.parameters if model.get_parameter(name).requires_grad]
    names, modules = defaultdict[int, list[str]](list), defaultdict[int, list[str]](list)
    for name in trained:
        if name in chosen:
            names[depths.parameters[name]].append(name)
    for path in filter(test, dict(model.named_modules())):
        modules[depths.of(path)].append(path)
    last = max((depths.parameters[name] for name in trained), default=0)
    return [(names[depth], modules[depth]) for depth in sorted(names) if depth < last]
