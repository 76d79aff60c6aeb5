import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.system.progress import Silent, Stage
from amc.train.evaluation import evaluate
from amc.train.settings import FinetuneSchedule, Schedule
from amc.train.training import TrainingHistory, learning_rate_factor, optimizer_of, train
from amc.zoo.data.splits import MemorySplit, Splits

CPU = Compute(torch.device("cpu"), bfloat16=False)
ROOT = Path(__file__).parents[2]
SCHEDULE = Schedule(epochs=3, lr=0.05, batch_size=16)


def shapes(count: int, seed: int) -> MemorySplit:
    """Three kinds of 8 x 8 pictures under noise: a row, a column, a square."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=draw)
    images = torch.randint(0, 90, (count, 1, 8, 8), generator=draw)
    images[labels == 0, :, 3:5] += 120
    images[labels == 1, :, :, 3:5] += 120
    images[labels == 2, :, 2:6, 2:6] += 120
    return MemorySplit(images.to(torch.uint8), labels, (0.3,), (0.3,))


SPLITS = Splits("shapes", shapes(100, 0), shapes(60, 1), shapes(60, 2), (1, 8, 8), 3)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 3),
    )  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Stopped(Exception):
    pass


class StopsAfter(Silent):
    """A progress that fails after some epochs, as if the process had been killed there."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs + 1  # the first call tells where the training starts

    def stage(self, title: str, total: float) -> Stage:
        return self

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


@given(st.integers(1, 500), st.floats(0, 0.95), st.sampled_from(["onecycle", "cosine"]))
def test_the_learning_rate_rises_once_and_falls_to_nothing(steps: int, warmup: float, kind: str) -> None:
    """Factors lie in 0..1, peak at the end of the rise, then only fall; cosine has no rise."""
    schedule = Schedule(warmup=warmup, schedule=kind)  # type: ignore[arg-type]
    factors = [learning_rate_factor(schedule, step, steps) for step in range(steps + 1)]
    rise = warmup * steps if kind == "onecycle" else 0
    rising, falling = factors[: int(rise)], [f for step, f in enumerate(factors) if step >= rise]
    assert all(0 <= factor <= 1 for factor in factors)
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    if steps - rise >= 1:
        assert factors[-1] == pytest.approx(0, abs=1e-12)
    if kind == "cosine" or warmup == 0:
        assert factors[0] == 1


