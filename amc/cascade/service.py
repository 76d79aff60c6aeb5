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

from amc.cascade.monitor import Monitor, Verdict, confidence_of
from amc.cascade.policy import Policy
from amc.cascade.queues import Busy, StageQueues
from amc.cascade.runtime import Answers, Cascade
from amc.system.errors import AmcError, UsageError

ARRAY = "application/octet-stream"  # the content type of a .npy file


class Asked(BaseModel):
    """The body of a request for answers, as JSON."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Any]
    max_cost: float | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, ge=0)


class Watch:
    """Shows a monitor every answer that the policy decided, and keeps its last verdict."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.verdict: Verdict | None = None

    def __call__(self, stop: Tensor, logits: Tensor) -> Policy:
        verdicts = self.monitor.observe(stop, confidence_of(logits))
        self.verdict = verdicts[-1] if verdicts else self.verdict
        return self.monitor.policy


def service(
    cascade: Cascade,
    input_shape: Sequence[int],
    about: dict[str, Any],
    monitor: Monitor | None = None,
    batch: int = 64,
    wait: float = 0.002,
    room: int = 4096,
) -> FastAPI:
    """The application; its queues live from start-up to shut-down.

    Args:
        input_shape: of one input, as the networks see it: float32, normalised.
        about: told by `GET /cascade` beside stages and thresholds.
        monitor: of the cascade's policy; when it sees drift the safe plan answers.
    """
    watch = None if monitor is None else Watch(monitor)

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
        return {"answers": _told(await asyncio.wrap_future(future), cascade)}

    @app.get("/cascade")
    async def told() -> dict[str, Any]:
        stages = [
            {"name": stage.name, "cost": cost, "threshold": str(threshold)}
            for stage, cost, threshold in zip(
                cascade.stages, cascade.costs, [*cascade.policy.thresholds, -float("inf")], strict=True
            )
        ]
        return {**about, "input_shape": list(input_shape), "scorer": cascade.policy.scorer.kind, "stages": stages}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        queues: StageQueues = app.state.queues
        found: dict[str, Any] = {"status": "ok", "answered": queues.answered, "inside": queues.inside}
        if watch is not None:
            found["plan"] = "safe" if watch.monitor.safe else "planned"
            found["monitor"] = None if watch.verdict is None else watch.verdict.sentence
        return found

    return app


def _read(body: bytes, request: Request, shape: tuple[int, ...]) -> tuple[Tensor, Asked]:
    """The inputs (n, *shape) float32 of a request, from JSON or from a .npy file, and what else it asks for."""
    try:
        if request.headers.get("content-type", "").startswith(ARRAY):
            array = np.load(io.BytesIO(body), allow_pickle=False)
            asked = Asked.model_validate({"inputs": [], **dict(request.query_params)})
        else:
            asked = Asked.model_validate_json(body)
            array = np.array(asked.inputs, dtype=np.float32)
        inputs = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise UsageError(
            f"a request must be JSON with inputs, max_cost and seconds, but {place}: {first['msg']}; see /docs"
        ) from error
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
        raise UsageError(f"inputs must be numbers of shape (n, {_text(shape)}), but {error}; mend the body") from error
    if tuple(inputs.shape[1:]) != shape or len(inputs) == 0:
        found = tuple(inputs.shape)
        raise UsageError(f"inputs must be of shape (n, {_text(shape)}), n at least 1, but are {found}; mend the body")
    if not bool(inputs.isfinite().all()):
        raise UsageError("inputs must be finite numbers, but hold NaN or infinity; mend the body")
    return inputs, asked


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _told(answers: Answers, cascade: Cascade) -> list[dict[str, Any]]:
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
