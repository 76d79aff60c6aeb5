"""Proof by trial: policies are cut out of a network, and everything that AMC says of them is compared with the truth.

Three policies are random, of which the second has many widths at their ends; the fourth is the smallest there is. Which
channels stay is random too.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amc.cost.counts import ProductCost
from amc.release.archive import load_network, save_network
from amc.surgery.channel_table import ChannelTable, kept_channels, ranks
from amc.surgery.cutting import cut_channels, zero_channels
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.random_parameters import normalise_activations
from amc.system.factory import one_line
from amc.system.isolation import is_out_of_memory
from amc.zoo.call import Call, float_tensors
from amc.zoo.networks.source import ModelSource
from amc_search import Space

TOLERANCE = 1e-3  # of the difference between two examples' outputs: float32, hundreds of layers, another order of sums
FAINT = 1e-2  # of the largest output: a smaller difference between examples is taken for this one
EXAMPLES = 4  # in the batch that outputs are compared on
KINDS = ("random", "random, many at their ends", "random", "smallest")
PARTS = ("shape", "cost", "equal", "saved")


def check_policies(
    model: nn.Module,
    source: ModelSource,
    table: ChannelTable,
    costs: Mapping[str, ProductCost],
    call: Call,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Cut each policy of `KINDS` and check it on `call`, a batch of several examples.

    Returns:
        One record a policy. shape: the outputs' are the dense network's. cost: MACs by torch's own counter, parameters
        and bytes are exactly those predicted. equal: the outputs are those of the dense network with the removed
        channels zero, to `TOLERANCE` of the largest difference between two examples' outputs, in float32 or else in
        float64; difference: how far they are off, in the same share. saved: saved and loaded again, the outputs are the
        same bit for bit. ok: all of them; reason: what does not hold.
    """
    rng = np.random.default_rng(seed)
    return [_check(kind, draw_policy(kind, table.space, rng), rng, model, source, table, costs, call) for kind in KINDS]


def draw_policy(kind: str, space: Space, rng: np.random.Generator) -> NDArray[np.int64]:
    """A legal policy; groups that may keep nothing sometimes do."""
    if kind == "smallest":
        return space.low.copy()
    counts: NDArray[np.int64] = space.step * rng.integers(
        space.low // space.step, space.high // space.step, endpoint=True
    )
    if kind != "random":
        third = rng.random(len(space))
        counts = np.where(third < 1 / 3, space.low, np.where(third > 2 / 3, space.high, counts))
    return counts


def _check(
    kind: str,
    policy: NDArray[np.int64],
    rng: np.random.Generator,
    model: nn.Module,
    source: ModelSource,
    table: ChannelTable,
    costs: Mapping[str, ProductCost],
    call: Call,
) -> dict[str, Any]:
    kept = kept_channels(table, ranks(table, torch.from_numpy(rng.random(len(table.channel_group)))), policy)
    predicted = {unit: float(cost(torch.from_numpy(policy)[None].double())) for unit, cost in costs.items()}
    record: dict[str, Any] = {"policy": kind, "macs": predicted["macs"], **dict.fromkeys(PARTS, False)}
    record |= {"difference": None, "ok": False, "reason": None}
    wrong: list[str] = []
    try:
        zeroed = normalise_activations(zero_channels(model, table, kept), call)
        small = cut_channels(zeroed, table, kept)
        output, wanted = _outputs(small, call), _outputs(zeroed, call)
        record["shape"] = _shapes(output) == _shapes(wanted)
        if not record["shape"]:
            wrong.append(f"outputs are {_shapes(output)} in place of {_shapes(wanted)}")
        true = {"macs": count_cut_macs(small, call.head(1)), **_sizes(small)}
        miscounted = [unit for unit in true if predicted[unit] != true[unit]]
        record["cost"] = not miscounted
        wrong += [f"{unit} are {true[unit]} in place of {predicted[unit]:.0f}" for unit in miscounted]
        if record["shape"]:
            difference = _difference(output, wanted)
            if not difference <= TOLERANCE:
                difference = _without_rounding(small, zeroed, call, difference)
            record["equal"] = difference <= TOLERANCE
            record["difference"] = difference if math.isfinite(difference) else None
            wrong += [] if record["equal"] else [f"outputs are off by {difference:.2g} of what tells examples apart"]
        del zeroed, wanted
        record["saved"] = _survives_saving(small, source, call, output)
        wrong += [] if record["saved"] else ["outputs are others after saving and loading"]
    except Exception as error:  # whatever a network may raise when its shapes do not meet
        if is_out_of_memory(error):
            raise
        wrong.append(one_line(error))
    record["ok"] = not wrong
    return record | {"reason": f"{kind} policy: {'; '.join(wrong)}" if wrong else None}


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    with torch.no_grad():
        return float_tensors(call.on(model))


def _shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _difference(output: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest share by which outputs of equal shapes differ; infinite where one is no number."""
    shares = [_share(ours, theirs) for ours, theirs in zip(output, wanted, strict=True) if theirs.numel()]
    return max(shares, default=0.0) if all(map(math.isfinite, shares)) else math.inf


def _without_rounding(small: nn.Module, zeroed: nn.Module, call: Call, difference: float) -> float:
    """The difference in float64: rounding that a network amplifies goes, a mistake stays."""
    long = Call(*tree_map(_lengthened, (call.args, dict(call.kwargs))))
    try:
        ours, theirs = (_outputs(copy.deepcopy(model).double(), long) for model in (small, zeroed))
    except Exception as error:  # a network that asks for float32 somewhere
        if is_out_of_memory(error):
            raise
        return difference
    return _difference(ours, theirs) if _shapes(ours) == _shapes(theirs) else difference


def _lengthened(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _share(ours: Tensor, theirs: Tensor) -> float:
    """How far one output is off, as a share of the difference between examples in it."""
    apart = float((theirs[1:] - theirs[:-1]).abs().max()) if theirs.ndim and len(theirs) > 1 else 0.0
    return float((ours - theirs).abs().max()) / max(apart, FAINT * float(theirs.abs().max()), 1e-30)


def _sizes(model: nn.Module) -> dict[str, int]:
    """Parameters, and the bytes of all that its weights file holds, a shared tensor once."""
    stored = {tensor.data_ptr(): tensor for tensor in model.state_dict().values() if tensor.numel()}
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
    }


def _survives_saving(model: nn.Module, source: ModelSource, call: Call, output: list[Tensor]) -> bool:
    shape = tuple(next(iter(float_tensors(call.args)), torch.zeros(1)).shape[1:])
    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        save_network(Path(folder), model, source, shape)
        again = _outputs(load_network(folder, source.structure), call)
    return len(again) == len(output) and all(map(torch.equal, again, output))


def check_summary(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Each part over all policies, the largest difference, and the policies themselves."""
    differences = [check["difference"] for check in checks if check["difference"] is not None]
    return {
        **{part: all(check[part] for check in checks) for part in PARTS},
        "largest_difference": max(differences, default=None),
        "tolerance": TOLERANCE,
        "faint": FAINT,
        "policies": checks,
    }
