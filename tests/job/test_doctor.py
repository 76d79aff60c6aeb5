"""`amc doctor --model`: one record a network, whatever the network does."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from amc.cost.counts import count_bytes, count_macs, count_params
from amc.job.doctor.checks import EXAMPLES, KINDS, check_policies, draw_policy
from amc.job.doctor.diagnosis import diagnose, raise_if_failed
from amc.job.doctor.examination import examine_or_say_why, own_size, subject_of
from amc.job.doctor.record_text import record_text
from amc.job.doctor.second_opinion import compare_groups
from amc.job.job import load_model
from amc.job.recipe import Recipe, load_recipe
from amc.surgery.channel_table import ChannelTable, kept_channels, ranks
from amc.surgery.cutting import zero_channels
from amc.surgery.grouping import trace_groups
from amc.surgery.random_parameters import normalise_activations, randomise
from amc.system.errors import GateFailed, ModelError, UsageError
from amc.zoo.call import Call
from amc_search import Space
from tests.cli.test_cli import run


def recipe_of(name: str, **more: object) -> Recipe:
    return load_recipe(None, {"name": "x", "model.name": name, "model.weights": "none", **more})


def test_a_record_says_what_the_issue_of_a_network_is() -> None:
    """A network that can be cut: groups, costs, and checks that all hold."""
    record = diagnose(recipe_of("squeezenet1_1"), "3x64x64", explicit_data=False)
    assert record["ok"] and record["reason"] is None and len(record["groups"]) == 25
    assert 0 < record["min_macs"] < record["macs"] and 0.9 < record["cut_share"] < 1
    assert [record["checks"][part] for part in ("shape", "cost", "equal", "saved")] == [True] * 4
    assert [policy["policy"] for policy in record["checks"]["policies"]] == list(KINDS)
    text = record_text(record)
    assert "4 of 4" in text and "FAIL" not in text and record["groups"][0]["name"] in text
    json.dumps(record, allow_nan=False)
    raise_if_failed(record)


def test_torch_pruning_gives_a_second_opinion() -> None:
    """Groups that both have, those that one alone has, and why ours leaves a layer alone; in print and in JSON."""
    record = diagnose(recipe_of("tests.tiny:residual"), "1x16x16", explicit_data=False)
    opinion = record["second_opinion"]
    assert opinion["reason"] is None and opinion["tool"].startswith("torch-pruning ")
    assert opinion["agree"] == sorted(group["outputs"] for group in record["groups"]) and not opinion["only_ours"]
    (text,) = [line for line in record_text(record).splitlines() if "only torch-pruning's" in line]
    assert "is not cut: it is the network's output" in text
    theirs = {"groups": [["b"], ["c", "d"]], "reason": None}
    ours = {"groups": [{"outputs": ["b"]}, {"outputs": ["c"]}, {"outputs": []}], "frozen": []}
    found = compare_groups(ours, theirs)
    assert (found["agree"], found["only_ours"], found["only_torch_pruning"]) == ([["b"]], [["c"]], [["c", "d"]])


@pytest.mark.parametrize("fails", ["in its own way", "by ending its process"])
def test_a_second_opinion_is_never_needed(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Where torch-pruning cannot trace a network, the record holds all else and says so."""

    def fail(*_: object, **__: object) -> None:
        if fails == "by ending its process":
            os._exit(7)
        raise KeyError("a node")

    monkeypatch.setattr("torch_pruning.DependencyGraph.build_dependency", fail)
    record = diagnose(recipe_of("tests.tiny:network"), "1x16x16", explicit_data=False)
    assert record["ok"] and record["second_opinion"]["agree"] == []
    assert "second opinion: none; " in record_text(record)
    assert ("KeyError" if fails == "in its own way" else "exit code 7") in record["second_opinion"]["reason"]


