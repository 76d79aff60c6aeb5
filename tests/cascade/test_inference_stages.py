"""Stages made ready for inference answer as the trained ones do, and leave them as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.cascade.methods.exits.exit_network import exit_network
from amc.cascade.serving.inference_stages import folded, for_inference
from amc.cascade.stages.stage import NetworkStage, Stage, StageCost, State
from amc.system.device import Compute
from amc.zoo.networks.source import build_model
from tests.cascade.cascades import CLASSES, some_inputs, some_stages
from tests.tiny import residual

CPU, SHORT = Compute(torch.device("cpu"), False), Compute(torch.device("cpu"), True)


def stir(network: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and scales as after a training: folding them is no identity."""
    draw = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, least in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight.data, 0.5)):
                if tensor is not None:
                    tensor.copy_(least + torch.rand(tensor.shape, generator=draw))
    return network.eval()


@torch.inference_mode()
def outputs_of(stages: tuple[Stage, ...], inputs: Tensor, compute: Compute) -> list[Tensor]:
    state: State = {}
    found = []
    with compute.autocast():
        for stage in stages:
            logits, state = stage.run(inputs, state)
            found.append(logits.float())
    return found


def norms(stages: tuple[Any, ...]) -> int:
    modules = [module for stage in stages for part in (*stage.bodies, stage.head) for module in part.modules()]
    return sum(isinstance(module, nn.BatchNorm2d) for module in modules)


def exits(inputs: Tensor) -> tuple[Any, ...]:
    torch.manual_seed(0)
    network = exit_network(residual(), inputs[:1], fractions=(0.2, 0.6), hidden=16)
    stir(network)
    return network.stages()


def test_folded_stages_answer_as_they_did_in_float32_and_the_given_ones_are_untouched() -> None:
    """Folding BatchNorm changes outputs by 1e-4 at most, in copies."""
    inputs = torch.randn(7, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    stages = exits(inputs)
    wanted = outputs_of(stages, inputs, CPU)
    ready = for_inference(stages, inputs, CPU)
    assert norms(stages) > 0 and norms(ready) == 0
    for new, old in zip(outputs_of(ready, inputs, CPU), wanted, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(new, old) for new, old in zip(outputs_of(stages, inputs, CPU), wanted, strict=True))
    assert [stage.cost for stage in ready] == [stage.cost for stage in stages]


def test_weights_rounded_beforehand_multiply_as_those_that_autocast_rounds() -> None:
    """bfloat16 weights give what autocast gives on the same shapes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(288), nn.Linear(288, CLASSES))
    stages = (NetworkStage("plain", network.eval(), StageCost("plain", 1)),)
    inputs = some_inputs()
    ready = for_inference(stages, inputs, SHORT)
    assert isinstance(ready[0], NetworkStage)
    assert sum(parameter.dtype == torch.bfloat16 for parameter in ready[0].model.parameters()) == 4
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    (new,), (old,) = outputs_of(ready, inputs, SHORT), outputs_of(stages, inputs, SHORT)
    assert torch.equal(new, old)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:vit_b_16"])
@pytest.mark.slow
def test_networks_of_the_zoo_answer_as_they_did(name: str) -> None:
    """Prepared for inference, outputs stay within 1e-3."""
    network = stir(build_model(name, num_classes=10))
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    stages = (NetworkStage(name, network, StageCost(name, 1)),)
    ready = for_inference(stages, inputs, CPU)
    assert ready[0] is not stages[0]
    (new,), (old,) = outputs_of(ready, inputs, CPU), outputs_of(stages, inputs, CPU)
    torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)


def test_a_network_whose_trace_answers_otherwise_stays_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Stages that look at what they are given are traced on one side of the question alone."""
    inputs = some_inputs(6)
    stages = some_stages(wrap=lambda module: module)
    ready = for_inference(stages, inputs, CPU)
    assert [new is old for new, old in zip(ready, stages, strict=True)] == [False, False, True, False]
    assert not capfd.readouterr().err  # torch.fx prints what it fails in
    for new, old in zip(outputs_of(ready, inputs, CPU), outputs_of(stages, inputs, CPU), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_a_norm_whose_layer_is_read_elsewhere_or_counts_the_batch_is_not_folded() -> None:
    """Only where nothing else sees the difference is BatchNorm folded."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.free = nn.BatchNorm2d(4, track_running_stats=False)
            self.twice = nn.Conv2d(4, 4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.conv(inputs)
            maps = self.norm(maps) + maps
            outputs: Tensor = self.twice(self.free(self.twice(maps))).mean((2, 3))
            return outputs

    network = stir(Both())
    made = folded(network)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in made.modules()) == 2
    torch.testing.assert_close(made(some_inputs()), network(some_inputs()))
