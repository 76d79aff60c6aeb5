"""The user's own loaders and data sets as `Split`s.

- A map-style `Dataset`, or a `DataLoader` over one with a plain or shuffled order, is read example by example
  (`DatasetSplit`): batches have the size asked for, the loader's `collate_fn` makes them and its workers read. What an
  example draws (augmentation) depends on the pass's seed and the example's number alone, not on the workers.
- Any other iterable of batches (a list, a loader with a sampler of its own or over a stream) is iterated as it is
  (`BatchSplit`): its batches are joined and cut to the size asked for. A list is shuffled batch by batch.

Either draws under random states of its own: the same seed gives the same batches, and the consumer's random numbers
are what they would be without the split. A loader that augments does so in every pass: nothing can ask it not to.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from amc.system.errors import AmcError, DataError
from amc.system.factory import one_line
from amc.system.random_state import RandomState, seeded
from amc.zoo.data.regroup import example_count, regrouped
from amc.zoo.data.splits import Batch, IndexedSplit, Split, Splits, plan_batches

DIGEST_EXAMPLES = 1024  # hashed at most: decoding so many images takes seconds, and no two data sets agree in them
ANSWERS = ("label", "labels", "target", "targets")  # keys of a dict whose values may be NaN: what is not known


def as_split(source: Any, name: str) -> Split:
    """`source` as a `Split`: one already, a `DataLoader`, a map-style `Dataset`, or any iterable of batches.

    Args:
        source: what holds the examples; one that can be iterated only once is refused.
        name: what errors call it, e.g. "train".

    Raises:
        DataError: it is none of these. (That it is empty, or holds NaN, is told when it is first read.)
    """
    if callable(getattr(source, "batches", None)) and hasattr(source, "digest"):
        split: Split = source
        return split
    if isinstance(source, DataLoader):
        return DatasetSplit.of_loader(source, name) if _is_plain(source) else BatchSplit(source, name)
    if isinstance(source, IterableDataset):
        raise DataError(
            f"{name} must give batches, but is a stream of examples; wrap it: DataLoader(dataset, batch_size=64)"
        )
    if isinstance(source, Dataset):
        if not hasattr(source, "__len__"):
            raise DataError(f"{name} must have a length, but {type(source).__name__} has no __len__; add one")
        return DatasetSplit(source, name)
    if isinstance(source, Iterator):
        raise DataError(
            f"{name} must be iterable again and again, but a {type(source).__name__} ends after one pass; "
            "give a DataLoader, a list of batches or a Dataset"
        )
    if isinstance(source, (str, bytes, Tensor, Mapping)) or not isinstance(source, Iterable):
        raise DataError(
            f"{name} must be a DataLoader, a Dataset or an iterable of batches, but is a {type(source).__name__}; "
            "wrap it, e.g. [batch]"
        )
    return BatchSplit(source, name)


def as_splits(train: Any, validation: Any, test: Any, name: str = "objects") -> Splits:
    """Splits of three sources; the input's shape is that of the first tensor in the first training batch."""
    parts = as_split(train, "train"), as_split(validation, "validation"), as_split(test, "test")
    leaves = tree_flatten(next(parts[0].batches(1, limit=1)))[0]
    shape = next((tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, Tensor)), ())
    return Splits(name, *parts, shape)


def hold_out_split(train: Split, share: float, seed: int) -> tuple[DatasetSplit, DatasetSplit]:
    """Divide a split made of a data set at random: (the rest, `share` of it, at least one example), in (0, 1).

    Raises:
        DataError: `train` is made of batches, or holds fewer than two examples.
    """
    if not isinstance(train, DatasetSplit):
        raise DataError(
            "validation examples can be held out of a Dataset, or a DataLoader over one, but train is an iterable of "
            "batches; give validation="
        )
    if len(train) < 2:
        raise DataError(
            f"train must hold at least 2 examples to hold one out, but holds {len(train)}; give validation="
        )
    # RandomState, because numpy promises that its numbers never change between versions.
    order = train.index[torch.from_numpy(np.random.RandomState(seed).permutation(len(train)))]
    count = min(len(train) - 1, max(1, round(share * len(train))))
    return replace(train, part=order[count:]), replace(train, name="validation", part=order[:count])


