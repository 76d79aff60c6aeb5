"""The networks that a cascade may be made of: trained once, kept whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amc.cascade.planning.constraints import AbsoluteConstraints, Constraints
from amc.cascade.planning.family import FAMILY, HALF, Family, share_name, useful_caps
from amc.cascade.stages.component import cached_records
from amc.cascade.stages.holdout import split_in_two
from amc.job.run import Run
from amc.job.run_folder import POLICY, read_json
from amc.system.errors import UsageError
from amc.system.files import write_json
from amc.system.progress import Silent
from amc.zoo.data.part import PartSplit
from amc.zoo.data.splits import TensorSplit, groups_of

WANTED = Constraints(budget="30%")


@pytest.fixture(scope="module")
def own_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run whose family has grown by two networks."""
    folder = tmp_path_factory.mktemp("family") / "run"
    shutil.copytree(tiny_run.folder, folder)
    family = Family(Run.open(folder))
    family.grow(WANTED.limits(family.dense.macs), 2)
    return folder


def test_networks_are_trained_for_the_terms_and_keep_under_their_caps(own_run: Path) -> None:
    """Each is named by the share of the dense network's multiply-adds that it keeps under."""
    family = Family(Run.open(own_run))
    names = [member.name for member in family.members]
    assert {"dense", "released", "30%"} <= set(names) and len(family.trained) == 2
    for member in family.trained:
        assert member.macs <= float(member.name.removesuffix("%")) / 100 * family.dense.macs
    assert [member.macs for member in family.members] == sorted(member.macs for member in family.members)


def test_what_was_trained_is_never_trained_again(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again for a share that is there, the family hands it over."""
    family = Family(Run.open(own_run))
    before = {member.name: member.digest for member in family.trained}
    monkeypatch.setattr(Family, "_train", lambda *_: pytest.fail("trained again"))
    wanted = [cap for cap in (0.3 * family.dense.macs,) if family.standing_for(cap, exact=True) is None]
    assert not wanted and family.train(0.3 * family.dense.macs) is not None
    assert {member.name: member.digest for member in family.trained} == before


def test_a_killed_training_leaves_no_network_and_the_next_one_takes_the_same_policy(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is kept, what was half trained is not."""
    folder = tmp_path / "run"
    shutil.copytree(own_run, folder)
    family = Family(Run.open(folder))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("amc.job.job.train", killed)
        family.train(0.5 * family.dense.macs)
    begun = (folder / "family" / ".50%" / POLICY).read_text()
    assert "50%" not in {member.name for member in Family(Run.open(folder)).members}
    family = Family(Run.open(folder))
    monkeypatch.setattr(Run, "retarget", lambda *_: pytest.fail("searched again"))
    member = family.train(0.5 * family.dense.macs)
    assert member is not None and member.name == "50%" and not (folder / "family" / ".50%").exists()
    kept = (folder / "family" / "50%" / POLICY).read_text()
    assert all(line in kept for line in begun.splitlines()[2:-2])


def test_networks_are_trained_and_judged_without_the_risk_test_half(own_run: Path) -> None:
    """The calibration part alone is the validation split of training."""
    family = Family(Run.open(own_run))
    fit, risk = family.records(family.dense)
    seen = torch.cat([labels for _, labels in family.splits.validation.batches(7)])
    assert torch.equal(seen, fit.labels) and len(fit) + len(risk) == len(family.run.job.data.validation)


def test_records_are_made_once_and_a_damaged_file_is_made_anew(own_run: Path, tmp_path: Path) -> None:
    """The second reading neither runs the network nor writes."""
    family = Family(Run.open(own_run))
    compute, split = family.run.job.compute, family.run.job.data.validation
    first = cached_records(family.dense, split, compute, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert torch.equal(cached_records(family.dense, split, compute, tmp_path).logits, first.logits)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b"nothing")
    assert torch.equal(cached_records(family.dense, split, compute, tmp_path).logits, first.logits)


@pytest.mark.parametrize("limits", [AbsoluteConstraints(30, None, None, None, 0.1), AbsoluteConstraints(30, 45, None,
None, 0.1),
                                    AbsoluteConstraints(None, 60, 0.9, None, 0.1),
                                    AbsoluteConstraints(None, None, None, 0.01, 0.1)])  # fmt: skip
def test_caps_lie_under_the_worst_case_and_the_budget_is_one_of_them(limits: AbsoluteConstraints) -> None:
    """Every cap that is trained for is positive, below the dense network and within the constraints."""
    caps = [cap for cap, _ in useful_caps(limits, 100)]
    assert caps and all(0 < cap < 100 and (limits.max_cost is None or cap <= limits.max_cost) for cap in caps)
    assert limits.mean_cost is None or (limits.mean_cost, True) in useful_caps(limits, 100)


def test_a_network_whose_epoch_was_chosen_on_another_half_is_no_longer_of_the_family(
    own_run: Path, tmp_path: Path
) -> None:
    """Examples that take part in the tests must have had no part in the choice: not once the data have groups."""
    folder = tmp_path / "run"
    shutil.copytree(own_run, folder)
    record = read_json(folder / FAMILY / "30%" / POLICY)
    assert record[HALF] == Family(Run.open(folder)).halves[0].digest
    del record[HALF]  # as it was written when there were no groups
    write_json(folder / FAMILY / "30%" / POLICY, record)
    assert "30%" in {member.name for member in Family(Run.open(folder)).trained}

    run = Run.open(folder)
    measure = run.job.data.validation
    inputs, labels = next(iter(measure.batches(10**6)))
    groups = torch.arange(len(labels)) // 10
    grouped = replace(run.job.data, validation=TensorSplit(inputs, labels, groups=groups))
    run.job = replace(run.job, data=grouped)
    family = Family(run)
    assert family.trained == []
    fit, risk = family.records(family.dense)
    halves = [groups_of(half) for half in family.halves]
    assert fit.groups is not None and torch.equal(fit.groups, halves[0]) and torch.equal(risk.groups, halves[1])  # type: ignore[arg-type]
    assert not {*fit.groups.tolist()} & {*risk.groups.tolist()}  # type: ignore[union-attr]
    again = family.train(0.3 * family.dense.macs)
    assert again is not None and [member.name for member in Family(run).trained] == ["30%"]


def test_a_share_is_rounded_down_so_that_its_network_fits() -> None:
    """The name of a share never promises more than it has."""
    assert share_name(0.30004) == "30%" and share_name(0.29999) == "29.9%" and share_name(0.3) == "30%"


def test_a_task_that_is_no_classification_is_refused(own_run: Path) -> None:
    """The message names the metric."""
    run = Run.open(own_run)
    run.job.measure.task = type(run.job.task)(metric=lambda outputs, batch: [], metric_name="taste")
    with pytest.raises(UsageError, match="taste"):
        Family(run, Silent())


def test_a_part_of_a_split_holds_its_examples_in_order_whatever_the_batches() -> None:
    """Any batch size gives the examples of the index, in its order."""
    whole = TensorSplit(torch.arange(23.0), torch.arange(23))
    first, second = (PartSplit(whole, index) for index in split_in_two(23, seed=4))

    def labels(part: PartSplit, size: int, **how: int) -> Tensor:
        return torch.cat([batch for _, batch in part.batches(size, **how)])

    assert torch.equal(labels(first, 3), first.index) and torch.equal(labels(second, 50), second.index)
    assert labels(first, 4, seed=1).sort().values.equal(first.index) and len(labels(first, 4, limit=5)) == 5
    assert first.digest != second.digest and len(first) + len(second) == 23
