from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.job.job import Job, open_job
from amc.job.recipe import load_recipe
from amc.system.errors import ModelError
from amc.train.evaluation import evaluate
from tests.tiny import trained_weights


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A small trained network whose 100 measured pictures come in five batches."""
    weights = trained_weights(tmp_path_factory.mktemp("trial") / "dense.safetensors")
    wanted = {
        "model.name": "tests.tiny:network",
        "model.weights": str(weights),
        "data.name": "tests.tiny:pictures",
        "search.batch_size": 20,
        "recovery.moment_images": 200,
        "recovery.batchnorm_images": 100,
    }
    return open_job(load_recipe(None, wanted))


def half(dense: Job) -> np.ndarray:  # type: ignore[type-arg]
    return dense.space.nearest(dense.space.high / 2)


def test_a_trial_is_the_realised_network_on_the_measure_split(dense: Job) -> None:
    """Accuracy and loss are those of `realise`, evaluated in the split's own order; all pictures were seen."""
    trial = dense.measure(half(dense))
    found = evaluate(dense.measure.realise(half(dense)), dense.data.validation, dense.compute, batch_size=20)
    assert trial.accuracy == pytest.approx(found.accuracy) and trial.loss == pytest.approx(found.loss, rel=1e-4)
    assert trial.images == 100 and not trial.stopped
    assert set(trial.seconds) == {"cut", "fold", "batchnorm", "evaluate"}
    assert trial.costs == dense.trace.costs_of(half(dense))


def test_the_same_policy_gives_the_same_trial(dense: Job) -> None:
    """Nothing of one trial is left over in the next."""
    first, other, again = (dense.measure(policy) for policy in (half(dense), dense.space.high, half(dense)))
    assert (first.accuracy, first.loss) == (again.accuracy, again.loss) != (other.accuracy, other.loss)


def test_a_trial_that_cannot_matter_stops_early(dense: Job) -> None:
    """The floor is asked with the policy's own costs; accuracy and loss are of the pictures seen until then."""
    asked = []

    def floor(costs: object) -> float:
        asked.append(costs)
        return 0.999

    policy = np.ones_like(dense.space.high) * dense.space.step
    whole, stopped = dense.measure(policy), dense.measure(policy, floor)
    assert asked == [dense.trace.costs_of(policy)]
    assert stopped.stopped and stopped.images is not None and 0 < stopped.images < 100 and stopped.images % 20 == 0
    seen = dense.measure.evaluate(dense.measure.realise(policy)).scores[: stopped.images]
    assert stopped.accuracy == pytest.approx(float(seen.mean())) and np.isfinite(stopped.loss)
    assert not whole.stopped


def test_a_floor_that_is_reached_stops_nothing(dense: Job) -> None:
    """A trial above the floor is the whole trial."""
    whole = dense.measure(half(dense))
    floored = dense.measure(half(dense), lambda costs: whole.accuracy / 2)
    assert (floored.accuracy, floored.loss, floored.images, floored.stopped) == (whole.accuracy, whole.loss, 100, False)


def test_a_limit_takes_the_same_pictures_for_all(dense: Job, tmp_path: Path) -> None:
    """With `measure_images` every policy is measured on the same random part of the split."""
    measure = open_job(dense.recipe.model_copy(
        update={"search": dense.recipe.search.model_copy(update={"measure_images": 40})})).measure  # fmt: skip
    assert measure(dense.space.high).images == 40
    first, second = (measure.evaluate(measure.realise(dense.space.high)).scores for _ in range(2))
    assert (first == second).all() and len(first) == 40


def stepped(dense: Job, steps: int = 6, **changed: object) -> Job:
    """The same network, its trials with a few steps of training."""
    recovery = dense.recipe.recovery.model_copy(update={"steps": steps, "step_images": 50, **changed})
    return replace(dense, measure=dense.measure.with_settings(recovery=recovery))


