"""`amc doctor --zoo`: lists that leave no family out, sweeps that lose nothing, tables that say what was found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
from torchvision.models import list_models

from amc.bench.coverage import coverage
from amc.bench.coverage.coverage import LIMITS, cover, examine_entry, is_worse, matches, table_record
from amc.bench.coverage.coverage_table import compact, markdown
from amc.bench.coverage.network_list import ZOOS, Entry, entries
from amc.bench.coverage.sweep import append_line, read_journal, sweep
from amc.system.errors import GateFailed, UsageError
from amc.system.isolation import Limits, isolated
from amc.system.progress import Silent
from amc.zoo.networks.source import torchvision_names

ROOT = Path(__file__).parents[2]
# One of each kind, fast: fire modules, a channel shuffle, squeeze-and-excite, attention, LayerNorm and GRN, a hybrid,
# attention in a cascade, weight standardisation without a norm.
SAMPLE = {
    "torchvision": ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"),
    "timm": ("timm:deit_tiny_patch16_224", "timm:convnext_zepto_rms", "timm:mobilevit_xxs", "timm:efficientvit_m0",
             "timm:nf_regnet_b0"),
}  # fmt: skip
# Every fifth network: 16 of torchvision's 80 and 40 of timm's.
EVERY = int(os.environ.get("AMC_ZOO_EVERY", "10"))  # of the slow sample: 1 is both zoos whole, more than an hour
LARGE = [(zoo, entry.name) for zoo in ZOOS for entry in entries(zoo)[::EVERY]]


def entry_of(zoo: str, name: str) -> Entry:
    return next(entry for entry in entries(zoo) if entry.name == name)


def examined(zoo: str, name: str) -> dict[str, Any]:
    """A network's record, taken in a child as the command does."""
    found: dict[str, Any] = {}
    entry = entry_of(zoo, name)
    with isolated(lambda folder: (folder / "r").write_text(json.dumps(examine_entry(entry))) and None, LIMITS) as out:
        found |= json.loads((out / "r").read_text())
    return found


def test_all_of_torchvisions_classifiers_are_on_the_list() -> None:
    """80 of them, each once."""
    names = [entry.name for entry in entries("torchvision")]
    assert sorted(names) == sorted(torchvision_names()) and len(set(names)) == len(names) >= 80
    assert set(names) <= set(list_models())


def test_every_family_of_timm_is_on_the_list() -> None:
    """At least one network of each module that registers networks, at least 150 in all, each known to timm."""
    listed = entries("timm")
    assert {entry.family for entry in listed} >= set(timm.list_modules())
    assert len({entry.name for entry in listed}) == len(listed) >= 150
    for entry in listed:
        assert entry.name.removeprefix("timm:") in timm.list_models(module=entry.family)


@pytest.mark.parametrize(("zoo", "name"), [(zoo, name) for zoo, names in SAMPLE.items() for name in names])
def test_a_sample_of_the_zoos_holds(zoo: str, name: str) -> None:
    """Traced, cut by four policies, cost exact, equal to zeroing, saved and loaded."""
    record = examined(zoo, name)
    assert record["ok"], record["reason"]
    assert record["cut_share"] > 0.5 and record["min_macs"] < record["macs"]


@pytest.mark.parametrize(("zoo", "name"), LARGE)
def test_a_large_sample_of_the_zoos_holds(zoo: str, name: str) -> None:
    """As the small sample, without a share that must be cut."""
    record = examined(zoo, name)
    assert record["ok"], record["reason"]


def record(ok: bool = True, macs: float = 50.0) -> dict[str, Any]:
    """What an examination might have found."""
    checks = dict.fromkeys(("shape", "cost", "equal", "saved"), ok) | {"largest_difference": 1e-6, "policies": []}
    checks |= {"tolerance": 1e-3, "faint": 1e-2}
    found = {"ok": ok, "reason": None if ok else "because | of it", "checks": checks, "macs": 100.0, "min_macs": macs,
             "cut_share": 1 - macs / 100, "trace_seconds": 1.0, "groups": [{"smallest": 0}, {"smallest": 8}],
             "frozen": []}  # fmt: skip
    return found if ok else found | {"checks": None}


def test_worse_is_where_torch_pruning_does_more() -> None:
    """It runs where ours does not hold, or leaves fewer MACs; where it fails nothing is worse."""
    theirs = {"ok": True, "pruned_macs": 60.0}
    assert not is_worse(record(), theirs) and is_worse(record(macs=61.0), theirs) and is_worse(record(ok=False), theirs)
    assert not is_worse(record(ok=False), {"ok": False}) and not is_worse(record(ok=False), None)


def test_the_table_has_a_row_a_network_and_tells_what_does_not_hold() -> None:
    """As many cells as columns, the reasons below, the JSON without long lists."""
    rows = []
    for name, found, theirs in (("a", record(), None), ("timm:b", record(ok=False), {"ok": False, "reason": "x | y"})):
        entry = {"name": name, "family": "f", "size": 64, "options": {}}
        rows.append(entry | compact(found) | {"torch_pruning": theirs})
    table = table_record("timm", rows, Limits(1, 2))
    assert table["summary"] == {"total": 2, "ok": 1, "worse": [], "torch_pruning_ok": 0, "torch_pruning_total": 1}
    assert rows[0]["groups"] == 2 and rows[0]["removable"] == 1
    text = markdown(table)
    cells = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(cells) == 4 and len(set(cells)) == 1
    assert "- `timm:b`: because | of it" in text and "1 of 2 networks hold" in text


def test_names_are_matched_by_pattern_or_part() -> None:
    """With or without the prefix."""
    assert matches("timm:resnet10t", "resnet*") and matches("timm:resnet10t", "timm:res*") and matches("vit_b_16", "b_")
    assert not matches("timm:seresnet18", "resnet*") and not matches("vit_b_16", "c_")


