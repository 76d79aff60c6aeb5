import json
import os
import sys
from pathlib import Path

import pytest
from torch import nn

from amc.release.archive import RECORD, load_network, save_network
from amc.system.errors import ModelError, UsageError
from amc.zoo.networks.source import ModelSource, build_model
from amc.zoo.settings import DataSettings, ModelSettings, TaskSettings
from amc.zoo.trust import allow, check_trusted, names_in, trusted

MODULE = "amc_test_untrusted"


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_TRUST", "")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of a user's factory, whose module tells when it is imported."""
    (tmp_path / f"{MODULE}.py").write_text(
        "from torch import nn\ndef make(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = ModelSource(f"{MODULE}:make", options={"width": 5})
    save_network(tmp_path / "release", source.build(), source, (3, 4, 4))
    sys.modules.pop(MODULE)
    return tmp_path / "release"


def rewritten(release: Path, **source: object) -> Path:
    record = json.loads((release / RECORD).read_text())
    record["source"] |= source
    (release / RECORD).write_text(json.dumps(record))
    return release


@pytest.mark.parametrize("name", ["os:system", "os:path.join", f"{MODULE}:make", "amc.system.files:write_text"])
def test_a_record_imports_nothing_that_is_not_trusted(release: Path, name: str) -> None:
    """The module is not even imported; the error is one line and names the fix."""
    with pytest.raises(ModelError, match="runs only if you trust it") as told:
        load_network(rewritten(release, name=name, options={}))
    assert MODULE not in sys.modules and f"--trust {name}" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("trust", [f"{MODULE}:make", MODULE, ["os:system", MODULE], f"os, {MODULE}:make"])
def test_what_the_caller_trusts_is_built(release: Path, trust: str | list[str]) -> None:
    """By the function's whole name or by its module's, alone or among others."""
    assert load_network(release, trust=trust)[0].out_channels == 5


def test_the_environment_may_trust_too(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`AMC_TRUST` holds for every command of a process."""
    monkeypatch.setenv("AMC_TRUST", f"{MODULE}:make")
    assert load_network(release) is not None


def test_a_fresh_instance_needs_no_trust(release: Path) -> None:
    """`model=` takes the place of what the record names, which is then not imported."""
    assert load_network(release, lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten())) is not None
    assert MODULE not in sys.modules


def test_names_that_import_nothing_of_the_users() -> None:
    """Ours, torchvision's, timm's and data sets' names always hold; a trusted module does not lend its own imports."""
    for name in ("resnet20", "resnet50", "timm:resnet18", "torchvision:resnet18", "imagefolder:/data", "agreement"):
        assert trusted(name)
    assert trusted("amc.zoo.examples.shapes:detection") and not trusted("amc.zoo.examples.shapes:np.save")
    assert trusted("mine.nets:make", "mine.nets") and not trusted("mine.nets:os.system", "mine.nets")
    assert trusted("mine.nets:Net.small", "mine.nets:Net.small") and not trusted("mine.nets2:make", "mine.nets")


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained", "pretrained_cfg"])
def test_a_record_makes_no_library_read_files(release: Path, option: str) -> None:
    """Else timm would unpickle what `checkpoint_path` names."""
    with pytest.raises(ModelError, match="read files"):
        load_network(rewritten(release, name="timm:resnet18", options={option: "/tmp/weights.pth"}))


def test_options_are_arguments_of_the_factory() -> None:
    """Another one is refused with the nearest, before anything is called."""
    with pytest.raises(ModelError, match="did you mean 'variant'"):
        build_model("msdnet", options={"varient": "small"})


def test_every_name_in_a_recipe_is_looked_at() -> None:
    """Network, data and the three functions of the task alike."""
    names = names_in(
        ModelSettings(name="a:b"), DataSettings(name="c:d"), TaskSettings(batch="e:f", metric="g:h", loss="i:j")
    )
    for untrusted in names:
        with pytest.raises(UsageError, match=f"the recipe names code of its own, {untrusted}"):
            check_trusted(names, [name for name in names if name != untrusted], "the recipe", UsageError)
    check_trusted(names, names, "the recipe", UsageError)


def test_names_allowed_once_hold_in_the_processes_started_later() -> None:
    """They stand in the environment, each once."""
    allow("mine.nets:make")
    allow(["mine.nets:make", "mine.data"])
    assert os.environ["AMC_TRUST"] == "mine.nets:make,mine.data"
    assert trusted("mine.data:load") and not trusted("mine.nets:other")
