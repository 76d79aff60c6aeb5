import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from amc.system.errors import DataError
from amc.system.random_state import RandomState
from amc.zoo.data.loaders import DIGEST_EXAMPLES, as_split, as_splits, hold_out_split
from amc.zoo.data.regroup import example_count, joined, regrouped, sliced


class Noisy(Dataset[Any]):
    """Numbers with noise from all three sources, as an augmentation draws it."""

    def __init__(self, number: int = 20) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.number:
            raise IndexError(index)
        return torch.tensor([index, float(torch.rand(())), np.random.rand(), random.random()]), index


class Stream(IterableDataset[Any]):
    """The same, as a stream."""

    def __iter__(self) -> Iterator[Any]:
        yield from (Noisy()[index] for index in range(20))


def collated_twice(items: list[Any]) -> dict[str, Any]:
    inputs, labels = zip(*items, strict=True)
    return {"x": torch.stack(inputs), "ids": [str(label) for label in labels], "scale": 2.0}


def plain() -> list[tuple[Tensor, Tensor]]:
    return [(torch.arange(4.0).view(4, 1) + 4 * n, torch.arange(4) + 4 * n) for n in range(5)]


def weighted(generator: torch.Generator | None = None) -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0] * 20, 20, generator=generator)


SOURCES: dict[str, Any] = {
    "dataset": lambda: Noisy(),
    "shuffled": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True),
    "generator": lambda: DataLoader(Noisy(), 3, shuffle=True, generator=torch.Generator()),
    "workers": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=2),
    "weighted": lambda: DataLoader(Noisy(), 3, sampler=weighted()),
    "own generator": lambda: DataLoader(Noisy(), 3, sampler=weighted(torch.Generator())),
    "stream": lambda: DataLoader(Stream(), batch_size=6),
    "stream, workers that stay": lambda: DataLoader(Stream(), 6, num_workers=1, persistent_workers=True),
    "list": plain,
    "no labels": lambda: [torch.arange(5.0), torch.arange(5.0, 20.0)],
}  # fmt: skip


def inputs_of(batches: Any) -> Tensor:
    return torch.cat([batch if isinstance(batch, Tensor) else batch[0] for batch in batches])


@pytest.mark.parametrize("kind", SOURCES)
def test_a_seed_fixes_what_a_source_draws(kind: str) -> None:
    """The same seed gives the same batches and digest, from another object too, and whatever the consumer drew."""
    one, two = as_split(SOURCES[kind](), "train"), as_split(SOURCES[kind](), "train")
    first = inputs_of(one.batches(7, seed=3))
    torch.rand(5), np.random.rand(3), random.random()
    assert torch.equal(first, inputs_of(two.batches(7, seed=3)))
    assert torch.equal(first, inputs_of(one.batches(7, seed=3)))
    assert one.digest == two.digest and len(one) == 20
    if kind not in ("no labels", "stream, workers that stay", "stream"):
        assert not torch.equal(first, inputs_of(one.batches(7, seed=4)))


@pytest.mark.parametrize("kind", SOURCES)
def test_the_consumers_random_numbers_are_left_alone(kind: str) -> None:
    """What is drawn between two batches is what would be drawn without them."""

    def drawn(source: Any) -> list[float]:
        RandomState.of_seed(1).restore()
        return [(float(torch.rand(())), np.random.rand(), random.random()) for _ in source]  # type: ignore[misc]

    assert drawn(as_split(SOURCES[kind](), "train").batches(7, seed=3)) == drawn(range(3))


@pytest.mark.parametrize("kind", SOURCES)
def test_batches_have_the_size_asked_for(kind: str) -> None:
    """Of whatever size the source's own batches are; `limit` cuts the last one."""
    split = as_split(SOURCES[kind](), "train")
    assert [example_count(batch) for batch in split.batches(8)] == [8, 8, 4]
    assert [example_count(batch) for batch in split.batches(8, seed=0, limit=9)] == [8, 1]


def test_what_workers_read_does_not_depend_on_their_number() -> None:
    """The noise of an example comes from the pass's seed and the example alone."""
    alone, two = (
        inputs_of(as_split(DataLoader(Noisy(), 4, num_workers=workers), "train").batches(5, seed=2))
        for workers in (0, 2)
    )
    assert torch.equal(alone, two)


def test_the_digest_tells_data_apart() -> None:
    """Another value, another length or another label is another digest; it is the same in every process."""
    digests = {
        as_split(TensorDataset(inputs, labels), "train").digest
        for inputs, labels in (
            (torch.zeros(9, 2), torch.zeros(9)),
            (torch.zeros(8, 2), torch.zeros(8)),
            (torch.ones(9, 2), torch.zeros(9)),
            (torch.zeros(9, 2), torch.ones(9)),
            (torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64)),
        )
    }
    assert len(digests) == 5
    assert as_split(plain(), "train").digest == "c30f95b647a8109a"
    many = torch.arange(3 * DIGEST_EXAMPLES).float().view(-1, 1)
    assert as_split(TensorDataset(many), "a").digest != as_split(TensorDataset(many[: 2 * DIGEST_EXAMPLES]), "a").digest


