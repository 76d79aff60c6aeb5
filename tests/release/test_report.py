import copy
import json
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go
import pytest

from amc.job.recipe import amended, resolved_toml
from amc.job.run import Run
from amc.release.plots import STOPPED, front_plot, keep_plot, layers_plot, prediction_plot, progress_plot, time_plot
from amc.release.report import report
from tests.tiny import report_inputs_of

PLOTS = ("front", "prediction", "keep", "layers", "progress", "time")


class Page(HTMLParser):
    """What of a page matters here: addresses, ids, text by element, and the tags used."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def plots(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = json.loads(self.scripts[1])
        return found


@pytest.fixture(scope="module")
def source(tiny_run: Run) -> str:
    return (tiny_run.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_report_loads_nothing(page: Page, source: str) -> None:
    """The page is self-contained: no address is named, no style imports one, and its own policy forbids loading."""
    assert page.addresses == []
    assert "link" not in page.tags
    style = source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in source
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1


def test_report_has_all_plots(page: Page) -> None:
    """Each of the six plots has its place on the page and is valid for plotly."""
    assert set(page.plots) == set(PLOTS)
    for name in PLOTS:
        assert name in page.ids
        assert go.Figure(page.plots[name]).data


def test_report_plots_every_trial(page: Page, tiny_run: Run) -> None:
    """Front and progress show each trial once."""
    trials = len(tiny_run.study.trials)
    assert sum(len(t["x"]) for t in page.plots["front"]["data"] if t["name"].startswith("trial")) == trials
    proposed = [t for t in page.plots["progress"]["data"] if t["mode"] == "markers"]
    assert sum(len(trace["x"]) for trace in proposed) == trials


def test_layers_add_up_to_the_macs(page: Page, tiny_run: Run) -> None:
    """The cost per layer, summed, is the network's, before and after."""
    for trace in page.plots["layers"]["data"]:
        assert sum(trace["x"]) == pytest.approx(tiny_run.metrics[trace["name"]]["macs"])
    assert page.plots["layers"]["data"][0]["y"] == ["conv1", "conv2", "fc"]


def test_report_tells_both_counts_under_their_names(page: Page, tiny_run: Run) -> None:
    """Multiply-adds and the figure counted 2 each stand side by side."""
    assert "Multiply-adds (MACs)" in page.text
    assert "2 per multiply-add" in page.text
    assert 'amc.load("."' in page.text
    assert tiny_run.recipe.data.name in page.text


def test_report_escapes_all_text(tiny_run: Run) -> None:
    """Names, warnings and failure reasons from outside stay text, also inside the plots' JSON."""
    evil = "</script><script>alert(1)</script><img src=x>"
    metrics = copy.deepcopy(tiny_run.metrics)
    metrics["model"] = metrics["recipe"] = metrics["predictor"]["warning"] = evil
    metrics["stage_seconds"] = {evil: 1.0}
    found = Page(report(report_inputs_of(tiny_run, metrics)))
    assert "img" not in found.tags
    assert len(found.scripts) == 3
    assert found.text.count(evil) >= 3
    assert "<" not in found.plots["time"]["data"][0]["y"][0]


def test_passwords_stay_out_of_the_report(tiny_run: Run) -> None:
    """The study's address may hold a password; the report, which is passed on, does not."""
    recipe = amended(tiny_run.recipe, {"search.study": "postgresql://me:secret@host/db"})
    text = report(report_inputs_of(tiny_run, recipe=resolved_toml(recipe)))
    assert "secret" not in text
    assert "postgresql://me:***@host/db" in text


def test_plots_hold_without_trials_under_the_cap() -> None:
    """A search that found nothing under the caps still has its plots."""
    figure = front_plot("macs", [5.0, 6.0], [0.5, 0.4], [False, False], [], 1.0)
    assert figure.layout.shapes[0].x0 == 1.0 and figure.layout.annotations[0].text == "cap"
    plot = progress_plot([0.5, 0.4], ["start", "a new proposer"], [False, False], 0.9)
    assert plot.data[-2].y == (None, None)


