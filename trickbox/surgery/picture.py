"""The picture of a model: a tree of what ran, and behind every line what tricks did there.

`draw` makes it of a `Surgery`, `left_over` says what belongs to no line of it, `table` names every place.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import overload

from attrs import define, field, frozen
from torch import nn

from trickbox.surgery.attach import CHILD, attachments
from trickbox.surgery.edits import Note, Surgery
from trickbox.surgery.places import MODEL
from trickbox.surgery.sites import DROPOUTS, Site
from trickbox.surgery.tape import Shape

WIDTH = 120
"""No line is longer."""
OF_THE_RUN = ("loss", "updates", "lr", "momentum", "weight_decay")
"""What notes call parts of the run: no module of that name is meant."""


# -- the table ---------------------------------------------------------------------------------------------------------


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
        cells += [(row.label, row.kind, _written(row.shape), row.part) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def table(surgery: Surgery) -> Sites:
    """Every call of a module of the model, in the order of execution, without what tricks attached.

    >>> import torch
    >>> table(Surgery.on(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2)))
    label    class       output  part
    (model)  Sequential  (4, 1)
    0        Linear      (4, 3)
    1        ReLU        (4, 3)
    2        Linear      (4, 1)  head
    """
    sites, parts = _own(surgery), parts_of(surgery)
    return Sites(tuple(Row(s.label, s.event.name, s.output_shape, parts.get(s.event.number, "")) for s in sites))


def parts_of(surgery: Surgery) -> dict[int, str]:
    """The part of the anatomy that a call is, by its number on the tape; where it is several, what says most."""
    anatomy, sites = surgery.anatomy, _own(surgery)
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


def _own(surgery: Surgery) -> list[Site]:
    """The calls of the model's own modules, but for those that compute a weight."""
    return [site for site in surgery.sites(nn.Module) if ".parametrizations." not in f".{site.path}."]


def _written(shape: Shape) -> str:
    return str(shape) if shape else ""


# -- the tree ----------------------------------------------------------------------------------------------------------


def draw(surgery: Surgery) -> str:
    """The model as a tree, a line for each call that matters: name, class, output, part, and what tricks did there.

    Activations, pools and the like have a line where a trick acted on them, and outside of blocks where they change the
    shape. What repeats the lines above it, in class, shapes and notes, is one line.

    >>> import torch
    >>> surgery = Surgery.on(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2))
    >>> surgery.skip(surgery.head(), "it is the head")
    >>> print(draw(surgery))
    Model: Sequential (4, 1)
    |- 0  Linear  (4, 3)
    `- 2  Linear  (4, 1)  head  surgery: skipped: it is the head
    """
    root = _grown(surgery)
    title = "  ".join([f"Model: {root.kind} {_written(root.shape)}".rstrip(), *root.joins])
    lines = list(_lines(root.shown, ""))
    starts = _starts([line for line in lines if line.notes or line.is_leaf])
    said = [part for note in root.notes for part in _wrapped(note, "  ")]
    return "\n".join([title, *said, *(part for line in lines for part in line.printed(starts))])


def left_over(surgery: Surgery) -> list[str]:
    """What tricks did that belongs to no line of the tree, such as to parameters and rates, in lines.

    Notes that differ in a number alone share one.

    >>> import torch
    >>> surgery = Surgery.on(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2))
    >>> for name in ("0.weight", "2.weight", "2.bias", "lr"):
    ...     surgery.note(name, "written")
    >>> left_over(surgery)
    ['surgery: {0,2}.weight: written', 'surgery: 2.bias: written', 'surgery: lr: written']
    """
    names: dict[tuple[str, str, str], list[str]] = {}
    for note in _sorted_out(surgery)[1]:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "{}", note.where, count=1)
        names.setdefault((note.trick, pattern, _said(note)), []).append(note.where)
    lines = [f"{trick}: {_united(pattern, wheres)}: {said}" for (trick, pattern, said), wheres in names.items()]
    return [part for line in lines for part in _wrapped(line, "")]


