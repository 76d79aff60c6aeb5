"""Wall-clock seconds of a cascade beside its base network, against what its multiply-adds promise.

Three ways to run the same plan: gathered (the runtime: only who is left goes on), masked (all go through all stages,
and who has left is ignored) and singly (each input by itself). Networks are made ready for inference alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from amc.bench.cascade.breakdown import Bare, kept_by, warm_seconds
from amc.bench.machine import seconds
from amc.cascade import (
    ActiveExamples,
    Answers,
    Cascade,
    Finished,
    LatencyCurve,
    NetworkStage,
    Quantiles,
    StopRule,
    export_cascade,
    for_inference,
    load_exported,
    measure_latency,
)

BATCHES = (1, 8, 64, 256)
SINGLES, PARTS = 200, 64  # inputs that are timed one at a time; larger batches that are timed at most
AGREE = 1e-4  # of the logits of the three ways, relative to the largest


def bench_speed(
    cascade: Cascade,
    base: NetworkStage,
    inputs: Tensor,
    batches: Sequence[int] = BATCHES,
    rounds: int = 3,
    onnx: bool = True,
) -> dict[str, Any]:
    """Time a cascade and its base by torch and, with `onnx`, both by ONNX Runtime on the CPU.

    Args:
        base: the static network that the cascade is compared to.
        inputs: (n, ...) with n at least the largest batch; each size is timed on as many whole batches as they give.
        rounds: timings of every batch, in rounds over all ways, so that a slow moment hurts all alike; the median
            counts. Each follows a run that is not timed: one way leaves caches that are no use to the next.

    Returns:
        For each engine: costs, speed-ups by batch size, curves of the stages, and where gathering pays. `alike`: the
        share of the inputs whose answer is that of the stages as they were trained.
    """
    alone = Cascade((base,), StopRule(cascade.rule.scorer, ()), cascade.compute)
    ready = [replace(each, stages=for_inference(each.stages, inputs, each.compute)) for each in (cascade, alone)]
    found = {"torch": _engine(ready[0], ready[1], inputs, batches, rounds)}
    alike = cascade.run(inputs).predictions == ready[0].run(inputs).predictions
    if onnx:
        with TemporaryDirectory() as folder:
            example, threads = inputs[:3].to(cascade.compute.device), torch.get_num_threads()
            pair = []
            for number, each in enumerate((cascade, alone)):
                place = export_cascade(each, example, Path(folder) / str(number))
                pair.append(load_exported(place, threads))
            found["onnx"] = _engine(pair[0], pair[1], inputs, batches, rounds)
    return {"threads": torch.get_num_threads(), "rounds": rounds, "alike": float(alike.double().mean()), **found}


def speed_text(found: dict[str, Any]) -> str:
    """The result for people, a table for each engine."""
    lines = []
    for engine in ("torch", "onnx"):
        if engine in found:
            lines += [*_table(engine, found[engine]), ""]
    lines += [
        "Of MACs: the wall-clock speed-up as a share of the multiply-adds', a product: what is kept by the seconds of",
        "a MAC of the stages in whole batches (own), as later batches are smaller (small), and by all else (run).",
        "Model: error of the mean seconds that the stages' curves promise. Made ready for inference, "
        f"{found['alike']:.1%} of the",
        f"answers are as trained. {found['threads']} threads, medians of {found['rounds']} rounds.",
    ]
    return "\n".join(lines)


def masked(cascade: Cascade, inputs: Tensor) -> Answers:
    """Run all stages on all inputs, and give each the answer that its plan takes: what gathering is compared to."""
    group = ActiveExamples(torch.arange(len(inputs)), inputs.to(cascade.compute.device), {})
    stopped = torch.zeros(len(inputs), dtype=torch.bool)
    left: list[Finished] = []
    for number, stage in enumerate(cascade.stages):
        group = group.visit(stage, cascade.rule.scorer, cascade.compute)
        last = number == len(cascade.stages) - 1
        leaving = ~stopped if last else ~stopped & cascade.rule.stops(number, group.scores[-1])
        left.append(group.answers(cascade.rule.best).take(leaving))
        stopped |= leaving
    return cascade.in_order(left)


def singly(cascade: Cascade, inputs: Tensor) -> Answers:
    """Run each input by itself."""
    found = [cascade.run(one) for one in (inputs[row : row + 1] for row in range(len(inputs)))]
    parts = zip(*((each.logits, each.stop, each.answered, each.cost) for each in found), strict=True)
    return Answers(*map(torch.cat, parts))


def expected_seconds(curves: Sequence[LatencyCurve], shares: Tensor, batch: int) -> float:
    """Mean seconds of a batch of independent examples of which `shares` (S,) stop at each stage."""
    reaching = (shares.flip(0).cumsum(0).flip(0)).clamp(0, 1).tolist()
    total = 0.0
    for curve, reach in zip(curves, reaching, strict=True):
        fixed, each = curve.line
        total += fixed * (1 - (1 - reach) ** batch) + each * batch * reach
    return total


def saved_by_gathering(
    curves: Sequence[LatencyCurve], gather: LatencyCurve, stage: int, before: int, after: int
) -> float:
    """Seconds that stage `stage` saves by running on the `after` examples left instead of all `before`, less gathering.

    Gathering pays where it is positive. A runtime that masks instead saves nothing, and runs stages on examples that
    have their answer.
    """
    return curves[stage](before) - curves[stage](after) - gather(after)


@torch.inference_mode()
def _engine(cascade: Cascade, alone: Cascade, inputs: Tensor, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    curves = measure_latency(cascade.stages, cascade.rule.scorer, inputs, cascade.compute, batches, rounds=7)
    answers = cascade.run(inputs)
    shares = torch.bincount(answers.stop, minlength=len(cascade.stages)).double() / len(inputs)
    gather = _gathering(inputs, batches)
    rows = [_sized(cascade, alone, inputs, batch, rounds, curves) for batch in batches]
    return {
        "stages": [stage.name for stage in cascade.stages],
        "base": {"name": alone.stages[0].name, "macs": alone.costs[0]},
        "shares": shares.tolist(),
        "macs": Quantiles.of(answers.cost).to_json(),
        "batches": rows,
        "seconds_per_mac": _per_mac(cascade, alone, rows[-1]["bare"]),
        "curves": [{**curve.to_json(), "error": curve.error} for curve in curves],
        "gathering": {
            "curve": gather.to_json(),
            "saved": _saved(curves, gather, shares, max(batches)),
        },
    }


def _sized(
    cascade: Cascade, alone: Cascade, inputs: Tensor, batch: int, rounds: int, curves: Sequence[LatencyCurve]
) -> dict[str, Any]:
    """The figures of one batch size; `bare`: mean seconds of a batch, of the base and of each stage on all inputs."""
    count = min(len(inputs), SINGLES) if batch == 1 else min(len(inputs) // batch, PARTS) * batch
    parts = [inputs[start : start + batch] for start in range(0, count, batch)]
    answers = [cascade.run(part) for part in parts]
    cost = torch.cat([each.cost for each in answers])
    stops = torch.cat([each.stop for each in answers])
    promised = alone.costs[0] / float(cost.mean())
    variants: dict[str, Callable[[Tensor], object]] = {
        "base": alone.run,
        "gathered": cascade.run,
        "masked": partial(masked, cascade),
    }
    taken = {name: torch.empty(rounds, len(parts), dtype=torch.float64) for name in variants}
    bare = [Bare.of(cascade, alone, part, each.stop) for part, each in zip(parts, answers, strict=True)]
    by_themselves = torch.empty(rounds, len(parts), 2 + len(cascade.stages), dtype=torch.float64)
    for number in range(rounds):
        for place, part in enumerate(parts):
            for name, variant in variants.items():
                taken[name][number, place] = warm_seconds(partial(variant, part))
            by_themselves[number, place] = torch.tensor(bare[place].timed(), dtype=torch.float64)
    medians = {name: values.median(0).values for name, values in taken.items()}
    medians["singly"] = torch.tensor([warm_seconds(partial(singly, cascade, parts[0]))], dtype=torch.float64)
    speedup = float(medians["base"].mean() / medians["gathered"].mean())
    shares = torch.bincount(stops, minlength=len(cascade.stages)).double() / len(stops)
    stages = by_themselves.median(0).values.mean(0)
    return {
        "batch": batch,
        "inputs": count,
        "seconds": {name: Quantiles.of(values).to_json() for name, values in medians.items()},
        "speedup": speedup,
        "macs_speedup": promised,
        "share_of_macs": speedup / promised,
        "kept": kept_by(stages, stops, promised, speedup),
        "bare": [float(stages[0]), *stages[2:].tolist()],
        "model_error": expected_seconds(curves, shares, batch) / float(medians["gathered"].mean()) - 1,
        "agree": _agree(answers[0], masked(cascade, parts[0])) and _agree(answers[0], singly(cascade, parts[0])),
    }


def _agree(first: Answers, second: Answers) -> bool:
    """Whether two ways of running stop alike and answer alike, up to rounding."""
    apart = (first.logits - second.logits).abs().max() <= AGREE * first.logits.abs().max()
    return bool(apart) and torch.equal(first.stop, second.stop) and torch.equal(first.predictions, second.predictions)


def _gathering(inputs: Tensor, batches: Sequence[int]) -> LatencyCurve:
    """Seconds of taking some of the inputs out of a batch, by how many are taken."""
    medians = []
    for batch in batches:
        take = partial(inputs.__getitem__, torch.arange(batch) % len(inputs))
        medians.append(float(torch.tensor([seconds(take) for _ in range(25)]).median()))
    return LatencyCurve(tuple(batches), tuple(medians))


def _saved(curves: Sequence[LatencyCurve], gather: LatencyCurve, shares: Tensor, batch: int) -> list[float]:
    """For each stage but the first: the share of a whole batch's seconds that is saved by running it on who is left."""
    reaching = (1 - shares.cumsum(0)).clamp(min=0).tolist()[:-1]
    return [
        saved_by_gathering(curves, gather, stage, batch, round(batch * reach)) / curves[stage](batch)
        for stage, reach in enumerate(reaching, start=1)
    ]


