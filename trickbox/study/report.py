"""The report of a study: one HTML file that opens offline, prints well, and carries its raw results."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbox.errors import ConfigError
from trickbox.files import write_whole
from trickbox.study import figures, stats, tables, words
from trickbox.study.design import BASELINE
from trickbox.study.outcome import raw
from trickbox.study.store import dumps
from trickbox.trick import to_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trickbox.study.outcome import Outcome

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.facts { color: #555; margin-top: 0.2rem; } .answer { font-size: 1.1rem; margin: 0.4rem 0; }
 li { margin: 0.3rem 0; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.helps { color: #0072B2; } .hurts { color: #B34700; } .equivalent { color: #007A58; } .inconclusive { color: #555; }
pre { font-size: 0.8rem; overflow-x: auto; } summary { cursor: pointer; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } figure, tr, li { break-inside: avoid; } }
"""


def save(outcome: Outcome, confirmed: Outcome | None, path: Path) -> Path:
    """Write the report to *path*, whole or not at all. Raises `ConfigError` for a name that does not end in .html."""
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"report: the file must end in .html, got {str(path)!r}")
    write_whole(path, render(outcome, confirmed))
    return path


def render(outcome: Outcome, confirmed: Outcome | None = None) -> str:
    """Return the report as HTML; *confirmed* is what the winner did on fresh seeds."""
    heading = tables.title(outcome)
    sections = [
        f"<h1>{escape(outcome.task.name)}: which tricks help?</h1><p class='facts'>{escape(heading)}</p>",
        *(f"<p class='answer'>{escape(line)}</p>" for line in words.answer(outcome)),
        *(f"<p class='answer'>{escape(line)}</p>" for line in words.confirmation(confirmed)),
        _section("Each in a sentence", _sentences(outcome)),
        *_pictures(outcome),
        _section("Arms", _arms(outcome)),
        _section("Methods", _bullets(methods(outcome))),
        _section("Failures", _failures(outcome)),
        _section("Every seed", _details("values of all runs", _values(outcome))),
    ]
    # "</" would end the script wherever it stood in the data.
    data = dumps(raw(outcome)).replace("</", "<\\/")
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(heading)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body>"
        f"{''.join(sections)}<script type='application/json' id='results'>{data}</script></body></html>\n"
    )


def _sentences(outcome: Outcome) -> str:
    lines = [
        f"<li><b class='{each.verdict}'>{each.verdict}</b> {escape(words.sentence(each))}</li>"
        for each in outcome.comparisons
    ]
    notes = [note for each in outcome.comparisons for note in words.notes(each)]
    return f"<ul>{''.join(lines)}</ul>" + (f"<p>Mind:</p>{_bullets(notes)}" if notes else "")


def _pictures(outcome: Outcome) -> list[str]:
    texts = figures.alternative_texts(outcome)
    lesson = [_image(figures.losses(outcome), texts["losses"])] if _has_baseline(outcome) else []
    grid = figures.examples(outcome) if lesson else None
    if grid is not None:
        lesson.append(_image(grid, texts["examples"]))
    return [
        _section("Effects", _image(figures.forest(outcome), texts["forest"]) + _comparisons(outcome)),
        _section("At every setting", _image(figures.trials(outcome), texts["trials"])) if outcome.tuning else "",
        _section("Curves", _image(figures.curves(outcome), texts["curves"])),
        _section("Cost and benefit", _image(figures.cost(outcome), texts["cost"])),
        _section("The baseline, seen closely", "".join(lesson)) if lesson else "",
    ]


def _has_baseline(outcome: Outcome) -> bool:
    return any(arm.name == BASELINE for arm in outcome.arms)