def test_groups_that_may_keep_nothing_are_told() -> None:
    """Their smallest width is 0, and a line says what that means; where there is none, it says nothing."""
    record = diagnose(recipe_of("tests.tiny:residual"), "1x16x16", explicit_data=False)
    text = record_text(record)
    assert {group["name"] for group in record["groups"] if group["smallest"] == 0} == {"blocks.0.0", "blocks.1.0"}
    assert "2 of 3 groups may keep 0 channels" in text
    plain = diagnose(recipe_of("tests.tiny:network"), "1x16x16", explicit_data=False)
    assert "may keep 0" not in record_text(plain)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("sleepy", ["within 2 s", "trace_seconds"]),
        ("slow", ["within 2 s", "Slow"]),
        ("greedy", ["within 1 GB", "Greedy", "trace_gigabytes"]),
        ("deadly", ["exit code 7"]),
        ("uncuttable", ["channels"]),
    ],
)
def test_a_network_that_misbehaves_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, factory: str, words: list[str]
) -> None:
    """The record says why, the command ends with 5 and one line."""
    limits = ["--seconds", 2 if factory in ("sleepy", "slow") else 60, "--gigabytes", 1]
    code, out, err = run(
        capsys, monkeypatch, "doctor", "--model", f"tests.unruly:{factory}", "--input", "3x8x8", "--json", *limits
    )
    record = json.loads(out)
    assert code == 5 and not record["ok"] and record["checks"] is None
    assert all(word in record["reason"] for word in words), record["reason"]
    assert record["reason"] in err


