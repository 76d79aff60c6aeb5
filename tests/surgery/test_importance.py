"""Criteria of importance, each against its formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from amc.surgery.channel_table import ranks
from amc.surgery.cutting import named_tensors
from amc.surgery.importance import CRITERIA, Criterion, Slices, Statistics, channel_scores, criterion_of, rank_channels
from amc.surgery.random_parameters import randomise
from amc.surgery.settings import IMPORTANCE, SurgerySettings
from amc.system.errors import UsageError
from tests.surgery.networks import Traced, traced


class Stream(nn.Module):
    """A stream of eight channels that three layers write and read, and a classifier behind a flattened picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.outer, self.fc = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        x = x + self.outer(relu(self.inner(x)))
        return torch.as_tensor(self.fc(x[:, :, ::4, ::4].flatten(1)))


HELD = {  # group -> the tensors that hold it: name, dimension, indices of one channel
    "stem": [("stem.weight", 0, 1), ("inner.weight", 1, 1), ("outer.weight", 0, 1), ("fc.weight", 1, 4)],
    "inner": [("inner.weight", 0, 1), ("outer.weight", 1, 1)],
}


def network() -> tuple[Traced, Statistics]:
    """The network above and two batches for it."""
    net = traced(randomise(Stream(), seed=1), (3, 8, 8), round_to=1)
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 3, 8, 8, generator=draw), torch.arange(6) % 5) for _ in range(2)]
    return net, Statistics(net.model, lambda: batches)


def slices(name: str, dim: int, run: int, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The entries of each channel in one tensor, flattened."""
    rows = tensors[name].detach().double().movedim(dim, 0).flatten(1)
    return [rows[first : first + run].flatten() for first in range(0, len(rows), run)]


def gradients(net: Traced, statistics: Statistics) -> dict[str, Tensor]:
    """Of the loss summed over all examples."""
    net.model.zero_grad()
    for inputs, labels in statistics.batches():
        cross_entropy(net.model(inputs), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad.clone() for name, parameter in net.model.named_parameters() if parameter.grad is not None
    }


def inputs_of(net: Traced, statistics: Statistics, name: str) -> Tensor:
    """Mean squares of a layer's input channels, over examples and places."""
    seen: list[Tensor] = []
    layer = net.model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in statistics.batches():
        net.model(batch[0])
    handle.remove()
    x = torch.cat(seen).detach().double()
    return x.square().mean([dim for dim in range(x.ndim) if dim != 1])


def formula(kind: str, net: Traced, statistics: Statistics, name: str, dim: int, run: int) -> list[float] | None:
    """The importance of each channel in one tensor, as the papers write it."""
    tensors = named_tensors(net.model)
    own = slices(name, dim, run, tensors)
    norms = [math.fsum((x * x).tolist()) for x in own]
    if kind == "magnitude":
        return norms
    if kind == "taylor":
        slopes = slices(name, dim, run, gradients(net, statistics))
        return [abs(math.fsum((w * g).tolist())) for w, g in zip(own, slopes, strict=True)]
    if kind == "lamp":
        return [norm / math.fsum(other for other in norms if other >= norm) for norm in norms]
    if kind == "geometric_median":
        return [math.fsum(float((x - y).square().sum().sqrt()) for y in own) for x in own]
    if dim != 1:
        return None
    squares = inputs_of(net, statistics, name.removesuffix(".weight")).tolist()
    return [math.fsum(squares[first : first + run]) for first in range(0, len(squares), run)]


@pytest.mark.parametrize("kind", CRITERIA)
def test_a_criterion_is_its_formula_averaged_over_the_tensors_of_a_group(kind: str) -> None:
    """In each tensor in units of the group's mean; a stream written by two layers and read by two, and a plain one."""
    net, statistics = network()
    assert [group.name for group in net.table.groups] == list(HELD)
    found = channel_scores(net.table, named_tensors(net.model), CRITERIA[kind], statistics)
    for number, places in enumerate(HELD.values()):
        told = [each for place in places if (each := formula(kind, net, statistics, *place)) is not None]
        wanted = np.mean([np.array(each) / np.mean(each) for each in told], axis=0)
        assert found[net.table.channel_group == number].tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_small_channels_go_first_and_copies_before_others() -> None:
    """Whatever measures size ranks channels scaled down everywhere last; the geometric median also finds a double."""
    net, statistics = network()
    with torch.no_grad():
        for name, dim, _ in HELD["inner"]:
            weight = getattr(net.model, name.partition(".")[0]).weight
            weight.select(dim, 2).mul_(1e-3)
            weight.select(dim, 4).copy_(weight.select(dim, 5))
    inner = net.table.channel_group == 1
    for kind in ("magnitude", "taylor", "lamp"):
        assert (
            int(rank_channels(net.model, net.table, kind, Statistics(net.model, statistics.batches))[inner].argmax())
            == 2
        )
    scores = channel_scores(net.table, named_tensors(net.model), CRITERIA["geometric_median"])[inner]
    assert scores[4] == pytest.approx(float(scores[5]))


def test_channels_that_no_layer_reads_fall_back_on_magnitude() -> None:
    """Where a criterion says nothing of any tensor of a group, the group is ranked by magnitude."""
    net, _ = network()
    tensors = named_tensors(net.model)
    assert torch.equal(channel_scores(net.table, tensors, lambda found: None), channel_scores(net.table, tensors))


def largest(found: Slices) -> Tensor:
    """A criterion of a user's: the largest weight."""
    return found.weights.abs().amax(1)


def test_a_function_or_its_name_is_a_criterion() -> None:
    """`package.module:function` and the function itself give the same ranks, those of the function's numbers."""
    net, _ = network()
    by_name = rank_channels(net.model, net.table, "tests.surgery.test_importance:largest")
    assert np.array_equal(by_name, rank_channels(net.model, net.table, largest))
    assert np.array_equal(by_name, ranks(net.table, channel_scores(net.table, named_tensors(net.model), largest)))
    assert not np.array_equal(by_name, rank_channels(net.model, net.table, "magnitude"))


def test_what_a_function_gives_is_checked() -> None:
    """One line for a wrong shape, a negative number, an exception, an unknown name, and statistics that are missing."""
    net, _ = network()
    wrongs: list[Criterion] = [lambda found: found.weights, lambda found: -largest(found), lambda found: found.nothing]  # type: ignore[attr-defined]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="the criterion <lambda> must give"):
            rank_channels(net.model, net.table, wrong)
    with pytest.raises(UsageError, match=r"must be magnitude, taylor, .* but is 'size'"):
        criterion_of("size")
    with pytest.raises(UsageError, match="needs training data"):
        rank_channels(net.model, net.table, "taylor")


def test_taylor_needs_a_loss() -> None:
    """Examples without labels, and no loss of the user's, are refused with the fix."""
    net, _ = network()
    with pytest.raises(UsageError, match="needs a loss"):
        rank_channels(net.model, net.table, "taylor", Statistics(net.model, lambda: [(torch.randn(2, 3, 8, 8),)]))


def test_a_recipe_offers_every_criterion() -> None:
    """The names that a recipe takes are those of the dictionary."""
    assert IMPORTANCE[:-1] == tuple(CRITERIA)
    for name in (*CRITERIA, "package.module:function"):
        assert SurgerySettings(importance=name).importance == name
