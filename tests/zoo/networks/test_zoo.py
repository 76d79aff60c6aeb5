import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.zoo.call import float_tensors
from amc.zoo.networks import source as zoo
from amc.zoo.networks.example_inputs import example_of, usual_shape
from amc.zoo.networks.source import ModelSource, build_model, model_source


def complaint(name: str = "resnet20", **arguments: object) -> str:
    with pytest.raises(ModelError) as caught:
        build_model(name, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: nn.Module, two: nn.Module) -> bool:
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("name", "channels", "size", "params"),
    [
        ("resnet20", 1, 28, 272_186),
        ("resnet56", 3, 32, 855_770),
        ("vgg_small", 3, 32, 4_660_106),
        ("vgg_small", 1, 28, None),
        ("mobilenet_v2", 3, 32, None),
        ("torchvision:resnet18", 3, 32, None),
        ("googlenet", 3, 64, None),
        ("timm:resnet10t", 1, 32, None),
    ],
)
def test_networks_by_name_fit_the_data(name: str, channels: int, size: int, params: int | None) -> None:
    """Every family takes the data's classes, and ours and timm's its channels too."""
    model = build_model(name, num_classes=7 if params is None else 10, in_channels=channels, size=size)
    out = model.train()(torch.zeros(2, channels, size, size))
    assert out.shape == (2, 7 if params is None else 10)
    if params is not None:
        assert sum(p.numel() for p in model.parameters()) == params  # counted by hand


def test_random_weights_come_from_the_seed_alone() -> None:
    """Same seed same weights; torch's own random state is left as it was."""
    state = torch.get_rng_state()
    assert same(build_model("resnet20", seed=1), build_model("resnet20", seed=1))
    assert not same(build_model("resnet20", seed=1), build_model("resnet20", seed=2))
    assert torch.equal(state, torch.get_rng_state())


def test_a_source_builds_the_same_skeleton_after_json() -> None:
    """What is written beside a release is enough to build the dense network again."""
    source = model_source("resnet20", num_classes=5, in_channels=1, options={})
    assert ModelSource.from_json(source.to_json()) == source
    assert same(source.build(3), build_model("resnet20", num_classes=5, in_channels=1, seed=3))
    assert model_source("googlenet", weights="default").options == {"transform_input": True}
    with pytest.raises(ModelError, match="model record"):
        ModelSource.from_json({"nam": "resnet20"})


def save_safetensors(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path := path.with_suffix(".safetensors"))
    return path


def save_plain(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path := path.with_suffix(".pth"))
    return path


def save_wrapped(model: nn.Module, path: Path) -> Path:
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}},
        path := path.with_suffix(".pt"),
    )
    return path


def save_compiled_half(model: nn.Module, path: Path) -> Path:
    state = {f"module._orig_mod.{k}": v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"model": state, "optimizer": {}}, path := path.with_suffix(".pt"))
    return path


