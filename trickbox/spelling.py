"""Tricks and values as people write them on a command line; nothing that they write is called."""

from __future__ import annotations

import ast
import re
from typing import Any

from trickbox.catalog import resolve
from trickbox.errors import ConfigError

_SETTINGS = "write name(setting=value, other=value)"


def parse_tricks(text: str) -> list[Any]:
    """The tricks in a list of names, each with settings where wanted, written as in Python.

    >>> parse_tricks("batch_norm, dropout(p=0.3, kind='channel')")
    ['batch_norm', {'trick': 'dropout', 'p': 0.3, 'kind': 'channel'}]
    """
    found: list[Any] = []
    rest: str | None = text
    while rest is not None:
        spec, rest = _first_trick(rest)
        resolve(spec)
        found.append(spec)
    return found


def _first_trick(text: str) -> tuple[Any, str | None]:
    """The first trick of a list, and what stands behind its comma, or None where there is no comma."""
    match = re.match(r"\s*([\w:-]+)\s*", text)
    end = match.end() if match else 0
    spec: Any = match[1] if match else None
    if match and text.startswith("(", end):
        arguments = _parenthesis(text, end)
        end += len(arguments)
        if settings := _keywords(f"{spec}{arguments}"):
            spec = {"trick": spec, **settings}
    rest = text[end:].strip()
    if not match or (rest and not rest.startswith(",")):
        part = text[: end + text[end:].find(",")] if "," in text[end:] else text
        raise ConfigError(f"cannot read the trick {part.strip()!r}; write a name or name(setting=value)")
    return spec, rest[1:] if rest else None


def _parenthesis(text: str, start: int) -> str:
    """The part of *text* from the parenthesis at *start* to the one that closes it, as Python reads it."""
    for match in re.finditer(r"\)", text[start:]):
        part = text[start : start + match.end()]
        try:
            ast.parse(f"f{part}", mode="eval")
        except (SyntaxError, ValueError):
            continue
        return part
    raise ConfigError(f"cannot read the settings of {text.strip()!r}; {_SETTINGS}")


def _keywords(part: str) -> dict[str, Any]:
    """The settings in ``name(setting=value)``; values are literals, nothing is called."""
    call: Any = ast.parse("f" + part[part.index("(") :], mode="eval").body
    names = [keyword.arg for keyword in call.keywords]
    if call.args or None in names or "trick" in names or len(set(names)) < len(names):
        raise ConfigError(f"cannot read the settings of {part!r}; {_SETTINGS}")
    return {keyword.arg: _literal(keyword.value, part) for keyword in call.keywords}


def _literal(value: ast.expr, part: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot read {ast.unparse(value)!r} in {part!r}; a value is a number, a 'text', True, False, None or a "
            "[list] of these"
        ) from error


def parse_value(text: str) -> Any:
    """The value of a setting: a literal of Python, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
