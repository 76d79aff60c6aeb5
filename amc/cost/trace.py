"""A traced network: its groups, what can be cut and why the rest cannot, and what every policy costs, exactly."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from amc.cost.activations import ActivationCost, profile_activations
from amc.cost.budget import Budget, Unit, format_cost
from amc.cost.counts import ProductCost, count_bytes, count_macs, count_params
from amc.surgery.channel_table import ChannelTable, Frozen, Group
from amc.surgery.grouping import trace_isolated
from amc.surgery.materialised import materialise
from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.system.isolation import Limits
from amc.zoo.call import Call, as_call
from amc_search import Cap, Policies, Space

CountCost = ProductCost | ActivationCost

TRACE_LIMITS = Limits(600.0, 16.0)  # seconds and gigabytes, as the recipe's defaults


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """A trained network whose channels have been followed through every operation.

    Attributes:
        model: the dense network in `eval` mode, on its device; derived weights are materialised.
        example: what it is called with for one example.
        table: which channels can only leave together, and every tensor dimension they index.
        digest: hash of the weights as the user brought them.
        origin: what the network was built from, as studies name it.
    """

    model: nn.Module
    example: Call
    table: ChannelTable
    digest: str
    origin: str

    def __repr__(self) -> str:
        macs, params = (format_cost(unit, self.dense_costs()[unit]) for unit in ("macs", "params"))
        return f"Trace({type(self.model).__name__}: {len(self.groups)} groups, {macs}, {params})"

    @property
    def groups(self) -> tuple[Group, ...]:
        """What can be cut: name, channels, step and layers of each group, in the order of a policy."""
        return self.table.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What is left whole: layer, channels and the reason."""
        return self.table.frozen

    @property
    def space(self) -> Space:
        """All legal policies."""
        return self.table.space

    @cached_property
    def costs(self) -> dict[Unit, CountCost]:
        """Unit -> exact cost of keep-counts (b, d), for the units that are always counted."""
        return {
            "macs": count_macs(self.table),
            "params": count_params(self.model, self.table),
            "bytes": count_bytes(self.model, self.table),
        }

    @cached_property
    def activation_bytes(self) -> ActivationCost:
        """Peak activation bytes; profiled when first asked for, by one pass of the network for each group.

        Raises:
            ModelError: they cannot be counted for this network.
        """
        try:
            return profile_activations(self.model, self.table, self.example)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise ModelError(f"this network's peak activations cannot be counted: {first}; cap MACs") from error

    def cost(self, unit: Unit) -> CountCost:
        """The cost in one unit. Raises `ModelError` where it cannot be counted."""
        return self.activation_bytes if unit == "activation_bytes" else self.costs[unit]

    def costs_of(self, policy: Policies, budgets: Sequence[Budget] = ()) -> dict[str, float]:
        """Unit -> exact cost of one (d,) policy, for the units always counted and those of `budgets`."""
        counts = torch.from_numpy(policy)[None].double()
        units: dict[Unit, None] = dict.fromkeys([*self.costs, *(budget.unit for budget in budgets)])
        return {unit: float(self.cost(unit)(counts)) for unit in units}

    def dense_costs(self, budgets: Sequence[Budget] = ()) -> dict[str, float]:
        """Likewise of the dense network."""
        return self.costs_of(self.space.high, budgets)

    def caps(self, budgets: Sequence[Budget]) -> tuple[Cap, ...]:
        """Budgets as caps in absolute units; one above the dense network's cost asks no more than that cost."""
        dense = self.dense_costs(budgets)
        return tuple(Cap(self.cost(budget.unit), min(budget.limit(dense), dense[budget.unit])) for budget in budgets)

    def held(self, budgets: Sequence[Budget], policy: Policies) -> list[dict[str, Any]]:
        """What a policy uses of each budget: records of budget, unit, limit and used, as every JSON file has them."""
        used = self.costs_of(policy, budgets)
        return [
            {"budget": str(budget), "unit": budget.unit, "limit": cap.limit, "used": used[budget.unit]}
            for budget, cap in zip(budgets, self.caps(budgets), strict=True)
        ]


def trace(
    model: nn.Module,
    example: Any,
    *,
    ignore: Sequence[str] = (),
    round_to: int = 8,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Trace:
    """Trace a network: which channels form groups, what each policy costs, and why a layer is left alone.

    The network is copied; the caller's own is never changed. It runs in a child process with limits where the system
    can (Linux), so that a network which takes too much memory ends with an error.

    Args:
        model: any trained network.
        example: what it is called with: a tensor, a tuple of arguments or a dict of keyword arguments, a batch of any
            size, of which the first example is taken.
        ignore: names of modules whose channels are never cut.
        round_to: channels are kept in multiples of this where a group is wide enough.
        device: where the network will run; None: the GPU where there is one.
        seed: of the random weights and inputs by which groups are proved.

    Raises:
        ModelError: the network cannot be traced, or nothing in it can be cut.
        LimitExceeded: tracing took more than ten minutes or 16 GB.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        own = Compute.of(device)
        copied = own.place(copy.deepcopy(model).eval())
        call = as_call(example).head(1).to(own.device)
        return traced(copied, call, digest_tensors(copied.state_dict()), ignore=ignore, step=round_to)


def traced(
    model: nn.Module,
    example: Call,
    digest: str,
    *,
    ignore: Sequence[str] = (),
    step: int = 8,
    limits: Limits = TRACE_LIMITS,
    origin: str | None = None,
    table: ChannelTable | None = None,
) -> Trace:
    """`trace` of a network that is ours to change: its derived weights are materialised in place.

    Args:
        digest: of the weights as they are.
        table: from an earlier trace of the same network; None: it is traced now.
    """
    if table is None:
        table = trace_isolated(model, example, ignore, step, limits)
    else:
        materialise(model, example)  # as tracing leaves it: the table is of a network with plain weights
    kind = type(model)
    return Trace(model, example, table, digest, origin or f"object:{kind.__module__}.{kind.__qualname__}")


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
