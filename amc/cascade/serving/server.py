"""`amc serve`: a kept or exported cascade as a web service."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from amc.cascade.certificates.drift import DriftMonitor
from amc.cascade.serving.inference_stages import for_inference
from amc.cascade.serving.latency import measure_latency
from amc.cascade.serving.onnx_export import PLAN, export_cascade
from amc.cascade.serving.runtime import Cascade
from amc.cascade.serving.saved_cascade import open_cascade
from amc.system.device import Compute
from amc.system.errors import UsageError
from amc.system.progress import Progress


@dataclass(frozen=True, eq=False)
class ServedCascade:
    """A cascade from its folder.

    Attributes:
        input_shape: of one input.
        about: what its folder tells of it.
        monitor: None where none was kept.
    """

    cascade: Cascade
    input_shape: tuple[int, ...]
    about: dict[str, Any]
    monitor: DriftMonitor | None


def load(folder: Path, compute: Compute | None = None) -> ServedCascade:
    """What `amc cascade` kept, on `compute` (None: found), or what `export_cascade` wrote, by ONNX Runtime.

    Raises:
        RunError, ModelError, UsageError: one line each.
    """
    if (folder / PLAN).is_file():
        from amc.cascade.serving.onnx_stage import load_exported, read_plan

        plan, cascade = read_plan(folder), load_exported(folder, torch.get_num_threads())
        about, kept, shape = plan["about"], plan["about"].get("monitor"), tuple(plan["inputs"]["shape"][1:])
    else:
        found = open_cascade(folder, compute or Compute.detect())
        cascade = found.cascade
        about = {"method": found.record["method"], "terms": found.record.get("report", {}).get("terms")}
        kept, shape = found.record.get("monitor"), found.input_shape
    monitor = None if kept is None else DriftMonitor.from_json(kept, cascade.rule)
    return ServedCascade(cascade, shape, {name: about.get(name) for name in ("method", "terms")}, monitor)


def timed(loaded: ServedCascade, batch: int) -> Cascade:
    """The cascade as it is served, with the seconds of its stages on this machine, by which deadlines are kept."""
    compute, rule = loaded.cascade.compute, loaded.cascade.rule
    inputs = torch.randn(min(batch, 64), *loaded.input_shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(compute.device)
    stages = for_inference(loaded.cascade.stages, inputs, compute)
    curves = measure_latency(stages, rule.scorer, inputs, compute, sorted({1, max(1, batch // 8), batch}), rounds=5)
    return replace(loaded.cascade, stages=stages, curves=curves)


def serve(folder: Path, host: str, port: int, batch: int, wait: float, progress: Progress) -> None:
    """Serve a cascade until interrupted.

    Args:
        batch: inputs that a stage is run on at most.
        wait: seconds that an input waits before a stage for others to come.

    Raises:
        UsageError: fastapi or uvicorn is not installed, or the address is taken.
    """
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise UsageError(
                f"amc serve needs the package {package}, but it is not installed; pip install 'amc-compress[serve]'"
            )
    check_address(host, port)
    import uvicorn

    from amc.cascade.serving.web_app import service

    loaded = load(folder)
    progress.say(f"time {len(loaded.cascade.stages)} stages")
    cascade = timed(loaded, batch)
    app = service(cascade, loaded.input_shape, loaded.about, loaded.monitor, batch, wait)
    progress.say(f"serve {folder} at http://{host}:{port}: POST /answers, GET /cascade, GET /health, GET /docs")
    uvicorn.run(app, host=host, port=port, log_level="warning")


def check_address(host: str, port: int) -> None:
    """Raises `UsageError` where no server can listen."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"an address must be free to be served at, but {host}:{port}: {error.strerror}; give another --port"
        ) from None


def export(folder: Path, out: Path) -> dict[str, Any]:
    """Write the cascade that `amc cascade` kept as ONNX networks, a plan and a runner.

    Returns:
        folder, files and bytes.
    """
    compute = Compute(torch.device("cpu"), False)
    loaded = load(folder, compute)
    if (folder / PLAN).is_file():
        raise UsageError(f"an export starts from what `amc cascade` kept, but {folder} is an export; give the other")
    example = torch.randn(3, *loaded.input_shape, generator=torch.Generator().manual_seed(0))
    kept = {} if loaded.monitor is None else {"monitor": loaded.monitor.to_json()}
    export_cascade(loaded.cascade, example, out, {**loaded.about, **kept})
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return {"folder": str(out), "files": files, "bytes": sum(files.values())}
