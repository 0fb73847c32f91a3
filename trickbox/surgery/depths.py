"""How deep the parts of a model lie: the stem, then block by block, then what makes the outputs."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from functools import cached_property

from attrs import define
from torch import nn

from trickbox.surgery.anatomy import Anatomy, Join, is_embedding
from trickbox.surgery.sites import Site, element_of, sites_of


@define(slots=False)
class Depths:
    """The depth of every module and parameter, from 0 for the stem to `last` for what makes the outputs.

    In a model with residual blocks all that runs before the first block is 0, each block is one more, together with
    what runs between it and the one before, and what follows the last block is last. Without blocks each layer that
    carries weights is one more, together with the norms that follow it. Embeddings outside of blocks are 0, and the
    layers that make the outputs are last, wherever they run. What is never called, and what tricks attached, is as deep
    as the module around it; parameters of the model itself are 0. What is called several times counts where it is
    called first, a parameter that several modules share where it is deepest.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    >>> depths = Depths(Anatomy(net, record(net, torch.zeros(4, 2))))
    >>> [depths.of(path) for path in "0134"], depths.last
    ([0, 0, 1, 2], 2)
    """

    anatomy: Anatomy

    def of(self, path: str) -> int:
        """The depth of the module at *path*."""
        while path not in self._called:
            path = path.rpartition(".")[0]
        return self._called[path]

    def share(self, path: str) -> float:
        """The depth of the module at *path* as a share of the greatest, from 0.0 to 1.0."""
        return self.of(path) / max(self.last, 1)

    @property
    def last(self) -> int:
        """The greatest depth."""
        return len(self._borders)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The depth of every parameter by its name, in the order of the model."""
        model, deepest = self.anatomy.model, defaultdict[int, int](int)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            deepest[id(parameter)] = max(deepest[id(parameter)], self.of(name.rpartition(".")[0]))
        return {name: deepest[id(parameter)] for name, parameter in model.named_parameters()}

    # -- how it is found -----------------------------------------------------------------------------------------------

    @cached_property
    def _called(self) -> dict[str, int]:
        """The depth of every module that is called."""
        found = {"": 0}
        for site in self._sites:
            found.setdefault(site.path, bisect_right(self._borders, site.event.number))
        found |= {site.path: 0 for site in self._embeddings}
        return found | {site.path: self.last for site in self.anatomy.heads}

    @cached_property
    def _borders(self) -> list[int]:
        """The places on the tape where a new depth begins."""
        if self._blocks:
            return [min(start for start, _ in self._blocks), *sorted(end + 1 for _, end in self._blocks)]
        heads = {site.path: site.event.number for site in self.anatomy.heads}
        first: dict[str, int] = {}
        for site in (site for site in self._sites if site.event.number in self.anatomy.maps):
            first.setdefault(site.path, site.event.number)
        starts = sorted([*(n for path, n in first.items() if path not in heads), *list(heads.values())[-1:]])
        return starts if self._embeddings else starts[1:]

    @cached_property
    def _sites(self) -> list[Site]:
        """The calls of the model's own modules, but for those that compute a weight."""
        found = sites_of(self.anatomy.model, self.anatomy.tape, (nn.Module,))
        return [site for site in found if not site.attached and ".parametrizations." not in f".{site.path}."]

    @cached_property
    def _embeddings(self) -> list[Site]:
        return [site for site in self._sites if is_embedding(site) and self.anatomy.block_of(site) is None]

    @cached_property
    def _blocks(self) -> list[tuple[int, int]]:
        """Where each block begins and ends on the tape; one that is no call of a module ends with its last sum."""
        found: dict[str, tuple[int, int]] = {}
        for join in self.anatomy.joins:
            path = self._block(join)
            inside = (site for site in self._sites if _is_in(site.path, path))
            first = next(inside).event if path else join.branch[0].event
            start, end = found.get(path, (first.number, first.last))
            called = path and first.path == path
            found[path] = start, end if called else max(end, join.event.number)
        return list(found.values())

    def _block(self, join: Join) -> str:
        """The block of a join; where one forward goes through a list of blocks, the element of that list."""
        beside = [other for other in self.anatomy.joins if other.block == join.block]
        elements = {self._element(other) for other in beside}
        return self._element(join) if len(elements) > 1 and "" not in elements else join.block

    def _element(self, join: Join) -> str:
        """The element of a list inside the block of a join that its branch lies in; empty where it lies in none."""
        path = join.branch[0].path
        element = element_of(self.anatomy.model, path)
        return element if element not in (path, join.block) and _is_in(element, join.block) else ""


def _is_in(path: str, container: str) -> bool:
    return not container or f"{path}.".startswith(f"{container}.")
