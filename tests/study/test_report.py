"""The report is one file that needs nothing else, says everything, and trusts no text."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import attrs
import matplotlib as mpl
import numpy as np
import pytest

from trickbox.errors import ConfigError
from trickbox.study import figures
from trickbox.study.outcome import Outcome


@pytest.fixture(scope="module")
def html(outcome: Outcome, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = {**outcome.results["baseline", 0], "message": "</script><b>"}
    hostile = attrs.evolve(outcome, results={**outcome.results, ("baseline", 0): run})
    return hostile.save(tmp_path_factory.mktemp("report") / "report.html").read_text()


class Reader(HTMLParser):
    """Collects tags, images and the embedded data, and checks that tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def test_the_report_is_one_sound_offline_file(html: str) -> None:
    page = Reader(html)

    assert page.open == []
    assert len(html) < 2_000_000
    images = [attributes for tag, attributes in page.seen if tag == "img"]
    assert len(images) == 5
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert all(base64.b64decode(str(image["src"]).split(",")[1]).startswith(b"\x89PNG") for image in images)
    assert not re.search(r"https?://", html)
    assert [attributes["type"] for tag, attributes in page.seen if tag == "script"] == ["application/json"]


def test_the_report_says_everything_and_escapes_it(html: str, outcome: Outcome) -> None:
    text = Reader(html).texts

    assert "<b>hurter</b> & co: -" in text["li"]
    assert "<b>hurter" not in re.sub(r"<script.*?</script>", "", html)
    for sentence in outcome.sentences():
        assert sentence in text["li"]
    assert "failing" in text["td"]
    assert "looked at 1 time," in text["li"]
    assert text["p"].index("Helps: helper") < text["p"].index("Hurts: ")
    assert html.index("Helps: helper") < html.index("<ul>") < html.index("<img")


def test_the_raw_results_can_be_read_back(html: str, outcome: Outcome) -> None:
    data = json.loads(Reader(html).texts["script"])

    assert len(data["runs"]) == len(outcome.results)
    assert data["runs"][0]["metrics"]["accuracy"] * 100 == pytest.approx(outcome.value("baseline")[0])
    assert data["runs"][0]["message"] == "</script><b>"


def test_another_ending_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in .html, got '.*report.pdf'"):
        outcome.save(tmp_path / "report.pdf")


def test_figures_change_no_setting_of_matplotlib(outcome: Outcome) -> None:
    before = dict(mpl.rcParams)

    for draw in (figures.forest, figures.curves, figures.cost, figures.losses, figures.examples):
        assert draw(outcome) is not None

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


def test_curves_have_a_panel_for_each_arm_and_a_line_for_each_seed(outcome: Outcome) -> None:
    panels = figures.curves(outcome).axes

    assert [axes.get_title(loc="left") for axes in panels[:7]] == [arm.name for arm in outcome.arms]
    assert len(panels[0].lines) == 2 * (10 + 1)
    assert len(panels[6].lines) == 2 * (9 + 1) + 1


def test_examples_are_green_where_right_and_red_where_wrong(outcome: Outcome) -> None:
    figure = figures.examples(outcome)
    assert figure is not None

    titles = [(axes.get_title(), axes.title.get_color()) for axes in figure.axes]

    assert titles[0] == ("true: sine, predicted: sine\nright", figures.RIGHT)
    assert titles[4] == ("true: triangle, predicted: square\nwrong", figures.WRONG)
