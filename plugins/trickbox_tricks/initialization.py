"""Initialization: starting weights that keep the scale of the signal through all layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import (
    CONVOLUTIONS,
    NORMS,
    Places,
    Site,
    State,
    Surgery,
    choice,
    flag,
    forked,
    gain_after,
    hookimpl,
    norm_after,
    places,
    trick,
)

TOLERANCE, TRIES = 0.1, 10


def fans(layer: nn.Module) -> tuple[float, float]:
    """How many weights meet in one output value of a linear layer or convolution, and start from one input value.

    Unlike torch, right also for grouped and transposed convolutions, in the middle of the series or image.

    >>> fans(nn.Linear(3, 4)), fans(nn.Conv1d(8, 16, 5, groups=2)), fans(nn.ConvTranspose1d(8, 16, 4, stride=2))
    ((3.0, 4.0), (20.0, 40.0), (16.0, 64.0))
    """
    if not isinstance(layer, CONVOLUTIONS):
        return float(layer.in_features), float(layer.out_features)  # type: ignore[arg-type]
    taps = math.prod(layer.kernel_size) / layer.groups
    thinning = math.prod(layer.stride) if layer.transposed else 1
    return layer.in_channels * taps / thinning, layer.out_channels * taps


def draw(layer: nn.Module, scheme: str, gain: float) -> Tensor:
    """A weight for *layer*, from the global generator, so that the second moment of its output is gain^2 of its input.

    ``kaiming``: normal of variance gain^2 / fan_in. ``xavier``: normal of variance 2 gain^2 / (fan_in + fan_out), which
    holds at equal fans. ``orthogonal``: rows (or columns, where there are more rows) of the weight as a matrix,
    (outputs, all else), that are orthogonal and of length *gain*.
    Cost: one draw, for orthogonal a QR decomposition. Source: He et al. 2015; Glorot & Bengio 2010; Saxe et al. 2014.

    >>> weight = draw(nn.Linear(3, 2), "orthogonal", gain=2.0)
    >>> torch.allclose(weight @ weight.T, 4 * torch.eye(2), atol=1e-5)
    True
    """
    like: Tensor = layer.weight  # type: ignore[assignment]
    # At least single precision: QR has no half, and the copy into the parameter rounds anyway.
    weight = torch.empty(like.shape, dtype=torch.promote_types(like.dtype, torch.float32))
    if scheme == "orthogonal":
        return nn.init.orthogonal_(weight, gain)
    fan_in, fan_out = fans(layer)
    fan = fan_in if scheme == "kaiming" else (fan_in + fan_out) / 2
    return weight.normal_(std=gain / math.sqrt(fan))


def draw_several(module: nn.Module, scheme: str) -> dict[str, Tensor]:
    """Weights and biases for a recurrent layer or multi-head attention of torch, from the global generator.

    Every gate, and each of q, k and v, is drawn as a layer of its own at gain 1; from one state to the next a gate is
    orthogonal whatever the scheme. Biases are zero, but for the forget gate of an LSTM, whose bias is one.
    Cost: one draw. Source: see `draw`; Le et al. 2015; Jozefowicz et al. 2015 for the forget gate.

    >>> found = draw_several(nn.LSTM(3, 2), "kaiming")
    >>> found["weight_ih_l0"].shape, found["bias_ih_l0"].tolist()
    (torch.Size([8, 3]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    """
    gates = {"LSTM": 4, "GRU": 3}.get(getattr(module, "mode", ""), 1)
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if name.startswith("trickbox."):
            continue
        parts = {"weight_ih": gates, "weight_hh": gates, "in_proj": 3}.get("_".join(name.split("_")[:2]), 1)
        if parameter.ndim == 2:
            rows, columns = parameter.shape[0] // parts, parameter.shape[1]
            layer = nn.Linear(columns, rows, device="meta", dtype=parameter.dtype)
            own = "orthogonal" if name.startswith("weight_hh") else scheme
            found[name] = torch.cat([draw(layer, own, 1.0) for _ in range(parts)])
        else:
            found[name] = torch.zeros_like(parameter)
            if gates == 4 and name.startswith("bias_ih"):
                found[name].view(4, -1)[1] = 1.0
    return found


def scale_to_unit_variance(model: nn.Module, run: Any, paths: Iterable[str]) -> None:
    """Scale the weights of the layers at *paths*, in this order and in place, until each puts out a variance of 1.

    The standard deviation comes within 0.1 of 1, in at most 10 tries a layer; a weight whose scale changes nothing, as
    of a standardized one, stays as it is. *run* calls the model once on data.
    Norms work as in training, dropouts as in evaluation, and the modes of *model* are not kept: use it on a copy.
    Cost: one forward a try. Source: Mishkin & Matas 2016 (LSUV).

    >>> net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(64, 4)
    >>> scale_to_unit_variance(net, lambda: net(x), ["0", "2"])
    >>> bool(abs(net(x).std() - 1) < 0.1)
    True
    """
    for module in model.eval().modules():
        if isinstance(module, NORMS):
            module.train()
            module.track_running_stats = False
    for path in paths:
        layer = model.get_submodule(path)
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        drawn, before = weight.clone(), 0.0
        for _ in range(TRIES):
            std = _output_std(layer, run)
            if math.isclose(std, before, rel_tol=0.05):
                weight.copy_(drawn)
                break
            if abs(std - 1) < TOLERANCE or not 0 < std < math.inf:
                break
            weight.div_(std)
            before = std


def _output_std(layer: nn.Module, run: Any) -> float:
    """The standard deviation of all that *layer* itself puts out in one forward, without what is attached to it."""
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output.detach().flatten()), prepend=True)
    try:
        with forked(), torch.no_grad():
            run()
    finally:
        handle.remove()
    return float(torch.cat(outputs).std())


@trick
class Initialize:
    """Draw the weights of all convolutions and linear layers anew, at the scale that their activations ask for.

    scheme      ``kaiming``, ``xavier`` or ``orthogonal``, see `draw`; or ``lsuv``: orthogonal, then every layer that no
                norm follows is scaled on one batch until the standard deviation of its output is 1 within 0.1
    zero_head   start the last layer at zero instead, so that every class is equally likely at first
    at, not_at  the layers whose weights are drawn instead of all, and those whose are not

    A layer is whatever maps features by a weight of its own, also of a class that torch does not have. The gain is that
    of the activation that really follows the layer, with its slope where a module has one, and 1 for the head and for
    xavier, which was made for activations that are the identity around zero; biases become zero. Norms, embeddings,
    recurrent layers and what other tricks attached keep their values, and so do transferred weights. A tied weight is
    drawn once, and not at all where an embedding shares it; a weight that is computed (parametrized) is skipped. A draw
    belongs to the seed and the parameter's name alone.
    Raises `NoEffectError` where nothing is left to draw. Cost: once, one draw; lsuv: some forwards a layer, and a copy
    of the model. Source: see `draw`; for lsuv Mishkin & Matas 2016; for zero_head Goyal et al. 2017.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [Initialize(zero_head=True)], torch.zeros(4, 2))(torch.ones(1, 2)).tolist()
    [[0.0, 0.0]]
    """

    family: ClassVar = "initialization"
    after: ClassVar = ("transfer", "normalization", "residual", "dropout", "gate")
    tunes: ClassVar = ("scheme", "zero_head")

    scheme: str = field(default="kaiming", validator=choice("kaiming", "xavier", "orthogonal", "lsuv"))
    zero_head: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Draw, scale and write."""
        surgery = state.surgery
        layers = surgery.anatomy.layers
        among = [*layers, *surgery.sites(nn.RNNBase, nn.MultiheadAttention)]
        layers = _fresh(surgery, [s for s in surgery.choose(layers, among, self.at, self.not_at) if s in layers])
        others = self._several(state)
        sites = layers if others else surgery.require(layers, "weight layers whose weights no trick has loaded")
        for name, value in others.items():
            surgery.write(name, value)
        weights = {site.path: self._draw(state, site) for site in sites}
        if self.scheme == "lsuv":
            followed = {site.path for site in sites if norm_after(surgery.model, surgery.tape, site.event)}
            weights = _scaled(surgery, weights, [path for path in weights if path not in followed])
        for path, weight in weights.items():
            surgery.write(_name(path, "weight"), weight)
            bias = surgery.model.get_submodule(path)._parameters.get("bias")
            if bias is not None and _name(path, "bias") not in surgery.kept():
                surgery.write(_name(path, "bias"), torch.zeros_like(bias))

    def _several(self, state: State) -> dict[str, Tensor]:
        """The weights and biases of modules that hold several in one: recurrent layers and attention."""
        surgery, scheme = state.surgery, "orthogonal" if self.scheme == "lsuv" else self.scheme
        sites = surgery.sites(nn.RNNBase, nn.MultiheadAttention)
        drawn: dict[str, Tensor] = {}
        for site in surgery.choose(sites, [*sites, *surgery.anatomy.layers], self.at, self.not_at):
            if site in sites and site.call == 0:
                with state.streams.forked("init", site.path):
                    values = draw_several(site.module, scheme)
                drawn |= {_name(site.path, name): value for name, value in values.items()}
        return {name: value for name, value in drawn.items() if name not in surgery.kept()}

    def _draw(self, state: State, site: Site) -> Tensor:
        surgery, gain = state.surgery, 1.0
        if site.module is surgery.head().module:
            if self.zero_head:
                return torch.zeros_like(site.module.weight)  # type: ignore[arg-type]
        elif self.scheme != "xavier":  # which knows no gain
            gain = gain_after(surgery.model, surgery.tape, site.event)
        with state.streams.forked("init", _name(site.path, "weight")):
            scheme = "orthogonal" if self.scheme == "lsuv" else self.scheme
            return _drawn(site, scheme, gain)


def _drawn(site: Site, scheme: str, gain: float) -> Tensor:
    """`draw` for a layer of any class: one that torch does not have is drawn as the linear layer that it works as."""
    weight = site.module._parameters["weight"]
    assert weight is not None
    if isinstance(site.module, (nn.Linear, *CONVOLUTIONS)):
        return draw(site.module, scheme, gain)
    features, outputs = site.input_shape[-1], site.output_shape[-1]
    drawn = draw(nn.Linear(features, outputs, device="meta", dtype=weight.dtype), scheme, gain)
    return drawn if weight.shape == drawn.shape else drawn.T


def _name(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _scaled(surgery: Surgery, weights: dict[str, Tensor], paths: list[str]) -> dict[str, Tensor]:
    """*weights*, those at *paths* scaled to unit variance on the first batch; worked out on a copy of the model."""
    scratch = copy.deepcopy(surgery.model)
    layers = {path: scratch.get_submodule(path) for path in weights}
    with torch.no_grad():
        for path, layer in layers.items():
            layer.weight.copy_(weights[path])  # type: ignore[operator]
            if layer.bias is not None:
                layer.bias.zero_()  # type: ignore[operator]
    scale_to_unit_variance(scratch, lambda: surgery.forward(scratch, surgery.inputs), paths)
    return {path: layer.weight.detach() for path, layer in layers.items()}  # type: ignore[operator]


def _fresh(surgery: Surgery, layers: list[Site]) -> list[Site]:
    """The first call of each of *layers* whose weight no trick wants kept and no embedding shares, each weight once."""
    named = dict(surgery.model.named_parameters(remove_duplicate=False))
    seen = {id(named[name]) for name in surgery.kept() if name in named}
    embedded = {id(weight) for site in surgery.sites(nn.Embedding) for weight in site.module.parameters()}
    fresh = []
    for site in layers:
        weight = site.module._parameters.get("weight")
        if weight is None:
            surgery.skip(site, "its weight is computed from other parameters (parametrized)")
        elif id(weight) in embedded:
            surgery.skip(site, "its weight is that of an embedding")
        elif weight.ndim > 2 and not isinstance(site.module, CONVOLUTIONS):
            surgery.skip(site, f"how many weights of a {type(site.module).__name__} meet in one output is unknown")
        elif id(weight) not in seen:
            fresh.append(site)
            seen.add(id(weight))
        elif site.call == 0:
            surgery.skip(site, "its weight is loaded, or drawn for a layer that it is tied to")
    return fresh
