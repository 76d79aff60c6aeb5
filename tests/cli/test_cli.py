"""Bad input: one clear line on stderr, the documented exit code, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import amc.cli as cli
from amc.job.run import Run
from amc.system import errors
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
    ("arguments", "word", "expected"),
    [
        (["compress", "--budget", "lots"], "lots", 2),
        (["compress", "--budget", "-5%"], "-5", 2),
        (["compress", "--budget", "120%"], "100%", 2),
        (["compress", "--budget", "nan%"], "nan", 2),
        (["compress", "--recipe", "quikstart"], "quickstart", 2),
        (["compress", "--recipe", "/nowhere/recipe.toml"], "recipe.toml", 2),
        (["compress", "--set", "finetune.epoks=3"], "epochs", 2),
        (["compress", "--set", "finetune.epochs=many"], "many", 2),
        (["compress", "--set", "nonsense"], "KEY=VALUE", 2),
        (["compress", "--model", "resnet2000", "--budget", "50%"], "resnet200", 5),
        (["compress", "--model", "resnet20", "--weights", "/nowhere/w.pth", "--budget", "50%"], "w.pth", 5),
        (["compress", "--model", "resnet20", "--weights", "none"], "budget", 2),
        (["compress", "--model", "resnet20", "--data", "imagefolder:/nowhere", "--budget", "50%"], "/nowhere", 5),
        (["compress", "--model", "resnet20", "--data", "nonsense", "--budget", "50%"], "nonsense", 5),
        (["compress", "--no-such-flag"], "no-such-flag", 2),
        (["frobnicate"], "frobnicate", 2),
        (["retarget", "/nowhere", "--budget", "40%"], "/nowhere", 2),
        (["show", "/nowhere"], "/nowhere", 2),
        (["verify", "/nowhere"], "/nowhere", 2),
        (["front", "/nowhere"], "/nowhere", 2),
        (["doctor", "--model", "resnet18", "--input", "3xy"], "3xy", 2),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_its_exit_code(
    arguments: list[str],
    word: str,
    expected: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Whatever the user got wrong is named in one line, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    code, out, err = run(capsys, monkeypatch, *arguments)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (code, out, len(lines)) == (expected, "", 1), (code, out, err)
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
    """NaN in a weights file is named with its tensor; the exit code is that of bad networks."""
    state = network().state_dict()
    state["conv2.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    code, _, err = run(
        capsys, monkeypatch, "compress", *TINY, "--weights", tmp_path / "nan.safetensors", "--budget", "50%",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 5 and "conv2.weight" in err and len(err.splitlines()) == 1


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
    assert run(capsys, monkeypatch, "compress", *TINY, "--weights", tmp_path / "none.pt", *out)[0] == 5
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


def test_every_error_has_a_documented_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table in `amc --help` names each code that an error of ours ends with."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AmcError)]
    assert {kind.exit_code for kind in kinds} | {0, 1, 130} == set(errors.EXIT_CODES)
    text = " ".join(run(capsys, monkeypatch, "--help")[1].split())
    assert all(f"{code} {meaning}" in text for code, meaning in errors.EXIT_CODES.items())


def test_debug_shows_where_an_error_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback stands before the line, which stays the last; the exit code is the same."""
    code, out, err = run(capsys, monkeypatch, "--debug", "compress", "--budget", "lots")
    assert (code, out) == (2, "") and err.startswith("Traceback") and err.splitlines()[-1].startswith("amc: ")


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON holds all that the text lists, and each of them is printed by its name as a file that is read back."""
    _, text, _ = run(capsys, monkeypatch, "recipes")
    listed = json.loads(run(capsys, monkeypatch, "recipes", "--json")[1])
    names = [line.split()[0] for line in text.splitlines() if line and not line.startswith("for ")]
    assert names == [name for group in listed.values() for name in group]
    homes = {"amc compress": "", "amc bench": "bench/", "amc bench cascade": "cascade/"}
    for command, group in listed.items():
        name = homes[command] + next(iter(group))
        _, printed, _ = run(capsys, monkeypatch, "recipes", name)
        assert tomllib.loads(printed) == json.loads(run(capsys, monkeypatch, "recipes", name, "--json")[1])
    code, _, err = run(capsys, monkeypatch, "recipes", "quikstart")
    assert code == 2 and "quickstart" in err


def test_a_device_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run
) -> None:
    """`--device` of a new run and of a finished one alike."""
    monkeypatch.setenv("AMC_DEVICE", "")
    for arguments in (["compress", *TINY, "--weights", "none", "--budget", "50%"], ["verify", tiny_run.folder]):
        code, _, err = run(capsys, monkeypatch, *arguments, "--device", "gpu")
        assert code == 2 and "'gpu'" in err and len(err.splitlines()) == 1
    assert run(capsys, monkeypatch, "verify", tiny_run.folder, "--device", "cpu")[0] == 0


def test_a_run_folder_imports_only_what_the_user_trusts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run
) -> None:
    """Its network and data are functions of someone's: `--trust` names each, and the error says which is missing."""
    monkeypatch.setenv("AMC_TRUST", "")
    code, _, err = run(capsys, monkeypatch, "verify", tiny_run.folder)
    assert code == 2 and "--trust tests.tiny:network" in err
    code, _, err = run(capsys, monkeypatch, "verify", tiny_run.folder, "--trust", "tests.tiny:network")
    assert code == 2 and "--trust tests.tiny:pictures" in err
    assert run(capsys, monkeypatch, "verify", tiny_run.folder, "--trust", "tests.tiny")[0] == 0
    monkeypatch.setenv("AMC_TRUST", "")
    assert run(capsys, monkeypatch, "show", tiny_run.folder)[0] == 0


def test_a_damaged_recipe_in_a_run_folder_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Run, tmp_path: Path
) -> None:
    """Bytes that are no text are one line with the file and the fix, whichever command meets them."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_bytes(bytes(range(128, 256)))
    same = ["compress", "--recipe", tiny_run.folder / "recipe.toml", "--out", tmp_path / "run", "--quiet"]
    for arguments in (["show", tmp_path / "run"], ["verify", tmp_path / "run"], same):
        code, _, err = run(capsys, monkeypatch, *arguments)
        assert code == 2 and "recipe.toml must be UTF-8 text" in err and len(err.splitlines()) == 1
