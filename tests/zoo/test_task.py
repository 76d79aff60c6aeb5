"""Tasks other than classification; the functions below are named in recipes as `tests.zoo.test_task:...`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import amc.cli as cli
from amc.job.compress import compress
from amc.job.job import example_call
from amc.job.recipe import load_recipe
from amc.job.verify import verify
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.folding import reestimate_batchnorm
from amc.system.device import Compute
from amc.system.errors import AmcError, DataError, ModelError, UsageError
from amc.train.evaluation import evaluate, paired_difference
from amc.train.settings import FinetuneSchedule
from amc.train.training import train
from amc.zoo.call import Call
from amc.zoo.data.splits import Splits, TensorSplit
from amc.zoo.examples.characters import next_character_accuracy
from amc.zoo.examples.kinds import kind_score
from amc.zoo.examples.shapes import box_f1, detection, mean_iou, segmentation
from amc.zoo.task import CLASSIFICATION, SHARPNESS, Task, calibrated_losses, load_task
from tests.tiny import network, pictures

CPU = Compute(torch.device("cpu"), bfloat16=False)


class TwoViews(nn.Module):
    """A dict of two signals in, a dict of two results out."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv1d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.right = nn.Linear(4, 8)
        self.merge = nn.Linear(16, 16)
        self.speed, self.height = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, *, wave: Tensor, state: Tensor) -> dict[str, Tensor]:
        left = torch.relu(self.norm(self.left(wave))).mean(2)
        merged = torch.relu(self.merge(torch.cat([left, torch.relu(self.right(state))], 1)))
        return {"speed": self.speed(merged)[:, 0], "height": self.height(merged)[:, 0]}


def two_views() -> nn.Module:
    return TwoViews()


def signals() -> Splits:
    """Batches of a dict: two signals and the two numbers to be told from them."""
    generator = torch.Generator().manual_seed(0)

    def part(number: int) -> TensorSplit:
        wave, state = torch.randn(number, 2, 12, generator=generator), torch.randn(number, 4, generator=generator)
        return TensorSplit(
            {"wave": wave, "state": state}, {"speed": wave.mean((1, 2)) + state[:, 0], "height": state[:, 1]}
        )

    return Splits("signals", part(200), part(60), part(60))


def views(batch: Any) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = batch[0]
    return inputs


def closeness(outputs: dict[str, Tensor], batch: Any) -> Tensor:
    errors = (outputs["speed"] - batch[1]["speed"]).abs() + (outputs["height"] - batch[1]["height"]).abs()
    return torch.exp(-errors)


def squared(outputs: dict[str, Tensor], batch: Any) -> Tensor:
    return sum(((outputs[key] - batch[1][key]) ** 2).mean() for key in ("speed", "height"))  # type: ignore[return-value]


def half_nan(outputs: Tensor, batch: Any) -> Tensor:
    return torch.where(torch.arange(len(outputs)) % 2 == 0, torch.nan, 1.0)


def in_percent(outputs: Tensor, batch: Any) -> Tensor:
    return torch.full((len(outputs),), 50.0)


def one_number(outputs: Tensor, batch: Any) -> float:
    return 0.5


def other_keys(outputs: Tensor, batch: Any) -> dict[str, Tensor]:
    return {"score": torch.ones(len(outputs))}


def words(outputs: Tensor, batch: Any) -> list[str]:
    return ["good"] * len(outputs)


def broken(outputs: Tensor, batch: Any) -> Tensor:
    raise KeyError("boxes\nand a second line")


def loss_of_each(outputs: Tensor, batch: Any) -> Tensor:
    return cross_entropy(outputs, batch[1], reduction="none")


def no_inputs(batch: Any) -> int:
    return 3


HERE, SHAPES = "tests.zoo.test_task", "amc.zoo.examples.shapes"
VIEWS = load_task(f"{HERE}:views", f"{HERE}:closeness", f"{HERE}:squared")


def test_classification_is_top_1_and_calibrated_cross_entropy() -> None:
    """Without functions of the user's, accuracy and loss are those computed by hand from all logits at once."""
    torch.manual_seed(0)
    model, split = network().eval(), pictures().validation
    found = evaluate(model, split, CPU, batch_size=32)
    inputs, labels = next(iter(split.batches(1000)))
    with torch.no_grad():
        logits = model(inputs)
    assert found.scores.tolist() == (logits.argmax(1) == labels).tolist()
    by_hand = min(float(cross_entropy(logits * 3**t, labels)) for t in np.linspace(-1, 1, 21))
    assert math.isclose(found.loss, by_hand, rel_tol=1e-5)


