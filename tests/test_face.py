"""The library as its users meet it: a network and loaders made in ten lines, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amc
from amc.job.show import details, summary


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def quarters(number: int, seed: int) -> TensorDataset:
    """Images whose class is the brightest quarter."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(number, 3, 16, 16, generator=generator)
    labels = torch.randint(4, (number,), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 8 * (label // 2) :, 8 * (label % 2) :][:, :8, :8] += 0.4
    return TensorDataset(images, labels)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network of a plain training loop."""
    model, loader = small_network(), DataLoader(quarters(512, 1), 64, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def loaders() -> dict[str, DataLoader[tuple[Tensor, ...]]]:
    return {
        "train": DataLoader(quarters(512, 1), 64, shuffle=True),
        "validation": DataLoader(quarters(256, 2), 64),
    }


@pytest.fixture(scope="module")
def study(model: nn.Module) -> amc.Study:
    """A search as the documentation shows it."""
    space = amc.trace(model, torch.zeros(1, 3, 16, 16))
    measure = amc.Measure(space, **loaders(), device="cpu")
    return amc.search(space, measure, budgets=["50%"], trials=12)


def test_the_example_of_the_documentation_holds(model: nn.Module, study: amc.Study) -> None:
    """Trace, measure, search, optimize, cut: the network fits every budget asked of one study."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    space = study.measure.trace
    assert len(study.trials) == 12 and len(study.optuna_study.trials) >= 12
    for budget in ("50%", "70%"):
        policy = amc.optimize(study, budget)
        small = amc.cut(space, policy, recover=study.measure)
        assert policy.costs["macs"] <= float(budget[:-1]) / 100 * space.dense_costs()["macs"]
        assert small(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
        held = sum(parameter.numel() for parameter in small.parameters())
        assert held == policy.costs["params"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_policy_is_told_with_its_own_prediction(study: amc.Study) -> None:
    """What is predicted is of the very policy that is given, whether it was measured or not."""
    for candidates in (0, 3):
        policy = amc.optimize(study, "40%", candidates=candidates)
        assert (policy.trial is None) == (candidates == 0)
        assert policy.trial is None or policy.trial.policy == policy.counts
    again = amc.optimize(study, "40%", candidates=3)
    assert again.trial is not None and abs(again.mean - again.trial.accuracy) < 0.3


@pytest.mark.parametrize("form", ["policy", "names", "array"])
def test_a_policy_may_be_given_in_any_form(study: amc.Study, form: str) -> None:
    """A `Policy`, group names, or an array cut the same network."""
    space = study.measure.trace
    policy = amc.optimize(study, "60%", candidates=0)
    given = {"policy": policy, "names": policy.kept, "array": policy.array}[form]
    small = amc.cut(space, given)
    assert sum(parameter.numel() for parameter in small.parameters()) == policy.costs["params"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"nothing": 8}, "'nothing' is none of them"),
        ({"0": 7}, "keeps 7"),
        (np.array([1.5, 2.5]), "whole numbers"),
        ([8], "whole numbers"),
    ],
)
def test_a_policy_of_another_network_is_refused(study: amc.Study, policy: object, words: str) -> None:
    """Unknown groups, counts off the grid and arrays of another form are one line each."""
    with pytest.raises(amc.UsageError, match=words):
        amc.cut(study.measure.trace, policy)  # type: ignore[arg-type]


def test_groups_costs_and_reasons_are_told(model: nn.Module) -> None:
    """A trace names what can be cut, what each group costs, and why a layer is left alone."""
    space = amc.trace(model, (torch.zeros(2, 3, 16, 16),), ignore=["4"])
    assert [group.name for group in space.groups] == ["0"]
    assert any("output" in frozen.reason for frozen in space.frozen)
    by_hand = 16 * 3 * 9 * 256 + 32 * 16 * 9 * 16 + 32 * 4
    assert space.dense_costs()["macs"] == by_hand


def test_a_network_at_hand_is_examined(model: nn.Module) -> None:
    """Groups, reachable costs and checks of cutting, saved and loaded too; the network stays as it is."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = amc.examine(model, torch.zeros(1, 3, 16, 16), settings={"surgery.round_to": 4})
    assert record["ok"], record["reason"]
    assert {group["name"] for group in record["groups"]} == {"0", "4"} and record["checks"]["saved"]
    assert record["macs"] == amc.count_cut_macs(model, torch.zeros(1, 3, 16, 16)) > record["min_macs"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    other = amc.examine(model, torch.zeros(1, 5, 16, 16), settings={"surgery.round_to": 4})
    assert not other["ok"] and other["reason"] and other["model"] == record["model"]


def test_every_name_of_the_face_is_there() -> None:
    """`__all__` holds what can be had, each from its home."""
    for name in amc.__all__:
        assert getattr(amc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        amc.nothing  # noqa: B018


def test_a_search_of_another_network_is_refused(model: nn.Module, study: amc.Study) -> None:
    """A measure belongs to the trace it was made with."""
    other = amc.trace(model, torch.zeros(1, 3, 16, 16))
    with pytest.raises(amc.UsageError, match="another"):
        amc.search(other, study.measure, "50%", trials=2)


def test_a_storage_is_found_again_by_the_same_objects(model: nn.Module, tmp_path: Path) -> None:
    """The same network and data measure for the same study: nothing is measured twice."""
    storage = f"sqlite:///{tmp_path}/studies.db"
    numbers = []
    for trials in (4, 4, 6):
        space = amc.trace(model, torch.zeros(1, 3, 16, 16))
        measure = amc.Measure(space, **loaders(), device="cpu")
        found = amc.search(space, measure, ["50%"], trials=trials, storage=storage)
        numbers.append(found.done_here)
    assert numbers == [4, 0, 2]


def brightness(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A metric of the user's own: how sure the network is of the right class."""
    return outputs.softmax(1).gather(1, batch[1][:, None])[:, 0]


def compressed(model: nn.Module, out: Path, **more: object) -> amc.Run:
    settings = {
        "search.trials": 8, "search.candidates": 2, "search.study": "run", "finetune.epochs": 1, "surgery.round_to": 4,
        **dict(more.pop("settings", {})),  # type: ignore[call-overload]
    }  # fmt: skip
    given = {**loaders(), "test": DataLoader(quarters(256, 3), 64), **more}
    return amc.compress(model, budget="50%", out=out, device="cpu", settings=settings, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def object_run(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> amc.Run:
    """A whole run of a network and loaders that no recipe names."""
    return compressed(model, tmp_path_factory.mktemp("object") / "run")


def test_objects_are_compressed_as_names_are(model: nn.Module, object_run: amc.Run) -> None:
    """The same flow, folder and figures; the network given stays as it is."""
    assert object_run.metrics["budgets"][0]["used"] <= object_run.metrics["budgets"][0]["limit"]
    assert object_run.metrics["dense"]["test_accuracy"] > 0.5 and object_run.metrics["tested_on"] == "test"
    inputs = torch.rand(4, 3, 16, 16)
    again = amc.load(object_run.folder, model=small_network)
    assert torch.equal(again(inputs), object_run.model(inputs))
    assert object_run.retarget("70%").policy.costs["macs"] <= 0.7 * object_run.metrics["dense"]["macs"]
    program = torch.export.load(next(object_run.folder.glob("*.pt2"))).module()
    assert torch.allclose(program(inputs), again(inputs), atol=1e-4)


def test_a_release_of_an_object_says_how_it_is_loaded(object_run: amc.Run) -> None:
    """No name builds it again: the error names the fix."""
    with pytest.raises(amc.ModelError, match="model="):
        amc.load(object_run.folder)


def test_the_same_call_resumes_and_more_trials_go_on(model: nn.Module, object_run: amc.Run, tmp_path: Path) -> None:
    """A finished run does nothing again; with more trials it measures only those that are new."""
    folder = tmp_path / "run"
    shutil.copytree(object_run.folder, folder)
    assert compressed(model, folder).metrics == object_run.metrics
    more = compressed(model, folder, settings={"search.trials": 12})
    assert more.metrics["trials"] >= 12 > object_run.metrics["asked_trials"]
    old = {trial.policy for trial in object_run.study.trials}
    assert old <= {trial.policy for trial in more.study.trials}


def test_another_object_in_the_same_folder_is_refused(object_run: amc.Run) -> None:
    """A run folder holds one job: other weights are another job."""
    with pytest.raises(amc.RunError, match=r"model\.weights"):
        compressed(small_network(), object_run.folder)


def test_an_own_metric_is_a_function(model: nn.Module, tmp_path: Path) -> None:
    """A callable judges every network, and its name stands in the figures."""
    run = compressed(model, tmp_path / "run", metric=brightness)
    assert run.metrics["metric"] == "brightness"


def test_without_labels_the_metric_is_agreement(model: nn.Module, tmp_path: Path) -> None:
    """Batches of images alone: networks are judged by how often they agree with the dense one."""
    images = quarters(512, 1).tensors[0]
    parts = {"train": images[:256].split(64), "validation": images[256:].split(64), "test": images[256:].split(64)}
    run = compressed(model, tmp_path / "run", **parts)
    assert run.metrics["metric"] == "agreement" and run.metrics["dense"]["test_accuracy"] == 1.0
    assert 0.3 < run.metrics["released"]["test_accuracy"] <= 1.0


def test_without_a_test_split_the_figures_say_so(model: nn.Module, tmp_path: Path) -> None:
    """The validation split stands in for it; summary, report and card tell what that makes of the figures."""
    run = compressed(model, tmp_path / "run", test=None)
    said = "No test split was given"
    assert run.metrics["tested_on"] == "validation"
    assert run.metrics["dense"]["test_accuracy"] == run.metrics["dense"]["measure_accuracy"]
    assert said in " ".join(summary(run).split()) and said in " ".join(details(run).split())
    for page in ("report.html", "README.md"):
        assert said in (run.folder / page).read_text(encoding="utf-8")


def test_a_run_is_opened_again_with_its_objects(model: nn.Module, object_run: amc.Run) -> None:
    """What needs the dense network is given it; other data are refused."""
    given = {**loaders(), "test": DataLoader(quarters(256, 3), 64)}
    run = amc.open_run(object_run.folder, model=model, **given)
    assert run.job.digests == object_run.metrics["digests"]
    with pytest.raises(amc.RunError, match="data"):
        amc.open_run(object_run.folder, model=model, **{**given, "train": DataLoader(quarters(512, 9), 64)}).job  # noqa: B018


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": nn.ReLU}, "give ReLU()"),
        ({"model": 42}, "but is 42"),
        ({"model": "tests.tiny:network"}, "given none"),
        ({"train": [], "validation": []}, "hold"),
    ],
)
def test_what_is_no_network_or_has_no_data_is_refused(
    model: nn.Module, tmp_path: Path, given: dict[str, object], words: str
) -> None:
    """A default network or data set never takes the place of what the user meant to give."""
    with pytest.raises(amc.AmcError, match=words.replace("(", r"\(").replace(")", r"\)")):
        amc.compress(**{"model": model, "budget": "50%", "out": tmp_path / "run", **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "words"),
    [(torch.full((64,), 9), "labels must be 0 to 3"), (torch.zeros(64), "labels must be whole numbers")],
)
def test_labels_that_do_not_fit_are_named(model: nn.Module, labels: Tensor, words: str) -> None:
    """Labels beyond the classes, or with fractions, are the data's fault and said to be."""
    space = amc.trace(model, torch.zeros(1, 3, 16, 16))
    batches = [(torch.rand(64, 3, 16, 16), labels)]
    measure = amc.Measure(space, train=batches, validation=batches, device="cpu")
    with pytest.raises(amc.DataError, match=words):
        measure.evaluate_whole(model)


def test_a_search_too_short_for_a_predictor_says_so(model: nn.Module) -> None:
    """No trial at all is refused at once; too few are when a policy is asked for."""
    space = amc.trace(model, torch.zeros(1, 3, 16, 16))
    measure = amc.Measure(space, **loaders(), device="cpu")
    with pytest.raises(amc.UsageError, match="at least 1"):
        amc.search(space, measure, "50%", trials=0)
    with pytest.raises(amc.UsageError, match="more trials"):
        amc.optimize(amc.search(space, measure, "50%", trials=1), "50%")


def test_a_network_is_evaluated_on_a_loader(model: nn.Module) -> None:
    """`evaluate` takes what `Measure` takes, and runs where the network is."""
    found = amc.evaluate(model, loaders()["validation"])
    assert found.accuracy > 0.5 and len(found.scores) == 256