def test_a_network_on_no_list_of_ours_is_examined(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's factory gives the same record, and what it prints does not stand in the JSON."""
    code, out, err = run(
        capfd, monkeypatch, "doctor", "--model", "tests.unruly:talkative", "--input", "3x8x8", "--json"
    )
    record = json.loads(out)
    assert code == 0 and record["ok"] and [group["channels"] for group in record["groups"]] == [16]
    assert "hello" in err and "hello" not in out


def test_ignored_modules_are_left_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--ignore` may be repeated, and takes those groups out of the record."""
    model = ["doctor", "--model", "squeezenet1_1", "--input", "3x64x64", "--json"]
    ignored = "features.3.squeeze", "features.4.squeeze"
    code, out, _ = run(capsys, monkeypatch, *model, "--ignore", ignored[0], "--ignore", ignored[1])
    record = json.loads(out)
    assert code == 0 and len(record["groups"]) == 23
    assert set(ignored) <= {frozen["name"] for frozen in record["frozen"]}
    code, out, err = run(capsys, monkeypatch, *model, "--ignore", "nothing")
    assert code == 5 and "'nothing'" in err and "'nothing'" in json.loads(out)["reason"]


def test_a_check_that_fails_ends_with_4() -> None:
    """A network that was cut wrongly is a gate that failed; one that cannot be cut is a model error."""
    checks = {"shape": True, "cost": False, "equal": True, "saved": True, "policies": []}
    record = {"model": "x", "ok": False, "reason": "cost not as predicted", "checks": checks}
    with pytest.raises(GateFailed, match="cost not as predicted"):
        raise_if_failed(record)
    with pytest.raises(ModelError, match="no way"):
        raise_if_failed(record | {"checks": None, "reason": "no way"})


def checked(table_of: Callable[[ChannelTable], ChannelTable]) -> list[dict[str, object]]:
    """The checks of a small network whose table was changed after it was traced."""
    recipe = recipe_of("tests.tiny:network")
    source, model = load_model(recipe, 10, (1, 16, 16))
    randomise(model)
    table = trace_groups(model, (1, 16, 16), recipe.model.ignore, recipe.surgery.step)
    costs = {"macs": count_macs(table), "params": count_params(model, table), "bytes": count_bytes(model, table)}
    call = Call((torch.randn(EXAMPLES, 1, 16, 16),))
    return check_policies(model, source, table_of(table), costs, call)  # type: ignore[return-value]


def test_checks_hold_where_nothing_is_wrong() -> None:
    """Every part of every policy holds, and the difference is that of rounding."""
    found = checked(lambda table: table)
    assert all(check["ok"] for check in found)
    assert max(float(str(check["difference"])) for check in found) < 1e-4


def test_checks_find_what_is_wrong() -> None:
    """A table that couples the wrong channels, or leaves a tensor out, does not hold; the reason says what."""

    def shuffled(table: ChannelTable) -> ChannelTable:
        wrong = copy.deepcopy(table)
        index_maps = wrong.index_maps["conv2.weight"][1]
        wrong.index_maps["conv2.weight"][1] = tuple(np.roll(index_map, 1) for index_map in index_maps)  # type: ignore[index]
        return wrong

    found = checked(shuffled)
    assert any("outputs are off" in str(check["reason"]) for check in found) and not all(
        check["equal"] for check in found
    )

    def lacking(table: ChannelTable) -> ChannelTable:
        wrong = copy.deepcopy(table)
        del wrong.index_maps["conv2.weight"][1]  # type: ignore[attr-defined]
        return wrong

    found = checked(lacking)
    assert not all(check["ok"] for check in found)


@pytest.mark.slow
def test_the_smallest_of_deep_networks_still_feels_its_input() -> None:
    """After settling, pictures are told apart at the last layer, where they would be lost without."""
    for name in ("mobilenet_v2", "squeezenet1_1"):
        recipe = recipe_of(name)
        _, model = load_model(recipe, None, (3, 48, 48))
        table = trace_groups(randomise(model), (3, 48, 48), recipe.model.ignore, recipe.surgery.step)
        call = Call((torch.randn(EXAMPLES, 3, 48, 48, generator=torch.Generator().manual_seed(0)),))
        kept = kept_channels(table, ranks(table, torch.rand(len(table.channel_group))), table.space.low)
        zeroed = zero_channels(model, table, kept)
        with torch.no_grad():
            lost, felt = zeroed(*call.args), normalise_activations(zeroed, call)(*call.args)
        shares = [float((out[1:] - out[:-1]).abs().max() / out.abs().max()) for out in (lost, felt)]
        assert shares[0] < 1e-3 < 1e-2 < shares[1], (name, shares)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_policies_are_legal(kind: str) -> None:
    """Policies keep to the grid, and groups that may keep nothing sometimes do."""
    space = Space(("a", "b", "c"), (64, 30, 8), (8, 5, 1), (True, False, False))
    drawn = np.stack([draw_policy(kind, space, np.random.default_rng(seed)) for seed in range(200)])
    assert space.is_legal(drawn).all() and (drawn[:, 0] == 0).any()
    assert kind == "smallest" or (drawn == space.high).any(0).all()


def test_a_network_is_examined_on_pictures_of_its_own_size() -> None:
    """A name that says nothing stands for 224 pixels; timm knows its networks' sizes; the data's size goes before."""
    assert own_size("resnet50") == 224 and own_size("timm:levit_128s") == 224 and own_size("timm:halonet_h1") == 256
    assert subject_of(recipe_of("timm:cait_xxs24_384"), None, explicit_data=False).shape == (3, 384, 384)
    assert subject_of(recipe_of("resnet18"), "1x9x7", explicit_data=False).shape == (1, 9, 7)
    for text in ("3", "3xy", "3x0x8"):
        with pytest.raises(UsageError, match=f"'{text}'"):
            subject_of(recipe_of("resnet18"), text, explicit_data=False)


def test_a_network_that_cannot_be_built_gives_a_record() -> None:
    """Unknown names and wrong options are reasons, not crashes."""
    subject = subject_of(recipe_of("resnet18"), "3x32x32", explicit_data=False)
    for recipe in (recipe_of("resnet1"), recipe_of("resnet18", **{"model.options": {"wrong": 1}})):
        record = examine_or_say_why(recipe, subject)
        assert not record["ok"] and record["reason"] and record["checks"] is None
