"""A loop with its lines for trickbox, or without: the lines end in a mark, and a loop without them is the original."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent
PLAIN = ("mnist", "imagenet", "nanogpt", "gan", "policy")
FRAMEWORKS = ("accelerated", "fabric", "ignited", "skorched")
"""Those whose loops are reached through `attach`; Lightning and transformers have adapters."""


def marked(name: str) -> dict[str, int]:
    """How many lines of a loop are for trickbox: always, for tricks on batches, and for tricks on validation."""
    found = {"": 0, "batches": 0, "validation": 0}
    for line in source(name).splitlines():
        if (mark := _mark(line)) is not None:
            found[mark] += 1
    return found


def variant(name: str, needs: Iterable[str] | None) -> Callable[..., Any]:
    """The loop with the lines that tricks of these *needs* ask for; None is the original, without any."""
    kept = set() if needs is None else {"", *needs}
    lines = []
    for line in source(name).splitlines():
        mark = _mark(line)
        if mark is None or mark in kept:
            lines.append(line)
        elif line.strip().startswith("with "):
            lines.append(re.match(r"\s*", line)[0] + "if True:")
    module = ModuleType(f"loops.{name}.variant")
    exec(compile("\n".join(lines), f"{name} with {needs}", "exec"), module.__dict__)
    return module.loop


def source(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text()


def _mark(line: str) -> str | None:
    found = re.search(r"# trickbox(?:: (\w+))?(?:  #|$)", line)
    return (found[1] or "") if found else None