@dataclass(frozen=True, eq=False)
class DatasetSplit(IndexedSplit):
    """Examples of a map-style data set: all, or those at the places `part` (n,) int64; `collate` makes the batches."""

    dataset: Any
    name: str
    collate: Callable[[list[Any]], Any] = default_collate
    reading: Mapping[str, Any] = field(default_factory=dict)  # arguments of the DataLoader: workers and the like
    part: Tensor | None = None

    @cached_property
    def index(self) -> Tensor:
        """(n,) int64, the places of the examples in the data set."""
        return torch.arange(len(self.dataset)) if self.part is None else self.part

    @classmethod
    def of_loader(cls, loader: DataLoader[Any], name: str) -> DatasetSplit:
        """The examples that a loader without a sampler of its own goes through; `drop_last` plays no part."""
        kept = ("num_workers", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
        reading = {key: getattr(loader, key) for key in kept}
        return cls(loader.dataset, name, loader.collate_fn, reading if loader.num_workers else {})

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def digest(self) -> str:
        """Hash of the number of examples and of at most `DIGEST_EXAMPLES` of them, evenly spaced, drawn by seed 0."""
        number = len(self)
        places = torch.arange(min(number, DIGEST_EXAMPLES)) * number // max(1, min(number, DIGEST_EXAMPLES))
        digest = hashlib.sha256(f"{number}".encode())
        for batch in self._loaded([self.index[part].tolist() for part in torch.split(places, 32)], 0):
            _hash_into(digest, batch)
        return digest.hexdigest()[:16]

    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        if not len(self):
            raise DataError(f"{self.name} must hold examples, but is empty; check the data set")
        yield from self._loaded([self.index[part].tolist() for part in plan], seed)

    def _loaded(self, plan: list[list[int]], seed: int) -> Iterator[Batch]:
        loader = DataLoader(
            _Drawn(self.dataset, seed),
            batch_sampler=plan,
            collate_fn=_Collate(self.collate, seed),
            generator=torch.Generator().manual_seed(seed),
            **self.reading,
        )
        for number, batch in enumerate(loader):
            if isinstance(batch, _Failure):
                raise DataError(f"{self.name} must give its examples, but reading one failed: {batch.text}")
            yield _checked(batch, self.name, number)


class _Failure:
    """What is wrong with an example; an exception out of a worker would bring its whole traceback into the message."""

    def __init__(self, cause: Exception) -> None:
        self.text = one_line(cause)


@dataclass
class _Drawn(Dataset[Any]):
    """The examples of a data set with their numbers, each drawn from the seed and its number."""

    dataset: Any
    seed: int

    def __getitem__(self, index: int) -> tuple[int, Any]:
        with seeded(self.seed * 1_000_003 + index):
            try:
                return index, self.dataset[index]
            except Exception as cause:  # the user's data set may fail in any way
                return index, _Failure(cause)


@dataclass
class _Collate:
    """The user's `collate_fn`; what it draws depends on the seed and its first example."""

    collate: Callable[[list[Any]], Any]
    seed: int

    def __call__(self, items: list[tuple[int, Any]]) -> Any:
        for _, example in items:
            if isinstance(example, _Failure):
                return example
        with seeded(self.seed * 1_000_003 + 500_009 + items[0][0]):
            try:
                return self.collate([example for _, example in items])
            except Exception as cause:  # likewise
                return _Failure(cause)


@dataclass(frozen=True, eq=False)
class BatchSplit:
    """An iterable of batches, whatever it is: joined and cut to the size asked for."""

    source: Iterable[Any]
    name: str

    def __len__(self) -> int:
        return self._survey[0]

    @property
    def digest(self) -> str:
        """Hash of the number of examples and of the batches with the first `DIGEST_EXAMPLES`, as seed 0 draws them."""
        return self._survey[1]

    @cached_property
    def _survey(self) -> tuple[int, str]:
        """One pass: how many examples there are, and their hash. Raises `DataError` where there are none."""
        digest, total = hashlib.sha256(), 0
        for batch in self._drawn(None):
            if total < DIGEST_EXAMPLES:
                _hash_into(digest, batch)
            total += example_count(batch)
        if not total:
            raise DataError(f"{self.name} must hold examples, but is empty; check the loader")
        digest.update(f"{total}".encode())
        return total, digest.hexdigest()[:16]

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        yield from regrouped(self._drawn(seed), size, limit=limit, rank=rank, world=world)

    def _drawn(self, seed: int | None) -> Iterator[Batch]:
        """The source's batches; its random numbers come from `seed` (None: 0), the consumer's are left alone."""
        if isinstance(self.source, Sequence):
            yield from self._chosen(self.source, seed)
            return
        iterator, mine = None, RandomState.of_seed(seed or 0)
        number = 0
        while True:
            theirs = RandomState.now()
            mine.restore()
            try:
                if iterator is None:
                    iterator = iter(_fresh(self.source, seed or 0))
                batch = next(iterator)
            except StopIteration:
                return
            except AmcError:
                raise
            except Exception as cause:  # the user's loader may fail in any way
                raise DataError(f"{self.name} must give batches, but reading one failed: {one_line(cause)}") from None
            finally:
                mine = RandomState.now()
                theirs.restore()
            yield _checked(batch, self.name, number)
            number += 1

    def _chosen(self, batches: Sequence[Any], seed: int | None) -> Iterator[Batch]:
        for part in plan_batches(len(batches), 1, seed=seed):
            yield _checked(batches[int(part)], self.name, int(part))


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether a loader goes once through a map-style data set, in order or shuffled."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) in (SequentialSampler, DistributedSampler)


def _fresh(source: Any, seed: int) -> Any:
    """A loader that starts from `seed` alone: without workers that live on, its own generators started anew."""
    if not isinstance(source, DataLoader):
        return source
    loader = copy.copy(source)
    if loader.persistent_workers:
        vars(loader).update(persistent_workers=False, _iterator=None)
    for holder in (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    return loader


def _checked(batch: Any, name: str, number: int) -> Any:
    """Raises `DataError` where a batch holds no examples or NaN among its inputs."""
    if not example_count(batch):
        raise DataError(
            f"{name} must give batches of tensors, examples first, but batch {number} is a {type(batch).__name__} "
            "without examples; collate them, e.g. by DataLoader(dataset, batch_size=64)"
        )
    inputs = batch[:1] if type(batch) in (tuple, list) else batch
    if isinstance(inputs, Mapping):
        inputs = {key: value for key, value in inputs.items() if key not in ANSWERS}
    for path, leaf in tree_flatten_with_path(inputs)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any()):
            raise DataError(
                f"{name} must hold numbers, but {int(leaf.isnan().sum())} of {leaf.numel()} inputs of batch {number} "
                f"are NaN (batch{keystr(path)}); clean the data"
            )
    return batch


def _hash_into(digest: Any, tree: Any) -> None:
    """Add the structure and the values of a batch; of objects unknown to us, only the kind."""
    if isinstance(tree, Mapping):
        tree = [part for item in tree.items() for part in item]
    if isinstance(tree, np.ndarray):
        tree = torch.from_numpy(np.ascontiguousarray(tree)) if tree.dtype.kind in "biuf" else tree.tolist()
    if isinstance(tree, (tuple, list)):
        digest.update(f"{len(tree)} parts".encode())
        for part in tree:
            _hash_into(digest, part)
    elif isinstance(tree, Tensor):
        digest.update(f"{tree.dtype} {tuple(tree.shape)}".encode())
        digest.update(tree.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif tree is None or isinstance(tree, (str, bytes, int, float, np.generic)):
        digest.update(repr(tree).encode())
    else:
        digest.update(type(tree).__qualname__.encode())
