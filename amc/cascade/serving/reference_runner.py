"""Runs an exported cascade with ONNX Runtime and numpy: `python run.py FOLDER inputs.npy` prints a JSON line each."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def features(logits: list[np.ndarray]) -> np.ndarray:
    """One (b, classes) for each visited stage -> confidence, margin, certainty, streak, earlier (b, 5)."""
    powers = [np.exp(stage.astype(np.float64) - stage.max(1, keepdims=True)) for stage in logits]
    shares, answers = [power / power.sum(1, keepdims=True) for power in powers], [stage.argmax(1) for stage in logits]
    p, top = shares[-1], np.sort(shares[-1], 1)[:, ::-1]
    certainty = 1 + np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum(1) / np.log(max(2, p.shape[1]))
    streak = np.cumprod([a == answers[-1] for a in answers[::-1]], 0).mean(0)
    earlier = shares[-2][np.arange(len(p)), answers[-1]] if len(logits) > 1 else np.zeros(len(p))
    margin = top[:, 0] - top[:, 1] if p.shape[1] > 1 else top[:, 0]
    return np.stack([top[:, 0], margin, certainty.clip(0, 1), streak, earlier], 1)


def score(rule: dict[str, Any], seen: np.ndarray) -> Any:
    """One stage's rule of plan.json, features (b, 5) -> (b,)."""
    if "column" in rule:
        return np.round(seen[:, rule["column"]] * rule["times"]) if rule["times"] else seen[:, rule["column"]]
    if "edges" in rule:
        values = np.array([-np.inf if value is None else value for value in rule["values"]])
        return values[np.searchsorted(rule["edges"], seen[:, 0], side="right")]
    odds = seen[:, 0].clip(1e-6, 1 - 1e-6) / (1 - seen[:, 0].clip(1e-6, 1 - 1e-6))
    inputs = np.column_stack([np.ones(len(seen)), seen, np.log(odds)])
    return sum(sign / (1 + np.exp(-inputs @ np.array(weights))) for sign, weights in rule["chances"])


def run(folder: str | Path, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Predictions, the stage at which each input stopped, and its cost: all (n,)."""
    plan = json.loads((Path(folder) / "plan.json").read_text())
    rows, held, logits, scores = np.arange(len(inputs)), {"inputs": inputs}, [], []
    prediction, stop = np.zeros(len(inputs), np.int64), np.zeros(len(inputs), np.int64)
    for number, stage in enumerate(plan["stages"]):
        session = onnxruntime.InferenceSession(Path(folder) / stage["file"])
        outputs = session.run(None, {name: held[name] for name in stage["takes"]})
        held.update(zip(stage["gives"], outputs, strict=True))
        logits.append(outputs[0])
        scores.append(score(stage["rule"], features(logits)))
        best = number - np.argmax(scores[::-1], 0) if plan["best"] else np.full(len(rows), number)
        prediction[rows] = np.stack(logits)[best, np.arange(len(rows))].argmax(1)
        stop[rows] = number
        going = ~(scores[-1] >= float(stage["threshold"]))
        if not going.any():
            break
        rows, held = rows[going], {name: held[name][going] for name in stage["keeps"]}
        logits, scores = [stage[going] for stage in logits], [stage[going] for stage in scores]
    return prediction, stop, np.array([stage["cost"] for stage in plan["stages"]])[stop]


if __name__ == "__main__":
    for prediction, stop, cost in zip(*run(sys.argv[1], np.load(sys.argv[2]).astype(np.float32)), strict=True):
        print(json.dumps({"prediction": int(prediction), "stage": int(stop), "cost": float(cost)}))
