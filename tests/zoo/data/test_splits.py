import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.zoo.data.division import hold_out
from amc.zoo.data.splits import Augmentation, ListSplit, MemorySplit, Splits, TensorSplit, plan_batches


def split_of(number: int = 37, augmentation: Augmentation = Augmentation()) -> MemorySplit:
    """Pictures whose label is their index, so that batches can be told apart."""
    images = torch.randint(0, 256, (number, 3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return MemorySplit(images, torch.arange(number), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), augmentation)


def objective_values(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [label for _, labels in batches for label in labels.tolist()]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 9), st.data())
def test_hold_out_divides_and_keeps_the_balance(classes: list[int], seed: int, data: st.DataObject) -> None:
    """The parts are disjoint, whole and of the sizes asked, and each class loses its share to within one picture."""
    labels, count = torch.tensor(classes), data.draw(st.integers(0, len(classes)))
    rest, held = hold_out(labels, count, seed)
    assert sorted(rest.tolist() + held.tolist()) == list(range(len(classes)))
    assert len(held) == count
    for label in set(classes):
        share = classes.count(label) * count / len(classes)
        assert abs(int((labels[held] == label).sum()) - share) < 1


def test_hold_out_is_fixed_by_its_seed() -> None:
    """A split is for ever: same seed same split, other seed other split, and these very numbers in every version."""
    labels = torch.arange(20) % 2
    again = [part.tolist() for part in hold_out(labels, 6, 0)]
    assert again == [part.tolist() for part in hold_out(labels, 6, 0)]
    assert again != [part.tolist() for part in hold_out(labels, 6, 1)]
    assert again[1] == [13, 14, 7, 12, 6, 15]


@settings(max_examples=40)
@given(
    st.integers(1, 50),
    st.integers(1, 9),
    st.integers(1, 4),
    st.none() | st.integers(0, 99),
    st.none() | st.integers(1, 60),
)
def test_ranks_partition_every_global_batch(
    number: int, size: int, world: int, seed: int | None, limit: int | None
) -> None:
    """Ranks together yield the global batches of one process, but a last one too short for all; equally many each."""
    split = split_of(number)
    whole = [labels.tolist() for _, labels in split.batches(size * world, seed=seed, limit=limit)]
    shared = [
        [labels.tolist() for _, labels in split.batches(size, seed=seed, limit=limit, rank=rank, world=world)]
        for rank in range(world)
    ]
    whole = [batch for batch in whole if len(batch) >= world]
    assert {len(batches) for batches in shared} == {len(whole)}
    for number_of_batch, batch in enumerate(whole):
        parts = [ranks[number_of_batch] for ranks in shared]
        assert sorted(label for part in parts for label in part) == sorted(batch)
        assert all(len(part) <= size for part in parts)
    assert len(objective_values(list(split.batches(size, seed=seed, limit=limit)))) == min(number, limit or number)


def test_batches_are_normalised_floats() -> None:
    """Zero mean and unit deviation are what mean and std say, per channel."""
    split = split_of()
    images, labels = next(split.batches(5))
    mean, std = torch.tensor(split.mean).view(3, 1, 1), torch.tensor(split.std).view(3, 1, 1)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(images * std + mean, split.images[:5].float() / 255)


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(False, 0), Augmentation(True, 3, 4)])
def test_augmentation_keeps_shape_and_is_fixed_by_the_seed(augmentation: Augmentation) -> None:
    """Augmented batches look like plain ones, come out the same for one seed and differ for another."""
    split = split_of(augmentation=augmentation)

    def images(seed: int) -> Tensor:
        return torch.cat([batch for batch, _ in split.batches(8, seed=seed, augment=True)])

    assert images(3).shape == split.images.shape
    assert images(3).dtype == torch.float32
    assert torch.equal(images(3), images(3))
    assert not torch.equal(images(3), images(4))


