"""The web service of one cascade: inputs come in, answers go out with the stage that gave them and what they cost."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from amc.cascade.certificates.drift import DriftMonitor, DriftVerdict, confidence_of
from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving.queues import Busy, StageQueues
from amc.cascade.serving.runtime import Answers, Cascade
from amc.system.errors import AmcError, UsageError

ARRAY = "application/octet-stream"  # the content type of a .npy file


class AnswerRequest(BaseModel):
    """The body of a request for answers, as JSON."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Any]
    max_cost: float | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, ge=0)


class DriftWatch:
    """Shows a monitor every answer that the stop rule decided, and keeps its last verdict."""

    def __init__(self, monitor: DriftMonitor) -> None:
        self.monitor = monitor
        self.verdict: DriftVerdict | None = None

    def __call__(self, stop: Tensor, logits: Tensor) -> StopRule:
        verdicts = self.monitor.observe(stop, confidence_of(logits))
        self.verdict = verdicts[-1] if verdicts else self.verdict
        return self.monitor.rule


def service(
    cascade: Cascade,
    input_shape: Sequence[int],
    about: dict[str, Any],
    monitor: DriftMonitor | None = None,
    batch: int = 64,
    wait: float = 0.002,
    room: int = 4096,
) -> FastAPI:
    """The application; its queues live from start-up to shut-down.

    Args:
        input_shape: of one input, as the networks see it: float32, normalised.
        about: reported by `GET /cascade` beside stages and thresholds.
        monitor: of the cascade's stop rule; when it sees drift the safe plan answers.
    """
    watch = None if monitor is None else DriftWatch(monitor)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.queues = StageQueues(cascade, batch, wait, room, watch)
        yield
        app.state.queues.close()

    app = FastAPI(title="AMC cascade", lifespan=lifespan)

    @app.exception_handler(AmcError)
    async def refused(request: Request, error: AmcError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503 if isinstance(error, Busy) else 400)

    @app.post("/answers")
    async def answers(request: Request) -> dict[str, Any]:
        inputs, asked = _read(await request.body(), request, tuple(input_shape))
        future = app.state.queues.submit(inputs, asked.max_cost, asked.seconds)
        return {"answers": _described(await asyncio.wrap_future(future), cascade)}

    @app.get("/cascade")
    async def reported() -> dict[str, Any]:
        stages = [
            {"name": stage.name, "cost": cost, "threshold": str(threshold)}
            for stage, cost, threshold in zip(
                cascade.stages, cascade.costs, [*cascade.rule.thresholds, -float("inf")], strict=True
            )
        ]
        return {**about, "input_shape": list(input_shape), "scorer": cascade.rule.scorer.kind, "stages": stages}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        queues: StageQueues = app.state.queues
        found: dict[str, Any] = {"status": "ok", "answered": queues.answered, "inside": queues.inside}
        if watch is not None:
            found["plan"] = "safe" if watch.monitor.safe else "planned"
            found["monitor"] = None if watch.verdict is None else watch.verdict.sentence
        return found

    return app


def _read(body: bytes, request: Request, shape: tuple[int, ...]) -> tuple[Tensor, AnswerRequest]:
    """The inputs (n, *shape) float32 of a request, from JSON or from a .npy file, and what else it asks for."""
    try:
        if request.headers.get("content-type", "").startswith(ARRAY):
            array = np.load(io.BytesIO(body), allow_pickle=False)
            asked = AnswerRequest.model_validate({"inputs": [], **dict(request.query_params)})
        else:
            asked = AnswerRequest.model_validate_json(body)
            array = np.array(asked.inputs, dtype=np.float32)
        inputs = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise UsageError(
            f"a request must be JSON with inputs, max_cost and seconds, but {place}: {first['msg']}; see /docs"
        ) from error
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
        raise UsageError(f"inputs must be numbers of shape (n, {_text(shape)}), but {error}; fix the body") from error
    if tuple(inputs.shape[1:]) != shape or len(inputs) == 0:
        found = tuple(inputs.shape)
        raise UsageError(f"inputs must be of shape (n, {_text(shape)}), n at least 1, but are {found}; fix the body")
    if not bool(inputs.isfinite().all()):
        raise UsageError("inputs must be finite numbers, but hold NaN or infinity; fix the body")
    return inputs, asked


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _described(answers: Answers, cascade: Cascade) -> list[dict[str, Any]]:
    rows = zip(
        answers.predictions.tolist(),
        confidence_of(answers.logits).tolist(),
        answers.answered.tolist(),
        answers.stop.tolist(),
        answers.cost.tolist(),
        strict=True,
    )
    return [
        {
            "prediction": prediction,
            "confidence": confidence,
            "stage": cascade.stages[answered].name,
            "visited": stop + 1,
            "cost": cost,
        }
        for prediction, confidence, answered, stop, cost in rows
    ]
