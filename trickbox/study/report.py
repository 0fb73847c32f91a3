"""The report of a study: one HTML file that opens offline, prints well, and carries its raw results; or Markdown."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from attrs import frozen
from markupsafe import Markup

from trickbox.errors import ConfigError
from trickbox.files import write_whole
from trickbox.study import answers, curves, figures, stats, tables, words
from trickbox.study.cards import WIDTH, cards
from trickbox.study.design import BASELINE
from trickbox.study.drawing import svg
from trickbox.study.methods import methods
from trickbox.study.outcome import raw
from trickbox.study.store import dumps
from trickbox.trick import to_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trickbox.study.outcome import Outcome

FORMS = {".html": "report.html.jinja", ".htm": "report.html.jinja", ".md": "report.md.jinja"}
"""The templates by the ending of a file."""


@frozen
class Picture:
    """A drawing, or why there is none."""

    title: str
    text: str
    drawing: Markup | None
    failure: str = ""


def save(outcome: Outcome, confirmed: Outcome | None, path: Path) -> Path:
    """Write the report to *path*, whole or not at all. Raises `ConfigError` for a name that ends in no known form."""
    if path.suffix not in FORMS:
        raise ConfigError(f"report: the file must end in {' or '.join(FORMS)}, got {str(path)!r}")
    write_whole(path, render(outcome, confirmed, path.suffix))
    return path


def render(outcome: Outcome, confirmed: Outcome | None = None, form: str = ".html") -> str:
    """Return the report as text; *confirmed* is what the winner did on fresh seeds."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=form != ".md",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(FORMS[form])
    return template.render(_content(outcome, confirmed), pictures=_pictures(outcome) if form != ".md" else []) + "\n"


def _content(outcome: Outcome, confirmed: Outcome | None) -> dict[str, Any]:
    """All that both forms say."""
    head, *rows = tables.cells(outcome)
    return {
        "task": outcome.task.name,
        "title": tables.title(outcome),
        "headline": answers.headline(outcome),
        "advice": answers.advice(outcome, confirmed),
        "confirmation": answers.confirmation(confirmed),
        "answers": answers.answer(outcome),
        "margin": words.units(outcome.margin, outcome.metric),
        "seeds": len(outcome.seeds),
        "cards": cards(outcome),
        "width": WIDTH,
        "sentences": [words.sentence(each) for each in outcome.comparisons],
        "head": head,
        "rows": rows,
        "legend": tables.legend(outcome),
        "methods": methods(outcome),
        "arms": _arms(outcome),
        "failures": _failures(outcome),
        "safe": _safe(outcome),
        "values": _values(outcome),
        "data": Markup(dumps(raw(outcome)).replace("<", "\\u003c")),  # no text in it can end the script
    }


def _pictures(outcome: Outcome) -> list[Picture]:
    known = [each for each in outcome.comparisons if each.n]
    effects = "; ".join(f"{each.name} {words.number(each.mean, sign=True)} ({each.verdict})" for each in known)
    prices = "; ".join(f"{each.name} {each.time_ratio:.2f} times the control's" for each in known)
    wanted: list[tuple[str, str, Callable[[Outcome], Figure | None]]] = [
        ("All effects", f"Differences in {outcome.metric.label_and_unit}: {effects}.", figures.forest),
        ("How pairs get on", "What each pair of tricks gains beyond what each gains.", figures.interactions),
        ("At every setting that was tried", "What each arm reached at every setting.", figures.trials),
        ("As training goes on", "What validation is above the control's, epoch by epoch.", curves.differences),
        ("Benefit and cost", f"Effect against the time of a step: {prices}.", figures.cost),
    ]
    if any(arm.name == BASELINE for arm in outcome.arms):
        wanted += [
            ("The baseline, seen closely", "Training and validation loss on the first seed.", curves.losses),
            ("What it gets right and wrong", "Six series with true and predicted class.", curves.examples),
        ]
    return [picture for title, text, draw in wanted if (picture := _drawn(title, text, draw, outcome))]


def _drawn(title: str, text: str, draw: Callable[[Outcome], Figure | None], outcome: Outcome) -> Picture | None:
    """The picture; whatever fails while it is drawn costs this picture only."""
    try:
        figure = draw(outcome)
        return None if figure is None else Picture(title, text, Markup(svg(figure, text)))
    except Exception as error:
        return Picture(title, text, None, f"{type(error).__name__}: {error}")


def _arms(outcome: Outcome) -> list[tuple[str, ...]]:
    """What each arm is: its tricks with their settings, what it changes of the task, and what it is compared with."""
    return [
        (arm.name, "; ".join(map(_trick, arm.tricks)), _settings(arm.overrides), arm.control or "")
        for arm in outcome.arms
    ]


def _trick(entry: Any) -> str:
    name, trick = entry if isinstance(entry, tuple) else ("", entry)
    config = to_config(trick)
    text = f"{config.pop('trick')}({_settings(config)})"
    return f"{name}: {text}" if name else text


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings as ``name=value``; of a path only the file's name, which says the same on every machine."""
    shown = {n: Path(v).name if isinstance(v, str) and os.sep in v else v for n, v in settings.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _failures(outcome: Outcome) -> list[tuple[str, ...]]:
    """The runs that failed: arm, seed, status, message, and the end of the traceback."""
    bad = {place: run for place, run in outcome.results.items() if outcome.status(run) != "ok"}
    return [
        (arm, str(seed), outcome.status(run), run["message"], run.get("traceback", ""))
        for (arm, seed), run in bad.items()
    ]


def _safe(outcome: Outcome) -> str:
    """What no failure at all still leaves open."""
    _, high = stats.wilson(0, len(outcome.seeds))
    return f"No run failed. With {len(outcome.seeds)} seeds an arm's true rate may still be {100 * high:.0f} %."


def _values(outcome: Outcome) -> list[list[str]]:
    """The values of all runs, a row for each seed, below the names."""
    columns = [outcome.value(arm.name) for arm in outcome.arms]
    rows = [[str(seed), *(words.number(float(of[row])) for of in columns)] for row, seed in enumerate(outcome.seeds)]
    return [["seed", *(arm.name for arm in outcome.arms)], *rows]