def _per_mac(cascade: Cascade, alone: Cascade, bare: Sequence[float]) -> list[float]:
    """Seconds of a multiply-add of each stage in a full batch, relative to the base's; 1 keeps what MACs promise."""
    added = [cost - before for cost, before in zip(cascade.costs, (0.0, *cascade.costs), strict=False)]
    base, *stages = bare
    return [taken / macs * alone.costs[0] / base for taken, macs in zip(stages, added, strict=True)]


def _table(engine: str, found: dict[str, Any]) -> list[str]:
    macs, whole = found["macs"], found["base"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(found["stages"], found["shares"], strict=True))
    lines = [
        f"{engine}: {shares}; mean cost {macs['mean'] / whole['macs']:.0%} and worst {macs['max'] / whole['macs']:.0%} "
        f"of {whole['name']}",
        "seconds of a MAC, of the base's: "
        + ", ".join(
            f"{name} {ratio:.2f}" for name, ratio in zip(found["stages"], found["seconds_per_mac"], strict=True)
        ),
        "batch   base p50/p99 ms  gathered p50/p99 ms  masked ms  singly ms  speed-up  of MACs =  own x small x run"
        "  model",
    ]
    for row in found["batches"]:
        ms = {name: {key: 1000 * value for key, value in each.items()} for name, each in row["seconds"].items()}
        kept = row["kept"]
        base, ours = (f"{ms[name]['p50']:.2f} / {ms[name]['p99']:.2f}" for name in ("base", "gathered"))
        lines.append(
            f"{row['batch']:>5} {base:>17} {ours:>20} {ms['masked']['p50']:>10.2f} {ms['singly']['mean']:>10.2f}"
            f" {row['speedup']:>8.2f}x {row['share_of_macs']:>8.0%}"
            f" {kept['stages']:>6.0%} {kept['batches']:>6.0%} {kept['runtime']:>5.0%} {row['model_error']:>+6.0%}"
        )
    return lines
