import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.train.evaluation import evaluate
from amc.train.settings import FinetuneSchedule
from amc.train.training import loss_of, train
from amc.zoo.agreement import Agreement
from amc.zoo.data.kept import KeptSplit
from amc.zoo.data.loaders import as_split, as_splits
from amc.zoo.task import CLASSIFICATION, load_task
from tests.tiny import network

CPU = Compute(torch.device("cpu"), bfloat16=False)


class Counting(nn.Module):
    """A network that counts how often it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.runs = model, 0

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        return self.model(x)


def images(number: int = 60) -> Tensor:
    return torch.randn(number, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module, amount: float) -> nn.Module:
    """A copy whose weights differ a little."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(amount * parameter.std(unbiased=False) * noise)
    return other


def test_without_labels_the_metric_is_agreement() -> None:
    """A batch with labels leaves the task as it is; one without, or the name, compares with the dense network."""
    dense, x = network().eval(), images(4)
    assert CLASSIFICATION.bound(dense, CPU, (x, torch.zeros(4))) is CLASSIFICATION
    for batch in (x, (x,), [x], {"x": x}):
        assert CLASSIFICATION.bound(dense, CPU, batch).metric_name == "agreement"
    named = load_task(metric="agreement").bound(dense, CPU, (x, torch.zeros(4)))
    assert named.fingerprint == CLASSIFICATION.bound(dense, CPU, x).fingerprint
    given = load_task(metric=lambda outputs, batch: torch.ones(4))
    assert given.bound(dense, CPU, x) is given


def test_agreement_is_the_share_of_equal_answers() -> None:
    """Of logits: as computed by hand; the dense network agrees with itself wholly, at no divergence."""
    torch.manual_seed(0)
    dense, split = network().eval(), as_split([images()], "validation")
    other, task = shaken(dense, 0.5).eval(), CLASSIFICATION.bound(dense, CPU, images(1))
    itself, found = (evaluate(model, split, CPU, task=task, batch_size=60) for model in (dense, other))
    with torch.inference_mode():
        wanted, mine = dense(images()), other(images())
    assert itself.accuracy == 1.0 and abs(itself.loss) < 1e-6
    assert found.accuracy == float((wanted.argmax(1) == mine.argmax(1)).double().mean()) < 1
    plain = cross_entropy(mine, wanted.softmax(1)) - cross_entropy(wanted, wanted.softmax(1))
    assert 0 < found.loss <= float(plain) + 1e-6


def test_other_outputs_agree_by_their_squared_error() -> None:
    """A regression, in a dict or alone, scores 1 less the error over the dense outputs' variance, never below 0."""
    x = torch.arange(8.0)[:, None]
    scores = Agreement(nn.Identity(), CPU, CLASSIFICATION.call)
    variance = float(x.var(unbiased=False))
    found = scores(x + torch.tensor([[1.0]] * 4 + [[100.0]] * 4), x)
    torch.testing.assert_close(found["scores"], torch.tensor([1 - 1 / variance] * 4 + [0.0] * 4, dtype=torch.float64))
    assert bool((scores(x, x)["scores"] == 1).all())
    with pytest.raises(ModelError, match="--metric"):
        scores(torch.zeros(8, 2), x)


def test_the_dense_network_is_asked_once_about_a_batch_that_is_kept() -> None:
    """Its outputs are kept by the contents of a batch; other contents are asked about anew."""
    dense = Counting(network()).eval()
    split = KeptSplit(as_split([images(20), images(40)[20:]], "validation"))
    task = CLASSIFICATION.bound(dense, CPU, images(1))
    for _ in range(3):
        first = evaluate(dense.model, split, CPU, task=task, batch_size=10)
    assert dense.runs == 4 and first.accuracy == 1.0
    evaluate(dense.model, as_split([images(20) + 1], "other"), CPU, task=task, batch_size=10)
    assert dense.runs == 6


def test_training_without_labels_goes_towards_the_dense_network() -> None:
    """The loss is the divergence from it; with labels at hand it is the usual cross-entropy."""
    torch.manual_seed(0)
    dense = network().eval()
    other, task = shaken(dense, 1.0), CLASSIFICATION.bound(dense, CPU, images(1))
    splits = as_splits([images(120)], [images(40)], [images(40)])
    before = evaluate(other, splits.validation, CPU, task=task)
    schedule = FinetuneSchedule(epochs=6, lr=0.02, batch_size=20, distill=0.0, label_smoothing=0.0)
    train(other, splits, schedule, CPU, task=task, start=before.accuracy)
    after = evaluate(other, splits.validation, CPU, task=task)
    assert after.loss < before.loss
    labelled = (images(5), torch.arange(5))
    logits = dense(labelled[0]).detach()
    assert float(loss_of(logits, labelled, task, schedule)) == float(cross_entropy(logits, labelled[1]))


def test_agreement_without_a_dense_network_is_told() -> None:
    """Training from scratch has nothing to agree with: one line says so."""
    with pytest.raises(ModelError, match="take data with labels"):
        evaluate(network(), as_split([images(4)], "train"), CPU, task=load_task(metric="agreement"))
    with pytest.raises(UsageError, match=r"function or agreement, but is 'agreemnt'"):
        load_task(metric="agreemnt")


def right(outputs: Tensor, batch: Any, sign: int = 1) -> Any:
    return outputs.argmax(1) == batch[1]


class Scorer:
    def __call__(self, outputs: Tensor, batch: Any) -> Any:
        return outputs.argmax(1) == batch[1]


def test_callables_serve_as_their_names_do() -> None:
    """A function, a partial, an object or a lambda: same scores, and a fingerprint that a new process finds again."""
    named, given = (load_task(metric=metric) for metric in (f"{__name__}:right", right))
    assert named.fingerprint == given.fingerprint and named.metric_name == given.metric_name == "right"
    tasks = [
        given,
        *(load_task(metric=m) for m in (partial(right, sign=1), Scorer(), lambda o, b: o.argmax(1) == b[1])),
    ]
    logits, batch = torch.eye(4), (torch.zeros(4), torch.tensor([0, 1, 0, 0]))
    assert {tuple(task.judge(logits, batch, 4).scores.tolist()) for task in tasks} == {(1.0, 1.0, 0.0, 0.0)}
    assert tasks[1].fingerprint == given.fingerprint and tasks[2].names[1] == f"{__name__}:Scorer"
    one, two = (load_task(metric=m) for m in (lambda o, b: o.sum(1), lambda o, b: o.mean(1)))
    assert one.fingerprint != two.fingerprint
