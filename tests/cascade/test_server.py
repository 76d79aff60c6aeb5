"""A served cascade answers over HTTP as it does in the library."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor

from amc.cascade.certificates.drift import DriftMonitor
from amc.cascade.serving.onnx_export import export_cascade
from amc.cascade.serving.onnx_stage import load_exported
from amc.cascade.serving.runtime import Answers, Cascade
from amc.cascade.serving.server import check_address, load, timed
from amc.cascade.serving.web_app import ARRAY, service
from amc.cli import main
from amc.system.errors import ModelError, RunError, UsageError
from tests.cascade.cascades import assert_alike, cached_records, decided, half_cascade, some_inputs, some_stages

INPUTS = some_inputs(30)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return half_cascade(some_stages(wrap=lambda module: module), INPUTS)


@pytest.fixture
def client(cascade: Cascade) -> Iterator[TestClient]:
    with TestClient(service(cascade, (1, 8, 8), {"method": "test"}, batch=8)) as found:
        yield found


@pytest.fixture(scope="module")
def exported(cascade: Cascade, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_cascade(cascade, INPUTS[:3], tmp_path_factory.mktemp("served"), {"method": "test"})


def check(reported: list[dict[str, Any]], answers: Answers, cascade: Cascade) -> None:
    assert [each["prediction"] for each in reported] == answers.predictions.tolist()
    assert [each["cost"] for each in reported] == answers.cost.tolist()
    assert [each["visited"] for each in reported] == (answers.stop + 1).tolist()
    assert [each["stage"] for each in reported] == [cascade.stages[stage].name for stage in answers.answered.tolist()]
    confidence = answers.logits.double().softmax(1).amax(1)
    torch.testing.assert_close(
        torch.tensor([each["confidence"] for each in reported]).double(), confidence, atol=1e-5, rtol=0
    )


def as_array(inputs: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, inputs.numpy())
    return buffer.getvalue()


def test_json_and_arrays_get_the_answers_of_the_library(client: TestClient, cascade: Cascade) -> None:
    """Predictions, costs and stages are equal, confidences to 1e-5."""
    by_json = client.post("/answers", json={"inputs": INPUTS.tolist()})
    by_array = client.post("/answers", content=as_array(INPUTS), headers={"content-type": ARRAY})
    assert by_json.status_code == by_array.status_code == 200
    check(by_json.json()["answers"], cascade.run(INPUTS), cascade)
    check(by_array.json()["answers"], cascade.run(INPUTS), cascade)


def test_a_request_may_set_its_own_cap_and_deadline(client: TestClient, cascade: Cascade) -> None:
    """In the JSON body or in the query."""
    capped = client.post("/answers", json={"inputs": INPUTS.tolist(), "max_cost": 40}).json()["answers"]
    check(capped, cascade.run(INPUTS, max_cost=40), cascade)
    query = {"seconds": "0"}
    hurried = client.post("/answers", content=as_array(INPUTS), headers={"content-type": ARRAY}, params=query)
    check(hurried.json()["answers"], cascade.run(INPUTS, seconds=0), cascade)


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        ({"inputs": [[1, 2]]}, r"of shape \(n, 1, 8, 8\), n at least 1, but are \(1, 2\)"),
        ({"inputs": []}, "n at least 1"),
        ({"inputs": [["a"]]}, "must be numbers"),
        ({"inputs": [[[1], [2, 3]]]}, "must be numbers"),
        ({"inputs": INPUTS[:1].tolist(), "max_cost": 5}, "allow the first stage, 10 multiply-adds"),
        ({"inputs": INPUTS[:1].tolist(), "max_cost": -1}, "max_cost: Input should be greater than 0"),
        ({"input": []}, "inputs: Field required"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(client: TestClient, body: dict[str, Any], reported: str) -> None:
    """Status 400 and one sentence."""
    found = client.post("/answers", json=body)
    assert found.status_code == 400
    with pytest.raises(RuntimeError, match=reported):
        raise RuntimeError(found.json()["error"])


def test_bodies_that_are_no_json_or_no_array_are_refused(client: TestClient) -> None:
    """Pickles and NaN included."""
    assert "must be JSON" in client.post("/answers", content=b"{").json()["error"]
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for body in (b"", b"abc", pickled.getvalue()):
        found = client.post("/answers", content=body, headers={"content-type": ARRAY})
        assert found.status_code == 400 and "must be numbers" in found.json()["error"]
    nan = as_array(torch.full((1, 1, 8, 8), float("nan")))
    assert "finite" in client.post("/answers", content=nan, headers={"content-type": ARRAY}).json()["error"]


def test_the_service_tells_its_cascade_and_its_health(client: TestClient, cascade: Cascade) -> None:
    """Stages, costs and method; how many were answered and are inside."""
    reported = client.get("/cascade").json()
    assert [stage["name"] for stage in reported["stages"]] == [stage.name for stage in cascade.stages]
    assert [stage["cost"] for stage in reported["stages"]] == list(cascade.costs) and reported["method"] == "test"
    client.post("/answers", json={"inputs": INPUTS.tolist()})
    assert client.get("/health").json() == {"status": "ok", "answered": 30, "inside": 0}


def test_when_the_monitor_sees_drift_the_safe_plan_answers(cascade: Cascade) -> None:
    """Health says why, and every later input visits all stages."""
    records = cached_records(cascade.stages, some_inputs(400, seed=4))
    monitor = DriftMonitor.on(records, cascade.rule, window=100, lasting=1)
    with TestClient(service(cascade, (1, 8, 8), {}, monitor)) as client:
        usual, strange = some_inputs(100, seed=5), 6 * some_inputs(100, seed=6)
        client.post("/answers", content=as_array(usual), headers={"content-type": ARRAY})
        assert client.get("/health").json()["plan"] == "planned"
        client.post("/answers", content=as_array(strange), headers={"content-type": ARRAY})
        health = client.get("/health").json()
        assert health["plan"] == "safe" and "differs from" in health["monitor"]
        after = client.post("/answers", json={"inputs": usual[:5].tolist()}).json()["answers"]
    assert {each["visited"] for each in after} == {4}


def test_an_exported_cascade_runs_and_is_served_by_onnx_runtime(exported: Path, cascade: Cascade) -> None:
    """Stops, costs and answers are those of torch where rounding does not decide."""
    found, expected = load_exported(exported, threads=1), cascade.run(INPUTS)
    sure = decided(cached_records(cascade.stages, INPUTS), cascade.rule)
    for answers in (found.run(INPUTS), load(exported).cascade.run(INPUTS)):
        assert_alike(answers, expected, sure)
    loaded = load(exported)
    assert loaded.input_shape == (1, 8, 8) and loaded.about["method"] == "test"
    assert len(timed(loaded, 8).curves) == 4
    with TestClient(service(timed(loaded, 8), loaded.input_shape, loaded.about)) as client:
        reported = client.post("/answers", json={"inputs": INPUTS.tolist()}).json()["answers"]
    check(reported, expected, cascade)


def test_a_damaged_export_is_named(exported: Path, tmp_path: Path) -> None:
    """A missing stage or a wrong plan is a `ModelError`."""
    plan = json.loads((exported / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ModelError, match="must hold an exported cascade whole"):
        load(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ModelError, match="must be a plan of format"):
        load(tmp_path)
    with pytest.raises(RunError, match="holds none"):
        load(tmp_path / "nothing")


def test_the_command_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No cascade, or no `serve` extra: exit code 2 and one line."""
    monkeypatch.setattr("sys.argv", ["amc", "serve", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "holds none" in capsys.readouterr().err
    monkeypatch.setattr("amc.cascade.serving.server.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "pip install 'amc-compress[serve]'" in capsys.readouterr().err


def test_an_address_that_is_taken_is_told_in_one_line() -> None:
    """The message names the flag to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="give another --port"):
            check_address("127.0.0.1", taken.getsockname()[1])
