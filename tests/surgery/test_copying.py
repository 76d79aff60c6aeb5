"""`with_tensors` copies a network's modules as `copy.deepcopy` would, only faster."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.surgery.cutting import named_tensors, with_tensors


class Odd(nn.Module):
    """Attributes of every kind: modules in a list, a table and a closure's reach, tensors outside the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a  # one module under two names
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])
        self.again = [self.a, self.blocks[0]]
        self.table = {"first": self.a, 2: [1, 2]}
        self.also = self.table  # one table under two names
        self.sizes, self.names = (4, (2, 3)), {"x", "y"}
        self.scale = torch.ones(4)
        self.seen: list[int] = []
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.a.weight
        self.register_buffer("running", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        for module in self.again:
            x = module(x) * self.scale
        return self.tied(x) + self.running  # type: ignore[no-any-return, operator]


class Stubborn(nn.Linear):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
        twin = Stubborn(self.in_features, self.out_features)
        twin.told = True  # type: ignore[assignment]
        return twin


def twin_of(model: nn.Module) -> nn.Module:
    return with_tensors(model, {name: tensor.detach() for name, tensor in named_tensors(model).items()})


def test_attributes_refer_to_the_copies() -> None:
    """Lists, tables and second names lead to the copied modules; shared weights and tables stay shared."""
    model = Odd().eval()
    twin = twin_of(model)
    assert isinstance(twin, Odd) and not twin.training
    assert twin.b is twin.a is twin.again[0] is twin.table["first"] is not model.a
    assert twin.again[1] is twin.blocks[0] is not model.blocks[0]
    assert twin.also is twin.table is not model.table and twin.table[2] is not model.table[2]
    assert twin.tied.weight is twin.a.weight is not model.a.weight
    assert (twin.sizes, twin.names, twin.seen) == (model.sizes, model.names, [])
    assert twin.state_dict().keys() == model.state_dict().keys()
    inputs = torch.randn(3, 4)
    assert torch.equal(twin(inputs), model(inputs)) and twin.seen == [3] and twin.seen is not model.seen


def test_hooks_are_copied_with_what_they_are_bound_to() -> None:
    """A hook that is a method of the network becomes the copy's; a function stays; new hooks stay apart."""

    class Hooked(nn.Linear):
        calls = 0

        def note(self, *args: Any) -> None:
            self.calls += 1

    model = nn.Sequential(Hooked(4, 4))
    model[0].register_forward_hook(model[0].note)  # type: ignore[arg-type, operator]
    twin = twin_of(model)
    twin(torch.zeros(1, 4))
    assert (model[0].calls, twin[0].calls) == (0, 1)  # type: ignore[index]
    twin[0].register_forward_hook(lambda *args: None)  # type: ignore[index]
    assert len(model[0]._forward_hooks) == 1


def test_a_class_that_copies_itself_is_asked() -> None:
    """Its own `__deepcopy__` is called, as `copy.deepcopy` would."""
    twin = twin_of(nn.Sequential(Stubborn(4, 4), nn.ReLU()))
    assert twin[0].told  # type: ignore[index]


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "convnext_tiny", "vit_b_16"])
def test_networks_are_copied_attribute_by_attribute(name: str) -> None:
    """Every attribute that can be compared is the one that `copy.deepcopy` gives, for every module."""
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    twin, wanted = twin_of(model), copy.deepcopy(model)
    pairs = list(zip(twin.named_modules(), wanted.named_modules(), strict=True))
    for (path, ours), (theirs_path, theirs) in pairs:
        assert path == theirs_path and type(ours) is type(theirs) and list(ours.__dict__) == list(theirs.__dict__)
        for key, value in theirs.__dict__.items():
            assert type(ours.__dict__[key]) is type(value)
            if isinstance(value, (bool, int, float, str, tuple, set)):
                assert ours.__dict__[key] == value
