import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amc.release.archive import RECORD, WEIGHTS, load_network, read_architecture, save_network
from amc.surgery.cutting import cut_channels
from amc.system.errors import AmcError, ModelError, RunError
from amc.zoo.networks.source import ModelSource
from tests.surgery.networks import SIZES, SOUND, Traced, known, randomise, traced

ROOT = Path(__file__).parents[2]
NAMES = ("resnet20", "resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d", "vgg_small")
KEYS = ("format", "source", "layers", "standins", "input_shape", "normalisation", "channels_last", "weights_sha256")


def source(name: str) -> ModelSource:
    """Where `known(name)` comes from."""
    return ModelSource(name, num_classes=10, size=SIZES[name] if name == "vgg_small" else None)


def small(name: str, seed: int = 0) -> nn.Module:
    net = known(name)
    return cut_channels(net.model, net.table, net.kept(net.table.space.nearest(net.table.space.high * 0.4), seed))


def complaint(folder: Path, kind: type[AmcError] = RunError) -> str:
    with pytest.raises(kind) as caught:
        load_network(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_network_computes_the_same_bit_for_bit(tmp_path: Path, name: str, channels_last: bool) -> None:
    """Saved and loaded, a cut network gives the same output, in either memory format, in `eval` mode."""
    model = small(name)
    inputs = known(name).inputs
    if channels_last:
        model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    save_network(tmp_path, model.train(), source(name), tuple(inputs.shape[1:]))
    loaded = load_network(tmp_path)
    assert not loaded.training and read_architecture(tmp_path).channels_last == channels_last
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model.eval()(inputs))
    theirs = loaded.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in model.state_dict().items())


def own(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> tuple[Traced, ModelSource]:
    """One of the small networks, as a user's own factory gives it."""
    (folder / "amc_own_networks.py").write_text(
        "from tests.surgery.networks import SOUND\ndef make(kind):\n    return SOUND[kind][0]()\n"
    )
    monkeypatch.syspath_prepend(folder)
    net = traced(randomise(SOUND[kind][0]()), (3, 8, 8) if kind == "flattened" else (3, 12, 12))
    return net, ModelSource("amc_own_networks:make", options={"kind": kind})


@pytest.mark.parametrize("kind", SOUND)
def test_every_kind_of_layer_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Shared parameters, grouped and transposed convolutions, norms of all kinds: the same output bit for bit."""
    net, where = own(monkeypatch, tmp_path, kind)
    model = cut_channels(net.model, net.table, net.kept(net.table.space.low))
    save_network(tmp_path / "release", model, where, tuple(net.inputs.shape[1:]))
    loaded = load_network(tmp_path / "release", trust=where.name)
    with torch.no_grad():
        assert torch.equal(loaded(net.inputs), model(net.inputs))
    if kind.startswith("tied"):
        assert loaded.b.weight is loaded.c.weight


def test_frozen_parameters_are_saved_too(tmp_path: Path) -> None:
    """What was frozen is in the release like the rest."""
    model = small("resnet20")
    model.layer1.requires_grad_(False)
    save_network(tmp_path, model, source("resnet20"), (3, 16, 16))
    inputs = known("resnet20").inputs
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)(inputs), model(inputs))


def test_saving_leaves_the_network_alone(tmp_path: Path) -> None:
    """Its numbers, formats and modes are as they were."""
    model = small("resnet20").train()
    before = copy.deepcopy(model.state_dict())
    save_network(tmp_path, model, source("resnet20"), (3, 16, 16))
    assert model.training and model.layer1[0].conv1.out_channels == model.layer1[0].conv1.weight.shape[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_record_is_readable(tmp_path: Path) -> None:
    """`architecture.json` holds the documented keys, and each layer's widths that differ from the dense network's."""
    model = small("resnet20")
    normalisation = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    save_network(tmp_path, model, source("resnet20"), (3, 16, 16), normalisation)
    record = json.loads((tmp_path / RECORD).read_text())
    assert tuple(record) == KEYS
    assert record["format"] == "amc-architecture/1" and record["input_shape"] == [3, 16, 16]
    assert record["source"]["name"] == "resnet20" and record["normalisation"] == normalisation
    for name, widths in record["layers"].items():
        assert all(getattr(model.get_submodule(name), attribute) == value for attribute, value in widths.items())
    assert record["layers"]["fc"] == {"in_features": model.fc.in_features}
    assert "out_features" not in record["layers"]["fc"]


def test_a_dense_network_has_no_layer_to_tell(tmp_path: Path) -> None:
    """Where nothing was cut the record's `layers` is empty."""
    net = known("resnet20")
    save_network(tmp_path, net.model, source("resnet20"), (3, 16, 16))
    assert json.loads((tmp_path / RECORD).read_text())["layers"] == {}
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)(net.inputs), net.model(net.inputs))