def test_batches_keep_the_users_structure() -> None:
    """A dict of tensors, lists with an item an example and shared values is cut and joined as such."""
    split = as_split(DataLoader(Noisy(), batch_size=3, collate_fn=collated_twice), "train")
    listed = as_split(list(DataLoader(Noisy(), batch_size=3, collate_fn=collated_twice)), "train")
    for found in (next(split.batches(5)), next(listed.batches(5))):
        assert found["x"].shape == (5, 4) and found["ids"] == ["0", "1", "2", "3", "4"] and found["scale"] == 2.0


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(1, 7),
    st.integers(1, 3),
    st.none() | st.integers(1, 30),
)
def test_regrouped_batches_hold_the_same_examples(sizes: list[int], size: int, world: int, limit: int | None) -> None:
    """In their order, each once, as `plan_batches` would divide them among the ranks."""
    numbers = torch.split(torch.arange(sum(sizes)), sizes)
    whole = [n for batch in regrouped(numbers, size * world, limit=limit) for n in batch.tolist()]
    assert whole == list(range(min(sum(sizes), limit or sum(sizes))))
    shares = [list(regrouped(numbers, size, limit=limit, rank=rank, world=world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    kept = len(whole) if len(whole) % (size * world) >= world else len(whole) - len(whole) % (size * world)
    assert sorted(n for share in shares for batch in share for n in batch.tolist()) == whole[:kept]


def test_batches_of_other_shapes_are_cut_and_never_joined() -> None:
    """Texts padded to different lengths stay apart, so that no example is changed."""
    batches = [
        (torch.zeros(3, 5), torch.zeros(3)),
        (torch.zeros(3, 7), torch.zeros(3)),
        (torch.zeros(1, 7), torch.zeros(1)),
    ]
    assert [tuple(inputs.shape) for inputs, _ in regrouped(batches, 2)] == [(2, 5), (1, 5), (2, 7), (2, 7)]
    with pytest.raises(ValueError, match="shapes differ"):
        joined(batches[:2])


def test_fields_are_not_taken_for_examples() -> None:
    """A list of two tensors is two fields of two examples each, or two images where the labels say so."""
    fields = [torch.zeros(2, 3), torch.ones(2)]
    assert [part.shape for part in sliced(fields, slice(1))] == [(1, 3), (1,)]
    nested = [[torch.zeros(5, 3), torch.zeros(5)], torch.ones(5)]
    assert example_count(nested) == 5 and sliced(nested, slice(2))[0][1].shape == (2,)
    images = (
        [torch.zeros(3, 8, 8), torch.zeros(3, 6, 6)],
        [{"boxes": torch.zeros(0, 4)}, {"boxes": torch.zeros(1, 4)}],
    )
    assert example_count(images) == 2 and len(sliced(images, slice(1))[0]) == 1


def test_examples_held_out_of_a_data_set() -> None:
    """The two parts are disjoint, whole, fixed by the seed, and at least one example each."""
    train = as_split(DataLoader(Noisy(), batch_size=4, shuffle=True), "train")
    rest, held = hold_out_split(train, 0.1, 0)
    assert (len(rest), len(held)) == (18, 2)
    assert sorted(rest.index.tolist() + held.index.tolist()) == list(range(20))
    assert torch.equal(held.index, hold_out_split(train, 0.1, 0)[1].index) and held.digest != rest.digest
    assert not torch.equal(held.index, hold_out_split(train, 0.1, 1)[1].index)
    with pytest.raises(DataError, match="give validation="):
        hold_out_split(as_split(plain(), "train"), 0.1, 0)


def test_three_sources_are_splits() -> None:
    """Of any mix of kinds; the shape of an example is seen from the first batch."""
    splits = as_splits(Noisy(), plain(), DataLoader(Noisy(5)))
    assert splits.input_shape == (4,) and [len(part) for part in (splits.train, splits.validation, splits.test)] == [
        20,
        20,
        5,
    ]
    assert as_split(splits.train, "train") is splits.train


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((batch for batch in plain()), "again and again"),
        (iter(plain()), "again and again"),
        (3, "but is a int"),
        (torch.zeros(3), "but is a Tensor"),
        ({"x": torch.zeros(3)}, "but is a dict"),
        (Stream(), "wrap it"),
        ([], "is empty"),
        (DataLoader(Noisy(0)), "is empty"),
        (Noisy(0), "is empty"),
        ([3, 4], "without examples"),
        ([{"x": 3}], "without examples"),
        ([(torch.tensor([1.0, float("nan")]), torch.zeros(2))], r"1 of 2 inputs of batch 0 are NaN \(batch\[0\]\)"),
        ([{"x": torch.tensor([float("nan")])}], r"batch\['x'\]"),
        (DataLoader([1, 2], collate_fn=lambda items: 1 / 0), "ZeroDivisionError"),
        (DataLoader([torch.zeros(2), torch.zeros(3)], batch_size=2), "reading one failed"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(source: Any, words: str) -> None:
    """One clear `DataError` that names the split, the fault and the fix."""
    with pytest.raises(DataError, match=words) as told:
        split = as_split(source, "train")
        list(split.batches(2))
        len(split)
    assert str(told.value).startswith("train must") and "\n" not in str(told.value)


def test_nan_among_answers_is_the_users_own() -> None:
    """A missing target may be NaN: the user's loss knows what it means."""
    missing = torch.tensor([float("nan")])
    for batch in ((torch.zeros(1), missing), {"x": torch.zeros(1), "targets": missing}):
        assert len(list(as_split([batch], "train").batches(1))) == 1
