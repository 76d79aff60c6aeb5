"""How held-out examples are divided, into two parts or into folds; those of one group, a person's say, stay together.

What is promised is of inputs like those tested. Where neighbouring windows of one person overlap, examples drawn one by
one would stand on both sides, and the promise would be of the same people alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc.system.errors import DataError

SLACK = 0.05  # of all examples, by which a part made of whole groups may be larger or smaller than asked
DRAWS = 256  # orders of the groups that are tried for that; then the nearest is taken


def split_in_two(number: int, seed: int, share: float = 0.5, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The places of `number` examples in two disjoint parts, ascending, the first with `share` of them.

    Args:
        groups: (number,) int64, which examples stay together; None: none do.

    Raises:
        DataError: there are fewer than two groups.
    """
    draw = torch.Generator().manual_seed(seed)
    if groups is None:
        order = torch.randperm(number, generator=draw)
        cut = round(share * number)
        return order[:cut].sort().values, order[cut:].sort().values
    group, sizes = _groups(number, groups)
    if len(sizes) < 2:
        raise DataError(
            f"two parts of held-out examples need two groups or more, as none is divided, but there are {len(sizes)}; "
            "hold out more people, or leave `groups` out"
        )
    inside = _near(sizes, share * number, draw)[group]
    return inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]


def folds_of(number: int, count: int, seed: int, groups: Tensor | None = None) -> list[Tensor]:
    """The places of `number` examples in at most `count` disjoint folds of nearly one size, each ascending.

    Args:
        groups: as in `split_in_two`; a lone group is divided after all, as there is no other way to have folds.
    """
    draw = torch.Generator().manual_seed(seed)
    if groups is not None:
        group, sizes = _groups(number, groups)
        if len(sizes) > 1:
            fold = _level(sizes, min(count, len(sizes)), draw)[group]
            return [(fold == place).nonzero()[:, 0] for place in range(int(fold.max()) + 1)]
    order = torch.randperm(number, generator=draw)
    return [part.sort().values for part in order.tensor_split(min(count, number))]


def _groups(number: int, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The (number,) place of each example's group among all of them, and their sizes."""
    if groups.shape != (number,):
        raise DataError(f"groups must be one for each of {number} examples, but are {tuple(groups.shape)}; fix them")
    _, place, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    return place, sizes


def _near(sizes: Tensor, wanted: float, draw: torch.Generator) -> Tensor:
    """(G,) bool: some groups, not all, drawn until they hold nearly `wanted` examples; else the nearest drawn.

    Not the nearest of all: that would be the same ones whatever the seed.
    """
    slack, off = SLACK * float(sizes.sum()), float("inf")
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    for _ in range(DRAWS):
        order = torch.randperm(len(sizes), generator=draw)
        distance = (sizes[order].cumsum(0)[:-1] - wanted).abs()
        best = int(distance.argmin())
        if float(distance[best]) < off:
            off = float(distance[best])
            chosen = torch.zeros(len(sizes), dtype=torch.bool)
            chosen[order[: best + 1]] = True
        if off <= slack:
            break
    return chosen


def _level(sizes: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """(G,) the fold of each group: the largest first, each to the fold that has the fewest examples so far."""
    shuffled = torch.randperm(len(sizes), generator=draw)
    order = shuffled[sizes[shuffled].argsort(descending=True, stable=True)]
    fold, filled = torch.zeros(len(sizes), dtype=torch.int64), [0] * count
    for group in order.tolist():
        emptiest = filled.index(min(filled))
        fold[group] = emptiest
        filled[emptiest] += int(sizes[group])
    return fold
