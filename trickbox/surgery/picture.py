"""The picture of a model: a tree of what ran, and behind every line what tricks did there.

`draw` makes it of a `Surgery`, `left_over` says what belongs to no line of it.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterator
from functools import cached_property

from attrs import define, field, frozen

from trickbox.surgery.attach import CHILD, attachments
from trickbox.surgery.edits import Note, Surgery
from trickbox.surgery.places import MODEL
from trickbox.surgery.sites import Site
from trickbox.surgery.table import own_sites, parts_of
from trickbox.surgery.tape import Event

WIDTH = 120
"""No line is longer."""
COLUMNS = (36, 24, 20, 10)
"""Up to which lengths names, classes, shapes and parts are aligned; what is longer pushes on what follows."""
NOTES = 40
"""How wide notes are at least."""
WAYS = ("", "after ", "before ", "instead of ")
"""What notes put in front of a place."""
OF_THE_RUN = ("loss", "updates", "lr", "momentum", "weight_decay")
"""What notes call parts of the run: no module of that name is meant."""

_NUMBER, _CALL = re.compile(r"(?<![^.])\d+(?![^.])"), re.compile(r"\[\d+\]$")
"""A part of a path that is a number, and the number of a call behind a path."""


# -- the tree ----------------------------------------------------------------------------------------------------------


def draw(surgery: Surgery) -> str:
    """The model as a tree, a line for each call that matters: name, class, output, part, and what tricks did there.

    Activations, pools and the like have a line where a trick acted on them, and outside of blocks where they change the
    shape. What repeats the lines above it, in class, shapes and notes, is one line.

    >>> import torch
    >>> from torch import nn
    >>> surgery = Surgery.on(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2))
    >>> surgery.skip(surgery.head(), "it is the head")
    >>> print(draw(surgery))
    Model: Sequential (4, 1)
    |- 0  Linear  (4, 3)
    `- 2  Linear  (4, 1)  head  surgery: skipped: it is the head
    """
    root = _grown(surgery)
    title = "  ".join([f"Model: {root.site.event.name} {root.site.output_shape or ''}".rstrip(), *root.joined])
    said = [f"  {part}" for note in root.notes for part in _wrapped(note, WIDTH - 2)]
    lines = list(_lines(root.shown, ""))
    starts = _columns(lines)
    return "\n".join([title, *said, *(part for line in lines for part in line.printed(starts))])


@define(eq=False, slots=False)
class _Node:
    """One call of a module, and the calls inside it."""

    name: str
    """The path without that of the node around it."""
    site: Site
    part: str = ""
    in_block: bool = False
    notes: list[str] = field(factory=list)
    joins: list[str] = field(factory=list)
    inside: list[_Node] = field(factory=list)

    @cached_property
    def shown(self) -> list[_Node]:
        """Those inside that have a line."""
        return [node for node in self.inside if node.matters or node.shown]

    @property
    def matters(self) -> bool:
        """Whether it has a line whatever is inside it."""
        module, changes = self.site.module, self.site.input_shape != self.site.output_shape and not self.in_block
        weighs = next(module.parameters(), None) is not None
        return bool(self.notes or self.part or weighs) or (changes and next(module.children(), None) is None)

    @property
    def joined(self) -> list[str]:
        """The residual connections."""
        return [f"+ {kind}" if n == 1 else f"+ {n} {kind}s" for kind, n in Counter(self.joins).items()]

    @cached_property
    def looks(self) -> Hashable:
        """All that its lines show, but for its own name, the number of its block, and notes."""
        inside = tuple((_CALL.sub("", node.name), node.looks) for node in self.shown)
        part = "block" if self.part.startswith("block ") else self.part
        event = self.site.event
        return event.name, event.input_shapes, event.output_shapes, part, tuple(self.joins), inside

    @cached_property
    def said(self) -> list[list[str]]:
        """The notes of each of its lines."""
        return [self.notes, *(notes for node in self.shown for notes in node.said)]

    def is_like(self, other: _Node) -> bool:
        """Whether the names differ in numbers alone, and all else in nothing but what notes say of its own parts."""
        mine, theirs = (_NUMBER.sub("", _CALL.sub("", name)) for name in (self.name, other.name))
        if (mine, self.looks) != (theirs, other.looks):
            return False
        pairs = zip(self.said, other.said, strict=True)
        return all(one == two or _about(self, one) == _about(other, two) for one, two in pairs)


def _grown(surgery: Surgery) -> _Node:
    """The tree of all calls; the root is the model itself, also where the forward calls nothing but its parts."""
    whole = Event("", 0, type(surgery.model).__name__, True, (), (), (), (), False, -1, len(surgery.tape.events))
    root = _Node("", Site("", 0, surgery.model, whole, 1))
    parts, notes = parts_of(surgery), _sorted_out(surgery)[0]
    waiting, nodes = [root], [root]
    for site in own_sites(surgery):
        number = site.event.number
        while waiting[-1].site.event.last < number:
            waiting.pop()
        around = waiting[-1]
        name = site.label.removeprefix(f"{around.site.path}." if around.site.path else "")
        node = _Node(name, site, parts.get(number, ""), bool(surgery.anatomy.block_of(site)))
        node.notes = [*_there_already(surgery, site), *notes.get(number, ())]
        around.inside.append(node)
        waiting.append(node)
        nodes.append(node)
    for join in surgery.anatomy.joins:
        inside = [node for node in nodes if node.site.event.number < join.event.number <= node.site.event.last]
        block = [node for node in inside if node.site.path == join.block]
        (block or inside)[-1].joins.append("projection" if join.skip else "skip")
    if [node.site.path for node in root.inside] == [""]:
        root.inside[0].joins += root.joins
        root = root.inside[0]
    root.notes = [*notes.get(-1, ()), *root.notes]
    return root


def _about(node: _Node, notes: list[str]) -> list[str]:
    """What notes say, wherever the node is. Numbers such as 0.5 are no paths."""
    path, only_numbers = node.site.path, not re.search(r"[^\d.]", node.site.path)
    own = re.compile(rf"(?<![\w.]){re.escape(path)}\." + r"(?!\d)" * only_numbers)
    return [own.sub("*.", note) for note in notes]


# -- the notes ---------------------------------------------------------------------------------------------------------


def left_over(surgery: Surgery) -> list[str]:
    """What tricks did that belongs to no line of the tree, such as to parameters and rates: a title and lines, or none.

    What one trick says of several is said once, and names that differ in a number are one.

    >>> import torch
    >>> from torch import nn
    >>> surgery = Surgery.on(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2))
    >>> for name in ("0.weight", "2.weight", "2.bias"):
    ...     surgery.note(name, "written")
    >>> left_over(surgery)
    ['Also', '  surgery: {0,2}.weight, 2.bias: written']
    """
    names: dict[tuple[str, str], list[str]] = {}
    for note in _sorted_out(surgery)[1]:
        names.setdefault((note.trick, _said(note)), []).append(note.where)
    lines = [f"{trick}: {', '.join(_united(where))}: {said}" for (trick, said), where in names.items()]
    return ["Also", *(f"  {part}" for line in lines for part in _wrapped(line, WIDTH - 2))] if lines else []


def _sorted_out(surgery: Surgery) -> tuple[dict[int, list[str]], list[Note]]:
    """What notes say, by the number of the call that they belong to, -1 for the model, and the notes of no call."""
    sites: dict[str, Site | None] = {MODEL: None}
    for site in own_sites(surgery):
        sites.setdefault(site.path or MODEL, site)
        sites.setdefault(site.label, site)
    hosts = {(site.path, site.call): site for site in own_sites(surgery)}
    inside = {site.label: hosts.get((site.path, site.host_call)) for site in surgery.functions()}
    found: dict[int, list[str]] = {}
    left = []
    for note in surgery.notes:
        way = next((way for way in WAYS if note.where.removeprefix(way) in {**sites, **inside}), None)
        if way is None or note.where in OF_THE_RUN:
            left.append(note)
            continue
        where = note.where.removeprefix(way)
        there = {**sites, **inside}[where]
        found.setdefault(-1 if there is None else there.event.number, []).append(_placed(note, way, where, there))
    return found, left


def _placed(note: Note, way: str, where: str, site: Site | None) -> str:
    """What a note says in the line of *site*, without what the line says already."""
    function, before = where.rpartition(":")[2] if ":" in where else "", way == "before "
    shape = () if site is None else site.input_shape if before else site.output_shape
    what = _said(note).replace(f" on {shape}", "", 1)
    return f"{note.trick}: {f'{way}{function}: ' if function else 'before it, ' * before}{what}"


def _said(note: Note) -> str:
    skipped = "skipped: " if note.kind == "skip" else ""
    return f"{skipped}{note.what}" + (f", {note.parameters:+d} parameters" if note.parameters else "")


def _there_already(surgery: Surgery, site: Site) -> list[str]:
    """What earlier tricks attached to a call: it is on the tape."""
    found = attachments(site.module)
    slots = [slot for slot in found.slots if slot.call == site.call] if found else []
    calls = [slot.name for slot in slots if surgery.tape.calls(f"{site.path}.{CHILD}.{slot.name}".lstrip("."))]
    return [f"{name}: {type(found.get_submodule(name)).__name__}, there already" for name in calls if found]


def _united(names: list[str]) -> list[str]:
    """The names, those that differ in their first number as one: ``{0..3,5}.weight``."""
    found: dict[tuple[str, str], list[int]] = {}
    for name in dict.fromkeys(names):
        match = _NUMBER.search(name)
        start, end = match.span() if match else (len(name), len(name))
        found.setdefault((name[:start], name[end:]), []).extend([int(match[0])] if match else [])
    return [f"{start}{_runs(numbers)}{end}" for (start, end), numbers in found.items()]


def _runs(numbers: list[int]) -> str:
    """Numbers in short: ``{0..3,5,8..299}`` are the first four, and every third one from 5 to 299."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and (len(runs[-1]) < 2 or number - runs[-1][-1] == runs[-1][1] - runs[-1][0]):
            runs[-1].append(number)
        else:
            runs.append([number])
    begun = [run if len(run) < 4 else run[: 1 if run[1] == run[0] + 1 else 2] for run in runs]
    ends = ["" if len(run) < 4 else f"..{run[-1]}" for run in runs]
    text = ",".join(f"{','.join(map(str, start))}{end}" for start, end in zip(begun, ends, strict=True))
    return f"{{{text}}}" if len(numbers) > 1 else text


# -- the lines ---------------------------------------------------------------------------------------------------------


@frozen
class _Line:
    """One line of the tree with its notes, the first behind it and the others beneath."""

    lead: str
    """What stands in front of the name."""
    under: str
    """What stands in front of a note beneath."""
    cells: tuple[str, str, str, str]
    notes: list[str] = field(factory=list)

    def text(self, starts: list[int]) -> str:
        """The line without its notes, the cells at *starts* where none is pushed on by a longer one."""
        text = self.lead + self.cells[0]
        for start, cell in zip(starts[1:], self.cells[1:], strict=False):
            text = f"{text}  ".ljust(start) + cell if cell else text
        return text

    def printed(self, starts: list[int]) -> Iterator[str]:
        """The line with its notes, each cut after three lines."""
        text, behind = self.text(starts), starts[-1]
        notes = [part for note in self.notes for part in _wrapped(note, WIDTH - behind, 3)]
        if notes and len(text) + 2 <= behind:
            text = text.ljust(behind) + notes.pop(0)
        for line in (text, *(self.under.ljust(behind) + note for note in notes)):
            yield line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def _columns(lines: list[_Line]) -> list[int]:
    """Where the columns begin, the notes last: behind all others, nearer where long notes need it.

    Aligned is all that is no longer than `COLUMNS` says. No line that has notes reaches beyond where they begin, unless
    that would leave them less than `NOTES`.
    """
    starts = [0]
    for column, most in enumerate(COLUMNS):
        cells = [line.lead * (column == 0) + line.cells[column] for line in lines if line.cells[1]]
        width = max((len(cell) for cell in cells if len(cell) <= most), default=0)
        starts.append(starts[-1] + width + 2 * (width > 0))
    nearest = max((len(line.text(starts)) for line in lines if line.notes), default=0) + 2
    longest = max((len(note) for line in lines for note in line.notes), default=0)
    starts[-1] = min(max(nearest, min(starts[-1], WIDTH - longest)), WIDTH - NOTES)
    return starts


def _lines(nodes: list[_Node], under: str) -> Iterator[_Line]:
    """The lines of sibling nodes and of all inside them."""
    items = _folded(nodes)
    for item in items:
        last = item is items[-1]
        lead, below = under + ("`- " if last else "|- "), under + ("   " if last else "|  ")
        if isinstance(item, str):
            yield _Line(lead, below, (item, "", "", ""))
            continue
        part = "  ".join([item.part, *item.joined]).strip()
        cells = item.name, item.site.event.name, str(item.site.output_shape or ""), part
        yield _Line(lead, below + "|" * bool(item.shown), cells, item.notes)
        yield from _lines(item.shown, below)