def test_a_metric_of_the_users_replaces_accuracy() -> None:
    """The mean of its scores is the accuracy, its losses the loss, and right or wrong is not asked."""
    model, split = network().eval(), pictures().validation
    plain = evaluate(model, split, CPU)
    kinds = load_task(metric="amc.zoo.examples.kinds:kind_score")
    found = evaluate(model, split, CPU, batch_size=30, task=kinds)
    assert kinds.metric_name == "kind score"
    assert set(found.scores.tolist()) <= {0.0, 0.5, 1.0}
    assert found.accuracy > plain.accuracy and math.isclose(found.loss, plain.loss, rel_tol=1e-6)


def test_kinds_of_clothing_forgive_the_nearest_mistakes() -> None:
    """The worked example: right 1, same kind 1/2, another kind 0."""
    logits = torch.eye(10)[[0, 6, 8]]  # said: T-shirt, shirt, bag
    assert kind_score(logits, (torch.empty(0), torch.tensor([0, 0, 0])))["scores"].tolist() == [1.0, 0.5, 0.0]


def test_losses_may_be_left_out() -> None:
    """A metric that gives scores alone leaves the loss at zero, and so the labels to the scores."""
    task = load_task(f"{HERE}:views", f"{HERE}:closeness")
    found = evaluate(TwoViews(), signals().validation, CPU, task=task)
    assert found.loss == 0.0 and 0 < found.accuracy < 1


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=40))
def test_intervals_hold_the_mean(scores: list[float]) -> None:
    """Whatever the scores, 0 <= low <= mean <= high <= 1."""
    given_scores = torch.tensor(scores, dtype=torch.float64)
    template = evaluate(network(), pictures_few(), CPU)
    found = replace(template, scores=given_scores)
    low, high = found.interval_95
    assert 0 <= low <= found.accuracy + 1e-12 and found.accuracy - 1e-12 <= high <= 1
    assert paired_difference(found, found) == (0.0, 0.0, 0.0)


