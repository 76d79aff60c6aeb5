from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.bench.search_methods.fastnas import FastNAS
from amc.bench.search_methods.magnitude import TorchPruning
from amc.bench.search_methods.methods import all_methods
from amc.bench.search_methods.widths import PeerFailed, kept_fractions, policy_left
from amc.job.job import Job, open_job
from amc.job.recipe import load_recipe
from amc_search import Cap, utilisation
from amc_search.baselines.extra import MissingExtra
from amc_search.baselines.problem import Problem, run
from tests.tiny import ResidualNet, trained_weights


def resnet20() -> nn.Module:
    """ResNet-20 whose channels differ: every one is drawn at its own scale."""
    from amc.zoo.networks.cifar_resnet import resnet20

    torch.manual_seed(0)
    model = resnet20(in_channels=1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= torch.rand(module.out_channels, 1, 1, 1) + 0.1
    return model


class Closed(ResidualNet):
    """A network whose outputs have no gradient."""

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(pictures).detach()


def closed(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    return Closed(num_classes, in_channels)


def job_of(model: str, weights: str = "none") -> Job:
    settings = {
        "model.name": model, "model.weights": weights, "data.name": "tests.tiny:pictures", "search.batch_size": 50,
        "recovery.fold": False, "recovery.batchnorm_images": 60, "surgery.round_to": 2,
    }  # fmt: skip
    return open_job(load_recipe(None, settings))


@pytest.fixture(scope="module")
def large() -> Job:
    return job_of("tests.bench.test_peers:resnet20")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job_of("tests.tiny:network", str(trained_weights(tmp_path_factory.mktemp("peers") / "dense.safetensors")))


def caps_of(job: Job, **shares: float) -> tuple[Cap, ...]:
    full = job.trace.dense_costs()
    return tuple(Cap(job.trace.cost(unit), share * full[unit]) for unit, share in shares.items())


def problem_of(job: Job, trials: int = 64, **shares: float) -> Problem:
    caps = caps_of(job, **shares)
    return Problem(job.space, caps, lambda policy: job.measure(policy).accuracy, trials=trials, seed=0)


@pytest.mark.parametrize("shares", [{"macs": 0.5}, {"macs": 0.2}, {"params": 0.4, "macs": 0.6}])
def test_torch_prunings_policies_are_legal_and_under_all_caps(tiny: Job, shares: dict[str, float]) -> None:
    """Each is measurable as it is, keeps every group, and uses the caps as far as the steps allow."""
    caps = caps_of(tiny, **shares)
    policies = np.array(TorchPruning(tiny).policies(caps))
    assert 1 <= len(policies) <= 4 and tiny.space.is_legal(policies).all()
    assert (policies >= tiny.space.step).all()
    assert (utilisation(policies, caps) <= 1).all() and utilisation(policies, caps).max() > 0.7


def test_the_two_rankings_differ(large: Job) -> None:
    """Ranked among all layers or among layers of one structure, ResNet-20 gets different widths of nearly one cost."""
    caps = caps_of(large, macs=0.3)
    ours, theirs = TorchPruning(large).policies(caps), TorchPruning(large, isomorphic=True).policies(caps)
    assert {policy.tobytes() for policy in ours} != {policy.tobytes() for policy in theirs}
    for policies in (np.array(ours), np.array(theirs)):
        assert large.space.is_legal(policies).all() and (utilisation(policies, caps) <= 1).all()
        assert utilisation(policies, caps).max() > 0.9


def test_a_peer_is_measured_as_every_other_method(tiny: Job) -> None:
    """Its policies are in the problem with their objective values, and the dense network is what it was."""
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    methods = all_methods(tiny)
    assert list(methods)[-3:] == ["tp-magnitude", "tp-isomorphic", "modelopt-fastnas"]
    problem = run(methods["tp-magnitude"], problem_of(tiny, macs=0.4))
    policy, value = problem.best()
    assert value == tiny.measure(policy).accuracy
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.state_dict().items())


def test_trials_that_are_spent_end_a_peer(tiny: Job) -> None:
    """With one trial, one of its policies is measured."""
    assert len(run(TorchPruning(tiny), problem_of(tiny, trials=1, macs=0.3)).policies) == 1


def test_the_widths_of_a_cut_network_are_its_policy(large: Job) -> None:
    """What we cut ourselves is read back exactly."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        policy = rng.integers(1, large.space.high // large.space.step, endpoint=True) * large.space.step
        small = large.measure.cut(policy)
        assert (policy_left(large, small) == policy).all()
        assert kept_fractions(large, small) == pytest.approx(policy / large.space.high)


def test_a_network_with_other_tensors_has_no_policy(large: Job) -> None:
    """One line names the tensor."""
    with pytest.raises(PeerFailed, match=r"conv1.weight is gone") as caught:
        policy_left(large, nn.Linear(2, 2))
    assert "\n" not in str(caught.value)


def test_a_network_that_torch_pruning_cannot_follow_is_told_in_one_line() -> None:
    """It follows gradients; where there are none it removes nothing, and no ratio meets a cap."""
    job = job_of("tests.bench.test_peers:closed")
    with pytest.raises(PeerFailed, match=r"its smallest network takes 2\.00 times") as caught:
        run(TorchPruning(job), problem_of(job, macs=0.5))
    assert "\n" not in str(caught.value)


def test_an_error_inside_torch_pruning_is_told_in_one_line(tiny: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, a method raises what the comparison can show."""

    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("integer division\nor modulo by zero")

    monkeypatch.setattr("torch_pruning.pruner.BasePruner.step", fail)
    with pytest.raises(PeerFailed, match=r"^torch-pruning fails on this network: ZeroDivisionError: integer"):
        run(TorchPruning(tiny), problem_of(tiny, macs=0.5))


def test_fastnas_asks_for_enough_trials_and_a_cap_that_it_knows(tiny: Job) -> None:
    """One width beside the whole for every group is the least it can choose from."""
    caps = caps_of(tiny, macs=0.5)
    with pytest.raises(PeerFailed, match="needs at least 4 trials for 2 groups, but has 3"):
        FastNAS(tiny).policy(caps, trials=3)
    activations = Cap(tiny.trace.activation_bytes, 1e9)
    with pytest.raises(PeerFailed, match="takes caps in macs, params, bytes"):
        FastNAS(tiny).policy((activations,), trials=64)


def test_a_missing_modelopt_is_told_with_its_mend(tiny: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that brings it is named."""
    monkeypatch.setitem(sys.modules, "modelopt.torch.prune", None)
    with pytest.raises(MissingExtra, match=r"pip install 'amc-compress\[bench\]'"):
        FastNAS(tiny).policy(caps_of(tiny, macs=0.5), trials=64)


def test_a_cap_below_fastnas_smallest_network_is_told(tiny: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own message is a table of many lines."""
    prune = ModuleType("modelopt.torch.prune")

    def fail(*args: object) -> None:
        raise ValueError("Profiling Results\n---\nnot satisfiable")

    rules = ModuleType("modelopt.torch.prune.fastnas")
    vars(prune)["prune"] = fail
    vars(rules)["FastNASConfig"] = lambda: SimpleNamespace(model_dump=dict)
    for module in (ModuleType("modelopt"), ModuleType("modelopt.torch"), prune, rules):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(PeerFailed, match=r"FastNAS can prune no network to .* flops; raise the cap"):
        FastNAS(tiny).policy(caps_of(tiny, macs=0.5), trials=64)


def test_fastnas_keeps_to_caps_and_trials(tiny: Job) -> None:
    """Its policy is under both caps; evaluations and trial are no more than the trials; later caps need no more."""
    pytest.importorskip("modelopt.torch.prune")
    method, problem = FastNAS(tiny), problem_of(tiny, trials=12, macs=0.6, params=0.9)
    policy, _ = run(method, problem).best()
    assert utilisation(policy[None], problem.caps)[0] <= 1 and 0 < method.calls <= 11
    calls = method.calls
    looser = method.policy(caps_of(tiny, macs=0.9), trials=12)
    assert method.calls == calls and (looser >= policy).all()
