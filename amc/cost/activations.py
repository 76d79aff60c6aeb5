"""Peak activation bytes: the most memory that intermediate results of one image hold at any moment.

Counted: the storage of the input and of every result still alive after each operation of an eager forward pass in
`eval` mode, in the tensors' own dtype. Not counted: weights, and what a kernel allocates for itself while it runs.

The sequence of operations does not depend on the policy, and after each of them the live bytes are an affine function
of the keep-counts. So one forward pass of the dense network and one per group, on shapes alone (torch's meta device),
give the exact figure for every policy: the largest of all those affine functions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc.surgery.channel_table import ChannelTable, kept_channels
from amc.surgery.cutting import cut_channels
from amc.zoo.call import Call, as_call


@dataclass(frozen=True)
class ActivationCost:
    """max over moments of `constant + policies @ channels.T`; bytes of one image.

    Attributes:
        channels: (T, d) bytes that one kept channel of each group adds at each moment.
        constant: (T,) bytes that every policy holds then.
    """

    channels: Tensor
    constant: Tensor
    unit: str = "activation_bytes"

    def __call__(self, policies: Tensor) -> Tensor:
        """Keep-counts (b, d) float64 -> peak bytes (b,) float64."""
        return (policies.to(torch.float64) @ self.channels.T + self.constant).amax(-1)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes after every operation how many bytes of results are still referenced."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.moments: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}  # type: ignore[no-untyped-call]
        # Normalisation kernels also return statistics, on some devices empty ones; nothing reads them in `eval` mode.
        results = tree_leaves(result)[:1] if "_norm" in func.__name__ else tree_leaves(result)
        for tensor in results:
            if isinstance(tensor, Tensor):
                self.add(tensor)
        self.moments.append(sum(size for _, size in self.alive.values()))
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.ignored:
            weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self.alive[storage._cdata] = (weak, storage.nbytes())


def live_bytes(model: nn.Module, inputs: Call | Tensor) -> list[int]:
    """Bytes alive after each operation of `model` on `inputs`, the inputs among them."""
    call = as_call(inputs)
    mode = _LiveBytes([*model.parameters(), *model.buffers()])
    for leaf in tree_leaves((call.args, dict(call.kwargs))):
        if isinstance(leaf, Tensor):
            mode.add(leaf)
    with torch.no_grad(), mode:
        call.on(model)
    return mode.moments


def profile_activations(model: nn.Module, table: ChannelTable, example: Call | tuple[int, ...]) -> ActivationCost:
    """Measure the affine functions of `ActivationCost` for one example, or one image of shape (C, H, W).

    Raises:
        ValueError: live bytes are not affine in the keep-counts (two policies checked).
    """
    space = table.space
    hollow = _hollow(model)
    inputs = example.to("meta") if isinstance(example, Call) else Call((torch.empty(1, *example, device="meta"),))
    place = np.concatenate([np.arange((table.channel_group == g).sum()) for g in range(len(space))])
    order = np.argsort(table.channel_group, kind="stable")
    place = place[np.argsort(order, kind="stable")].astype(np.int32)

    def measure(policy: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array(
            live_bytes(cut_channels(hollow, table, kept_channels(table, place, policy)), inputs), dtype=np.float64
        )

    dense = measure(space.high)
    channels = np.zeros((len(dense), len(space)))
    for group in range(len(space)):
        policy = space.high.copy()
        policy[group] = space.step[group]
        if policy[group] < space.high[group]:
            channels[:, group] = (dense - measure(policy)) / (space.high - policy)[group]
    constant = dense - channels @ space.high
    for policy in (space.step, space.nearest(space.high / 2, space.step)):
        if not np.allclose(measure(policy), constant + channels @ policy, rtol=0, atol=0.5):
            raise ValueError("live bytes must be affine in the keep-counts, but they are not for this network")
    distinct = np.unique(np.column_stack([channels, constant]).round(6), axis=0)
    return ActivationCost(torch.from_numpy(distinct[:, :-1]), torch.from_numpy(distinct[:, -1]))


def _hollow(model: nn.Module) -> nn.Module:
    """The network's shapes without its numbers, in `eval` mode."""
    return copy.deepcopy(model).eval().to("meta")