def pictures_few() -> TensorSplit:
    return TensorSplit(torch.zeros(2, 1, 28, 28), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("half_nan", "finite scores, but 50 of 100 are not"),
        ("in_percent", "scores from 0 to 1, but one is 50"),
        ("one_number", "shape (100,), one for each example"),
        ("other_keys", "its keys are ['score']"),
        ("words", "one number an example, but gave a list"),
        ("broken", "but failed: KeyError"),
    ],
)
def test_a_metric_that_breaks_its_rules_is_told_in_one_line(metric: str, said: str) -> None:
    """The line names the function, the rule and what it gave."""
    task = load_task(metric=f"{HERE}:{metric}")
    with pytest.raises(UsageError) as caught:
        evaluate(network(), pictures().validation, CPU, task=task)
    assert said in str(caught.value) and f"{HERE}:{metric}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "name", "said"),
    [
        ("--metric", "nothing", "must be package.module:function"),
        ("--metric", "no.such.module:f", "can be imported"),
        ("--batch", f"{HERE}:missing", "no callable 'missing'"),
        ("--loss", f"{HERE}:HERE", "no callable 'HERE'"),
    ],
)
def test_functions_that_are_not_there_end_the_command_with_2(
    flag: str, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the flag, before anything is loaded."""
    out = str(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["amc", "compress", flag, name, "--out", out, "--quiet"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith(f"amc: {flag} ") and said in error and error.count("\n") == 1


def test_batches_are_given_as_the_function_says() -> None:
    """A tensor is the one argument, a tuple all of them, a dict keyword arguments; the default is the first element."""
    batch = (torch.zeros(4, 2), torch.ones(4))
    assert CLASSIFICATION.call(batch).args == (batch[0],)
    for given_back, args, keys in (
        (batch[0], 1, []),
        (batch, 2, []),
        ([batch[0], batch[1]], 2, []),
        ({"x": batch[0]}, 0, ["x"]),
        (Call((batch[0],), {"y": 1}), 1, ["y"]),
    ):
        call = Task(batch=lambda _, value=given_back: value).call(batch)
        assert (len(call.args), list(call.kwargs), len(call)) == (args, keys, 4)
    with pytest.raises(UsageError, match="must return a tensor, a tuple of arguments or a dict"):
        load_task(batch=f"{HERE}:no_inputs").call(batch)
    assert CLASSIFICATION.call(batch[0]).args == (batch[0],)
    assert list(CLASSIFICATION.call({"x": batch[0]}).kwargs) == ["x"]
    with pytest.raises(UsageError, match="give --batch"):
        CLASSIFICATION.call("text")


def test_outputs_that_are_no_logits_ask_for_a_metric() -> None:
    """Dict outputs and numbers to be regressed cannot be right or wrong."""
    with pytest.raises(ModelError, match="accuracy needs logits"):
        evaluate(TwoViews(), signals().validation, CPU, task=load_task(batch=f"{HERE}:views"))
    with pytest.raises(DataError, match="whole numbers"):
        CLASSIFICATION.judge(torch.zeros(3, 2), (torch.zeros(3), torch.zeros(3)), 3)


def test_logits_with_class_numbers_have_a_loss_and_others_have_none() -> None:
    """Cross-entropy of (n, classes, ...) and (n, ...); a dict, or labels that number no classes, tell nothing."""
    logits, labels = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    assert torch.isclose(CLASSIFICATION.loss(logits, (None, labels)), cross_entropy(logits, labels))  # type: ignore[arg-type]
    assert CLASSIFICATION.loss({"out": logits}, (None, labels)) is None
    assert CLASSIFICATION.loss(logits, (None, labels.float())) is None
    with pytest.raises(UsageError, match="must return a scalar tensor, but returned shape"):
        load_task(loss=f"{HERE}:loss_of_each").loss(torch.zeros(5, 2), (None, torch.zeros(5, dtype=torch.int64)))


def test_a_teacher_pulls_any_outputs_that_correspond() -> None:
    """The pull is zero at the teacher's own outputs, elsewhere in units of their variance; other shapes have none."""
    taught = {"a": torch.randn(50), "b": (torch.randn(50, 3) * 100,)}
    assert CLASSIFICATION.distil(taught, taught, 3.0).item() == 0  # type: ignore[union-attr]
    far = {"a": taught["a"] * 0 + taught["a"].mean(), "b": (taught["b"][0] * 0 + taught["b"][0].mean(),)}  # type: ignore[union-attr,index]
    assert CLASSIFICATION.distil(far, taught, 3.0).item() == pytest.approx(1.0, rel=1e-4)  # type: ignore[union-attr]
    assert CLASSIFICATION.distil({"loss": torch.zeros(())}, taught, 3.0) is None


def test_logits_at_many_places_are_taught_by_divergence() -> None:
    """(n, classes, ...) beside labels (n, ...): what all places as rows of one table give; else a square error."""
    mine, taught = torch.randn(2, 4, 5, 7, 7)
    labels = torch.zeros(4, 7, 7, dtype=torch.int64)
    rows = [logits.permute(0, 2, 3, 1).reshape(-1, 5) for logits in (mine, taught)]
    wanted = CLASSIFICATION.distil(rows[0], rows[1], 3.0)
    assert torch.isclose(CLASSIFICATION.distil(mine, taught, 3.0, (None, labels)), wanted)  # type: ignore[arg-type]
    assert CLASSIFICATION.distil(taught, taught, 3.0, (None, labels)).item() == pytest.approx(0, abs=1e-6)  # type: ignore[union-attr]
    plain = CLASSIFICATION.distil(mine, taught, 3.0)
    assert torch.equal(plain, CLASSIFICATION.distil(mine, taught, 3.0, (None, labels[:, 1:])))  # type: ignore[arg-type]
    assert not torch.isclose(plain, wanted)  # type: ignore[arg-type]
    own = load_task(loss=f"{HERE}:squared")
    assert torch.equal(own.distil(mine, taught, 3.0, (None, labels)), plain)  # type: ignore[arg-type]


def test_classes_of_whole_pictures_are_taught_as_ever() -> None:
    """(n, classes): the divergence of the softened rows, bit for bit, with the batch or without it."""
    mine, taught = torch.randn(2, 6, 10)
    ours, theirs = (log_softmax(logits / 3.0, 1) for logits in (mine, taught))
    wanted = 9.0 * kl_div(ours, theirs, reduction="batchmean", log_target=True)
    batch = (None, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(CLASSIFICATION.distil(mine, taught, 3.0), wanted)  # type: ignore[arg-type]
    assert torch.equal(CLASSIFICATION.distil(mine, taught, 3.0, batch), wanted)  # type: ignore[arg-type]


def test_foretold_characters_are_scored_text_by_text() -> None:
    """The share that was right, and the mean loss of each text at every temperature: the truth itself scores one."""
    wanted = torch.randint(0, 6, (3, 8), generator=torch.Generator().manual_seed(0))
    truth = 50.0 * torch.nn.functional.one_hot(wanted, 6).transpose(1, 2).float()
    found = next_character_accuracy(truth, (wanted, wanted))
    assert found["scores"].tolist() == [1.0] * 3 and found["losses"].shape == (3, len(SHARPNESS))
    assert float(found["losses"].max()) < 1e-3
    logits = torch.randn(3, 6, 8)
    found = next_character_accuracy(logits, (wanted, wanted))
    assert found["scores"].tolist() == pytest.approx((logits.argmax(1) == wanted).double().mean(1).tolist())
    plain = SHARPNESS.index(min(SHARPNESS, key=lambda factor: abs(factor - 1)))
    assert torch.isclose(found["losses"][:, plain].mean(), cross_entropy(logits, wanted), rtol=1e-4)


def test_a_network_with_dicts_learns_by_its_own_loss_or_its_teacher() -> None:
    """Training raises the metric with a loss, moves to the teacher without one, and says so where there is neither."""
    splits, schedule = signals(), FinetuneSchedule(epochs=6, lr=0.02, batch_size=20, ema=0.0)
    torch.manual_seed(0)
    teacher = TwoViews()
    before = evaluate(teacher, splits.validation, CPU, task=VIEWS).accuracy
    done = train(teacher, splits, schedule, CPU, task=VIEWS)
    assert done.best_accuracy > before + 0.1
    pupil, alone = TwoViews(), load_task(f"{HERE}:views", f"{HERE}:closeness")
    before = evaluate(pupil, splits.validation, CPU, task=alone).accuracy
    assert train(pupil, splits, schedule, CPU, teacher=teacher, task=alone).best_accuracy > before + 0.1
    with pytest.raises(UsageError, match="give --loss"):
        train(TwoViews(), splits, schedule, CPU, task=alone)


def test_batchnorm_is_reestimated_whatever_the_inputs_are() -> None:
    """The running mean becomes that of the training data, weighted by examples, for dict inputs too."""
    model, splits = TwoViews(), signals()
    reestimate_batchnorm(model, splits.train.batches(64), VIEWS)
    seen = model.left(next(iter(splits.train.batches(200)))[0]["wave"]).mean((0, 2))
    assert torch.allclose(model.norm.running_mean, seen, atol=1e-5)  # type: ignore[arg-type]


def test_the_example_is_noise_for_pictures_and_a_training_example_for_all_else() -> None:
    """A lone float tensor is drawn in its shape; a dict is taken from the data, one example of it."""
    plain = example_call(CLASSIFICATION, pictures())
    assert plain.args[0].shape == (1, 1, 28, 28) and plain.args[0].std() > 0.9
    call = example_call(VIEWS, signals())
    assert len(call) == 1 and torch.equal(call.kwargs["state"], signals().train.inputs["state"][:1])  # type: ignore[attr-defined]
    assert count_cut_macs(TwoViews(), call) == 12 * 8 * 2 * 3 + 4 * 8 + 16 * 16 + 2 * 16


def test_the_fingerprint_names_the_functions_that_a_trial_depends_on() -> None:
    """Metric and batch function are in it, the loss is not; classification has its own."""
    kinds = load_task(metric="amc.zoo.examples.kinds:kind_score")
    assert CLASSIFICATION.fingerprint == load_task(loss=f"{HERE}:squared").fingerprint == "accuracy"
    assert len({CLASSIFICATION.fingerprint, kinds.fingerprint, VIEWS.fingerprint}) == 3
    assert kinds.fingerprint == load_task(metric="amc.zoo.examples.kinds:kind_score").fingerprint


def test_calibrated_losses_sum_to_those_of_classification() -> None:
    """The smallest column mean is what a classifier is judged by."""
    logits, labels = torch.randn(20, 5), torch.randint(0, 5, (20,))
    losses = calibrated_losses(logits, labels)
    assert torch.allclose(losses.sum(0).double(), CLASSIFICATION.judge(logits, (None, labels), 20).losses, rtol=1e-4)


def test_a_whole_run_with_dicts_for_inputs_and_outputs(tmp_path: Path) -> None:
    """Traced, cut, folded, measured by the user's metric, fine-tuned by the user's loss, released and loaded again."""
    wanted = {
        "name": "views", "model.name": f"{HERE}:two_views", "model.weights": "none", "data.name": f"{HERE}:signals",
        "task.batch": f"{HERE}:views", "task.metric": f"{HERE}:closeness", "task.loss": f"{HERE}:squared",
        "budget": ["60%"], "out": str(tmp_path / "run"), "search.trials": 6, "search.candidates": 1,
        "surgery.round_to": 2, "recovery.moment_images": 100, "recovery.batchnorm_images": 100,
        "finetune.epochs": 1.0, "finetune.batch_size": 20, "finetune.lr": 0.005,
    }  # fmt: skip
    run = compress(load_recipe(None, wanted))
    assert run.metrics["metric"] == "closeness"
    assert run.metrics["released"]["macs"] <= 0.6 * run.metrics["dense"]["macs"]
    inputs = next(iter(signals().test.batches(5)))[0]
    assert set(run.model(**inputs)) == {"speed", "height"}
    assert "closeness" in (tmp_path / "run" / "README.md").read_text().lower()


def test_perfect_masks_and_boxes_score_one() -> None:
    """The worked examples' metrics: the truth itself scores 1, nothing found scores less, n scores for n pictures."""
    pictures_, masks = next(iter(segmentation(size=32).validation.batches(6)))
    truth = {"out": torch.nn.functional.one_hot(masks, 3).movedim(3, 1).float()}
    assert pictures_.shape == (6, 3, 32, 32) and mean_iou(truth, (pictures_, masks)).tolist() == [1.0] * 6
    assert float(mean_iou({"out": truth["out"] * 0}, (pictures_, masks)).max()) < 1
    batch = next(iter(detection(size=32).validation.batches(5)))
    found = [{**target, "scores": torch.ones(len(target["labels"]))} for target in batch[1]]
    assert box_f1(found, batch).tolist() == [1.0] * 5
    nothing = [{key: value[:0] for key, value in each.items()} for each in found]
    assert box_f1(nothing, batch).tolist() == [0.0] * 5


def test_all_errors_of_tasks_are_ours() -> None:
    """Whatever the user's functions do, the root class is AmcError, with exit code 2."""
    with pytest.raises(AmcError) as caught:
        evaluate(network(), pictures().validation, CPU, task=load_task(metric=f"{HERE}:broken"))
    assert caught.value.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "data", "task", "macs_share"),
    [
        (
            "deeplabv3_resnet50", {}, "segmentation",
            {"metric": "mean_iou", "loss": "pixel_loss"}, 0.7,
        ),
        (
            "fasterrcnn_mobilenet_v3_large_320_fpn", {"min_size": 64, "max_size": 64}, "detection",
            {"batch": "with_boxes", "metric": "box_f1", "loss": "detector_loss"}, 0.8,
        ),
    ],
)  # fmt: skip
def test_segmentation_and_detection_end_to_end(
    name: str, options: dict[str, int], data: str, task: dict[str, str], macs_share: float, tmp_path: Path
) -> None:
    """Dict outputs, and lists in with lists of boxes out: searched, fine-tuned, released, loaded, verified."""
    wanted = {
        "name": data, "model.name": name, "model.options": options, "model.weights": "none",
        "data.name": f"{HERE}:few_{data}", **{f"task.{key}": f"{SHAPES}:{value}" for key, value in task.items()},
        "budget": [f"{macs_share:.0%}"], "out": str(tmp_path / "run"), "search.trials": 3, "search.candidates": 1,
        "search.batch_size": 4, "recovery.moment_images": 8, "recovery.batchnorm_images": 8,
        "finetune.epochs": 0.5, "finetune.batch_size": 4, "finetune.uniform": False,
    }  # fmt: skip
    run = compress(load_recipe(None, wanted))
    assert run.metrics["released"]["macs"] <= macs_share * run.metrics["dense"]["macs"]
    assert 0 <= run.metrics["released"]["test_accuracy"] <= 1
    assert verify(run.folder, [], None).figures["test_accuracy"] == pytest.approx(
        run.metrics["released"]["test_accuracy"], abs=0.2
    )


def few_segmentation() -> Splits:
    return few(segmentation(size=64))


def few_detection() -> Splits:
    return few(detection(size=64))


def few(splits: Splits) -> Splits:
    parts = {part: _first(getattr(splits, part)) for part in ("train", "validation", "test")}
    return replace(splits, **parts)


def _first(split: Any) -> Any:
    return replace(split, inputs=split.inputs[:8], targets=split.targets[:8])
