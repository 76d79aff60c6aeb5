"""A cascade on disk is the cascade that was planned, whole or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from amc.cascade.methods.bdistil.prefix_ensemble import Ensemble, Step
from amc.cascade.methods.bdistil.students import ConvStudents
from amc.cascade.methods.esn.sequence_stages import SequenceComponent, new_sequence, pair_networks
from amc.cascade.methods.exits.exit_network import exit_network
from amc.cascade.planning.family import Family
from amc.cascade.planning.trained_components import ExitsComponent, StudentsComponent, kept_once
from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, StopRule
from amc.cascade.serving.runtime import Cascade
from amc.cascade.serving.saved_cascade import (
    DIGEST,
    RECORD,
    check_place,
    open_cascade,
    rule_from_json,
    rule_to_json,
    save_cascade,
)
from amc.cascade.stages.candidate import Candidate, in_a_row
from amc.cascade.stages.component import Component
from amc.job.run import Run
from amc.system.device import Compute
from amc.system.errors import RunError, StorageError
from tests.cascade.cascades import assert_close

ABOUT = {"input_shape": [1, 28, 28]}
CPU = Compute(torch.device("cpu"), False)


@pytest.fixture(scope="module")
def family(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("archive") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return Family(Run.open(folder))


def offered(family: Family, *parts: Component) -> Candidate:
    """Parts in a row, as a method offers them."""
    rows = []
    for part in parts:
        fit, risk = family.records(part)
        rows.append(Candidate("tinysaver", part.stages, fit, risk, ("confidence",), (part,)))
    return in_a_row("tinysaver", rows, ("confidence",))


def exits(family: Family) -> ExitsComponent:
    example = torch.zeros(1, 1, 28, 28, device=family.run.job.compute.device)
    return ExitsComponent(family.dense, exit_network(family.dense.model, example, exits=2, chain="dense"))


def sequence(family: Family) -> SequenceComponent:
    pair = pair_networks(family.released, family.dense, exits=1)
    return SequenceComponent(pair, new_sequence(pair).eval())


def students(classes: int = 10) -> StudentsComponent:
    """Two students that have learned nothing."""
    made, example = ConvStudents((1, 28, 28), classes, width=4), torch.zeros(1, 1, 28, 28)
    first = Step(made.student().eval())
    with torch.no_grad():
        left = first(example)
    second = Step(made.student(reads=left[1].shape[1]).eval())
    weights = (torch.tensor([1.0]), torch.tensor([0.5, 0.5]))
    return StudentsComponent("students", Ensemble((first, second), weights, example))


@pytest.mark.parametrize("kind", ["networks", "exits", "esn", "some exits", "students"])
def test_a_loaded_cascade_answers_as_the_one_that_was_kept(kind: str, family: Family, tmp_path: Path) -> None:
    """Every kind of stage comes back with its costs, stops and logits."""
    whole = {
        "networks": lambda: offered(family, family.released, family.dense),
        "exits": lambda: offered(family, exits(family)),
        "some exits": lambda: offered(family, family.released, exits(family)).using([0, 2, 3]),
        "esn": lambda: offered(family, sequence(family)),
        "students": lambda: offered(family, students()),
    }[kind]()
    scorer = SCORERS["isotonic"](whole.calibration)
    rule = StopRule(scorer, (0.4,) * (len(whole.stages) - 1))
    save_cascade(tmp_path / "kept", whole, rule, ABOUT)
    found = open_cascade(tmp_path / "kept", CPU)
    assert [stage.cost for stage in found.cascade.stages] == [stage.cost for stage in whole.stages]
    inputs = torch.randn(30, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    ours, theirs = (Cascade(stages, rule, CPU).run(inputs) for stages, rule in
                    ((whole.stages, rule), (found.cascade.stages, found.cascade.rule)))  # fmt: skip
    assert torch.equal(ours.stop, theirs.stop) and torch.equal(ours.predictions, theirs.predictions)
    assert_close(ours.logits, theirs.logits)
    assert found.input_shape == (1, 28, 28)


def test_a_damaged_or_missing_file_is_told(family: Family, tmp_path: Path) -> None:
    """The message names the file."""
    row = offered(family, family.released, family.dense)
    save_cascade(tmp_path / "kept", row, StopRule(SCORERS["confidence"](row.calibration), (0.5,)), ABOUT)
    path = tmp_path / "kept" / "parts" / "0" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"model\.safetensors"):
        open_cascade(tmp_path / "kept")
    with pytest.raises(RunError, match=RECORD):
        open_cascade(tmp_path)
    (tmp_path / "kept" / RECORD).write_text(json.dumps({"format": "amc-cascade/99"}))
    with pytest.raises(RunError, match="amc-cascade/99"):
        open_cascade(tmp_path / "kept")


@pytest.mark.parametrize("changed", ["threshold", "figure", "digest"])
def test_a_record_that_was_changed_is_told(changed: str, family: Family, tmp_path: Path) -> None:
    """A threshold, any figure, or its own hash; that it is only written otherwise does not matter."""
    row = offered(family, family.released, family.dense)
    save_cascade(
        tmp_path / "kept", row, StopRule(SCORERS["confidence"](row.calibration), (0.5,)), {**ABOUT, "figure": (1.5,)}
    )
    path = tmp_path / "kept" / RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(record.items()))))
    assert open_cascade(tmp_path / "kept").cascade.rule.thresholds == (0.5,)
    if changed == "threshold":
        record["policy"]["thresholds"] = [0.4]
    elif changed == "figure":
        record["figure"] = [1.4]
    else:
        del record[DIGEST]
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match=RECORD) as reported:
        open_cascade(tmp_path / "kept")
    assert "changed" in str(reported.value) and "\n" not in str(reported.value)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_made(tmp_path: Path) -> None:
    """Below a file, and where the system lets nobody; a place that is free stays as it is."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "cascade", tmp_path / "file" / "deep" / "cascade", Path("/proc/cascade")):
        with pytest.raises(StorageError) as reported:
            check_place(place)
        assert str(place) in str(reported.value) and "\n" not in str(reported.value)
    check_place(tmp_path / "new" / "cascade")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_cascade_is_kept_whole_or_not_at_all(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while it replaces another, saving leaves the older one as it was."""
    row = offered(family, family.released, family.dense)
    rule = StopRule(SCORERS["confidence"](row.calibration), (0.5,))
    save_cascade(tmp_path / "kept", row, rule, {**ABOUT, "number": 1})

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("amc.cascade.serving.saved_cascade.write_json", broken)
        save_cascade(tmp_path / "kept", row, rule, {**ABOUT, "number": 2})
    assert open_cascade(tmp_path / "kept").record["number"] == 1
    save_cascade(tmp_path / "kept", row, rule, {**ABOUT, "number": 3})
    assert open_cascade(tmp_path / "kept").record["number"] == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_a_policy_comes_back_with_its_infinite_thresholds(family: Family) -> None:
    """JSON without NaN or infinity holds them all the same; an incomplete record is refused."""
    row = offered(family, family.released, family.dense)
    rule = StopRule(SCORERS["bins"](row.calibration), (NEVER, -NEVER, 0.25), best=True)
    found = rule_from_json(json.loads(json.dumps(rule_to_json(rule), allow_nan=False)))
    assert found.thresholds == rule.thresholds and found.best and found.scorer.kind == "bins"
    with pytest.raises(RunError):
        rule_from_json({"thresholds": []})


def test_what_is_made_once_is_not_made_again_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    """An interrupted folder is made anew, a finished one is taken as it is."""

    def half(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "first").write_text("")
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "second").write_text("")

    with pytest.raises(KeyboardInterrupt):
        kept_once(tmp_path / "part", half)
    assert not (tmp_path / "part").exists()
    kept_once(tmp_path / "part", whole)
    kept_once(tmp_path / "part", half)
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["second"]


@pytest.mark.parametrize("record", ["[]", "3", '{"format": "amc-cascade/1"}', "{"])
def test_a_record_that_is_none_is_told_in_one_line(record: str, tmp_path: Path) -> None:
    """The message names the record's file."""
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(RunError) as reported:
        open_cascade(tmp_path)
    assert RECORD in str(reported.value) and "\n" not in str(reported.value)
