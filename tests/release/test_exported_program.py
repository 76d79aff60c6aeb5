import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc.release.archive import RECORD, load_network, save_network
from amc.release.exported_program import load_program
from amc.surgery.cutting import cut_channels
from amc.system.errors import ModelError, RunError
from amc.zoo.call import Call
from amc.zoo.networks.source import ModelSource
from tests.surgery.networks import SOUND, Traced, randomise, traced

KIND = "flattened"
SHAPE = (3, 8, 8)


class Fussy(nn.Module):
    """A network that can be run and cut, but not exported."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if float(x.sum()) == 1.234:
            raise ArithmeticError
        found: Tensor = self.second(x).flatten(1)
        return found


def cut() -> tuple[Traced, ModelSource, nn.Module]:
    """A network handed over as an object: its source, and it at its smallest."""
    net = traced(randomise(SOUND[KIND][0]()), SHAPE)
    source = ModelSource.of_object(SOUND[KIND][0]())
    return net, source, cut_channels(net.model, net.table, net.kept(net.table.space.low))


def test_a_network_handed_over_as_an_object_comes_back(tmp_path: Path) -> None:
    """Onto a fresh instance or by a function that makes one, bit for bit; the instance given stays as it is."""
    net, source, small = cut()
    save_network(tmp_path, small, source, SHAPE)
    fresh = SOUND[KIND][0]()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with torch.no_grad():
        wanted = small(net.inputs)
        for model in (fresh, SOUND[KIND][0]):
            assert torch.equal(load_network(tmp_path, model)(net.inputs), wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_without_a_fresh_instance_the_fix_is_named(tmp_path: Path) -> None:
    """The record names the class alone, which nothing imports; a model of another kind is refused."""
    _, source, small = cut()
    save_network(tmp_path, small, source, SHAPE)
    assert json.loads((tmp_path / RECORD).read_text())["source"]["name"].startswith("object:")
    with pytest.raises(ModelError, match="give model="):
        load_network(tmp_path)
    with pytest.raises(ModelError, match="must have"):
        load_network(tmp_path, nn.Linear(2, 2))
    with pytest.raises(ModelError, match="must return an"):
        load_network(tmp_path, lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        load_network(tmp_path, lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def test_the_program_needs_no_code(tmp_path: Path) -> None:
    """Beside the release of an object there is a program that computes the same for any number of examples."""
    net, source, small = cut()
    save_network(tmp_path, small, source, SHAPE, example=Call((net.inputs[:1],)))
    assert json.loads((tmp_path / RECORD).read_text())["program"] == {"file": "model.pt2", "batch": "any"}
    program = load_program(tmp_path).module()
    for number in (1, 2, 5):
        inputs = torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            torch.testing.assert_close(program(inputs), small.eval()(inputs))


def test_what_cannot_be_exported_is_told_and_saved_all_the_same(tmp_path: Path) -> None:
    """The record says why there is no program, and asking for it is one clear error."""
    model = Fussy()
    save_network(tmp_path, model, ModelSource.of_object(model), SHAPE, example=Call((torch.randn(1, *SHAPE),)))
    assert json.loads((tmp_path / RECORD).read_text())["program"]["missing"]
    assert load_network(tmp_path, Fussy) is not None
    with pytest.raises(RunError, match="there is none"):
        load_program(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"no program")
    with pytest.raises(RunError, match=r"must be a torch\.export program"):
        load_program(tmp_path)
