"""Trees of tensors, as stages hand them on: dicts, lists and tuples whose leaves have the examples first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def take_examples(tree: Any, index: Tensor) -> Any:
    """The examples `index` (k,) int64 of every leaf; a leaf that is no tensor belongs to no example and stays."""
    if isinstance(tree, Tensor):
        return tree[index.to(tree.device)]  # unlike `index_select`, keeps channels-last, and is three times as fast
    if isinstance(tree, dict):
        return {key: take_examples(value, index) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(take_examples(value, index) for value in tree)
    return tree


def concatenated(trees: Sequence[Any]) -> Any:
    """Trees of one shape as one, the examples of the first one first."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, dict):
        return {key: concatenated([tree[key] for tree in trees]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(concatenated(values) for values in zip(*trees, strict=True))
    return first


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every leaf; names are keys and numbers joined by `.`, in the tree's own order."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}" if path else str(key))


def filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tree with other tensors, taken in the order of `leaves`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, dict):
        return {key: filled(value, tensors) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([filled(value, tensors) for value in tree])
    return tree
