import json
import shutil
from pathlib import Path

import pytest

from amc.progress import Silent
from amc.retarget import retarget
from amc.run import Run


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
