"""Bad input: one clear line on stderr, the documented exit code, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amc.cli import commands as cli
from amc.job.run import Run
from tests.tiny import network

TINY = ["--model", "tests.tiny:network", "--data", "tests.tiny:pictures", "--quiet"]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `amc ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["amc", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compress", "--budget", "lots"], "lots"),
        (["compress", "--budget", "-5%"], "-5"),
        (["compress", "--budget", "120%"], "100%"),
        (["compress", "--budget", "nan%"], "nan"),
        (["compress", "--recipe", "quikstart"], "quickstart"),
        (["compress", "--recipe", "/nowhere/recipe.toml"], "recipe.toml"),
        (["compress", "--set", "finetune.epoks=3"], "epochs"),
        (["compress", "--set", "finetune.epochs=many"], "many"),
        (["compress", "--set", "nonsense"], "KEY=VALUE"),
        (["compress", "--model", "resnet2000", "--budget", "50%"], "resnet200"),
        (["compress", "--model", "resnet20", "--weights", "/nowhere/w.pth", "--budget", "50%"], "w.pth"),
        (["compress", "--model", "resnet20", "--weights", "none"], "budget"),
        (["compress", "--model", "resnet20", "--data", "imagefolder:/nowhere", "--budget", "50%"], "/nowhere"),
        (["compress", "--model", "resnet20", "--data", "nonsense", "--budget", "50%"], "nonsense"),
        (["compress", "--no-such-flag"], "no-such-flag"),
        (["frobnicate"], "frobnicate"),
        (["retarget", "/nowhere", "--budget", "40%"], "/nowhere"),
        (["show", "/nowhere"], "/nowhere"),
        (["verify", "/nowhere"], "/nowhere"),
        (["front", "/nowhere"], "/nowhere"),
        (["doctor", "--model", "resnet18", "--input", "3xy"], "3xy"),
        (["doctor", "--model", "resnet18", "--input", "3x64x64", "--set", 'model.ignore=["layer9"]'], "layer9"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_exit_code_2(
    arguments: list[str],
    word: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Whatever the user got wrong is named in one line, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    code, out, err = run(capsys, monkeypatch, *arguments)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (code, out, len(lines)) == (2, "", 1), (code, out, err)
    assert word in lines[0]
    assert [path for path in tmp_path.rglob("*") if path.name not in (".lock", "runs", "recipe.toml")] == [] or all(
        path.is_dir() or path.name in (".lock", "recipe.toml") for path in tmp_path.rglob("*")
    )


@pytest.mark.parametrize("budget", ["0.1%", "1bytes", "10params"])
def test_a_budget_below_the_smallest_policy_exits_with_3_and_names_the_smallest_cost(
    budget: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unreachable cap says how low one can go."""
    monkeypatch.chdir(tmp_path)
    arguments = ["compress", *TINY, "--weights", "none", "--budget", budget, "--set", "recovery.moment_images=50"]
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert (code, out) == (3, "")
    assert "smallest policy" in err and len(err.splitlines()) == 1


def test_nan_weights_are_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """NaN in a weights file is named with its tensor; the exit code is 2."""
    state = network().state_dict()
    state["conv2.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    code, _, err = run(
        capsys, monkeypatch, "compress", *TINY, "--weights", tmp_path / "nan.safetensors", "--budget", "50%",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 2 and "conv2.weight" in err and len(err.splitlines()) == 1


def test_the_same_command_on_a_finished_run_does_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run
) -> None:
    """A finished run is returned as it is: its release is not touched."""
    before = (tiny_run.folder / "model.safetensors").stat().st_mtime_ns
    arguments = ["compress", "--recipe", tiny_run.folder / "recipe.toml", "--out", tiny_run.folder, "--json"]
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 0 and "finished already" in err
    assert json.loads(out) == tiny_run.metrics
    assert (tiny_run.folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_job_in_the_same_folder_is_refused_and_the_difference_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run
) -> None:
    """A run folder belongs to one recipe."""
    arguments = ["compress", "--recipe", tiny_run.folder / "recipe.toml", "--out", tiny_run.folder, "--budget", "30%"]
    code, _, err = run(capsys, monkeypatch, *arguments)
    assert code == 2 and "budget" in err and "retarget" in err


