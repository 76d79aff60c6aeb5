"""Sizes that code asks for in its own ways are answered with what is left, whatever the batch and the mode."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu, scaled_dot_product_attention

from amc.surgery.cutting import cut_channels, zero_channels
from amc.surgery.proof import proved_table
from amc.surgery.shape_patches import ShapePatched, call_site
from amc.zoo.call import Call
from tests.surgery.compositions import Net
from tests.surgery.networks import Traced, random_policy, randomise
from tests.surgery.traps import Does

WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "view": lambda me, x: x.view(-1, 12, 8, 8),
    "view of a tuple": lambda me, x: x.view((-1, 12, 8, 8)),
    "reshape": lambda me, x: x.reshape(x.shape[0], 12, 64).reshape(-1, 12, 8, 8),
    "reshape by name": lambda me, x: x.reshape(shape=(-1, 12, 8, 8)),
    "reshape of torch": lambda me, x: torch.reshape(x, (len(x), 12, 8, 8)),
    "merged with the batch": lambda me, x: relu(x.reshape(len(x) * 12, 64)).view(len(x), 12, 8, 8),
    "unflatten": lambda me, x: x.flatten(1).unflatten(1, (12, 8, 8)),
    "expand": lambda me, x: x + me.free.view(1, 12, 1, 1).expand(len(x), 12, 8, 8),
    "split": lambda me, x: torch.cat(x.split([4, 8], 1), 1),
    "split by name": lambda me, x: torch.cat(torch.split(x, split_size_or_sections=[4, 8], dim=1), 1),
    "chunk": lambda me, x: torch.cat([part.tanh() for part in x.chunk(2, 1)], 1),
    "part": lambda me, x: torch.cat([x[:, :5].sigmoid(), x[:, 5:12]], 1),
    "part with dots": lambda me, x: torch.cat([x[:, :5], x[..., 5:12, :, :].tanh()], 1),
    "in a loop": lambda me, x: torch.stack([one.view(12, 64).tanh() for one in x]).view(-1, 12, 8, 8),
    "by a helper": lambda me, x: _merged(_merged(x, 4).view(-1, 12, 8, 8), 8).view(-1, 12, 8, 8),
    "in a condition": lambda me, x: (x * 0.5 * 1.0 if me.training else x.mul(0.5)).view(-1, 12, 8, 8),
    "divided by a root": lambda me, x: x.reshape(-1, 12, 8, 8) / x.shape[1] ** 0.5,
    "multiplied by a root": lambda me, x: x * x.shape[1] ** -0.5,
    "own attention": lambda me, x: _attended(x.flatten(2).mT.unsqueeze(1))[:, 0].mT.view(-1, 12, 8, 8),
}  # fmt: skip


def _attended(x: Tensor) -> Tensor:
    return scaled_dot_product_attention(x, x, x)


def _merged(x: Tensor, rows: int) -> Tensor:
    return x.reshape(len(x), 12 * rows, -1)


@lru_cache
def proved(way: str) -> Traced:
    torch.manual_seed(0)
    model = randomise(Net(Does(WAYS[way]), 16))
    inputs = torch.randn(1, 3, 8, 8)
    return Traced(model, proved_table(model, Call((inputs,))), inputs, {})


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("way", WAYS)
def test_sizes_follow_however_they_are_asked_for(way: str, batch: int) -> None:
    """Twelve channels written into the code, or read from a shape: they can be cut, and the cut is exact."""
    net = proved(way)
    assert sum(g.size for g in net.table.groups if g.name.startswith("middle.a")) == 12
    inputs = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for seed in range(3):
        kept = net.kept(random_policy(net.table, seed), seed)
        for training in (False, True):
            small, zeroed = (make(net.model, net.table, kept).train(training) for make in (cut_channels, zero_channels))
            with torch.no_grad():
                ours, theirs = small(inputs), zeroed(inputs)
            assert float((ours - theirs).abs().max()) <= 2e-5 * float(theirs.abs().max())


def test_only_modules_that_ask_for_sizes_are_answered() -> None:
    """No stand-in elsewhere, nor where nothing is cut."""
    net = proved("view")
    for policy, expected in ((net.table.space.high, set()), (net.table.space.step, {"middle"})):
        small = cut_channels(net.model, net.table, net.kept(policy))
        assert {name for name, module in small.named_modules() if isinstance(module, ShapePatched)} == expected


def test_a_place_is_told_by_the_lines_of_its_functions_alone() -> None:
    """The same code elsewhere in a file, or in a comprehension or not, has the same places."""
    outer = "def outer(place):\n    return inner(place)\n"
    code = f"\n{outer}def inner(place):\n    return [place()\n        for _ in [1]][0]\n"
    found = []
    for shift in (0, 40):
        names: dict[str, Any] = {}
        exec(compile("\n" * shift + code, "somewhere.py", "exec"), names)
        found.append(names["outer"](call_site)[0])
    assert found[0] == found[1] and found[0].endswith("outer+1:23 > inner+1:19")
