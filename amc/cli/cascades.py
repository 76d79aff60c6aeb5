"""The commands of dynamic inference: cascade, serve, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc.cli.options import DeviceOption, JsonOption, QuietOption, RunArgument, TrustOption, print_result, use_device
from amc.system.progress import shown

CascadeArgument = Annotated[Path, typer.Argument(help="A folder of `amc cascade` or of `amc export`.")]


def cascade(
    run: RunArgument,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help="Mean cost of an input: 300MFLOPs (1 FLOP = 1 multiply-add), 30%."),
    ] = None,
    max_cost: Annotated[str | None, typer.Option(help="Cost that no input may exceed, e.g. 1.2GFLOPs or 120%.")] = None,
    accuracy: Annotated[str | None, typer.Option(help="Least accuracy, e.g. 0.92 or 92%.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Largest drop in accuracy against the dense network, e.g. 0.5%.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which mean cost, accuracy and drop are certified.")] = 0.9,
    method: Annotated[str, typer.Option(help="tinysaver, esn, pcee, pcee-ws, b-distil, or auto.")] = "auto",
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", help="An independent network to plan with; may be repeated.", metavar="NAME[=WEIGHTS]"),
    ] = None,
    train: Annotated[int, typer.Option(min=0, help="Networks of the run's family that may be trained now.")] = 4,
    exits: Annotated[
        str, typer.Option(help="frozen: exits are fitted to the network as it is; joint: it is trained on with them.")
    ] = "frozen",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/cascade/TERMS.")] = None,
    device: DeviceOption = None,
    trust: TrustOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Plan a cascade of a run's networks: easy inputs leave early, and what you ask for holds, with a certificate."""
    use_device(device)
    from amc.cascade.planning.constraints import Constraints
    from amc.cascade.planning.pipeline import plan_cascade

    constraints = Constraints.read(budget, max_cost, accuracy, max_drop, confidence)
    with shown(quiet=quiet) as progress:
        result = plan_cascade(
            run, constraints, progress, method=method, external=with_ or [], out=out, train=train, exits=exits
        )
    print_result(result.record if json_ else result.text)


def serve(
    cascade: CascadeArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Inputs that a stage is run on at most.")] = 64,
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that an input waits before a stage for others to come.")
    ] = 2.0,
    device: DeviceOption = None,
    trust: TrustOption = None,
    quiet: QuietOption = False,
) -> None:
    """Serve a cascade over HTTP: inputs in, answers out, each with the stage that gave it and what it cost."""
    use_device(device)
    from amc.cascade.serving.server import serve

    with shown(quiet=quiet) as progress:
        serve(cascade, host, port, batch, wait / 1000, progress)


def export(
    cascade: CascadeArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    trust: TrustOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a cascade as ONNX networks, one a stage, with a JSON plan and a runner of sixty lines."""
    from amc.cascade.serving.server import export

    found = export(cascade, out)
    print_result(found if json_ else "\n".join(f"{size:>12,} {out}/{name}" for name, size in found["files"].items()))
