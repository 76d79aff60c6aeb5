"""Batches of any structure: how many examples they hold, some of these, and the same examples in other batch sizes.

A batch is a tensor, or a tuple, list or dict of tensors, lists and values, however deep. What belongs to its examples
one by one is every tensor whose first dimension is the number of examples, and every list with one item an example;
anything else (a scale, a name) is shared by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def example_count(batch: Any) -> int:
    """How many examples a batch holds: its first tensor's first dimension, else the length of its first list; or 0.

    Tensors directly in the batch count before those within its parts.
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = _parts(batch)
    for part in parts:
        if isinstance(part, Tensor) and part.ndim:
            return len(part)
    for part in parts:
        found = len(part) if isinstance(part, list) else example_count(part)
        if found:
            return found
    return 0


def sliced(batch: Any, where: slice, count: int | None = None) -> Any:
    """The examples `where` of a batch of `count` examples, in the batch's own structure."""
    number = example_count(batch) if count is None else count
    if isinstance(batch, Tensor):
        return batch[where] if batch.ndim and len(batch) == number else batch
    return _rebuilt(batch, [_sliced(part, where, number) for part in _parts(batch)])


def joined(batches: list[Any]) -> Any:
    """The examples of several batches of one structure as one batch.

    Raises:
        ValueError: their structures, shapes or shared values differ.
    """
    if len(batches) == 1:
        return batches[0]
    return _joined(batches, [example_count(batch) for batch in batches], top=True)


def regrouped(
    batches: Iterable[Any], size: int, *, limit: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[Any]:
    """The examples of `batches`, in their order, in batches of `size` (as `Split.batches` gives them).

    Batches that cannot be joined (texts padded to different lengths) are cut only: some are then smaller than `size`.
    """
    for whole in _groups(batches, size * world, limit):
        count = example_count(whole)
        if world == 1:
            yield whole
        elif count >= world:
            yield sliced(whole, slice(rank, None, world), count)


def _groups(batches: Iterable[Any], size: int, limit: int | None) -> Iterator[Any]:
    held: list[Any] = []
    total, left = 0, limit
    for batch in batches:
        count, place = example_count(batch), 0
        if left is not None:
            count, left = min(count, left), left - min(count, left)
        while place < count:
            if held and not _fit(held[0], batch):
                yield joined(held)
                held, total = [], 0
            taken = min(size - total, count - place)
            held.append(_piece(batch, place, place + taken))
            place, total = place + taken, total + taken
            if total == size:
                yield joined(held)
                held, total = [], 0
        if left == 0:
            break
    if held:
        yield joined(held)


def _piece(batch: Any, start: int, stop: int) -> Any:
    count = example_count(batch)
    return batch if (start, stop) == (0, count) else sliced(batch, slice(start, stop), count)


def _fit(first: Any, second: Any) -> bool:
    """Whether the two can be joined: tried on an example of each."""
    try:
        joined([_piece(first, 0, 1), _piece(second, 0, 1)])
    except ValueError:
        return False
    return True


def _parts(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return list(tree.values())
    return list(tree) if isinstance(tree, (tuple, list)) else []


def _rebuilt(tree: Any, parts: list[Any]) -> Any:
    """A container like `tree` around other parts; anything that is no container stays."""
    if isinstance(tree, Mapping):
        return dict(zip(tree, parts, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*parts)
    return type(tree)(parts) if type(tree) in (tuple, list) else tree


def _are_examples(tree: Any, count: int) -> bool:
    """Whether a part of a batch is one item an example, and not some fields of all examples."""
    if not isinstance(tree, (list, tuple)) or len(tree) != count:
        return False
    if all(isinstance(item, Tensor) and item.ndim and len(item) == count for item in tree):
        return False
    return isinstance(tree, list) or not any(isinstance(item, (Tensor, Mapping, list, tuple)) for item in tree)


def _sliced(tree: Any, where: slice, count: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[where] if tree.ndim and len(tree) == count else tree
    if _are_examples(tree, count):
        return tree[where]
    return _rebuilt(tree, [_sliced(part, where, count) for part in _parts(tree)])


def _joined(trees: list[Any], counts: list[int], top: bool = False) -> Any:
    first = trees[0]
    pairs = list(zip(trees, counts, strict=True))
    if any(type(tree) is not type(first) for tree in trees):
        raise ValueError("structures differ")
    if isinstance(first, Tensor):
        if all(tree.ndim and len(tree) == count for tree, count in pairs):
            return _concatenated(trees)
        return _shared(trees, torch.equal)
    if not top and all(_are_examples(tree, count) for tree, count in pairs):
        return type(first)(item for tree in trees for item in tree)
    if isinstance(first, (Mapping, tuple, list)):
        keys = [list(tree) if isinstance(tree, Mapping) else list(range(len(tree))) for tree in trees]
        if any(other != keys[0] for other in keys):
            raise ValueError("structures differ")
        parts = zip(*(_parts(tree) for tree in trees), strict=True)
        return _rebuilt(first, [_joined(list(part), counts) for part in parts])
    return _shared(trees, lambda one, other: bool(one == other))


def _concatenated(tensors: list[Tensor]) -> Tensor:
    if len({(tensor.shape[1:], tensor.dtype) for tensor in tensors}) > 1:
        raise ValueError("shapes differ")
    return torch.cat(tensors)


def _shared(values: list[Any], equal: Callable[[Any, Any], bool]) -> Any:
    if not all(equal(values[0], other) for other in values[1:]):
        raise ValueError("values shared by all examples differ")
    return values[0]
