"""The report is one file that needs nothing else, says everything, trusts no text, and loses nothing to a picture."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text

from trickbox.errors import ConfigError
from trickbox.study import answers, curves, figures, report, words
from trickbox.study.cards import WIDTH, cards
from trickbox.study.design import INTERACTION, Arm, Question
from trickbox.study.drawing import svg
from trickbox.study.outcome import Outcome

HOSTILE = "</script><b><!--<script>"


@pytest.fixture(scope="module")
def hostile(outcome: Outcome) -> Outcome:
    run = {**outcome.results["baseline", 0], "message": HOSTILE}
    return attrs.evolve(outcome, results={**outcome.results, ("baseline", 0): run})


@pytest.fixture(scope="module")
def html(hostile: Outcome, tmp_path_factory: pytest.TempPathFactory) -> str:
    return hostile.save(tmp_path_factory.mktemp("report") / "report.html").read_text()


class Reader(HTMLParser):
    """Collects tags and texts and the embedded data, and checks that tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def test_the_report_is_one_sound_offline_file(html: str, outcome: Outcome) -> None:
    page = Reader(html)

    assert page.open == []
    assert len(html) < 1_500_000
    drawings = [attributes for tag, attributes in page.seen if tag == "svg"]
    assert len(drawings) == 5 + len(cards(outcome))
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert not re.search(r"https?:|src=|@import|url\((?!#)", html)
    assert not [tag for tag, attributes in page.seen if tag == "link"]
    assert [attributes["type"] for tag, attributes in page.seen if tag == "script"] == ["application/json"]


def test_the_answer_comes_first_then_cards_then_pictures_then_methods(html: str, outcome: Outcome) -> None:
    parts = [
        answers.headline(outcome)[:20],
        "How to read this",
        "Trick by trick",
        "All effects",
        "The numbers",
        "Methods",
    ]
    places = [html.index(part) for part in parts]

    assert places == sorted(places)


def test_the_report_says_everything_and_escapes_it(html: str, outcome: Outcome) -> None:
    text = Reader(html).texts

    assert "<b>hurter" not in html
    assert "<b>hurter</b> & co: -" in text["li"]
    for sentence in outcome.sentences():
        assert sentence in text["li"]
    assert "failing" in text["td"]
    assert "looked at 1 time," in text["li"]
    assert "<b>hurter</b> & co" in text["h3"]


def test_the_raw_results_can_be_read_back_whatever_is_in_them(html: str, outcome: Outcome) -> None:
    data = json.loads(Reader(html).texts["script"])

    assert len(data["runs"]) == len(outcome.results)
    assert data["runs"][0]["metrics"]["accuracy"] * 100 == pytest.approx(outcome.value("baseline")[0])
    assert data["runs"][0]["message"] == HOSTILE


def test_one_outcome_gives_the_same_bytes_twice(hostile: Outcome, html: str) -> None:
    assert report.render(hostile) == html


def test_pictures_take_the_colors_of_the_page(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)

    assert all("var(--" in drawing for drawing in drawings)
    assert not any(re.search(r"#(000000|ffffff|0072b2)\b", drawing) for drawing in drawings)
    assert html.count("prefers-color-scheme: dark") == 1
    style = html[html.index("<style>") : html.index("</style>")]
    for name in set(re.findall(r"var\((--\w+)\)", html)) - {"--verdict"}:
        assert len(re.findall(rf"{name}:", style)) == 3, f"{name} is not set for light, dark and print"


def test_a_picture_that_fails_costs_that_picture_only(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(outcome: Outcome) -> Any:
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(figures, "forest", broken)

    page = report.render(outcome)

    assert "This picture could not be drawn: RuntimeError: no &lt;ink&gt;." in page
    assert page.count("<figure") == 4
    assert "The numbers" in page


def test_markdown_says_the_same(outcome: Outcome, tmp_path: Path) -> None:
    text = outcome.save(tmp_path / "report.md").read_text()

    assert text.startswith("# waveforms: which tricks help?\n")
    assert answers.headline(outcome)[1:] in text
    for sentence in outcome.sentences():
        assert f"- {sentence}" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in rows[: 2 + len(outcome.arms)]} == {7}


@pytest.mark.parametrize("ending", ["report.pdf", "report"])
def test_another_ending_is_refused(outcome: Outcome, tmp_path: Path, ending: str) -> None:
    with pytest.raises(ConfigError, match=r"must end in .html or .htm or .md, got '.*report"):
        outcome.save(tmp_path / ending)


def test_odd_studies_have_reports_too(make_outcome: Any) -> None:
    nothing = {"baseline": [np.nan] * 2, "a" * 60: [np.nan] * 2}
    many = {"baseline": [0.5] * 2, **{f"trick {number}": [0.5, 0.6] for number in range(9)}}
    pair = {"none": [0.5, 0.6, 0.7], "some": [0.6, 0.7, 0.9]}

    assert "no pair of runs came through" in report.render(make_outcome(nothing))
    assert report.render(make_outcome(many)).count('<article class="card') == 9
    assert "could not be drawn" not in report.render(make_outcome(pair, controls={"none": None, "some": "none"}))


