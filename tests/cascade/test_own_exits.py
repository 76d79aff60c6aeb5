"""A network with exits of its own: trained with all of them, and planned with as they are."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from amc.cascade.methods.exits.saved_exits import RECORD, load_exits_component
from amc.cascade.planning import trained_components
from amc.cascade.planning.constraints import Constraints
from amc.cascade.planning.external_models import external_model
from amc.cascade.planning.family import Family
from amc.cascade.planning.method_candidates import candidates_of, static_of
from amc.cascade.planning.pipeline import plan_cascade
from amc.job.compress import compress
from amc.job.pretrain import pretrain
from amc.job.recipe import load_recipe
from amc.job.run import Run
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Silent
from amc.train.own_exits import with_every_exit
from amc.zoo.task import CLASSIFICATION
from tests.tiny import multi_exit, network

RECIPE = {
    "name": "multi",
    "model.name": "tests.tiny:multi_exit",
    "data.name": "tests.tiny:pictures",
    "budget": ["60%"],
    "search.trials": 6,
    "search.candidates": 1,
    "search.batch_size": 50,
    "recovery.moment_images": 100,
    "recovery.batchnorm_images": 100,
    "finetune.epochs": 0.2,
    "finetune.batch_size": 50,
    "finetune.uniform": False,
    "train.epochs": 4,
    "train.lr": 0.1,
    "train.batch_size": 50,
}


class Telling(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `amc train` leaves."""
    folder = tmp_path_factory.mktemp("multi") / "dense"
    pretrain(load_recipe(None, RECIPE), folder)
    return folder


@pytest.fixture(scope="module")
def multi_run(dense_folder: Path) -> Path:
    """A finished run of the network that `dense_folder` holds."""
    wanted = {
        **RECIPE,
        "model.weights": str(dense_folder / "model.safetensors"),
        "out": str(dense_folder.parent / "run"),
    }
    return compress(load_recipe(None, wanted)).folder


def test_training_makes_the_sum_of_all_exits_losses_small() -> None:
    """In evaluation it is the network; one without exits is left alone."""
    model = multi_exit()
    inputs, labels = torch.randn(6, 1, 28, 28), torch.randint(0, 10, (6,))
    every, task = with_every_exit(model, CLASSIFICATION)
    with torch.no_grad():
        outputs = every.train()(inputs)
    losses = [float(cross_entropy(logits, labels, label_smoothing=0.1)) for logits in outputs]
    assert len(losses) == 3
    assert float(task.loss(outputs, (inputs, labels), 0.1)) == pytest.approx(sum(losses), rel=1e-5)
    assert torch.equal(every.eval()(inputs), model.eval()(inputs))
    plain = network()
    assert with_every_exit(plain, CLASSIFICATION) == (plain, CLASSIFICATION)


def test_amc_train_trains_every_exit(dense_folder: Path) -> None:
    """All of them know the classes, and the record tells how well."""
    record = json.loads((dense_folder / "training.json").read_text())
    accuracies = record["exit_measure_accuracies"]
    assert len(accuracies) == 3 and min(accuracies) > 0.25
    assert accuracies[-1] == record["measure_accuracy"]


def test_its_own_exits_are_planned_with_as_they_are(multi_run: Path, tmp_path: Path) -> None:
    """Nothing is trained; its last stage is the network, and what is kept answers the same bit for bit."""
    family = Family(Run.open(multi_run))
    part = trained_components.exits_of(family, family.dense)
    assert [stage.name for stage in part.stages] == ["dense.exit1", "dense.exit2", "dense"]
    assert not list(family.folder.glob("exits*"))
    fit, _ = family.records(part)
    alone, _ = family.records(family.dense)
    assert torch.equal(fit.logits[-1], alone.logits[0])
    part.save(tmp_path)
    again = load_exits_component(tmp_path, "dense")
    inputs = torch.randn(3, *family.dense.input_shape)
    with torch.no_grad():
        for one, two in zip(part.network.outputs(inputs), again.network.outputs(inputs), strict=True):
            assert torch.equal(one, two)


def test_a_pruned_relative_whose_exits_do_not_fit_is_left_out_in_one_line(multi_run: Path) -> None:
    """Pruning follows the last exit alone; the dense network's exits are still there."""
    family, telling = Family(Run.open(multi_run)), Telling()
    with pytest.raises(ModelError, match="cut without them"):
        trained_components.exits_of(family, family.released)
    singles = [static_of(family, member) for member in family.members]
    found = candidates_of("pcee", family, singles, Constraints(budget="60%").limits(family.dense.macs), telling)
    assert any(len(each.stages) == 3 and each.stages[-1].name == "dense" for each in found)
    assert any("no exits on" in line and "cut without them" in line for line in telling.said)


def test_a_command_plans_on_it_by_all_methods_at_once(multi_run: Path) -> None:
    """Those that cannot take the network are left out."""
    record = plan_cascade(multi_run, Constraints(budget="90%"), Silent(), train=0).record
    assert record["plan"]["certified"]["mean_cost"] <= 0.9 * record["dense"]["macs"]


def test_an_independent_network_lends_its_own_exits(tiny_run: Run, dense_folder: Path, tmp_path: Path) -> None:
    """A network with exits of its own needs no training to be a cascade."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    family = Family(Run.open(folder))
    given = external_model(str(dense_folder), family.run.job.data, family.run.job.compute)
    singles = [static_of(family, member) for member in (*family.members, given)]
    limits = Constraints(max_drop=0.1).limits(family.dense.macs)
    found = candidates_of("pcee-ws", family, singles, limits, Silent())
    assert any([s.name for s in each.stages] == [f"{given.name}.exit1", f"{given.name}.exit2"] for each in found)


@pytest.mark.parametrize("own", [True, False])
def test_joint_exits_train_a_copy_of_the_network_once(
    own: bool, tiny_run: Run, multi_run: Path, tmp_path: Path
) -> None:
    """The network itself keeps its numbers; the copy has its own name and digest."""
    folder = tmp_path / "run"
    shutil.copytree(multi_run if own else tiny_run.folder, folder)
    family = Family(Run.open(folder))
    before = copy.deepcopy(family.dense.model.state_dict())
    part = trained_components.exits_of(family, family.dense, joint=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in family.dense.model.state_dict().items())
    assert part.network.joint and part.stages[-1].name == "dense-joint" and part.digest != family.dense.digest
    kept = next(family.folder.glob("exits-joint-dense-*"))
    made = (kept / RECORD).stat().st_mtime_ns
    assert trained_components.exits_of(family, family.dense, joint=True).digest == part.digest
    assert (kept / RECORD).stat().st_mtime_ns == made
    part.save(tmp_path / "part")
    again, inputs = (
        load_exits_component(tmp_path / "part", part.name),
        torch.randn(3, *family.dense.input_shape),
    )
    with torch.no_grad():
        assert torch.equal(again.network(inputs), part.network(inputs))
        assert not torch.equal(part.network(inputs), family.dense.model(inputs))


def test_ways_to_train_exits_that_there_are_not_are_told(multi_run: Path) -> None:
    """The message names the flag."""
    for method, exits in (("pcee", "melted"), ("tinysaver", "joint")):
        with pytest.raises(UsageError, match="--exits"):
            plan_cascade(multi_run, Constraints(budget="50%"), Silent(), method=method, exits=exits)
