"""Other pruning tools, run by themselves on the dense network, as methods of the comparison.

Each is asked for its own pruned network under the caps. The widths it leaves are read as a policy of ours, which is
measured as every other method's: the policy is theirs; the channels kept inside a group, recovery and evaluation are
the same for all.
"""

from __future__ import annotations

from amc.bench.search_methods.fastnas import FastNAS
from amc.bench.search_methods.magnitude import TorchPruning
from amc.job.dense import Dense
from amc_search.rivals.problem import Method


def peer_methods(dense: Dense) -> dict[str, Method]:
    """The methods by name; each raises `widths.PeerFailed` where its tool does not run on this network."""
    return {
        "tp-magnitude": TorchPruning(dense),
        "tp-isomorphic": TorchPruning(dense, isomorphic=True),
        "modelopt-fastnas": FastNAS(dense),
    }