def test_ranks_draw_their_own_noise() -> None:
    """Two processes do not shift their pictures alike."""
    split = dataclasses.replace(split_of(), images=split_of().images[:1].expand(37, 3, 9, 8))
    first, second = (next(split.batches(8, seed=0, augment=True, rank=rank, world=2))[0] for rank in (0, 1))
    assert not torch.equal(first, second)


def test_erased_squares_have_the_side_asked_for() -> None:
    """No more than `erase` rows and columns are blanked, and just as many where the square lies inside."""
    white = torch.full((200, 1, 20, 20), 255, dtype=torch.uint8)
    split = MemorySplit(white, torch.zeros(200).long(), (0.0,), (1.0,), Augmentation(False, 0, 4))
    erased = next(split.batches(200, seed=0, augment=True))[0][:, 0] == 0
    sides = erased.any(2).sum(1)
    assert int(sides.max()) == 4
    assert int(sides.min()) >= 2


def test_digest_changes_with_one_pixel_and_one_label() -> None:
    """Trials of other data never fall into the same study."""
    split = split_of()
    pixels, labels = split.images.clone(), split.labels.clone()
    pixels[3, 1, 2, 2] ^= 1
    labels[3] = 0
    digests = {
        split.digest,
        dataclasses.replace(split, images=pixels).digest,
        dataclasses.replace(split, labels=labels).digest,
        dataclasses.replace(split, mean=(0.5, 0.4, 0.2)).digest,
    }
    assert len(digests) == 4
    assert dataclasses.replace(split, images=split.images.clone()).digest == split.digest


def test_the_test_split_has_no_part_in_the_digest() -> None:
    """Nothing that is decided may depend on test pictures."""
    train, validation = split_of(20), split_of(10)
    one, two = (Splits("x", train, validation, split_of(number), (3, 9, 8), 10) for number in (5, 6))
    assert one.digest == two.digest
    assert one.digest != Splits("x", validation, train, train, (3, 9, 8), 10).digest


def test_examples_of_any_kind_come_in_the_planned_batches() -> None:
    """Trees of tensors are indexed leaf by leaf, lists item by item, both as `plan_batches` orders them."""
    numbers = torch.arange(11)
    tree = TensorSplit({"a": numbers, "b": (numbers * 10,)}, numbers * 100)
    listed = ListSplit([torch.full((n + 1,), n) for n in range(11)], list(range(11)))
    for seed in (None, 3):
        plan = [index.tolist() for index in plan_batches(11, 4, seed=seed, limit=9)]
        assert [len(index) for index in plan] == [4, 4, 1] and (plan[0] == [0, 1, 2, 3]) == (seed is None)
        for index, batch, items in zip(
            plan, tree.batches(4, seed=seed, limit=9), listed.batches(4, seed=seed, limit=9), strict=True
        ):
            assert batch[0]["b"][0].tolist() == [10 * n for n in index] and batch[1].tolist() == [
                100 * n for n in index
            ]
            assert items[1] == index and [len(tensor) for tensor in items[0]] == [n + 1 for n in index]
    assert len(tree) == len(listed) == 11


def test_digests_tell_examples_apart() -> None:
    """A changed value, name or target changes the digest; the same examples have the same one."""
    inputs, labels = {"a": torch.zeros(3, 2)}, torch.arange(3)
    splits = [
        TensorSplit(inputs, labels),
        TensorSplit({"a": torch.ones(3, 2)}, labels),
        TensorSplit({"b": torch.zeros(3, 2)}, labels),
        TensorSplit(inputs, labels + 1),
        ListSplit(list(torch.zeros(3, 2)), labels.tolist()),
        ListSplit(list(torch.zeros(3, 2)), [0, 1, 3]),
    ]
    assert len({split.digest for split in splits}) == len(splits)
    assert TensorSplit({"a": torch.zeros(3, 2)}, torch.arange(3)).digest == splits[0].digest