@pytest.mark.parametrize("save", [save_safetensors, save_plain, save_wrapped, save_compiled_half])
def test_weights_from_files(tmp_path: Path, save: Callable[[nn.Module, Path], Path]) -> None:
    """Safetensors, plain and wrapped state dicts, with the prefixes of wrappers, give the network that was saved."""
    model = build_model("resnet20", seed=5)
    assert same(build_model("resnet20", weights=save(model, tmp_path / "w")), model)


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    """Missing and unknown keys, other shapes, NaN and infinity: the first key and the count are named."""
    state = build_model("resnet20").state_dict()

    def written(**changed: torch.Tensor | None) -> Path:
        merged = {k: v for k, v in (state | changed).items() if v is not None}
        save_file(merged, path := tmp_path / "w.safetensors")
        return path

    assert "'conv1.weight' (1 such key)" in complaint(weights=written(**{"conv1.weight": None}))
    assert "unknown 'extra'" in complaint(weights=written(extra=torch.zeros(1)))
    assert "network has (10, 64)" in complaint(weights=written(**{"fc.weight": torch.zeros(5, 64)}))
    assert "NaN or infinity" in complaint(weights=written(**{"fc.bias": torch.full((10,), float("nan"))}))
    assert "NaN or infinity" in complaint(weights=written(**{"fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}))
    assert "2 such keys" in complaint(weights=written(), num_classes=4)
    assert "'conv1.weight'" in complaint(weights=written(), in_channels=1)


def test_files_that_hold_no_weights_are_one_line(tmp_path: Path) -> None:
    """Missing, empty, broken and foreign files are told by name."""
    assert "is not there" in complaint(weights="nowhere.pt")
    assert "is a folder" in complaint(weights=tmp_path)
    for name in ("w.pt", "w.safetensors", "w.pth"):
        path = tmp_path / name
        for content in (b"", b"rubbish", b"PK\x03\x04 no archive", bytes(100)):
            path.write_bytes(content)
            assert name in complaint(weights=path)
    (tmp_path / "w.onnx").touch()
    assert "must end in" in complaint(weights=tmp_path / "w.onnx")
    torch.save([1, 2], tmp_path / "w.pt")
    assert "holds list" in complaint(weights=tmp_path / "w.pt")
    torch.save({}, tmp_path / "w.pt")
    assert "without entries" in complaint(weights=tmp_path / "w.pt")
    torch.save({"a": 1, "b": 2}, tmp_path / "w.pt")
    assert "'a' is int (2 such)" in complaint(weights=tmp_path / "w.pt")


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_no_pickle_is_ever_run(tmp_path: Path) -> None:
    """A file with code in it is refused, and the code does not run."""
    torch.save({"model": Trap(str(tmp_path / "sprung"))}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    assert "tensors alone" in complaint(weights=tmp_path / "new.pt")
    assert "old.pt" in complaint(weights=tmp_path / "old.pt")
    assert not (tmp_path / "sprung").exists()


def test_unknown_names_are_answered_with_the_nearest() -> None:
    """Each family suggests its own names."""
    assert "did you mean resnet20" in complaint("resnet21")
    assert "torchvision:resnet50" in complaint("torchvision:resnt50")
    assert "timm:resnet18" in complaint("timm:resnet1")
    assert "torchvision" not in complaint("fasterrcnn_resnet50_fpm").partition("did you mean")[2]
    assert "did you mean fasterrcnn_resnet50_fpn" in complaint("fasterrcnn_resnet50_fpm")
    assert "must be one of" in complaint("")


def test_arguments_that_a_network_cannot_take() -> None:
    """Options, channels and classes that do not fit are told before any weights are asked for."""
    assert "'wid'" in complaint("resnet18", options={"wid": 3})
    assert "reads 3 and the data has 1" in complaint("resnet18", in_channels=1)
    assert "know 1000 and the data has 10" in complaint("resnet18", weights="default", num_classes=10)
    assert "know 1000 and the data has 10" in complaint("timm:resnet18.a1_in1k", weights="default", num_classes=10)


def test_our_default_weights_are_shipped_or_missed_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-20 loads the shipped file for its data; a lost file and other networks say what to give instead."""
    model = build_model("resnet20", in_channels=1, seed=4)
    monkeypatch.setitem(zoo.SHIPPED, "resnet20", save_safetensors(model, tmp_path / "shipped"))
    assert same(build_model("resnet20", in_channels=1, weights="default"), model)
    assert "'conv1.weight'" in complaint(weights="default", in_channels=3)
    monkeypatch.setitem(zoo.SHIPPED, "resnet20", tmp_path / "lost.safetensors")
    assert "is not there" in complaint(weights="default")
    assert "--weights FILE" in complaint("resnet56", weights="default")


def test_refused_downloads_are_one_quick_line(tmp_path: Path) -> None:
    """A hub that does not answer costs seconds, and the line says what to give instead."""
    code = (
        "from amc.zoo.networks.source import build_model\nfrom amc.system.errors import ModelError\n"
        "for name in ('squeezenet1_1', 'timm:test_resnet.r160_in1k'):\n"
        "    try: build_model(name, weights='default')\n"
        "    except ModelError as error: print(error)\n"
    )
    closed = "http://127.0.0.1:9"
    environment = {
        "HTTPS_PROXY": closed,
        "HTTP_PROXY": closed,
        "TORCH_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,  # minutes, were it retried
        cwd=Path(zoo.__file__).parents[3],
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    assert all("must be fetched once" in line and "--weights FILE" in line for line in lines)


def test_a_factory_of_the_user_builds_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the arguments that its signature takes, its own weights are "default", and files fit it as well."""
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(width, num_classes))\n"
        "def wrong(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build_model("my_own_nets:small", weights="default", num_classes=6, options={"width": 5})
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 6)
    path = save_safetensors(model, tmp_path / "own")
    again = build_model("my_own_nets:small", weights=path, num_classes=6, options={"width": 5}, seed=9)
    assert same(again, model)
    assert "returned int" in complaint("my_own_nets:wrong")
    assert "can be imported" in complaint("no_such_nets:small")


def test_a_colon_needs_a_name_behind_it() -> None:
    """A prefix alone is told as what it is, not as an unknown network."""
    for name in ("mynet:", "torchvision:", "timm:", ":resnet18"):
        assert f"but is {name!r}" in complaint(name) and "behind the colon" in complaint(name)


@pytest.mark.parametrize(
    ("name", "options", "shape", "outputs"),
    [
        ("lraspp_mobilenet_v3_large", {"num_classes": 3}, (3, 64, 64), [(1, 3, 64, 64)]),
        ("torchvision:ssdlite320_mobilenet_v3_large", {}, (3, 64, 64), [(300, 4), (300,)]),
        ("raft_small", {}, (3, 128, 128), [(1, 2, 128, 128)] * 12),
        ("sensor_net", {"in_channels": 3}, (3, 128), [(1, 12)]),
        ("r3d_18", {}, (3, 16, 32, 32), [(1, 400)]),
    ],
)
def test_networks_of_other_kinds_run_on_their_examples(
    name: str, options: dict[str, int], shape: tuple[int, ...], outputs: list[tuple[int, ...]]
) -> None:
    """Segmentation, detection, optical flow, video and sensor networks: no weights fetched, an example for each."""
    source = model_source(name, options=options)
    model, size = source.build().eval(), shape[-1] if shape[-1] != 128 else None
    channels = options.get("in_channels")
    assert usual_shape(dataclasses.replace(source, in_channels=channels), size) == shape
    call = example_of(name, shape)
    with torch.no_grad():
        found = float_tensors(call.on(model))
    assert len(call) == 1 and [tuple(tensor.shape) for tensor in found] == outputs
    assert len(example_of(name, shape, 3)) == 3


def test_clips_are_placed_as_they_are() -> None:
    """Five-dimensional weights have no channels-last order; four-dimensional ones get it."""
    cpu = Compute(torch.device("cpu"), bfloat16=False)
    clips, frames = cpu.place(nn.Conv3d(4, 8, 3)), cpu.place(nn.Conv2d(4, 8, 3))
    assert clips.weight.is_contiguous()
    assert frames.weight.is_contiguous(memory_format=torch.channels_last)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where timm is not installed, the line tells the command that installs it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'amc-compress[timm]'" in complaint("timm:resnet18")


def test_a_skeleton_is_made_however_its_weights_are_drawn() -> None:
    """Drawing goes on until all numbers lie within bounds: a skeleton must not wait for that."""
    source = model_source("tests.zoo.networks.test_zoo:truncated")
    assert source.skeleton().state_dict().keys() == source.build().state_dict().keys()


def truncated() -> nn.Module:
    """A layer of every kind of draw, in memory that held other numbers before."""
    model = nn.Linear(64, 64)
    for low, high in ((-2.0, 2.0), (0.5, 3.0)):
        model.weight.data.fill_(1e9)
        nn.init.trunc_normal_(model.weight, mean=1.0, std=1.0, a=low, b=high)
    nn.init.uniform_(model.weight, 2.0, 3.0)
    nn.init.kaiming_normal_(model.weight)
    return model
