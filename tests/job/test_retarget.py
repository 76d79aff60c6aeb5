import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save

from amc.job.retarget import retarget
from amc.job.run import Run
from amc.system.progress import Silent


@pytest.mark.parametrize(("budget", "shallow"), [("1.2%", True), ("100%", False)])
def test_removed_branches_are_told(shallow_run: Run, tmp_path: Path, budget: str, shallow: bool) -> None:
    """What the new policy removes whole is named, for people and for machines; where nothing is, nothing is said."""
    folder = tmp_path / "run"
    shutil.copytree(shallow_run.folder, folder)
    found = retarget(folder, [budget], None, 0, False, Silent())
    policy = json.loads((Path(found.record["folder"]) / "policy.json").read_text())["policy"]
    removed = [name for name, kept in policy.items() if kept == 0]
    assert found.record["removed"] == removed and bool(removed) == shallow
    assert (f"  removed    the branches of {', '.join(removed)}" in found.text.splitlines()) == shallow
    assert ("  removed" in found.text) == shallow


@pytest.mark.parametrize("harm", ["missing", "torn", "of another version"])
def test_a_lost_predictor_is_learned_again(tiny_run: Run, tmp_path: Path, harm: str) -> None:
    """Trials are what a run is worth: without a predictor that can be read, one is fitted to them, and climbed."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    kept = folder / "predictor.safetensors"
    if harm == "missing":
        kept.unlink()
    elif harm == "torn":
        kept.write_bytes(kept.read_bytes()[:100])
    else:
        state = load_file(kept)
        kept.write_bytes(save(state | {"model.amplitudes": state["model.amplitudes"][1:]}))
    again, whole = Run(folder).retarget("50%", candidates=0), tiny_run.retarget("50%", candidates=0)
    assert again.costs["macs"] <= tiny_run.metrics["dense"]["macs"] / 2
    fractions = tiny_run.job.space.fractions(whole.policy.array[None])
    told = [run.predictor.predict(fractions)[0] for run in (again.run, tiny_run)]
    assert (told[0] - told[1]).abs().max() < 0.15
