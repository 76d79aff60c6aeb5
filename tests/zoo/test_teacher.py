"""The teacher that answers each batch once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import amc.zoo.teacher as module
from amc.train.settings import FinetuneSchedule
from amc.train.training import train
from amc.zoo.teacher import RememberingTeacher
from tests.train.test_training import CPU, SPLITS, equal, small, weights


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = small(1).eval(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.inner(x)
        return out


def test_a_second_training_on_the_same_batches_asks_the_network_nothing() -> None:
    """With one seed a second training reads what the first has asked, and ends with the same weights."""
    schedule, counting = FinetuneSchedule(epochs=2, batch_size=16), Counting()
    teacher, one, two, plain = RememberingTeacher(counting), small(), small(), small()
    train(one, SPLITS, schedule, CPU, seed=3, teacher=teacher)
    asked = counting.calls
    train(two, SPLITS, schedule, CPU, seed=3, teacher=teacher)
    train(plain, SPLITS, schedule, CPU, seed=3, teacher=small(1))
    assert counting.calls == asked > 0
    assert equal(weights(one), weights(two)) and equal(weights(one), weights(plain))
    train(two, SPLITS, schedule, CPU, seed=4, teacher=teacher)
    assert counting.calls == 2 * asked


def test_only_the_very_same_inputs_are_looked_up() -> None:
    """Another value, shape, dtype or nesting is another question."""
    teacher = RememberingTeacher(nn.Identity())
    x = torch.arange(12.0)
    questions = [x.view(3, 4), x.view(4, 3), x.view(3, 4).double(), x.view(3, 4) + 1, [x.view(3, 4)], (x.view(3, 4),)]
    for question in [*questions, *questions]:
        answer = teacher(question)
        assert type(answer) is type(question)
        flat, wanted = (each if isinstance(each, Tensor) else each[0] for each in (answer, question))
        assert flat.dtype == wanted.dtype and torch.equal(flat, wanted)


def test_what_memory_has_no_room_for_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full memory costs time, never an answer."""
    monkeypatch.setattr(module, "free_bytes", lambda: 0)
    counting = Counting()
    teacher, x = RememberingTeacher(counting), SPLITS.train.images[:4].float()
    assert torch.equal(teacher(x), teacher(x)) and counting.calls == 2