@define(eq=False, slots=False)
class _Node:
    """One call of a module, and the calls inside it."""

    name: str
    """The path without that of the node around it."""
    kind: str
    shape: Shape = ()
    part: str = ""
    site: Site | None = None
    in_block: bool = False
    joins: list[str] = field(factory=list)
    notes: list[str] = field(factory=list)
    inside: list[_Node] = field(factory=list)

    @cached_property
    def shown(self) -> list[_Node]:
        """Those inside that have a line."""
        return [node for node in self.inside if node.has_line]

    @cached_property
    def has_line(self) -> bool:
        """Whether the call matters: weights, a norm, a dropout, a note, a new shape outside of blocks, or any inside."""
        assert self.site is not None
        if self.notes or self.part or self.shown or next(self.site.module.parameters(), None) is not None:
            return True
        return not self.inside and not self.in_block and self.site.input_shape != self.shape

    @cached_property
    def looks(self) -> Hashable:
        """All that the lines of the node and of those inside it show, but for its own name and its block's number."""
        inside = tuple((_called(node.name), node.looks) for node in self.shown)
        part = "block" if self.part.startswith("block ") else self.part
        taken = self.site.input_shape if self.site else ()
        return self.kind, taken, self.shape, part, tuple(self.joins), tuple(self.notes), inside

    @cached_property
    def size(self) -> int:
        """How many lines the node takes."""
        return 1 + sum(node.size for node in self.shown)


def _grown(surgery: Surgery) -> _Node:
    """The tree of all calls; the root is the model itself, also where the forward calls nothing but its parts."""
    root = _Node("", type(surgery.model).__name__)
    parts, notes = parts_of(surgery), _sorted_out(surgery)[0]
    waiting, nodes = [root], []
    for site in _own(surgery):
        number = site.event.number
        while waiting[-1].site is not None and waiting[-1].site.event.last < number:
            waiting.pop()
        around = waiting[-1]
        name = site.label.removeprefix(f"{around.site.path}." if around.site and around.site.path else "")
        in_block = bool(surgery.anatomy.block_of(site))
        node = _Node(name, site.event.name, site.output_shape, parts.get(number, ""), site, in_block)
        node.notes = [*_there_already(surgery, site), *notes.get(number, ())]
        around.inside.append(node)
        waiting.append(node)
        nodes.append(node)
    if [node.site.path for node in root.inside if node.site] == [""]:
        root = root.inside[0]
    root.notes = [*notes.get(-1, ()), *root.notes]
    _mark_joins(surgery, root, nodes)
    return root


def _mark_joins(surgery: Surgery, root: _Node, nodes: list[_Node]) -> None:
    """Note every residual connection at the line of its block, or of the innermost call in which it is made."""
    found: dict[int, list[str]] = {}
    for join in surgery.anatomy.joins:
        number = join.event.number
        around = [n for n, node in enumerate(nodes) if node.site and node.site.event.number < number <= node.site.event.last]
        block = [n for n in around if nodes[n].site.path == join.block]
        found.setdefault((block or around or [-1])[-1], []).append("projection" if join.skip else "skip")
    for n, kinds in found.items():
        node = root if n < 0 else nodes[n]
        node.joins = [f"+ {kind}" if count == 1 else f"+ {count} {kind}s" for kind, count in Counter(kinds).items()]


def _called(name: str) -> str:
    """A name without the number of its call."""
    return re.sub(r"\[\d+\]$", "", name)


# -- the notes ---------------------------------------------------------------------------------------------------------


def _sorted_out(surgery: Surgery) -> tuple[dict[int, list[str]], list[Note]]:
    """What notes say, by the number of the call that they belong to, -1 for the model, and the notes of no call."""
    sites: dict[str, Site | None] = {MODEL: None}
    for site in _own(surgery):
        sites.setdefault(site.path or MODEL, site)
        sites.setdefault(site.label, site)
    found: dict[int, list[str]] = {}
    left = []
    for note in surgery.notes:
        way = next((way for way in ("", "after ", "before ") if note.where.removeprefix(way) in sites), None)
        if way is None or note.where in OF_THE_RUN:
            left.append(note)
            continue
        site = sites[note.where.removeprefix(way)]
        said = _said(note)
        if way == "before ":
            said = f"before it, {said}"
        elif site is not None:
            said = said.replace(f" on {site.output_shape}", "", 1)
        found.setdefault(-1 if site is None else site.event.number, []).append(f"{note.trick}: {said}")
    return found, left


def _said(note: Note) -> str:
    skipped = "skipped: " if note.kind == "skip" else ""
    return f"{skipped}{note.what}" + (f", {note.parameters:+d} parameters" if note.parameters else "")


def _there_already(surgery: Surgery, site: Site) -> list[str]:
    """What earlier tricks attached to a call: it is on the tape."""
    found = attachments(site.module)
    slots = [slot for slot in found.slots if slot.call == site.call] if found else []
    paths = {slot.name: f"{site.path}.{CHILD}.{slot.name}".lstrip(".") for slot in slots}
    return [
        f"{name}: {type(surgery.model.get_submodule(path)).__name__}, there already"
        for name, path in paths.items()
        if surgery.tape.calls(path)
    ]