def test_a_changed_weights_file_is_refused(tmp_path: Path) -> None:
    """One byte changed, a pickle in its place, half a file: the hash tells, and nothing is unpickled."""
    save_network(tmp_path, small("resnet20"), source("resnet20"), (3, 16, 16))
    whole = (tmp_path / WEIGHTS).read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    for content in (bytes(changed), whole[: len(whole) // 2], b""):
        (tmp_path / WEIGHTS).write_bytes(content)
        assert "SHA-256 differs" in complaint(tmp_path)
    torch.save(nn.Linear(1, 1), tmp_path / WEIGHTS)
    assert "SHA-256 differs" in complaint(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    assert WEIGHTS in complaint(tmp_path)


def test_a_broken_record_is_one_line(tmp_path: Path) -> None:
    """Missing, half, foreign and older records are told with the file."""
    assert RECORD in complaint(tmp_path) and RECORD in complaint(tmp_path / "nowhere")
    save_network(tmp_path, small("resnet20"), source("resnet20"), (3, 16, 16))
    path = tmp_path / RECORD
    whole = path.read_text()
    for content in (whole[:100], "", "[]", "null", "{}", whole.replace('"layers"', '"layer"')):
        path.write_text(content)
        assert str(path) in complaint(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    assert str(path) in complaint(tmp_path)
    path.write_text(whole.replace("amc-architecture/1", "amc-architecture/9"))
    assert "amc-architecture/9" in complaint(tmp_path)
    path.write_text(whole)
    assert load_network(tmp_path) is not None


def test_a_record_of_another_network_is_one_line(tmp_path: Path) -> None:
    """A source that builds something else than was saved is told by the first tensor or width that does not fit."""
    save_network(tmp_path, small("resnet20"), source("resnet20"), (3, 16, 16))
    path = tmp_path / RECORD
    record = json.loads(path.read_text())

    def told(**changed: object) -> str:
        path.write_text(json.dumps(record | changed))
        return complaint(tmp_path, AmcError)

    assert "has no" in told(source={**record["source"], "name": "vgg_small"})
    assert "no tensor but the release's" in told(source={**record["source"], "name": "resnet56"})
    assert "resnet21" in told(source={**record["source"], "name": "resnet21"})
    assert "as the release says" in told(layers={"conv1": {"out_channels": 1}})
    assert "conv9" in told(layers={"conv9": {"out_channels": 1}})
    path.write_text(json.dumps(record | {"source": {"nam": 1}}))
    with pytest.raises(ModelError, match="model record"):
        load_network(tmp_path)


def test_loading_needs_neither_torch_pruning_nor_a_study(tmp_path: Path) -> None:
    """In a fresh process a release is loaded without importing torch-pruning, Optuna, DEAP or a tracer."""
    save_network(tmp_path, small("resnet20"), source("resnet20"), (3, 16, 16))
    code = (
        "import sys\nfrom amc.release.archive import load_network\nload_network(sys.argv[1])\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch_pruning', 'optuna', 'deap', 'sqlalchemy'})"
    )
    places = os.pathsep.join(str(place) for place in (ROOT, ROOT / "search", ROOT / "predictor"))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": places})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
