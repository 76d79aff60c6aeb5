import copy
import json
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.layers.std_conv import ScaledStdConv2dSame
from torch import Tensor, nn

from amc.surgery.empty_branch import replace_if_empty
from amc.surgery.materialised import materialise
from amc.surgery.narrow_attention import narrow_attention
from amc.surgery.narrow_norm import narrow_norm
from amc.surgery.replacement_records import replacement_record, restore_replacement
from amc.system.errors import ModelError
from tests.surgery.exactness import assert_exact


class Hybrid(nn.Module):
    """A network with one of each: derived weights, a picture norm, a branch, attention, a token norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = ScaledStdConv2dSame(3, 8, 3, stride=2), LayerNorm2d(8)
        self.inner, self.between, self.outer = nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1)
        self.tokens, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 4, batch_first=True)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.outer(self.between(self.inner(x)))
        x = self.tokens(self.pool(x).flatten(2).transpose(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return torch.as_tensor(self.head(x.mean(1)))


KEPT, HEADS = torch.tensor([0, 2, 3, 5, 7]), torch.tensor([1, 2])


def networks() -> tuple[Any, Any]:
    """The dense network with zeros where channels, a branch and heads went, and what is left of it."""
    torch.manual_seed(0)
    dense: Any = Hybrid().eval()
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.5)
    materialise(dense, torch.randn(1, 3, 12, 12))
    small = copy.deepcopy(dense)
    rows = (HEADS[:, None] * 2 + torch.arange(2)).flatten()
    three, nothing = torch.cat([rows, rows + 8, rows + 16]), torch.arange(0)
    kept: dict[str, dict[int, Tensor]] = {
        "stem.weight": {0: KEPT}, "stem.bias": {0: KEPT}, "norm.weight": {0: KEPT}, "norm.bias": {0: KEPT},
        "inner.weight": {0: nothing, 1: KEPT}, "inner.bias": {0: nothing}, "outer.weight": {0: KEPT, 1: nothing},
        "outer.bias": {0: KEPT}, "tokens.weight": {0: KEPT}, "tokens.bias": {0: KEPT}, "head.weight": {1: KEPT},
        "between.weight": {0: nothing}, "between.bias": {0: nothing}, "between.running_mean": {0: nothing},
        "between.running_var": {0: nothing}, "attention.in_proj_weight": {0: three, 1: KEPT},
        "attention.in_proj_bias": {0: three}, "attention.out_proj.weight": {0: KEPT, 1: rows},
        "attention.out_proj.bias": {0: KEPT},
    }  # fmt: skip
    with torch.no_grad():
        for name, dims in kept.items():
            path, _, own = name.rpartition(".")
            module, full = small.get_submodule(path), dense.get_submodule(path)
            value, mask = getattr(module, own).detach(), torch.ones_like(getattr(full, own))
            for dim, left in dims.items():
                value = value.index_select(dim, left)
                gone = torch.tensor([i for i in range(mask.shape[dim]) if i not in left], dtype=torch.long)
                mask.index_fill_(dim, gone, 0)
            if own in module._parameters:
                module._parameters[own] = nn.Parameter(value)
            else:
                module._buffers[own] = value
            if own != "running_var":
                getattr(full, own).mul_(mask)
    narrow_norm(small.norm, 8, None)
    narrow_norm(small.tokens, 8, None)
    narrow_attention(small.attention, 2, 2, 2**-0.5)
    for module in small.modules():
        replace_if_empty(module)
    return dense, small


def test_a_cut_network_computes_what_the_dense_one_does_with_zeros() -> None:
    """All stand-ins at once."""
    dense, small = networks()
    x = torch.randn(2, 3, 12, 12)
    assert_exact(small(x), dense(x))


def test_a_cut_network_is_rebuilt_from_its_factory_its_records_and_its_tensors() -> None:
    """Records are JSON; applied to the dense skeleton before its tensors are replaced, they give the same network."""
    _, small = networks()
    records = json.loads(json.dumps({name: replacement_record(module) for name, module in small.named_modules()}))
    assert set(records["stem"]) == {"baked"} and set(records["norm"]) == {"norm"} and records["head"] == {}
    fresh = Hybrid().eval()
    for name, module in fresh.named_modules():
        restore_replacement(module, records[name])
    for name, value in small.state_dict().items():
        path, _, own = name.rpartition(".")
        module = fresh.get_submodule(path)
        store: Any = module._parameters if own in module._parameters else module._buffers
        store[own] = nn.Parameter(value) if store is module._parameters else value
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(fresh(x), small(x))
    assert {name: replacement_record(module) for name, module in fresh.named_modules()} == records


def test_a_cut_network_can_be_exported_and_trained() -> None:
    """Every parameter gets a gradient."""
    _, small = networks()
    x = torch.randn(2, 3, 12, 12)
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))
    assert_exact(exported.module()(x[:1]), small(x[:1]))
    small.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_record_of_an_unknown_kind_or_with_unknown_settings_is_refused() -> None:
    """In one line that names it."""
    with pytest.raises(ModelError, match="got 'folded'"):
        restore_replacement(nn.LayerNorm(8), {"folded": {}})
    with pytest.raises(ModelError, match="has no settings"):
        restore_replacement(nn.LayerNorm(8), {"norm": {"width": 3}})
    with pytest.raises(ModelError, match="are materialised into"):
        restore_replacement(nn.Linear(8, 8), {"baked": {"layer": "Sequential", "bias": True}})
    with pytest.raises(ModelError, match="only convolutions and linear layers"):
        restore_replacement(nn.LayerNorm(8), {"baked": {"layer": "Conv2d", "bias": True}})
