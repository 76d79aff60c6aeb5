"""A network whose outputs are compared with, again and again on the same batches: it runs once on each."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.zoo.call import Call
from amc.zoo.data.kept import SHARE, free_bytes


class RememberingTeacher(nn.Module):
    """A frozen network whose outputs are kept by the contents of its inputs, as far as memory allows.

    The contents decide, not the place in the schedule: what a loader augments in its own way is another input. Inputs
    that are on a GPU already are not looked up, since reading them back takes as long as the network does.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._outputs: dict[bytes, Any] = {}
        self._room = SHARE * free_bytes()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network makes of these inputs: computed the first time, read the next."""
        leaves, _ = tree_flatten((args, kwargs))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "cpu" for leaf in leaves):
            return self.model(*args, **kwargs)
        return self.outputs(Call(args, kwargs), "cpu")

    def outputs(self, call: Call, device: torch.device | str) -> Any:
        """What the network, which is on `device`, makes of a call on the CPU."""
        leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
        key = _digest(leaves, str(structure))
        if key not in self._outputs:
            found = call.to(device).on(self.model)
            self._room -= sum(leaf.nbytes for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor))
            if self._room < 0:
                return found
            self._outputs[key] = found
        return self._outputs[key]


def _digest(leaves: list[Any], structure: str) -> bytes:
    """A hash of nested inputs: their structure, and the values in them."""
    digest = hashlib.sha256(structure.encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.digest()
