from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from amc.bench import regressions
from amc.bench.predictor import bench_predictor, load_measured, predictor_text
from amc.cli import app
from amc.system.errors import DataError, UsageError
from amc.system.progress import Silent
from amc_predictor import SeerNetPredictor
from tests.predictor.measured import LAYERS, published, written

PREDICTORS = ["amc", "amc, with place", "mean", "ridge", "physics ridge", "gaussian process", "boosted trees",
              "published MLP", "MLP, standardised"]  # fmt: skip


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published network's 5,000 epochs are nothing that these tests are about."""
    monkeypatch.setattr(regressions, "STEPS", 200)
    monkeypatch.setattr(SeerNetPredictor.__init__, "__defaults__", (15, 20, 0.2, 0))


def test_every_predictor_is_judged_at_every_count(tmp_path: Path) -> None:
    """Rows for each count of policies and predictor, in their ranges; ours alone has coverage."""
    found = bench_predictor(load_measured(*written(tmp_path)), (20, 160), 2, Silent())
    assert [(row["learned"], row["predictor"]) for row in found["rows"]] == [
        (n, p) for n in (20, 32) for p in PREDICTORS
    ]
    for row in found["rows"]:
        assert row["rmse"]["mean"] > 0
        if row["constant"] < 2:
            assert -1 <= row["kendall"]["mean"] <= row["spearman"]["mean"] + 0.2 <= 1.2
        assert len(row["kendall"]["values"]) == 2 and ("coverage_90" in row) == row["predictor"].startswith("amc")
    named = {row["predictor"]: row for row in found["rows"] if row["learned"] == 32}
    assert named["amc"]["kendall"]["mean"] > 0.5 and named["MLP, standardised"]["kendall"]["mean"] > 0.3
    text = predictor_text(found).splitlines()
    assert len(text) == 4 + len(found["rows"]) and found["left_out"] == [160]
    assert text[-1] == "--trials 160 left out: a split has 32 to learn from."


def test_drifting_accuracies_are_reported(tmp_path: Path) -> None:
    """Accuracies that also hang on the place in the file are said to drift; those of the policy alone are not."""
    policies, accuracy = written(tmp_path, count=120)
    steady = predictor_text(bench_predictor(load_measured(policies, accuracy), (), 4, Silent()))
    values = np.load(accuracy)
    np.save(accuracy, values - np.linspace(0, 3 * values.std(), len(values)))
    drifting = predictor_text(bench_predictor(load_measured(policies, accuracy), (), 4, Silent()))
    assert "drift" in drifting and "drift" not in steady


def test_what_one_split_or_a_constant_cannot_tell_is_a_dash(tmp_path: Path) -> None:
    """One split has no spread; equal predictions have no order, are counted, and are null in JSON."""
    found = bench_predictor(load_measured(*written(tmp_path)), (), 1, Silent())
    mean = next(row for row in found["rows"] if row["predictor"] == "mean")
    assert mean["constant"] == 1 and mean["kendall"] == mean["spearman"] == {
        "mean": None, "spread": None, "values": [None],
    }  # fmt: skip
    assert mean["rmse"]["spread"] is None
    line = next(line for line in predictor_text(found).splitlines() if line.startswith("mean "))
    assert line.split()[2:7] == [f"{100 * mean['rmse']['mean']:.3f}", "+-", "-", "-", "-"]
    assert line.endswith("constant on 1 of 1")


def test_the_same_command_gives_the_same_figures(tmp_path: Path) -> None:
    """Figures on stdout as JSON, progress on stderr, and twice the same."""
    policies, accuracy = map(str, written(tmp_path))
    command = ["bench", "predictor", "--policies", policies, "--accuracy", accuracy, "--trials", "12", "--seeds", "1"]
    first, second = (CliRunner().invoke(app, [*command, "--json"]) for _ in range(2))
    assert first.exit_code == 0 and json.loads(first.stdout) == json.loads(second.stdout)
    assert "Predictors" in first.stderr


def test_columns_and_units_are_told_from_their_values(tmp_path: Path) -> None:
    """Columns up to 1 are pruned fractions and others bits; percentages and fractions are the same accuracies."""
    first = load_measured(*written(tmp_path))
    second = load_measured(*written(tmp_path, percent=False))
    assert first.bits.tolist() == [False] * LAYERS + [True] * LAYERS
    np.testing.assert_allclose(first.accuracy, second.accuracy)


@pytest.mark.parametrize(
    ("rows", "values", "rule"),
    [
        (np.ones((20, 3, 2)), np.ones(20), r"must have the shape \(policies, columns\)"),
        (np.ones((0, 3)), np.ones(0), "not empty"),
        (np.ones((20, 3)), np.ones(19), r"one a policy, \(20,\)"),
        (np.ones((9, 3)), np.ones(9), "at least 10 policies"),
        (np.full((20, 3), np.nan), np.ones(20), "60 are NaN or infinite"),
        (np.ones((20, 3)), np.array([1.0] * 19 + [np.nan]), "1 is NaN or infinite"),
        (np.ones((20, 3)), np.full(20, 91.0), "accuracies must differ .* 91 for every policy"),
        (np.ones((20, 3)), np.full(20, 101.0), r"or in \[0, 100\] as percentages.*101 to 101"),
        (np.linspace(0, 8, 60).reshape(20, 3), np.ones(20), "column 0 .* must hold bits from 1 to 32"),
        (np.linspace(-1, 1, 60).reshape(20, 3), np.ones(20), "column 0 .* must hold pruned fractions from 0 to 1"),
        (np.full((20, 3), "a"), np.ones(20), "must hold numbers, but holds <U1"),
        (np.full((20, 3), {}, dtype=object), np.ones(20), "must be a .npy file of numbers.*allow_pickle=False"),
    ],
)
def test_files_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, rows: np.ndarray, values: np.ndarray, rule: str
) -> None:
    """Wrong shapes, too few, NaN, values out of range and pickles: one line with the rule and the file."""
    np.save(tmp_path / "p.npy", rows, allow_pickle=True)
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=rule) as raised:
        load_measured(tmp_path / "p.npy", tmp_path / "a.npy")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"no array", b"PK\x03\x04"])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing, an empty and a foreign file exit with 2 and one line."""
    _, accuracy = written(tmp_path)
    broken = tmp_path / "broken.npy"
    if content is not None:
        broken.write_bytes(content)
    command = ["bench", "predictor", "--policies", str(broken), "--accuracy", str(accuracy), "--quiet"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, DataError) and str(broken) in str(done.exception)


@pytest.mark.parametrize("counts", ["3", "ten", "20;40", "-20"])
def test_impossible_counts_are_refused(tmp_path: Path, counts: str) -> None:
    """Counts of policies must be whole numbers from 4."""
    policies, accuracy = map(str, written(tmp_path))
    command = ["bench", "predictor", "--policies", policies, "--accuracy", accuracy, "--trials", counts]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError) and counts in str(done.exception)


@pytest.mark.parametrize(("network", "least"), [("resnet20", 0.79), ("resnet18", 0.64)])
def test_measured_networks_are_ordered(network: str, least: float) -> None:
    """On SeerNet's measurements, five splits' Kendall stays above its bound and above every baseline's."""
    found = bench_predictor(load_measured(*published(network)), (), 5, Silent())
    kendall = {row["predictor"]: row["kendall"]["mean"] for row in found["rows"]}
    assert kendall["amc"] > least and kendall["amc"] >= max(kendall.values()) - 0.01