def test_a_journal_survives_a_line_cut_short(tmp_path: Path) -> None:
    """Whole lines are kept, what was written last for a network counts, a torn line is skipped and closed."""
    path = tmp_path / "deep" / "journal"
    append_line(path, "a", {"ok": False})
    append_line(path, "b", {"ok": True})
    with path.open("ab") as file:
        file.write(b'["c", {"ok"')
    append_line(path, "a", {"ok": True})
    assert read_journal(path) == {"a": {"ok": True}, "b": {"ok": True}} and read_journal(tmp_path / "none") == {}


def test_a_sweep_records_failures_and_goes_on(tmp_path: Path) -> None:
    """A network that takes too long, ends its process or raises is a record; the others are examined."""

    def examine(entry: Entry) -> dict[str, Any]:
        match entry.name:
            case "slow":
                time.sleep(600)
            case "deadly":
                os._exit(3)
            case "broken":
                raise RuntimeError("broken | for good")
        return {"ok": True, "reason": None, "name": entry.name}

    names = ("slow", "fine", "deadly", "broken", "good")
    listed = [Entry(name, "f", 8) for name in names]
    found = sweep(listed, examine, Limits(1, 4), tmp_path / "journal", "test", Silent(), jobs=2)
    assert [found[name]["ok"] for name in names] == [False, True, False, False, True] and list(found) == list(names)
    assert found["slow"]["limit"] == "1 s" and "exit code 3" in found["deadly"]["reason"]
    assert "RuntimeError: broken" in found["broken"]["reason"]

    def never(entry: Entry) -> dict[str, Any]:
        raise AssertionError

    again = sweep(listed, never, Limits(1, 4), tmp_path / "journal", "test", Silent())
    assert again == found, "what stands in the journal is not done twice"


def test_a_zoo_is_covered_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are written whole; torch-pruning's results are kept; a part may be done anew."""
    kept = {"ok": True, "reason": None, "pruned_macs": 1e6}

    def peer(entry: Entry) -> dict[str, Any]:
        (tmp_path / f"asked.{entry.name}").touch()
        return kept

    monkeypatch.setattr(coverage, "prune_by_half", peer)
    monkeypatch.setattr(coverage, "examine_entry", lambda entry: record(ok=entry.name != "alexnet"))
    append_line(tmp_path / ".torchvision.journal", "vgg11", record(macs=10.0))
    found = cover("torchvision", tmp_path, Silent(), only="*net", resume=True)
    names = [row["name"] for row in found.record["networks"]]
    assert names == ["alexnet", "googlenet"] and found.summary["worse"] == ["alexnet"]
    with pytest.raises(GateFailed, match="1 do not hold"):
        found.raise_if_failed()
    assert "`alexnet`: because" in found.text
    asked = sorted(path.name for path in tmp_path.glob("asked.*"))
    assert asked == ["asked.alexnet", "asked.googlenet"]
    for path in tmp_path.glob("asked.*"):
        path.unlink()
    append_line(tmp_path / ".torchvision.journal", "alexnet", record(macs=10.0))
    found = cover("torchvision", tmp_path, Silent(), only="alexnet", resume=True)
    assert not list(tmp_path.glob("asked.*")) and found.summary["ok"] == found.summary["total"] == 2
    found.raise_if_failed()
    assert "2 of 2 networks hold" in (tmp_path / "torchvision.md").read_text()
    assert not (tmp_path / ".torchvision.journal").exists()
    assert json.loads((tmp_path / "torchvision.json").read_text()) == found.record


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is printed, the working folder stays empty, and there is nothing to resume."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(coverage, "prune_by_half", lambda entry: {"ok": False, "reason": "for a test"})
    monkeypatch.setattr(coverage, "examine_entry", lambda entry: record())
    found = cover("torchvision", None, Silent(), only="squeezenet*")
    assert "2 of 2 networks hold" in found.text and found.summary["torch_pruning_total"] == 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="give --out"):
        cover("torchvision", None, Silent(), resume=True)


def test_mistakes_in_the_flags_are_one_line(tmp_path: Path) -> None:
    """A zoo that is none, a pattern that matches nothing."""
    with pytest.raises(UsageError, match="torchvision or timm"):
        cover("huggingface", tmp_path, Silent())
    with pytest.raises(UsageError, match="'nothing'"):
        cover("timm", tmp_path, Silent(), only="nothing")
    assert not list(tmp_path.iterdir())


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """After kill -9 the journal holds what was done, and `--resume` does only the rest."""
    command = [sys.executable, "-m", "amc.cli", "doctor", "--zoo", "torchvision", "--only", "squeezenet*", "--quiet",
               "--out", str(tmp_path), "--json"]  # fmt: skip
    (tmp_path / "torch-pruning-torchvision.json").write_text(
        json.dumps(
            {"networks": {name: {"size": 64, "options": {}, "ok": False, "reason": "for a test"}
                          for name in ("squeezenet1_0", "squeezenet1_1")}}
        )
    )  # fmt: skip
    journal = tmp_path / ".torchvision.journal"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(2400):
            if read_journal(journal) or process.poll() is not None:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(read_journal(journal)) == ["squeezenet1_0"]
    marked = read_journal(journal)["squeezenet1_0"] | {"trace_seconds": 12345.0}
    append_line(journal, "squeezenet1_0", marked)
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["networks"]
    assert [(row["name"], row["ok"]) for row in rows] == [("squeezenet1_0", True), ("squeezenet1_1", True)]
    assert rows[0]["trace_seconds"] == 12345.0 != rows[1]["trace_seconds"]
