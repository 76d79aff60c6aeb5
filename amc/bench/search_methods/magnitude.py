"""torch-pruning's own pruner on the dense network, its one ratio chosen so that the caps are just met."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc import Job
from amc.bench.search_methods.widths import PeerFailed, failure, policy_left
from amc_search import Cap, Policies, utilisation
from amc_search.baselines.problem import Problem

STRIDE = 0.1  # of the ratios tried in turn: the cost need not fall with the ratio, so the first that fits is sought
HALVINGS = 6  # then, between that and the one before: to 0.16 % of all channels
NORMS = (2, 1)
HEADS = ":heads"  # ends the name of a group of heads
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class TorchPruning:
    """Global magnitude pruning by torch-pruning (DepGraph, Fang et al. 2023, arXiv 2301.12900), as its README has it.

    Its pruner (`BasePruner`, `GroupMagnitudeImportance`, `global_pruning`) runs on a copy of the dense network. Layers
    that no policy of ours touches are ignored, the output among them. A ratio fits where the legal policy nearest to
    the widths it leaves is under all caps; the smallest one that does is taken: tried every 10 %, then bisected.

    What is measured is that policy, with our choice of channels inside each group: at most four policies, of both
    norms, with and without its rounding to the space's step, which leaves a layer whole where nothing would remain.

    Attributes:
        isomorphic: rank only among layers of one structure (Isomorphic Pruning, Fang et al. 2024, arXiv 2407.04616).
    """

    job: Job
    isomorphic: bool = False

    def __call__(self, problem: Problem) -> None:
        """Measure its policies.

        Raises:
            PeerFailed: torch-pruning fails on this network, or no ratio meets the caps.
        """
        for policy in self.policies(problem.caps):
            problem.measure(policy)

    def policies(self, caps: tuple[Cap, ...]) -> list[Policies]:
        """One legal policy (d,) under all caps for each norm and rounding, equals left out."""
        step = math.gcd(*self.job.space.steps)
        found: dict[bytes, Policies] = {}
        least = math.inf
        for norm in NORMS:
            for round_to in (step, None) if step > 1 else (None,):
                policy, use = self._policy(caps, norm, round_to)
                least = min(least, use)
                if use <= 1:
                    found.setdefault(policy.tobytes(), policy)
        if not found:
            raise PeerFailed(f"torch-pruning must meet the caps, but its smallest network takes {least:.2f} times them")
        return list(found.values())

    def _policy(self, caps: tuple[Cap, ...], norm: int, round_to: int | None) -> tuple[Policies, float]:
        """The policy of the smallest ratio that fits, or of the one that comes nearest, and its use of the caps."""
        tried: dict[float, tuple[Policies, float]] = {}

        def fits(ratio: float) -> bool:
            policy = policy_left(self.job, self.pruned(ratio, norm, round_to))
            tried[ratio] = policy, float(utilisation(policy[None], caps)[0])
            return tried[ratio][1] <= 1

        high = next(filter(fits, np.arange(STRIDE, 1.0, STRIDE).tolist()), None)
        if high is None:
            return min(tried.values(), key=lambda entry: entry[1])
        low = high - STRIDE
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return tried[high]

    def pruned(self, ratio: float, norm: int = 2, round_to: int | None = None) -> nn.Module:
        """A copy of the dense network after one step of torch-pruning's pruner.

        Raises:
            PeerFailed: its reason.
        """
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                return self._pruned(ratio, norm, round_to)
        except Exception as error:  # in many ways
            raise failure("torch-pruning", error) from None

    def _pruned(self, ratio: float, norm: int, round_to: int | None) -> nn.Module:
        import torch_pruning

        copied = copy.deepcopy(self.job.model).requires_grad_(True).eval()  # it overlooks layers that are frozen
        modules = dict(copied.named_modules())
        ignored = [modules[frozen.name] for frozen in self.job.trace.table.frozen if frozen.name in modules]
        pruner = torch_pruning.pruner.BasePruner(
            copied, self.job.trace.example, forward_fn=_forward, global_pruning=True, isomorphic=self.isomorphic,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=norm), pruning_ratio=ratio,
            round_to=round_to, ignored_layers=ignored, num_heads=self._heads(modules),
            in_channel_groups={}, out_channel_groups={},  # its defaults are shared by all pruners of a process
        )  # fmt: skip
        pruner.step()
        return copied.requires_grad_(False)

    def _heads(self, modules: dict[str, nn.Module]) -> dict[nn.Module, int]:
        """Layers that produce heads, with their number, which torch-pruning must know: it prunes all heads alike."""
        table, found = self.job.trace.table, {}
        heads = {index for index, group in enumerate(table.groups) if group.name.endswith(HEADS)}
        for name, module in modules.items():
            for index_map in (
                table.index_maps.get(f"{name}.weight", {}).get(0, ()) if isinstance(module, LAYERS) else ()
            ):
                units = np.unique(index_map[index_map >= 0])
                if len(units) and heads.issuperset(table.channel_group[units].tolist()):
                    found[module] = len(units)
        return found


def _forward(model: nn.Module, call: Any) -> list[Tensor]:
    leaves = tree_leaves(call.on(model))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
