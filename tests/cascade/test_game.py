"""B-DISTIL on images and on sensor windows of a toy kind: the game, its ensemble, and the same from disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.cascade.methods.bdistil.game import Distilled, GameSettings, distil, judge
from amc.cascade.methods.bdistil.prefix_ensemble import Ensemble, load_ensemble
from amc.cascade.methods.bdistil.students import ConvStudents, Draw, WithTrained, conv_macs, width_for
from amc.cascade.methods.bdistil.teacher_outputs import OutputRange, run_teacher
from amc.cascade.stages.recording import record
from amc.cascade.stages.stage import path_costs, without
from amc.job.run import Run
from amc.system.device import Compute
from amc.system.errors import ModelError, RunError, UsageError
from amc.zoo.data.splits import Splits, TensorSplit

CPU = Compute(torch.device("cpu"), bfloat16=False)
CLASSES = 3
SHAPES = {"series": (2, 16), "pictures": (1, 8, 8)}


def toy_splits(shape: tuple[int, ...], seed: int = 0) -> Splits:
    """Noise around one pattern a class."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, *shape, generator=draw)

    def split(number: int) -> TensorSplit:
        labels = torch.randint(0, CLASSES, (number,), generator=draw)
        return TensorSplit(patterns[labels] + 1.5 * torch.randn(number, *shape, generator=draw), labels)

    return Splits("toy", split(400), split(200), split(200), shape, CLASSES)


class Matched(nn.Module):
    """The best linear classifier of `toy_splits`, by least squares."""

    def __init__(self, splits: Splits) -> None:
        super().__init__()
        inputs, labels = next(splits.train.batches(400))
        flat = torch.cat([inputs.flatten(1), torch.ones(len(inputs), 1)], 1)
        solved = torch.linalg.lstsq(flat, nn.functional.one_hot(labels, CLASSES).float()).solution
        self.hidden = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(inputs[0].numel()))
        self.fc = nn.Linear(inputs[0].numel(), CLASSES)
        with torch.no_grad():
            self.fc.weight.copy_(10 * solved[:-1].T)
            self.fc.bias.copy_(10 * solved[-1])

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.hidden(inputs))
        return logits


TERMS = GameSettings(rounds=3, passes=2.0, batch_size=32)


def play(kind: str, **more: object) -> tuple[Distilled, Splits]:
    splits = toy_splits(SHAPES[kind])
    students = ConvStudents(SHAPES[kind], CLASSES, width=4)
    settings: dict[str, Any] = {"rules": TERMS, **more}
    return distil(Matched(splits).eval(), splits, CPU, students=students, **settings), splits


@pytest.fixture(scope="module", params=["series", "pictures"])
def played(request: pytest.FixtureRequest) -> tuple[Distilled, Splits]:
    return play(request.param)


def test_every_accepted_round_is_certified(played: tuple[Distilled, Splits]) -> None:
    """Each accepted student has a certificate of its round that can be checked again."""
    kept = [found for found in played[0].rounds if found.accepted]
    assert len(kept) == len(played[0].ensemble.steps) >= 1
    for number, found in enumerate(kept, 1):
        assert found.certificate is not None and found.certificate.rounds == number
        found.certificate.check()
        if found.surrogate > 0:
            assert found.edge > 0
    json.dumps([found.to_json() for found in played[0].rounds])


def test_prefixes_are_better_than_chance_and_never_fall_where_votes_were_fitted(
    played: tuple[Distilled, Splits],
) -> None:
    """Accuracy grows with every student on the validation split and holds on the test split."""
    distilled, splits = played
    accuracies = record(distilled.ensemble.stages(), splits.validation, CPU).accuracies.tolist()
    assert accuracies == sorted(accuracies)
    assert record(distilled.ensemble.stages(), splits.test, CPU).accuracies[-1] > 0.6


def test_a_stage_answers_with_the_weighted_outputs_of_its_prefix(played: tuple[Distilled, Splits]) -> None:
    """Its logits are the weighted sum of the students so far, to 1e-4."""
    distilled, splits = played
    records = record(distilled.ensemble.stages(), splits.validation, CPU)
    for stage, weights in enumerate(distilled.ensemble.weights):
        expected = torch.einsum("nkc,k->nc", distilled.outputs[:, : stage + 1], weights)
        assert torch.allclose(records.logits[stage], expected, atol=1e-4)