def test_training_learns_and_counts() -> None:
    """The network learns; accuracies, steps and the best one are told, and the mode is as it was."""
    model = small().eval()
    before = evaluate(model, SPLITS.validation, CPU).accuracy
    done = train(model, SPLITS, Schedule(epochs=6, lr=0.1, batch_size=16), CPU)
    assert not model.training and not model[1].training
    assert len(done.accuracies) == 6 and done.best_accuracy == max(done.accuracies) > max(before, 0.6)
    assert done.steps == 6 * (100 // 16 + 1) and done.seconds > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adamw_learns_by_its_own_steps_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The recipe's word chooses the optimizer, momentum is its first decay; a checkpoint holds its state."""
    schedule = SCHEDULE.model_copy(update={"optimizer": "adamw", "lr": 0.01, "epochs": 6})
    optimizer = optimizer_of(small(), schedule)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["betas"][0] == schedule.momentum
    assert [group["weight_decay"] for group in optimizer.param_groups] == [schedule.weight_decay, 0.0]
    model, path = small(), tmp_path / "checkpoint.pt"
    assert train(model, SPLITS, schedule, CPU).best_accuracy > 0.6
    with pytest.raises(Stopped):
        train(small(), SPLITS, schedule, CPU, checkpoint=path, progress=StopsAfter(3))
    again = small(seed=9)
    train(again, SPLITS, schedule, CPU, checkpoint=path)
    assert equal(weights(again), weights(model))


def test_the_best_weights_are_kept() -> None:
    """The network left behind measures what the best epoch did, though later epochs were worse."""
    model = small()
    done = train(model, SPLITS, Schedule(epochs=8, lr=0.6, batch_size=8, warmup=0.9, momentum=0.9), CPU, seed=1)
    assert evaluate(model, SPLITS.validation, CPU).accuracy == done.best_accuracy == max(done.accuracies)


def test_the_test_split_is_never_seen() -> None:
    """Training works without one."""
    blind = Splits("blind", SPLITS.train, SPLITS.validation, None, (1, 8, 8), 3)  # type: ignore[arg-type]
    assert train(small(), blind, SCHEDULE, CPU).best_accuracy > 0


def test_same_seed_same_weights() -> None:
    """Everything random comes from the seed; another seed gives other weights."""

    def trained(seed: int) -> dict[str, Tensor]:
        model = small()
        train(model, SPLITS, SCHEDULE, CPU, seed=seed)
        return weights(model)

    assert equal(trained(3), trained(3))
    assert not equal(trained(3), trained(4))


def test_frozen_parameters_stay() -> None:
    """What does not require gradients is not changed, distilled or not."""
    model = small()
    model[0].requires_grad_(False)
    before = weights(model)
    train(model, SPLITS, FinetuneSchedule(epochs=2, batch_size=16), CPU, teacher=small(1))
    assert torch.equal(model[0].weight, before["0.weight"]) and not model[0].weight.requires_grad
    assert not torch.equal(model[5].weight, before["5.weight"])


def test_no_epochs_do_nothing() -> None:
    """`epochs = 0` leaves weights and modes alone, and tells so."""
    model = small()
    before = weights(model)
    assert train(model, SPLITS, Schedule(epochs=0), CPU) == TrainingHistory()
    assert equal(weights(model), before) and model.training


def test_parts_of_an_epoch_are_allowed() -> None:
    """Half an epoch takes half the steps and is measured once."""
    done = train(small(), SPLITS, Schedule(epochs=1.5, batch_size=10), CPU)
    assert done.steps == 15 and len(done.accuracies) == 2


def test_a_lone_last_picture_is_no_step() -> None:
    """One picture over a whole number of batches does not stop a BatchNorm that sees one pixel."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    splits = Splits("odd", shapes(33, 0), SPLITS.validation, SPLITS.test, (1, 8, 8), 3)
    assert train(model, splits, Schedule(epochs=1, batch_size=16), CPU).steps == 2


def test_a_loss_that_is_no_number_is_one_line() -> None:
    """Training that diverges says at which step and what to do; the modes come back."""
    model = small().eval()
    with torch.no_grad():
        model[5].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"loss must stay finite, but is nan at step 0; lower `lr`"):
        train(model, SPLITS, SCHEDULE, CPU)
    assert not model.training


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, stop: int, ema: float) -> None:
    """Stopped after any epoch and started again, it ends with the weights of a training that was never stopped."""
    schedule = SCHEDULE.model_copy(update={"ema": ema})
    path = tmp_path / "checkpoint.pt"
    whole, parts = small(), small()
    expected = train(whole, SPLITS, schedule, CPU, seed=5)
    with pytest.raises(Stopped):
        train(parts, SPLITS, schedule, CPU, seed=5, checkpoint=path, progress=StopsAfter(stop))
    assert torch.load(path, weights_only=True)["step"] == stop * 7
    again = small(seed=9)  # other weights: all that counts stands in the file
    done = train(again, SPLITS, schedule, CPU, seed=5, checkpoint=path)
    assert equal(weights(again), weights(whole))
    assert done.accuracies == expected.accuracies and done.best_accuracy == expected.best_accuracy


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    """Its checkpoint gives the weights back with no step taken."""
    path = tmp_path / "checkpoint.pt"
    model, again = small(), small(4)
    train(model, SPLITS, SCHEDULE, CPU, checkpoint=path)
    blind = Splits("blind", SPLITS.train, None, None, (1, 8, 8), 3)  # type: ignore[arg-type]
    train(again, blind, SCHEDULE, CPU, checkpoint=path)
    assert equal(weights(again), weights(model))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 no archive", None])
def test_a_file_that_is_no_checkpoint_is_passed_over(tmp_path: Path, content: bytes | None) -> None:
    """The training starts anew, as if the file were not there, and writes its own."""
    path = tmp_path / "checkpoint.pt"
    torch.save([1, 2], path) if content is None else path.write_bytes(content)
    model, fresh = small(), small()
    train(model, SPLITS, SCHEDULE, CPU, checkpoint=path)
    train(fresh, SPLITS, SCHEDULE, CPU)
    assert equal(weights(model), weights(fresh))
    assert torch.load(path, weights_only=True)["step"] == 21


@pytest.mark.parametrize("other", ["schedule", "seed", "network"])
def test_the_checkpoint_of_another_training_is_passed_over(tmp_path: Path, other: str) -> None:
    """Another schedule, seed or network: not one number of it is taken over."""
    path = tmp_path / "checkpoint.pt"
    theirs = small(1)
    if other == "network":
        theirs[5] = nn.Linear(128, 4)
    schedule = SCHEDULE.model_copy(update={"lr": 0.01}) if other == "schedule" else SCHEDULE
    train(theirs, SPLITS, schedule, CPU, seed=1 if other == "seed" else 0, checkpoint=path)
    model, fresh = small(), small()
    train(model, SPLITS, SCHEDULE, CPU, checkpoint=path)
    train(fresh, SPLITS, SCHEDULE, CPU)
    assert equal(weights(model), weights(fresh))


def test_the_teacher_is_followed_and_left_alone() -> None:
    """With `distill = 1` labels do not count; the teacher's weights and outputs do not change."""
    teacher = small(2)
    train(teacher, SPLITS, Schedule(epochs=6, lr=0.1, batch_size=16), CPU)
    before = weights(teacher)
    wrong = MemorySplit(SPLITS.train.images, torch.zeros(100, dtype=torch.int64), (0.3,), (0.3,))  # type: ignore[attr-defined]
    splits = Splits("wrong", wrong, SPLITS.validation, SPLITS.test, (1, 8, 8), 3)
    schedule = FinetuneSchedule(epochs=8, lr=0.1, batch_size=16, distill=1.0, temperature=2.0)
    student = copy.deepcopy(small(3))
    assert train(student, splits, schedule, CPU, teacher=teacher).best_accuracy > 0.6
    assert equal(weights(teacher), before)


TORCHRUN = """
import sys
from pathlib import Path
import torch
from amc.train import distributed
from amc.train.training import train
from tests.train.test_training import CPU, SCHEDULE, SPLITS, StopsAfter, Stopped, small, weights

torch.set_num_threads(1)
distributed.join()
rank, folder = distributed.rank(), Path(sys.argv[1])
checkpoint = folder / "checkpoint.pt" if rank == 0 else None
model = small(rank)  # the first process's weights count
try:
    train(model, SPLITS, SCHEDULE, CPU, checkpoint=checkpoint, progress=StopsAfter(1))
except Stopped:
    pass
model = small(rank + 7)
done = train(model, SPLITS, SCHEDULE, CPU, checkpoint=checkpoint)
torch.save((done.accuracies, weights(model)), folder / f"rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """Under torchrun both end with the same parameters, after a stop and a resumption that only the first one read."""
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    places = os.pathsep.join(str(place) for place in (ROOT, ROOT / "search", ROOT / "predictor"))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True,
                          timeout=240, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (accuracies, one), (theirs, two) = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(accuracies) == 3 and accuracies == theirs
    trained = [name for name, _ in small().named_parameters()]
    assert all(torch.equal(one[name], two[name]) for name in trained)