def test_a_second_process_on_a_run_folder_gets_a_clear_error(tiny_run: Run) -> None:
    """The lock is the system's: a real second process is refused while the first holds the folder."""
    from amc.job.run import claimed

    arguments = [
        sys.executable, "-m", "amc.cli", "compress", "--recipe", str(tiny_run.folder / "recipe.toml"),
        "--out", str(tiny_run.folder),
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(str(root / part) for part in ("", "predictor", "search"))
    with claimed(tiny_run.folder):
        done = subprocess.run(
            arguments, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=root, timeout=120
        )
    assert done.returncode == 2
    assert "another one is at work" in done.stderr and len(done.stderr.splitlines()) == 1


def test_verify_exits_with_0_when_the_release_holds_and_4_when_it_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run
) -> None:
    """The gate measures anew and its exit code is the verdict."""
    assert run(capsys, monkeypatch, "verify", tiny_run.folder, "--budget", "50%", "--max-drop", "100%")[0] == 0
    code, out, err = run(capsys, monkeypatch, "verify", tiny_run.folder, "--budget", "20%", "--json")
    record = json.loads(out)
    assert code == 4 and not record["passed"] and len(err.splitlines()) == 1
    assert record["costs"]["macs"] == tiny_run.metrics["released"]["macs"]


def test_verify_refuses_a_release_whose_weights_were_changed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run, tmp_path: Path
) -> None:
    """A tampered file is told apart by its digest."""
    shutil.copytree(tiny_run.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(path)
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    save_file(tensors, path)
    code, _, err = run(capsys, monkeypatch, "verify", tmp_path / "copy")
    assert code == 2 and "SHA-256" in err


def test_retarget_writes_a_release_under_the_new_budget_that_verify_accepts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run, tmp_path: Path
) -> None:
    """Another budget gives a network that fits it, loads, and passes the gate on its own budget."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    code, out, _ = run(capsys, monkeypatch, "retarget", tmp_path / "run", "--budget", "35%", "--json", "--quiet")
    record = json.loads(out)
    dense = tiny_run.metrics["dense"]["macs"]
    assert code == 0 and record["costs"]["macs"] <= 0.35 * dense
    assert run(capsys, monkeypatch, "verify", record["folder"])[0] == 0
    assert run(capsys, monkeypatch, "retarget", tmp_path / "run", "--budget", "0.01%")[0] == 3
    assert run(capsys, monkeypatch, "retarget", tmp_path / "run")[0] == 2


def test_changed_dense_weights_stop_a_retarget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run, tmp_path: Path
) -> None:
    """A run's trials hold for its own dense weights alone."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    weights = tiny_run.recipe.model.weights
    other = tmp_path / "other.safetensors"
    torch.manual_seed(5)
    save_file(network().state_dict(), other)
    (tmp_path / "run" / "recipe.toml").write_text(recipe.replace(weights, str(other)))
    code, _, err = run(capsys, monkeypatch, "retarget", tmp_path / "run", "--budget", "35%", "--quiet")
    assert code == 2 and "weights" in err and "changed" in err


def test_doctor_names_groups_and_the_smallest_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor's JSON has each group with its channels, and a reachable range of costs."""
    code, out, _ = run(capsys, monkeypatch, "doctor", "--model", "resnet18", "--input", "3x64x64", "--json")
    record = json.loads(out)
    assert code == 0 and len(record["groups"]) == 12
    assert 0 < record["smallest"]["macs"] < record["dense"]["macs"]
    assert [frozen["name"] for frozen in record["frozen"]] == ["fc"]


def test_help_names_every_command_without_importing_torch() -> None:
    """`amc --help` is fast because nothing heavy is imported."""
    code = "import sys; sys.argv = ['amc', '--help']\nfrom amc import cli\ntry:\n    cli.main()\nfinally:\n" \
        "    assert 'torch' not in sys.modules and 'optuna' not in sys.modules"  # fmt: skip
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    networks, cascades = "compress train retarget front show verify doctor", "cascade serve export"
    for command in [*networks.split(), *cascades.split(), "recipes", "bench"]:
        assert command in done.stdout


def test_a_failed_first_try_does_not_reserve_the_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a mistake is told, the corrected command may use the same folder."""
    out = ["--out", tmp_path / "run", "--budget", "0.1%"]
    assert run(capsys, monkeypatch, "compress", *TINY, "--weights", tmp_path / "none.pt", *out)[0] == 2
    code, _, err = run(capsys, monkeypatch, "compress", *TINY, "--weights", "none", *out)
    assert code == 3, err


def test_a_cap_above_the_dense_network_is_held_by_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run, tmp_path: Path
) -> None:
    """More than the dense network costs is as good as 100 %."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    code, out, err = run(capsys, monkeypatch, "retarget", tmp_path / "run", "--budget", "5GB", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["costs"]["macs"] <= tiny_run.metrics["dense"]["macs"]