def _image(figure: Figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    data = base64.b64encode(file.getvalue()).decode()
    return f"<figure><img alt='{escape(text)}' src='data:image/png;base64,{data}'></figure>"


def _comparisons(outcome: Outcome) -> str:
    head, *rows = tables.cells(outcome)
    return _table(head, rows) + _bullets(tables.legend(outcome))


def _arms(outcome: Outcome) -> str:
    """What each arm is: its tricks with their settings, what it changes of the task, and what it is compared with."""
    rows = [
        [arm.name, "; ".join(map(_trick, arm.tricks)), _settings(arm.overrides), arm.control or ""]
        for arm in outcome.arms
    ]
    return _table(["arm", "tricks", "task", "compared with"], rows)


def _trick(entry: Any) -> str:
    name, trick = entry if isinstance(entry, tuple) else ("", entry)
    config = to_config(trick)
    text = f"{config.pop('trick')}({_settings(config)})"
    return f"{name}: {text}" if name else text


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings as ``name=value``; of a path only the file's name, which says the same on every machine."""
    shown = {n: Path(v).name if isinstance(v, str) and os.sep in v else v for n, v in settings.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _values(outcome: Outcome) -> str:
    values = [outcome.value(arm.name) for arm in outcome.arms]
    rows = [
        [str(seed), *(words.number(float(of_arm[row])) for of_arm in values)] for row, seed in enumerate(outcome.seeds)
    ]
    return _table(["seed", *(arm.name for arm in outcome.arms)], rows)


def methods(outcome: Outcome) -> list[str]:
    """Say how the numbers were made, in the words of a methods section."""
    samples = _samples(outcome)
    correlations = ", ".join(f"{each.name} {words.number(each.correlation)}" for each in outcome.comparisons)
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    where = (
        "the test set, on fresh seeds" if outcome.final else "a comparison set that no training saw, not the test set"
    )
    return [
        f"Task: {outcome.task!r}. Design: {outcome.design}.",
        f"Metric: {outcome.metric.label_and_unit}, of the weights that training returned, on {where}{samples}.",
        "Paired: all arms of a seed share data split, initial weights, batch order and random streams; a trick draws "
        "from streams of its own. Effects are differences within a seed.",
        f"Correlation of each arm with its control over seeds, which is what pairing gains by: {correlations}.",
        *_inference(outcome),
        "The effect that four of five such studies would call is computed from the spread that was observed.",
        "A run that does no better than the best constant answer counts as failed, like one that diverged.",
        _fairness(outcome),
        "Cost is the median step of training with its batch, on one thread, in passes of their own with no other run "
        "beside them, and what a step must hold in memory at once; the placebo's ratio shows how much is noise.",
        f"Versions: {versions}. Seeds: {', '.join(map(str, outcome.seeds))}.",
    ]


def _fairness(outcome: Outcome) -> str:
    tuning = outcome.tuning
    if tuning is None:
        return "Untuned: one learning rate and one setting for all arms; another rate may turn an effect around."
    return (
        f"Tuned: each arm that sets none of these itself was tried at all of {len(tuning.settings)} settings on "
        f"{tuning.seeds} seeds of their own, and compared at its best."
    )


def _samples(outcome: Outcome) -> str:
    """How many samples values rest on, and what they alone leave uncertain."""
    counts = {run["samples"] for run in outcome.results.values() if "samples" in run}
    if not counts:
        return ""
    said = f" of {max(counts)} samples"
    values = np.concatenate([outcome.value(arm.name) for arm in outcome.arms]) / outcome.metric.scale
    if outcome.metric.name != "accuracy" or np.isnan(values).all():
        return said
    share = float(np.nanmean(values))
    error = outcome.metric.scale * math.sqrt(share * (1 - share) / max(counts))
    return f"{said}, which know an accuracy to {words.number(error)} {outcome.metric.unit} (one standard error)"


def _inference(outcome: Outcome) -> list[str]:
    """How verdicts were reached, given all looks."""
    looks, margin = outcome.looks, words.units(outcome.margin, outcome.metric)
    asked = max((each.family for each in outcome.comparisons), default=1)
    if looks.are_sequential:
        kind = (
            "Seeds were added after a look, so intervals are 95 % confidence sequences (normal mixture, Lai 1976), "
            f"valid however often one looks; verdicts hold for all {asked} comparisons together (Bonferroni)."
        )
    else:
        kind = (
            "Intervals are Student's at 95 %, one for each comparison. p values flip signs (all patterns up to 13 "
            f"seeds, 10 000 above) and hold for all {asked} comparisons together (step-down max-T); the placebo is "
            "not counted. A verdict needs p of at most 5 %, an interval on one side of zero, and six pairs."
        )
    if outcome.margin_is_default:
        declared = "the metric's default, not a choice for this study"
    elif looks.earlier_margins:
        declared = f"changed after looks with {', '.join(f'{each:g}' for each in looks.earlier_margins)}"
    else:
        declared = "declared before the first look"
    times = f"{looks.count} time{'s' if looks.count != 1 else ''}"
    return [
        kind,
        f"Margin: {margin}, {declared}. Equivalent means that two one-sided tests place the mean within it (Holm over "
        "all comparisons). Inconclusive never means that there is no difference.",
        f"This set was looked at {times}, counted in this store; a fresh folder knows of no earlier look.",
    ]


def _failures(outcome: Outcome) -> str:
    bad = {place: run for place, run in outcome.results.items() if outcome.status(run) != "ok"}
    if not bad:
        _, high = stats.wilson(0, len(outcome.seeds))
        seeds = len(outcome.seeds)
        return f"<p>No run failed. With {seeds} seeds an arm's true rate may still be {100 * high:.0f} %.</p>"
    rows = [[arm, str(seed), outcome.status(run), run["message"]] for (arm, seed), run in bad.items()]
    tails = [
        _details(f"{arm}, seed {seed}", f"<pre>{escape(run['traceback'])}</pre>")
        for (arm, seed), run in bad.items()
        if run.get("traceback")
    ]
    again = "<p>Runs that ended in an error are made again with --retry, or study.run(retry=True).</p>"
    retried = again if any(run["status"] == "error" for run in bad.values()) else ""
    return _table(["arm", "seed", "status", "message"], rows) + retried + "".join(tails)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _bullets(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