def test_stages_left_out_leave_answers_and_their_cost_but_no_student(played: tuple[Distilled, Splits]) -> None:
    """The last stage alone answers as before and costs the whole path."""
    stages, splits = played[0].ensemble.stages(), played[1]
    last = [len(stages) - 1]
    alone = without(stages, last)
    whole, short = (record(chosen, splits.test, CPU) for chosen in (stages, alone))
    assert torch.allclose(whole.logits[-1], short.logits[0], atol=1e-5)
    costs = [stage.cost for stage in stages]
    assert path_costs([alone[0].cost], [0])[0] == path_costs(costs, last)[0]
    assert [cost.head for cost in costs] == [CLASSES * k for k in range(1, len(costs) + 1)]


def test_an_ensemble_from_disk_is_the_same_bit_for_bit(played: tuple[Distilled, Splits], tmp_path: Path) -> None:
    """Tensors and JSON alone give the same logits for the same batches, and the same costs."""
    played[0].ensemble.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = load_ensemble(tmp_path)
    ours, theirs = (record(ensemble.stages(), played[1].test, CPU) for ensemble in (played[0].ensemble, again))
    assert torch.equal(ours.logits, theirs.logits)
    assert [stage.cost for stage in again.stages()] == [stage.cost for stage in played[0].ensemble.stages()]


def test_the_same_seed_gives_the_same_game() -> None:
    """Two runs with one seed in one process give equal outputs."""
    first, second = (play("series", seed=5, rules=replace(TERMS, rounds=2, passes=0.5))[0] for _ in range(2))
    assert torch.equal(first.outputs, second.outputs)


def test_a_round_keeps_at_most_the_best_of_what_it_tried(played: tuple[Distilled, Splits]) -> None:
    """From round two on a student that reads the one before is tried beside one that stands alone."""
    rounds = played[0].rounds
    for number, size in {(found.number, found.size) for found in rounds}:
        tried = [found for found in rounds if (found.number, found.size) == (number, size)]
        assert [found.student for found in tried] == ["alone", "alone" if number == 1 else "reading"]
        for kept in (found for found in tried if found.accepted and number > 1):
            assert kept.worth == max(found.worth for found in tried if found.worth is not None)
            assert len([found for found in tried if found.accepted]) == 1


def test_targets_are_centred_and_stay_inside_the_share_of_the_range() -> None:
    """Over the classes they sum to zero, and the largest is the share of the range."""
    splits = toy_splits(SHAPES["series"])
    teacher = Matched(splits).eval()
    pool = run_teacher(teacher, splits.train, CPU, reach=2.0, share=0.25)
    assert float(pool.target.abs().max()) == pytest.approx(0.5)
    assert float(pool.target.mean(1).abs().max()) < 1e-6
    with torch.no_grad():
        logits = teacher(pool.inputs)
    assert torch.allclose((logits - logits.mean(1, keepdim=True)) * pool.range.scale, pool.target, atol=1e-6)
    assert len(pool) == len(splits.train)  # nothing is augmented, so there is nothing to copy


def test_a_saturated_teacher_never_drives_students_into_the_barrier() -> None:
    """Targets reach the ends of the range, and so do students that are sure: the loss stays finite."""
    splits = toy_splits(SHAPES["series"])
    rules = GameSettings(rounds=2, passes=3.0, batch_size=32, share=1.0, worth=-1e9)
    students = ConvStudents(SHAPES["series"], CLASSES, width=4, lr=0.2)
    found = distil(Matched(splits).eval(), splits, CPU, students=students, rules=rules)
    assert float(found.outputs.abs().max()) < rules.reach
    assert len(found.ensemble.steps) == 2


def test_a_negative_edge_alone_rejects_nobody() -> None:
    """A student is rejected for its loss, or for an edge and a worth that are both too small."""
    assert judge(1, 0.0, None, 0.1, knows=True) == "loss"
    assert judge(1, 0.0, None, 0.1, knows=False) == ""
    assert judge(2, 0.1, -1.0, 0.1, knows=True) == "edge"
    assert judge(2, -0.1, 0.2, 0.1, knows=True) == "worth"
    assert judge(2, -0.1, 0.05, 0.1, knows=True) == ""


def test_the_class_grows_as_rounds_fail_and_the_game_ends_when_it_cannot() -> None:
    """Nobody is worth an impossible amount; what is left is an edge."""
    splits = toy_splits(SHAPES["series"])
    rules = GameSettings(rounds=4, passes=0.2, batch_size=32, worth=1e9)
    students = ConvStudents(SHAPES["series"], CLASSES, width=4, sizes=2, lr=0.05)
    found = distil(Matched(splits).eval(), splits, CPU, students=students, rules=rules)
    kept = {found.number: found.size for found in found.rounds if found.accepted}
    for attempt in found.rounds:
        assert attempt.size <= kept.get(attempt.number, 1)
        assert attempt.size >= kept.get(attempt.number - 1, 0)
    assert ("largest class" in found.why) == (found.rounds[-1].number not in kept)


