"""The table of what ``at=`` can name in a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from attrs import frozen
from torch import nn

from trickbox.surgery.edits import Surgery
from trickbox.surgery.sites import DROPOUTS, Site
from trickbox.surgery.tape import Shape


@frozen
class Row:
    """One call of a module: its name in `at=`, class, shape of the first output, part of the anatomy or ``""``."""

    label: str
    kind: str
    shape: Shape
    part: str


@frozen(repr=False)
class Sites(Sequence[Row]):
    """What can be named in ``at=``, a row for every call of a module. Printed, it is a table."""

    rows: tuple[Row, ...]

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        cells = [("label", "class", "output", "part")]
        cells += [(row.label, row.kind, str(row.shape or ""), row.part) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def table(surgery: Surgery, functions: bool = False) -> Sites:
    """Every call of a module of the model, in the order of execution, without what tricks attached.

    With *functions* also the functions that the modules call in their own forwards.

    >>> import torch
    >>> table(Surgery.on(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2)))
    label    class       output  part
    (model)  Sequential  (4, 1)
    0        Linear      (4, 3)
    1        ReLU        (4, 3)
    2        Linear      (4, 1)  head
    """
    parts, inside = parts_of(surgery), surgery.functions() if functions else []
    sites = sorted([*own_sites(surgery), *inside], key=lambda site: site.event.number)
    return Sites(tuple(_row(site, parts) for site in sites))


def _row(site: Site, parts: dict[int, str]) -> Row:
    kind, part = ("function", "") if site.function else (site.event.name, parts.get(site.event.number, ""))
    return Row(site.label, kind, site.output_shape, part)


def parts_of(surgery: Surgery) -> dict[int, str]:
    """The part of the anatomy that a call is, by its number on the tape; where it is several, what says most."""
    anatomy, sites = surgery.anatomy, own_sites(surgery)
    blocks = {path: f"block {number} of {len(anatomy.blocks)}" for number, path in enumerate(anatomy.blocks, 1) if path}
    found = {site.event.number: blocks[site.path] for site in sites if site.path in blocks}
    for part, members in (
        ("dropout", [site for site in sites if isinstance(site.module, DROPOUTS)]),
        ("norm", anatomy.norms),
        ("embedding", anatomy.embeddings),
        ("stem", anatomy.stem),
        ("branch end", [end for join in anatomy.joins for end in join.ends]),
        ("bottleneck", anatomy.bottleneck),
        ("skip", anatomy.skips),
        ("gate", anatomy.gates),
        ("head", anatomy.heads),
    ):
        found |= {site.event.number: part for site in members}
    return found


def own_sites(surgery: Surgery) -> list[Site]:
    """The calls of the model's own modules, but for those that compute a weight."""
    return [site for site in surgery.sites(nn.Module) if ".parametrizations." not in f".{site.path}."]