def test_long_and_strange_names_are_labels() -> None:
    """Labels are escaped, and long names that would be cut alike stay apart."""
    names = ["a" * 40, "a" * 13 + "ab" + "a" * 25, "<b>x</b>"]
    for plot in (keep_plot(names, [1, 2, 3], [4, 4, 4], [2, 2, 2]), layers_plot(names, [1, 2, 3], [1, 1, 1])):
        labels = plot.data[0].y
        assert len(set(labels)) == 3
        assert labels[2] == "&lt;b&gt;x&lt;/b&gt;"
    assert time_plot({"search": 61.0}).data[0].text == ("1 min 01 s",)


@pytest.fixture(scope="module")
def shallow(shallow_run: Run) -> Page:
    return Page((shallow_run.folder / "report.html").read_text(encoding="utf-8"))


def test_report_names_removed_branches(shallow: Page, page: Page, shallow_run: Run) -> None:
    """A group that keeps nothing is named, and says so in place of its bar."""
    removed = shallow_run.metrics["released"]["removed"]
    assert f"keeps no channel: {', '.join(removed)}." in shallow.text
    bars = shallow.plots["keep"]["data"][0]
    assert [name for name, text in zip(bars["y"], bars["text"], strict=True) if text == "removed"] == removed
    assert "keeps no channel" not in page.text and set(page.plots["keep"]["data"][0]["text"]) == {""}


def test_report_marks_stopped_trials(shallow: Page, shallow_run: Run) -> None:
    """Trials stopped early are crosses in every plot of trials, in the predictor's too, and are counted."""
    stopped = [trial for trial in shallow_run.study.trials if trial.stopped]
    assert all(go.Figure(plot).data for plot in shallow.plots.values())
    assert f"{len(shallow_run.study.trials)} trials measured, {len(stopped)} of them stopped early." in shallow.text
    for name in ("front", "prediction"):
        (trace,) = [trace for trace in shallow.plots[name]["data"] if trace["name"] == STOPPED]
        assert trace["marker"]["symbol"] == "x-thin" and len(trace["x"]) == len(stopped)
    (trace,) = [trace for trace in shallow.plots["front"]["data"] if trace["name"] == STOPPED]
    assert trace["y"] == [trial.accuracy for trial in stopped]
    symbols = [trace["marker"]["symbol"] for trace in shallow.plots["progress"]["data"] if trace["mode"] == "markers"]
    assert sum(symbol == "x-thin" for of in symbols for symbol in of) == len(stopped)


def test_what_was_stopped_is_never_the_best() -> None:
    """A partial accuracy has no say in the front of the trials, in the best so far, or in the axes."""
    costs, accuracies, fits, stopped = [1.0, 2.0, 3.0], [0.5, 1.0, 0.6], [True] * 3, [False, True, False]
    plot = front_plot("macs", costs, accuracies, fits, [], stopped=stopped)
    (line,) = [trace for trace in plot.data if trace.name == "front of the trials"]
    assert (line.x, line.y) == ((1.0, 3.0), (0.5, 0.6))
    assert plot.layout.yaxis.range[1] < 0.7
    assert progress_plot(accuracies, ["start"] * 3, fits, 0.9, stopped).data[-2].y == (0.5, 0.5, 0.6)
    bands = ([0.5, 0.9, 0.6], [0.4, 0.8, 0.5], [0.6, 1.0, 0.7])
    assert prediction_plot(accuracies, *bands, stopped).layout.yaxis.range[1] < 0.7


def test_report_of_a_run_of_an_earlier_version(tiny_run: Run) -> None:
    """Metrics without stopped trials and removed branches still make a report."""
    metrics = copy.deepcopy(tiny_run.metrics)
    del metrics["stopped"], metrics["released"]["removed"]
    text = Page(report(report_inputs_of(tiny_run, metrics))).text
    assert f"{metrics['trials']} trials measured." in text
