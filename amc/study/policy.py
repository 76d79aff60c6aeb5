"""A policy: one keep-count per group, with what is known of it, and the network that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc.cost.trace import Trace
from amc.study.measure import Measure
from amc.study.trial import Trial
from amc.surgery.channel_table import kept_channels
from amc.surgery.folding import Cutter
from amc.surgery.importance import rank_channels
from amc.system.errors import UsageError
from amc_search import Space


@dataclass(frozen=True)
class Policy:
    """One keep-count per group, what it costs, and what is known of its accuracy without fine-tuning.

    Attributes:
        names: of the groups.
        counts: (d,) channels kept.
        costs: unit -> exact cost.
        mean: predicted score on the validation split; std: its standard deviation.
        trial: its own measurement; None where the prediction was trusted.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    costs: Mapping[str, float]
    mean: float
    std: float
    trial: Trial | None = None

    @property
    def array(self) -> NDArray[np.int64]:
        """The counts as an array (d,)."""
        return np.array(self.counts, dtype=np.int64)

    @property
    def kept(self) -> dict[str, int]:
        """Group name -> channels kept."""
        return dict(zip(self.names, self.counts, strict=True))


def cut(
    space: Trace, policy: Policy | Mapping[str, int] | NDArray[np.int64], *, recover: Measure | None = None
) -> nn.Module:
    """The network of a policy, in `eval` mode; the traced one stays as it is.

    Args:
        space: what `trace` gave.
        policy: what `optimize` gave, keep-counts (d,) in the order of the groups, or group name -> channels kept, where
            a group that is not named stays whole.
        recover: folds removed channels into the layers that read them and re-estimates BatchNorm, as every trial does;
            None: channels of least magnitude are taken out, and nothing else is done.

    Raises:
        UsageError: the policy is not one of this network.
    """
    counts = _counts(space.space, policy)
    if recover is not None:
        if recover.trace is not space:
            raise UsageError("`recover` must measure the same traced network, but was made with another")
        return recover.realise(counts).eval()
    placed = rank_channels(space.model, space.table, "magnitude")
    return Cutter(space.model, space.table, None)(kept_channels(space.table, placed, counts)).eval()


def _counts(space: Space, policy: Any) -> NDArray[np.int64]:
    """A policy in any form as (d,) keep-counts, checked."""
    if isinstance(policy, Policy):
        policy = policy.kept
    if isinstance(policy, Mapping):
        unknown = sorted(set(policy) - set(space.names))
        if unknown:
            raise UsageError(f"a policy must name groups of this network, but {unknown[0]!r} is none of them")
        policy = [policy.get(name, size) for name, size in zip(space.names, space.sizes, strict=True)]
    counts = np.asarray(policy)
    if counts.shape != (len(space),) or not np.issubdtype(counts.dtype, np.integer):
        raise UsageError(
            f"a policy must be {len(space)} whole numbers, one a group, but is {counts.dtype} of shape {counts.shape}"
        )
    counts = counts.astype(np.int64)
    if not bool(space.is_legal(counts)):
        index = next(i for i in range(len(space)) if space.nearest(counts.astype(float))[i] != counts[i])
        raise UsageError(
            f"a group must keep a multiple of {space.step[index]} from {space.low[index]} to {space.high[index]} "
            f"channels, but {space.names[index]} keeps {counts[index]}"
        )
    return counts