def test_trained_networks_answer_as_they_do_alone_and_keep_their_tensors() -> None:
    """A network taken as it is gives its own predictions, whatever its outputs are bent to."""
    splits = toy_splits(SHAPES["pictures"])
    teacher = Matched(splits).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    inputs = next(splits.validation.batches(200))[0]
    students = WithTrained(_Nothing(), {"trained": (teacher, None)}, inputs[:1])
    found = distil(teacher, splits, CPU, students=students, rules=GameSettings(rounds=1, share=0.01))
    assert [step.student.last for step in found.ensemble.steps] == ["fc"]
    with torch.no_grad():
        logits, answers = teacher(inputs), found.ensemble.stages()[0].run(inputs, {})[0]
    assert torch.equal(logits.argmax(1), answers.argmax(1))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_broken_folder_is_one_line(tmp_path: Path, played: tuple[Distilled, Splits]) -> None:
    """A missing or damaged ensemble raises `RunError`."""
    with pytest.raises(RunError, match="an ensemble whole"):
        load_ensemble(tmp_path)
    played[0].ensemble.save(tmp_path)
    (tmp_path / "students.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="SHA-256"):
        load_ensemble(tmp_path)


def test_what_cannot_be_distilled_is_refused() -> None:
    """No logits, a share above one and inputs without a known network each have their own message."""
    splits = toy_splits(SHAPES["series"])
    with pytest.raises(ModelError, match="classifies only"):
        distil(nn.Identity(), splits, CPU)
    with pytest.raises(UsageError, match="share"):
        GameSettings(share=1.5)
    with pytest.raises(UsageError, match="factory of your own"):
        ConvStudents((7,), CLASSES)


def test_a_width_is_found_for_a_cost() -> None:
    """No neighbouring width comes nearer to the wanted multiply-adds."""
    example = torch.zeros(1, 1, 28, 28)
    for wanted in (400_000, 1_500_000):
        for reads in (False, True):
            width = width_for(wanted, example, 10, reads)
            found = [conv_macs(ConvStudents((1, 28, 28), 10, w), example, reads) for w in (width - 1, width, width + 1)]
            assert abs(found[1] - wanted) == min(abs(macs - wanted) for macs in found)


def test_votes_of_an_ensemble_of_one_student_are_one_weight(played: tuple[Distilled, Splits]) -> None:
    """A prefix of one stage has one vote."""
    ensemble = played[0].ensemble
    first = Ensemble(ensemble.steps[:1], ensemble.weights[:1], ensemble.example)
    assert [len(weights) for weights in first.weights] == [1] and len(first.stages()) == 1


def test_a_trained_network_is_taken_as_it_is_where_it_is_worth_most() -> None:
    """It is kept once, and a new student can read the vector that it leaves."""
    splits = toy_splits(SHAPES["pictures"])
    teacher = Matched(splits).eval()
    example = next(splits.train.batches(1))[0]
    fresh = ConvStudents(SHAPES["pictures"], CLASSES, width=4)
    students = WithTrained(fresh, {"pruned": (teacher, None)}, example)
    found = distil(teacher, splits, CPU, students=students, rules=replace(TERMS, passes=0.5))
    names = [attempt.student for attempt in found.rounds if attempt.accepted]
    assert names[0] == "pruned" and names.count("pruned") == 1  # it has nothing new to say
    inputs = next(splits.validation.batches(200))[0]
    assert torch.equal(teacher(inputs).argmax(1), found.ensemble.stages()[0].run(inputs, {})[0].argmax(1))
    vector = found.ensemble.steps[0](inputs)[1]
    reader = fresh.student(reads=vector.shape[1]).eval()
    assert reader(inputs, vector)[1].shape == (200, CLASSES)


def test_networks_of_a_run_are_students_and_stand_on_disk_as_releases(tiny_run: Run, tmp_path: Path) -> None:
    """Saved, each has its architecture record, and loaded they give the same logits."""
    dense = tiny_run.job
    example = dense.trace.example.args[0]
    students = WithTrained(_Nothing(), {"released": (tiny_run.model, dense.source)}, example)
    found = distil(dense.model, dense.data, dense.compute, students=students, rules=GameSettings(rounds=1, copies=1))
    found.ensemble.save(tmp_path)
    assert (tmp_path / "student-0" / "architecture.json").is_file()
    ours, theirs = (
        record(ensemble.stages(), dense.data.test, dense.compute)
        for ensemble in (found.ensemble, load_ensemble(tmp_path))
    )
    assert torch.equal(ours.logits, theirs.logits)


class _Nothing:
    """A class of functions with no function in it."""

    sizes = 1

    def draws(self, number: int, size: int, before: Tensor | None, within: OutputRange) -> list[Draw]:
        return []
