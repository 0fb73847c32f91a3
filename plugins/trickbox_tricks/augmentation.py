"""Label-preserving changes of series (N, C, L), drawn for every sample, on the device of the batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from attrs import field
from torch import Tensor

from trickbox.authoring import Batch, ConfigError, NoEffectError, State, hookimpl, interval, map_tensors, tensors, trick


def jitter(x: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation *sd* to every point of x (N, C, L).

    >>> jitter(torch.zeros(2, 1, 3), 0.1, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 3])
    """
    return x + sd * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def scaling(x: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Multiply each sample of x (N, C, L) by a factor of its own, drawn from a normal distribution around 1.

    >>> scaling(torch.zeros(2, 1, 3), 0.1, torch.Generator().manual_seed(0)).tolist()
    [[[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]
    """
    return x * (1 + sd * torch.randn(len(x), 1, 1, dtype=x.dtype, device=x.device, generator=generator))


def sign_flip(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Turn each sample of x (N, C, L) upside down with probability *p*.

    >>> sign_flip(torch.ones(1, 1, 2), 1.0, torch.Generator().manual_seed(0))
    tensor([[[-1., -1.]]])
    """
    return torch.where(_draw(x, generator) < p, -x, x)


def time_reverse(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Reverse each sample of x (N, C, L) in time with probability *p*.

    >>> time_reverse(torch.tensor([[[1.0, 2.0]]]), 1.0, torch.Generator().manual_seed(0))
    tensor([[[2., 1.]]])
    """
    return torch.where(_draw(x, generator) < p, x.flip(-1), x)


def circular_shift(x: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Roll each sample of x (N, C, L) by up to *fraction* of its length, to either side, in whole points.

    >>> circular_shift(torch.ones(1, 1, 4), 0.5, torch.Generator().manual_seed(0))
    tensor([[[1., 1., 1., 1.]]])
    """
    length, most = x.shape[-1], int(fraction * x.shape[-1])
    offset = torch.randint(-most, most + 1, (len(x), 1, 1), device=x.device, generator=generator)
    return x.gather(-1, ((torch.arange(length, device=x.device) - offset) % length).expand_as(x))


def window_slice(x: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Cut a window of the share *keep* out of each sample of x (N, C, L), anywhere, and stretch it to the old length.

    Between points it interpolates linearly. Source: Le Guennec et al. 2016.

    >>> window_slice(torch.arange(5.0)[None, None], 0.5, torch.Generator().manual_seed(0)).diff()
    tensor([[[0.5000, 0.5000, 0.5000, 0.5000]]])
    """
    last = x.shape[-1] - 1
    start = _draw(x, generator) * (1 - keep) * last
    position = (start + torch.linspace(0, keep * last, last + 1, device=x.device)).clamp(max=last)
    left = position.floor().long()
    right = (left + 1).clamp(max=last)
    return torch.lerp(x.gather(-1, left.expand_as(x)), x.gather(-1, right.expand_as(x)), (position - left).to(x.dtype))


def time_mask(x: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Set a window of *fraction* of each sample of x (N, C, L) to zero, anywhere, in all channels.

    Source: DeVries and Taylor 2017.

    >>> time_mask(torch.ones(1, 1, 4), 0.25, torch.Generator().manual_seed(0)).sum()
    tensor(3.)
    """
    length, width = x.shape[-1], round(fraction * x.shape[-1])
    start = torch.randint(0, length - width + 1, (len(x), 1, 1), device=x.device, generator=generator)
    time = torch.arange(length, device=x.device)
    return x.masked_fill((time >= start) & (time < start + width), 0.0)


def _draw(x: Tensor, generator: torch.Generator) -> Tensor:
    """One uniform number a sample; in float32, because positions need its digits whatever the data has."""
    return torch.rand(len(x), 1, 1, device=x.device, generator=generator)


OPERATIONS = {
    "slice": window_slice,
    "shift": circular_shift,
    "reverse": time_reverse,
    "flip": sign_flip,
    "scale": scaling,
    "jitter": jitter,
    "mask": time_mask,
}
"""The operations by the setting that holds their strength, in the order in which they act."""


@trick
class Augment:
    """Change every training series (N, C, L) at random, in ways that keep its class.

    jitter    standard deviation of noise added to every point, in units of the data
    scale     standard deviation of a factor around 1
    flip      probability of turning the series upside down
    slice     share of the series that is cut out and stretched; 1 is off
    reverse   probability of reversing time (off: many signals have a direction)
    shift     circular shift by up to this share of the length (off: moves the phase)
    mask      share of the series that is set to zero (off: may hide what tells classes apart)

    The defaults leave waveforms recognizable; whether they keep your classes is for you to judge. Each sample has draws
    of its own. Validation data is never touched, nor are the caller's tensors. Images and token ids are refused. Cost:
    about one pass over a batch for each operation in use. Raises `NoEffectError` where the inputs hold no floating
    tensor of three dimensions, `ConfigError` where they hold several. Source: Um et al. 2017; Iwana and Uchida 2021.

    >>> Augment(jitter=0.1).slice
    0.9
    """

    family: ClassVar = "augmentation"
    off: ClassVar = {
        "jitter": 0.0, "scale": 0.0, "flip": 0.0, "slice": 1.0, "reverse": 0.0, "shift": 0.0, "mask": 0.0
    }  # fmt: skip
    tunes: ClassVar = ("jitter", "scale", "flip", "slice")

    jitter: float = field(default=0.03, validator=interval("[0, inf)"))
    scale: float = field(default=0.1, validator=interval("[0, inf)"))
    flip: float = field(default=0.5, validator=interval("[0, 1]"))
    slice: float = field(default=0.9, validator=interval("(0, 1]"))
    reverse: float = field(default=0.0, validator=interval("[0, 1]"))
    shift: float = field(default=0.0, validator=interval("[0, 0.5]"))
    mask: float = field(default=0.0, validator=interval("[0, 1)"))

    generator: torch.Generator | None = field(init=False, repr=False, default=None)

    @hookimpl
    def init(self, state: State) -> None:
        """Check that the inputs are series."""
        if self._strengths():
            _check_series(state.batch.inputs)
            self.generator = state.stream()

    @hookimpl
    def batch(self, state: State) -> None:
        """Change the inputs of the batch."""
        if self.generator is not None:
            batch = state.batch
            state.batch = Batch(map_tensors(self._change, batch.inputs), batch.targets, batch.size)

    def _change(self, x: Tensor) -> Tensor:
        if self.generator is None or not _is_series(x):
            return x
        for name, strength in self._strengths().items():
            x = OPERATIONS[name](x, strength, self.generator)
        return x

    def _strengths(self) -> dict[str, float]:
        """The operations in use, in their order."""
        return {name: getattr(self, name) for name in OPERATIONS if getattr(self, name) != self.off[name]}


def _is_series(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim == 3


def _check_series(inputs: Any) -> None:
    found = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors(inputs))
    series = sum(map(_is_series, tensors(inputs)))
    if series == 0:
        raise NoEffectError(
            f"augment acted nowhere: it looked for a floating tensor of shape (N, C, L) in the inputs, found {found}; "
            f"series without channels need one: inputs[:, None]"
        )
    if series > 1:
        raise ConfigError(f"augment: the inputs must hold one tensor of shape (N, C, L), found {found}")
