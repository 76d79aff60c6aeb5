"""A teacher that is asked about each batch once: fine-tunes with one seed see the same batches in the same order."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.zoo.data.kept import SHARE, free_bytes


class RememberingTeacher(nn.Module):
    """A frozen network whose outputs are kept by the contents of its inputs, as far as memory allows.

    The contents decide, not the place in the schedule: batches that a loader augments in its own way are looked up
    nowhere else. Inputs on a GPU are passed on unseen, since reading them back takes as long as an answer does.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._outputs: dict[bytes, Any] = {}
        self._room = SHARE * free_bytes()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network makes of these inputs: computed the first time, read the next."""
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            return self.model(*args, **kwargs)
        key = _digest(leaves, str(structure))
        if key in self._outputs:
            return self._outputs[key]
        outputs = self.model(*args, **kwargs)
        self._room -= sum(leaf.nbytes for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor))
        if self._room >= 0:
            self._outputs[key] = outputs
        return outputs


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
