"""The proof: what is left in the table has been cut, and what could not be cut rightly says so."""

import copy

import pytest
import torch
from torch import Tensor, nn

from amc.surgery.cutting import cut_channels, zero_channels
from amc.surgery.proof import proved_table
from amc.system.errors import ModelError
from amc.zoo.call import Call
from tests.surgery.compositions import Net
from tests.surgery.networks import Traced, randomise
from tests.surgery.transformers import CASES
from tests.surgery.traps import Does

PICTURE = Call((torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),))


class Hidden(nn.Module):
    """A branch that is scaled by zero, as before training; in it the number of channels decides what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.act = Does(lambda me, x: x.tanh() if x.shape[1] >= 10 else x.sigmoid())
        self.gamma = nn.Parameter(torch.zeros(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.gamma * self.act(x)
        return out


def test_no_fault_hides_behind_a_zero() -> None:
    """A branch that counts for nothing before training is proved as if it counted."""
    table = proved_table(Net(Hidden(), 16), PICTURE)
    assert "middle.act.a" not in {group.name for group in table.groups}
    reason = next(frozen.reason for frozen in table.frozen if frozen.name == "middle.act.a")
    assert "not the same as zeroing" in reason


def test_a_proof_leaves_everything_as_it_found_it() -> None:
    """The network's numbers, modes and hooks, and torch's own random numbers."""
    model = CASES["fused"].make().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    proved_table(model, PICTURE)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_network_has_the_same_table() -> None:
    """Whatever its numbers, and however often it is proved."""
    tables = [proved_table(CASES["windows"].make(), PICTURE) for _ in range(2)]
    assert tables[0].groups == tables[1].groups and tables[0].frozen == tables[1].frozen


class Nothing(nn.Module):
    """All channels depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out: Tensor = self.b(x / x.shape[1])
        return out


def test_where_no_group_can_be_cut_one_line_says_why() -> None:
    """The error names a layer, the reason and the mend."""
    with pytest.raises(ModelError, match=r"none that can: a: cutting it is not the same.*`ignore`") as caught:
        proved_table(Nothing(), PICTURE)
    assert "\n" not in str(caught.value)


class Named(nn.Module):
    """A dictionary in, a tuple and a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 7, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, batch: dict[str, Tensor], *, scale: Tensor) -> tuple[Tensor, dict[str, Tensor | int]]:
        x = self.b(self.a(batch["picture"]).relu()).relu()
        return self.fc(x.mean((2, 3))) * scale, {"map": self.c(x), "count": 3}


def test_outputs_of_any_form_are_proved_whole() -> None:
    """Tensors in tuples and dictionaries keep their channels, and each is equal to that of zeroing."""
    torch.manual_seed(0)
    call = Call(({"picture": torch.randn(1, 3, 8, 8)},), {"scale": torch.ones(1, 1)})
    model = randomise(Named())
    table = proved_table(model, call)
    assert {group.name: group.size for group in table.groups} == {"a": 16, "b": 12}
    assert {frozen.name for frozen in table.frozen} == {"c", "fc"}
    kept = Traced(model, table, torch.empty(0), {}).kept(table.space.step)
    with torch.no_grad():
        (left, found), (right, expected) = (call.on(make(model, table, kept)) for make in (cut_channels, zero_channels))
    torch.testing.assert_close(left, right, rtol=0, atol=2e-5 * float(right.abs().max()))
    torch.testing.assert_close(found["map"], expected["map"], rtol=0, atol=2e-5 * float(expected["map"].abs().max()))
    assert found["count"] == 3


def test_ignored_modules_are_not_even_tried() -> None:
    """`ignore` holds through the proof, for attention as for convolutions."""
    table = proved_table(CASES["fused"].make(), PICTURE, ignore=["attn"])
    assert not any(group.name.startswith("attn") for group in table.groups)
    assert any("`ignore`" in frozen.reason for frozen in table.frozen)