def test_a_strip_has_a_dot_for_each_seed_on_one_scale_for_all(outcome: Outcome) -> None:
    made = {card.name: card for card in cards(outcome)}
    found = {each.name: each for each in outcome.comparisons}

    assert [card.verdict for card in made.values()] == sorted((c.verdict for c in made.values()), key=cards_order)
    helper, failing = made["helper"].strip, made["failing"].strip
    assert (len(helper.dots), len(failing.dots)) == (10, 9)
    assert helper.interval is not None
    assert helper.mean is not None
    assert helper.interval[0] < helper.mean < helper.interval[1]
    per_unit = {
        name: (card.strip.mean - WIDTH / 2) / found[name].mean
        for name, card in made.items()
        if card.strip.mean is not None and abs(found[name].mean) > 1
    }
    assert len(per_unit) > 2
    assert max(per_unit.values()) == pytest.approx(min(per_unit.values()), rel=0.02)


def cards_order(verdict: str) -> int:
    return ("helps", "hurts", "equivalent", "inconclusive").index(verdict)


def test_figures_change_no_setting_of_matplotlib(outcome: Outcome) -> None:
    before = dict(mpl.rcParams)

    for draw in (figures.forest, figures.cost, curves.differences, curves.losses, curves.examples):
        figure = draw(outcome)
        assert figure is not None
        svg(figure, "a picture")

    assert dict(mpl.rcParams) == before


def test_the_forest_shows_every_seed_and_every_interval(outcome: Outcome) -> None:
    axes = figures.forest(outcome).axes[0]
    lines = [np.asarray(line.get_xdata(), float) for line in axes.lines]

    for comparison in outcome.comparisons:
        seeds = comparison.differences[~np.isnan(comparison.differences)]
        assert any(len(line) == len(seeds) and np.array_equal(line, seeds) for line in lines)
        assert any(np.array_equal(line, [comparison.low, comparison.high]) for line in lines)
    assert [text.get_text() for text in axes.texts] == [f"{c.verdict}, n = {c.n}" for c in outcome.comparisons]


def test_no_label_of_the_forest_hides_another(outcome: Outcome) -> None:
    figure = figures.forest(outcome)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_yticklabels()]]

    for index, box in enumerate(boxes):
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_differences_have_a_panel_for_each_question_and_a_line_for_each_seed(outcome: Outcome) -> None:
    figure = curves.differences(outcome)
    assert figure is not None
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}

    assert list(panels) == [words.short(each.name, 26) for each in outcome.comparisons if each.name != "placebo"]
    zero_and_mean = 2
    assert len(panels["helper"].lines) == zero_and_mean + 10
    assert len(panels["failing"].lines) == zero_and_mean + 9


def test_a_difference_is_the_arm_less_its_control_at_each_epoch(make_outcome: Any) -> None:
    facts = {"a": {"curves": {"val_accuracy": [0.5, 0.8]}}, "baseline": {"curves": {"val_accuracy": [0.4, 0.9, 1.0]}}}
    figure = curves.differences(make_outcome({"baseline": [0.5] * 3, "a": [0.6] * 3}, facts=facts))
    assert figure is not None

    mean = np.asarray(figure.axes[0].lines[-1].get_ydata(), float)

    assert mean == pytest.approx([10, -10])


def test_costs_name_every_point_once_and_no_name_hides_another(outcome: Outcome) -> None:
    figure = figures.cost(outcome)
    assert figure is not None
    figure.draw_without_rendering()
    names = [text for text in figure.axes[0].texts if text.get_text()]

    assert {text.get_text() for text in names} == {each.name for each in outcome.comparisons if each.name != "placebo"}
    boxes = [Text.get_window_extent(text) for text in names]  # of an annotation, without its line
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] - 2 for below, above in itertools.pairwise(heights))


def test_pairs_of_tricks_stand_in_a_map(make_outcome: Any) -> None:
    values = {"baseline": [0.5] * 6, "a": [0.6] * 6, "b": [0.7] * 6, "a + b": [0.9, 0.91, 0.9, 0.9, 0.9, 0.9]}
    arms = {name: Arm(name, control=None) for name in values}
    questions = (
        Question("a overall", {"a": 0.5, "a + b": 0.5, "baseline": -0.5, "b": -0.5}, trick=("a", None)),
        Question("b overall", {"b": 0.5, "a + b": 0.5, "baseline": -0.5, "a": -0.5}, trick=("b", None)),
        Question("a x b", {"a + b": 1.0, "baseline": 1.0, "a": -1.0, "b": -1.0}, INTERACTION),
    )
    outcome = make_outcome(values, controls=dict.fromkeys(arms), questions=questions)

    figure = figures.interactions(outcome)

    assert figure is not None
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown[::2] == ["+15.08", "+10.17", "+10.17", "+25.08"]
    assert "How pairs get on" in report.render(outcome)


def test_examples_are_green_where_right_and_red_where_wrong(outcome: Outcome) -> None:
    figure = curves.examples(outcome)
    assert figure is not None

    titles = [(axes.get_title(), axes.title.get_color()) for axes in figure.axes]

    assert titles[0] == ("true: sine, predicted: sine\nright", curves.RIGHT)
    assert titles[4] == ("true: triangle, predicted: square\nwrong", curves.WRONG)
