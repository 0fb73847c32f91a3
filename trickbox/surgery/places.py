"""Where the user wants a trick to act: the one grammar of ``at=`` and ``not_at=``, for all tricks.

A *place* is one of

- a path, part by part: ``*`` is any one part or piece of a part, ``**`` any number of parts, also none; inside a part
  ``?`` and ``[0-3]`` mean one character. It must match the whole path: ``encoder.layer.*.output.dense``, ``**.proj``.
  ``(model)`` is the model itself. One of several calls is named with its number, ``pool[1]``; without a number all
  calls are meant
- a class, for the modules that are instances of it
- a class by its name, after a colon: ``:Linear``, ``:_BatchNorm``. The class of the module, or a base, has this name.
  Or a function that a forward calls: ``:softmax``; one of several calls with its number, ``:add[1]``
- both, a path and a name: ``encoder.**:Linear``, ``blocks.*.attn:softmax``. The path of a function is that of the
  module in whose own forward it is called
- a predicate: a function of a `Site`, which is asked about modules alone

and *places* are one of these, or a list of them: any of them.

A site's own name is compared literally before a path is read as a pattern. So every name means at least its own site,
whatever stars and brackets it holds. But ``pool[1]`` also means a module ``pool1``: in a pattern ``[1]`` is one sign.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from trickbox.errors import ConfigError, near
from trickbox.surgery.sites import Site

Place = str | type | Callable[[Site], bool]
Places = Place | Sequence[Place]

MODEL = "(model)"
"""The path of the model itself, which is empty, as it is written."""
SHOWN = 6
"""How many names an error shows."""


def matches(places: Places, site: Site) -> bool:
    """Whether *site* is at one of *places*.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> from trickbox.surgery.sites import sites_of
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> sites = sites_of(net, record(net, torch.zeros(4, 2)), (nn.Module,))
    >>> places = ["(model)", ":ReLU", lambda site: site.output_shape == (4, 3)]
    >>> [(site.label, matches(places, site)) for site in sites]
    [('(model)', True), ('0', True), ('1', True), ('2', False)]
    """
    return any(_matches(place, site) for place in _listed(places))


def choose(sites: Iterable[Site], at: Places | None, not_at: Places | None) -> list[Site]:
    """The sites at *at*, or all where that is None, without those at *not_at*; the order stays.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> from trickbox.surgery.sites import sites_of
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> sites = sites_of(net, record(net, torch.zeros(4, 2)), (nn.Module,))
    >>> [site.label for site in choose(sites, nn.Linear, "2")]
    ['0']
    """
    chosen = (site for site in sites if at is None or matches(at, site))
    return [site for site in chosen if not_at is None or not matches(not_at, site)]


def unmatched(at: Places | None, sites: Iterable[Site]) -> list[Place]:
    """Those of *at* that none of *sites* is at: misspelt, or meant for another model.

    >>> unmatched(["fc", ":Linear"], [])
    ['fc', ':Linear']
    """
    sites = list(sites)
    return [place for place in _listed(at) if not any(_matches(place, site) for site in sites)]


def check_matched(
    trick_name: str,
    at: Places | None,
    sites: Iterable[Site],
    setting: str = "at",
    *,
    others: Iterable[Site] = (),
    idle: Mapping[str, nn.Module] | None = None,
    kind: str = "",
) -> None:
    """Raise `ConfigError` where one of *at* is at none of *sites*: it names the place and the nearest that exist.

    *sites* are those among which the trick would choose, *kind* says what they are, such as ``weight layers``.
    *others* are the other calls of the model, *idle* the modules that it does not call under this path: a place that is
    one of these is not taken for a misspelt one. *setting* is the name under which the user wrote *at*.

    >>> import torch
    >>> from trickbox.surgery.tape import record
    >>> from trickbox.surgery.sites import sites_of
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> tape = record(net, torch.zeros(4, 2))
    >>> layers, others = sites_of(net, tape, (nn.Linear,)), sites_of(net, tape, (nn.ReLU,))
    >>> check_matched("dropout", [nn.Linear, ":Linaer"], layers)
    Traceback (most recent call last):
    trickbox.errors.ConfigError: dropout: at: no module is of this class, got ':Linaer'; there are :Linear, :Module. Did
    you mean ':Linear'?
    >>> check_matched("layer_norm", "1", layers, others=others)
    Traceback (most recent call last):
    trickbox.errors.ConfigError: layer_norm: at: it cannot act at 1 (ReLU), got '1'; it can act at 0, 2.
    """
    sites = list(sites)
    for place in unmatched(at, sites):
        why = _why_not(place, sites, list(others), idle or {})
        told = _refused(place, why, sites, kind) if why else _in_vain(place, sites, kind)
        raise ConfigError(f"{trick_name}: {setting}: {told}")


def check_not_around(trick_name: str, not_at: Places, default: Iterable[Site], among: Iterable[Site]) -> None:
    """Raise `ConfigError` where *not_at* names a container, and not the *default* places inside it that were meant."""
    default = list(default)
    for place in unmatched(not_at, default):
        for outer in (site for site in among if not site.function and _matches(place, site)):
            inside = [site for site in default if site.path.startswith(f"{outer.path}." if outer.path else "")]
            if inside:
                raise ConfigError(
                    f"{trick_name}: not_at: {outer.label} is no place where it acts, but {inside[0].label} inside it "
                    f"is, got {to_json(place)!r}. Did you mean {f'{outer.path}.**' if outer.path else '**'!r}?"
                )


def to_json(places: Any) -> Any:
    """The JSON form of places: a list stays a list, a class becomes ``:Name``, a predicate ``module.function()``.

    In the run a class keeps its exact meaning; read back from JSON it means all classes of that name. A predicate
    cannot be read back: the parentheses say so, and `fault` refuses them. What is no place stays what it is, so that
    every setting of a trick can be passed through here.

    >>> to_json([nn.Linear, "**.proj", nn.init.calculate_gain]), to_json(0.5)
    ([':Linear', '**.proj', 'torch.nn.init.calculate_gain()'], 0.5)
    """
    if isinstance(places, (list, tuple)):
        return [to_json(place) for place in places]
    if isinstance(places, type):
        return f":{places.__name__}"
    if callable(places) and not isinstance(places, nn.Module):
        named: Any = places if inspect.isroutine(places) else type(places)
        return f"{getattr(named, '__module__', 'builtins')}.{named.__qualname__}()"
    return places


def fault(places: Any) -> tuple[str, Any] | None:
    """What *places* should be and which part of it is not, or None where the grammar takes it all.

    >>> fault("encoder.*")
    >>> fault(["encoder.*", "a..b"])
    ("a path without empty parts, '(model)' for the model itself", 'a..b')
    """
    listed = _listed(places)
    if not listed:
        return "at least one place, or None", places
    faults = ((_fault(place), place) for place in listed)
    return next(((expected, place) for expected, place in faults if expected), None)


# -- one place -------------------------------------------------------------------------------------------------------


def _listed(places: Places | None) -> list[Place]:
    if isinstance(places, (list, tuple)):
        return list(places)
    return [] if places is None else [cast(Place, places)]


def _matches(place: Place, site: Site) -> bool:
    if site.function:
        return isinstance(place, str) and _means_function(place, site)
    if isinstance(place, (str, type)):
        return _means(place, site.module, site.path, site.label)
    return bool(place(site))


def _means(place: str | type, module: nn.Module, path: str, label: str = "") -> bool:
    if isinstance(place, type):
        return isinstance(module, place)
    where, colon, kind = place.rpartition(":")
    if colon and kind not in _classes(module):
        return False
    return _is_at(where if colon else place, path, label) or place == f":{kind}"


def _means_function(place: str, site: Site) -> bool:
    where, colon, kind = place.rpartition(":")
    name, _, number = kind.rstrip("]").partition("[")
    named = bool(colon) and name == site.function and number in ("", str(site.call))
    return place == site.label or (named and (not where or _is_at(where, site.path, "")))


def _is_at(place: str, path: str, label: str) -> bool:
    return place in (label, path or MODEL) or _fits(place, path)


def _fits(pattern: str, path: str) -> bool:
    """Whether a path matches part by part. `reached` are the numbers of parts that the pattern so far can cover."""
    parts = path.split(".") if path else []
    reached = {0}
    for piece in pattern.split("."):
        if piece == "**":
            reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(parts) and fnmatchcase(parts[n], piece)}
    return len(parts) in reached


def _kind(site: Site) -> str:
    return "a function" if site.function else type(site.module).__name__


def _classes(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__]


def _fault(place: Any) -> str:
    if isinstance(place, str):
        return _fault_of_text(place)
    if isinstance(place, nn.Module):
        return "the path or the class of a module, not the module itself"
    return "" if callable(place) else "a path, a class, ':Name', a predicate of a site, or a list of these"


def _fault_of_text(place: str) -> str:
    where, colon, kind = place.rpartition(":")
    if colon and not re.fullmatch(r"[^\W\d]\w*(\[\d+\])?", kind):
        return "a colon and the bare name of a class or a function, such as ':Linear' or ':add[1]'"
    if place.endswith("()"):
        return "the predicate itself, of which a record holds the name only"
    path = where if colon else place
    whole = all(path.split(".")) or (colon and not path)
    return "" if whole else f"a path without empty parts, {MODEL!r} for the model itself"


# -- what an error shows ---------------------------------------------------------------------------------------------


def _why_not(place: Place, sites: list[Site], others: list[Site], idle: Mapping[str, nn.Module]) -> str:
    """Why a trick cannot act at a place that the model has; empty where it has none such, and for predicates."""
    if not isinstance(place, (str, type)):
        return ""
    if there := [f"{site.label} ({_kind(site)})" for site in others if _matches(place, site)]:
        return f"it cannot act at {_some(there)}"
    called = {id(site.module): site.path or MODEL for site in (*sites, *others)}
    silent = [(path, module) for path, module in idle.items() if _means(place, module, path)]
    if twins := [f"{path} is another name of {called[id(module)]}" for path, module in silent if id(module) in called]:
        return _some(twins)
    if never := [f"{path} ({type(module).__name__})" for path, module in silent]:
        return f"the model never calls {_some(never)}"
    return ""


def _names(site: Site) -> list[str]:
    """The names that may follow a colon, but for the one that all modules share."""
    return [site.function] if site.function else _classes(site.module)[:-1]


def _refused(place: Place, why: str, sites: list[Site], kind: str) -> str:
    """That a trick cannot act at *place*, with the reason *why*, and where it can."""
    wanted = to_json(place)
    inside = "**" if wanted == MODEL else f"{wanted}.**"
    hint = f" Did you mean {inside!r}?" if any(_fits(inside, site.path) for site in sites) else ""
    names = _nearest(wanted, [site.label for site in sites])
    return f"{why}, got {wanted!r}; it can act at {f'the {kind} ' if kind else ''}{names}.{hint}"


def _in_vain(place: Place, sites: list[Site], kind: str) -> str:
    """That *place* is at none of *sites*, and what could have been meant."""
    wanted = to_json(place)
    if not isinstance(place, (str, type)):
        return f"the predicate is true for none of {len(sites)} {kind or 'sites'}, got {wanted!r}"
    if wanted.startswith(":"):
        what = "no module is of this class"
        what += ", and no function of this name is called" if any(site.function for site in sites) else ""
        names = [f":{name}" for site in sites for name in _names(site)]
    else:
        what, names = "no path matches", [site.label for site in sites]
    hint = near(wanted, names + _patterns(wanted, [site.path for site in sites if site.path]))
    return f"{what}, got {wanted!r}; there are {_nearest(wanted, list(dict.fromkeys(names)))}.{hint}"


def _nearest(wanted: str, names: list[str]) -> str:
    """The names, or, where they are many, those that look most like *wanted*."""
    if len(names) <= SHOWN:
        return ", ".join(names) or "no sites"
    shown = difflib.get_close_matches(wanted, names, n=SHOWN, cutoff=0.0)
    return f"{', '.join(shown)} and {len(names) - SHOWN} more"


def _some(names: list[str]) -> str:
    """The first of *names*."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _patterns(wanted: str, paths: list[str]) -> list[str]:
    """Patterns in the style of *wanted* that match: its signs, numbers as ``*``, or all but the last part ``**``."""
    found = []
    for path in paths if "*" in wanted else []:
        parts, pieces = path.split("."), wanted.split(".")
        if len(parts) == len(pieces):
            pairs = zip(parts, pieces, strict=True)
            found.append(".".join(piece if fnmatchcase(part, piece) else part for part, piece in pairs))
        found.append(re.sub(r"(?<![^.])\d+(?![^.])", "*", path))
    return found + ([f"**.{path.rpartition('.')[2]}" for path in paths] if "**" in wanted else [])
