import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amc.job.run import Run
from amc.job.run_folder import RunFolder
from amc.job.show import Terminal, details, summary
from amc.release.comparison import comparison_sentence, seconds_text
from amc.release.sentences import certificate_sentence

WIDE = Terminal(width=100, unicode=True, colour=False)


def test_summary_names_report_and_next_commands(tiny_run: Run) -> None:
    """The last words of a run say where the report is and what can be done next."""
    text = summary(tiny_run, WIDE)
    assert str(tiny_run.folder / "report.html") in text
    assert f"amc retarget {tiny_run.folder}" in text
    assert len(text.splitlines()) <= 12


def test_details_show_every_group(tiny_run: Run) -> None:
    """Every group has a bar with the channels it keeps."""
    text = details(tiny_run, WIDE)
    for name, kept in tiny_run.policy.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert f"{kept} of" in " ".join(line.split())
        assert "█" in line


def test_details_are_ascii_where_the_terminal_is(tiny_run: Run) -> None:
    """A terminal without Unicode gets plain ASCII, bars and signs too."""
    text = details(tiny_run, Terminal(width=80, unicode=False, colour=False))
    assert text.isascii()
    assert "#" in text
    assert "?" not in text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_bars_fit_the_terminal(tiny_run: Run, width: int) -> None:
    """No bar and no sentence is wider than the terminal."""
    lines = details(tiny_run, Terminal(width, unicode=True, colour=False)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Caps"))
    assert max(len(line) for line in lines[start:] if str(tiny_run.folder) not in line) <= width


def test_colours_only_where_they_are_wanted(tiny_run: Run) -> None:
    """Escape codes stand in the text only when the terminal takes colours."""
    assert "\x1b" not in details(tiny_run, WIDE)
    assert "\x1b" in details(tiny_run, Terminal(width=100, unicode=True, colour=True))


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR turns colours off, whatever else says yes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal.of_stdout().colour


def test_show_needs_no_torch(tiny_run: Run) -> None:
    """`amc show` reads files: torch is never imported."""
    code = (
        "import sys; from amc.cli import app; "
        f"app(['show', {str(tiny_run.folder)!r}], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Channels kept" in done.stdout


def test_numbers_alone_without_sizes(tiny_run: Run, tmp_path: Path) -> None:
    """A policy written without sizes is shown as numbers, not as wrong bars."""
    for name in ("recipe.toml", "metrics.json"):
        shutil.copy(tiny_run.folder / name, tmp_path / name)
    (tmp_path / "policy.json").write_text(json.dumps({"policy": tiny_run.policy}))
    assert " of " not in details(RunFolder.open(tmp_path), WIDE).split("Channels kept")[1].split("Against")[0]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ({"difference": 0.012, "low": 0.004, "high": 0.02}, "is better than uniform ratios by 1.20 points"),
        ({"difference": -0.012, "low": -0.02, "high": -0.004}, "is worse than uniform ratios by 1.20 points"),
        ({"difference": 0.012, "low": -0.001, "high": 0.025}, "do not tell"),
        ({"difference": 0.0, "low": 0.0, "high": 0.0}, "exactly the same test images"),
        (None, "not compared"),
    ],
)
def test_claims_follow_the_interval(pair: dict[str, float] | None, says: str) -> None:
    """Better or worse is said only when the whole interval is on one side of zero."""
    assert says in comparison_sentence("Before fine-tuning", pair)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (42.2, "42 s"),
        (59.96, "1 min 00 s"),
        (223.2, "3 min 43 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds_are_written_for_people(seconds: float, text: str) -> None:
    """Each unit has its own form, and none ever reaches sixty."""
    assert seconds_text(seconds) == text


def test_removed_branches_are_named(shallow_run: Run) -> None:
    """A group that keeps nothing is said to be removed, in its bar, in a line of its own, and in the summary."""
    removed = shallow_run.metrics["released"]["removed"]
    assert removed == [name for name, kept in shallow_run.policy.items() if kept == 0] != []
    text = details(shallow_run, WIDE)
    assert f"  Branches removed: {', '.join(removed)}" in text.splitlines()
    bars = [line for line in text.splitlines() if line.endswith(" removed")]
    assert [line.split()[0] for line in bars] == removed and not any("█" in line for line in bars)
    assert "1 branch" in summary(shallow_run, WIDE)


@pytest.mark.parametrize("width", [60, 100])
def test_bars_of_removed_branches_fit_the_terminal(shallow_run: Run, width: int) -> None:
    """The longer word does not make the line wider than the terminal."""
    text = details(shallow_run, Terminal(width, unicode=True, colour=False))
    bars = text.split("Channels kept")[1].split("Against")[0]
    assert max(map(len, bars.splitlines())) <= width


def test_stopped_trials_are_counted(shallow_run: Run) -> None:
    """How many trials were measured, and how many of them not to the end."""
    stopped = sum(trial.stopped for trial in shallow_run.study.trials)
    assert (
        0 < stopped == shallow_run.metrics["stopped"] < shallow_run.metrics["trials"] == len(shallow_run.study.trials)
    )
    assert f"{len(shallow_run.study.trials)} trials measured, {stopped} of them stopped early, 0 failed" in details(
        shallow_run, WIDE
    )


def test_runs_of_earlier_versions_are_shown(tiny_run: Run, tmp_path: Path) -> None:
    """Where stopped trials and removed branches were not yet told, nothing is said of them."""
    for name in ("recipe.toml", "policy.json"):
        shutil.copy(tiny_run.folder / name, tmp_path / name)
    metrics = json.loads((tiny_run.folder / "metrics.json").read_text())
    del metrics["stopped"], metrics["released"]["removed"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    run = RunFolder.open(tmp_path)
    assert "removed" not in summary(run, WIDE)
    text = details(run, WIDE)
    assert f"{metrics['trials']} trials measured, 0 failed" in text and "removed" not in text


FOUND = {"explained": 0.876, "near": True, "proven": True, "gap": 0.0042}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            FOUND,
            "explains 88% of what tells the better trials apart, the released policy is 0.42 points below",
        ),
        (FOUND | {"proven": False}, "0.42 points below what any policy could reach under the caps"),
        ({"near": False, "explained": -0.3}, "adds up what each group is worth explains only 0%"),
    ],
)
def test_the_certificate_is_one_sentence(tiny_run: Run, found: dict[str, object], said: str) -> None:
    """How far from the best of a sum over groups, or why that is not known; nothing where there is none."""
    assert said in certificate_sentence({"certificate": found})
    assert certificate_sentence({"certificate": None}) == certificate_sentence({}) == ""
    sentence = certificate_sentence(tiny_run.metrics)
    assert " ".join(sentence.split()) in " ".join(details(tiny_run, WIDE).split())
