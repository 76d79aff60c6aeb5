"""Networks that were not cut from the base: what is taken, and what is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amc.cascade.planning.external_models import external_model
from amc.cascade.stages.component import cached_records
from amc.release.archive import save_network
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.zoo.call import Call
from amc.zoo.data.splits import Splits
from amc.zoo.networks.checkpoint import read_weights
from amc.zoo.networks.source import ModelSource
from tests.tiny import network, pictures, trained_weights

CPU = Compute(torch.device("cpu"), False)
NORMALISED = {"mean": [0.286], "std": [0.353]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_weights(tmp_path_factory.mktemp("independent") / "small.safetensors")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return pictures()


def known() -> nn.Module:
    """A factory that brings its own weights: those of the shipped ResNet-20."""
    from amc.zoo.networks.source import build_model

    return build_model("resnet20", weights="default", num_classes=10, in_channels=1)


def two_answers() -> nn.Module:
    class Two(nn.Module):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs.mean((1, 2, 3)), inputs

    return Two()


def test_a_name_a_factory_and_a_file_give_networks_with_their_costs(weights: Path, splits: Splits) -> None:
    """Each is in `eval` mode, with its multiply-adds, and the same network by two ways gives equal logits."""
    given = ["resnet20", "tests.cascade.test_external_models:known", f"tests.tiny:network@{weights}"]
    found = [external_model(text, splits, CPU) for text in given]
    assert [member.name for member in found] == [
        "resnet20",
        "tests.cascade.test_external_models-known",
        "network-small",
    ]
    for member in found:
        assert member.macs == count_cut_macs(member.model, Call((torch.zeros(1, 1, 28, 28),)))
        assert not member.model.training and member.origin == "external"
    records = [cached_records(member, splits.validation, CPU) for member in found]
    assert torch.equal(records[0].logits, records[1].logits)
    assert records[0].accuracies[0] > records[2].accuracies[0] > 0.3


def test_a_release_is_taken_from_its_folder(tmp_path: Path, weights: Path, splits: Splits) -> None:
    """It computes what the saved network does."""
    model, source = network().eval(), ModelSource("tests.tiny:network")
    model.load_state_dict(read_weights(weights))
    save_network(tmp_path / "kept", model, source, (1, 28, 28), NORMALISED)
    member = external_model(str(tmp_path / "kept"), splits, CPU)
    inputs = torch.randn(3, 1, 28, 28)
    assert member.name == "kept"
    torch.testing.assert_close(member.model(inputs), model(inputs))
    member.save(tmp_path / "again")
    again = external_model(str(tmp_path / "again"), splits, CPU)
    torch.testing.assert_close(again.model(inputs), model(inputs))


def test_two_networks_of_one_name_are_told_apart(splits: Splits) -> None:
    """The second gets a number."""
    first = external_model("resnet20", splits, CPU)
    assert external_model("resnet20", splits, CPU, {first.name}).name == "resnet20-2"


def test_a_release_for_other_inputs_or_another_normalisation_is_refused(
    tmp_path: Path, weights: Path, splits: Splits
) -> None:
    """The message gives both shapes or both means."""
    model, source = network().eval(), ModelSource("tests.tiny:network")
    save_network(tmp_path / "larger", model, source, (1, 32, 32), NORMALISED)
    save_network(tmp_path / "centred", model, source, (1, 28, 28), {"mean": [0.5], "std": [0.5]})
    with pytest.raises(ModelError, match=r"reads \(1, 32, 32\)"):
        external_model(str(tmp_path / "larger"), splits, CPU)
    with pytest.raises(ModelError, match=r"mean \(0\.286\), but .* was with \(0\.5\)"):
        external_model(str(tmp_path / "centred"), splits, CPU)


def test_a_network_with_other_classes_or_no_logits_is_refused(weights: Path, splits: Splits) -> None:
    """The message gives the shape that is needed."""
    with pytest.raises(ModelError, match="logits"):
        external_model("tests.cascade.test_external_models:two_answers", splits, CPU)
    with pytest.raises(ModelError, match=r"logits \(250, 12\)"):
        external_model("tests.cascade.test_external_models:known", replace(splits, num_classes=12), CPU)


def test_a_network_whose_classes_stand_in_another_order_is_refused(
    tmp_path: Path, weights: Path, splits: Splits
) -> None:
    """Worse than chance on labelled data means other labels."""
    state = read_weights(weights)
    state["fc.weight"], state["fc.bias"] = (state[f"fc.{name}"].roll(1, 0).contiguous() for name in ("weight", "bias"))
    save_file(state, tmp_path / "rolled.safetensors")
    with pytest.raises(ModelError, match="no better than chance"):
        external_model(f"tests.tiny:network@{tmp_path / 'rolled.safetensors'}", splits, CPU)


@pytest.mark.parametrize("text", ["no_such_network", "resnet20@", "resnet20@/nowhere/file.safetensors"])
def test_what_is_not_there_is_told_in_one_line(text: str, splits: Splits) -> None:
    """An unknown name, factory or file is a `ModelError`."""
    with pytest.raises(ModelError) as reported:
        external_model(text, splits, CPU)
    assert "\n" not in str(reported.value)


def test_a_folder_without_a_release_is_refused(tmp_path: Path, splits: Splits) -> None:
    """The message says what is needed."""
    with pytest.raises(ModelError, match="must be a release"):
        external_model(str(tmp_path), splits, CPU)