def test_steps_bring_a_cut_network_nearer_to_the_dense_one(dense: Job) -> None:
    """The loss falls, the time is told, the dense network stays as it is."""
    policy = dense.space.nearest(dense.space.high / 4)
    before = {name: tensor.clone() for name, tensor in dense.model.state_dict().items()}
    plain, trained = dense.measure(policy), stepped(dense, 30).measure(policy)
    assert trained.loss < plain.loss and trained.costs == plain.costs
    assert set(trained.seconds) == {*plain.seconds, "train"} and trained.seconds["train"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.model.state_dict().items())
    assert not any(module.training for module in dense.model.modules())


def test_a_trial_with_steps_is_the_realised_network(dense: Job) -> None:
    """What is released before a fine-tune is what was measured, without gradients, in the mode it came in."""
    measure = stepped(dense).measure
    trial, model = measure(half(dense)), measure.realise(half(dense))
    found = evaluate(model, dense.data.validation, dense.compute, batch_size=20)
    assert trial.accuracy == pytest.approx(found.accuracy) and trial.loss == pytest.approx(found.loss, rel=1e-4)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_steps_are_the_same_for_every_trial_and_process(dense: Job) -> None:
    """Neither trials before it nor the global random state matter, and that state is left alone."""
    first, other = stepped(dense).measure, stepped(dense).measure
    one = first(half(dense))
    torch.manual_seed(7)
    other(dense.space.high)
    state = torch.random.get_rng_state()
    again = other(half(dense))
    assert (one.accuracy, one.loss) == (again.accuracy, again.loss)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_teacher_is_asked_once_a_study(dense: Job) -> None:
    """Its outputs on the batches of the steps are kept, over several passes of the train split as well."""
    asked: list[int] = []

    def note(module: nn.Module, args: object, outputs: torch.Tensor) -> None:
        if module is dense.model:  # cut networks inherit the hook
            asked.append(len(outputs))

    handle = dense.model.register_forward_hook(note)
    try:
        measure = stepped(dense, 10, step_images=90).measure  # five batches a pass, the last of 40
        for policy in (half(dense), dense.space.high, half(dense)):
            measure(policy)
    finally:
        handle.remove()
    assert asked == [90, 90, 90, 90, 40] * 2


def test_a_trial_with_steps_may_stop_early(dense: Job) -> None:
    """The floor holds for the evaluation, which comes last."""
    trial = stepped(dense, 2).measure(np.ones_like(dense.space.high) * dense.space.step, lambda costs: 0.999)
    assert trial.stopped and trial.images is not None and trial.images < 100 and trial.seconds["train"] > 0


def test_steps_that_diverge_are_an_error(dense: Job) -> None:
    """The trial fails in one line."""
    with pytest.raises(ModelError, match="finite"):
        stepped(dense, 40, lr=100.0, step_images=20).measure(half(dense))


def test_without_a_teachers_share_the_labels_alone_teach(dense: Job) -> None:
    """The loss of the fine-tune section holds: with `distill` 0 the dense network is not asked."""
    finetune = dense.recipe.finetune.model_copy(update={"distill": 0.0})
    alone = replace(dense, measure=stepped(dense).measure.with_settings(schedule=finetune))

    def refuse(module: nn.Module, args: object, outputs: object) -> None:
        assert module is not dense.model

    handle = dense.model.register_forward_hook(refuse)
    try:
        assert alone.measure(half(dense)).loss != stepped(dense, 0).measure(half(dense)).loss
    finally:
        handle.remove()


def test_steps_belong_to_the_protocol(dense: Job) -> None:
    """A study without steps keeps the name it had before there were any; every setting of theirs makes another."""
    plain = dense.measure.protocol()
    fields = {name: value for name, value in asdict(plain).items() if name != "training"}
    assert plain.digest == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    others = [stepped(dense), stepped(dense, 7), stepped(dense, lr=0.01), stepped(dense, step_images=51)]
    finetune = dense.recipe.finetune.model_copy(update={"temperature": 2.0})
    others.append(replace(dense, measure=stepped(dense).measure.with_settings(schedule=finetune)))
    assert len({plain.digest, *(of.measure.protocol().digest for of in others)}) == 6
    without = dense.measure.with_settings(schedule=finetune)
    assert without.protocol().digest == plain.digest  # without steps it plays no part