def _folded(nodes: list[_Node]) -> list[_Node | str]:
    """*nodes*, where groups of them repeat only the first of each, and a text for the others."""
    items: list[_Node | str] = []
    start = 0
    while start < len(nodes):
        length, times = _repeated(nodes[start:])
        group, others = nodes[start : start + length], nodes[start + length : start + length * times]
        items += _folded(group) if others else group
        items += [f"{_span(others)} as {_span(group)}"] if others else []
        start += length * times
    return items


def _repeated(nodes: list[_Node]) -> tuple[int, int]:
    """How many nodes at the beginning are repeated at once, and how often, so that most lines are saved."""
    best, most = (1, 1), 0
    for length in range(1, len(nodes) // 2 + 1):
        alike = next((n for n in range(length, len(nodes)) if not nodes[n].is_like(nodes[n % length])), len(nodes))
        times = alike // length
        saved = (times - 1) * sum(len(node.said) for node in nodes[:length]) - 1
        if saved > most:
            best, most = (length, times), saved
    return best


def _span(nodes: list[_Node]) -> str:
    return nodes[0].name if len(nodes) == 1 else f"{nodes[0].name} .. {nodes[-1].name}"


def _wrapped(text: str, width: int, most: int | None = None) -> list[str]:
    """*text* in lines of at most *width*, cut where there would be more than *most*."""
    return textwrap.wrap(
        text, width, subsequent_indent="  ", max_lines=most, placeholder=" ...", break_on_hyphens=False
    )
