"""What B-DISTIL is compared with at equal multiply-adds: other ensembles of small students, and single ones.

All learn from the same pool of examples, labels and teacher's outputs, with the same optimiser and as many passes.
B-DISTIL alone trains two candidates a round and keeps one; what that is worth by itself is seen where it may not reuse
features. A single network as large as a prefix is what one would deploy if the time were known beforehand (NO-RESCHED
in arXiv 2302.10093); an ensemble of networks that share nothing is RESCHED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc import (
    Compute,
    Progress,
    Schedule,
    Silent,
    Split,
    Splits,
    count_cut_macs,
    optimizer_of,
    set_learning_rate,
)
from amc.cascade import (
    BATCH,
    ConvStudent,
    ConvStudents,
    Distilled,
    Ensemble,
    GameSettings,
    Step,
    TeacherOutputs,
    batches_without_end,
    distil,
    fit_ensemble_weights,
    small_students,
    teacher_outputs_of,
    width_for,
)

LEARNING_RATE = 0.015  # as `ConvStudents` are trained with


@dataclass(frozen=True)
class AccuracyCurve:
    """A method's accuracy where its answers come.

    Attributes:
        macs: (T,) until each answer, rising.
        accuracies: (T,) on the test split.
        right: (T, n) bool, for intervals.
    """

    method: str
    macs: tuple[float, ...]
    accuracies: tuple[float, ...]
    right: Tensor


@dataclass(frozen=True)
class StudentComparison:
    """What all methods share: the examples, the training of students, and the splits for fitting and comparing."""

    pool: TeacherOutputs
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    rules: GameSettings
    compute: Compute
    seed: int

    @property
    def example(self) -> Tensor:
        return self.pool.inputs[:1]

    @property
    def classes(self) -> int:
        return self.pool.target.shape[1]

    def curve(self, method: str, ensemble: Ensemble) -> AccuracyCurve:
        """Every prefix of an ensemble on the test split."""
        stages, answers = ensemble.stages(), list[Tensor]()
        with torch.inference_mode(), self.compute.autocast():
            for inputs in torch.split(self.test[0], BATCH):
                state: dict[str, object] = {}
                found = []
                for stage in stages:
                    logits, state = stage.run(inputs.to(self.compute.device), state)
                    found.append(logits.argmax(1).cpu())
                answers.append(torch.stack(found))
        right = torch.cat(answers, 1) == self.test[1]
        bodies = accumulate(stage.cost.body for stage in stages)
        macs = tuple(body + stage.cost.head for body, stage in zip(bodies, stages, strict=True))
        return AccuracyCurve(method, macs, tuple(right.double().mean(1).tolist()), right)

    def student(self, macs: float, salt: int) -> Step:
        """An untrained student that stands alone, of about `macs` multiply-adds."""
        width = width_for(macs, self.example, self.classes, reads=False)
        torch.manual_seed(self.seed * 1009 + salt)
        shape = tuple(self.example.shape[1:])
        return Step(self.compute.place(ConvStudent(shape, self.classes, width, 0, self.rules.reach)))

    def train(self, step: Step, salt: int, target: Tensor | None, earlier: Tensor | None = None) -> None:
        """By squared error to `target` (N, C), and by the labels' cross-entropy with B-DISTIL's share; where `target`
        is None by the latter alone.

        Args:
            earlier: (N, C) is added to the outputs before the labels are looked at.
        """
        pool, rules, device = self.pool, self.rules, self.compute.device
        schedule = Schedule(optimizer="adamw", lr=LEARNING_RATE, weight_decay=rules.weight_decay)
        steps = round(rules.passes * len(pool) / rules.batch_size)
        labels, unit = rules.labels if target is not None else 1.0, float(pool.target.square().mean())
        optimizer = optimizer_of(step, schedule)
        step.train()
        batches = batches_without_end(len(pool), rules.batch_size, self.seed * 1009 + salt)
        for number, index in zip(range(steps), batches, strict=False):
            set_learning_rate(optimizer, schedule, number, steps)
            with self.compute.autocast():
                outputs = step(pool.inputs[index].to(device))[2][:, 0].float()
            together = outputs if earlier is None else outputs + earlier[index].to(device)
            loss = labels * cross_entropy(together / pool.range.scale, pool.labels[index].to(device))
            if target is not None:
                loss = loss + (1 - labels) * (outputs - target[index].to(device)).square().mean() / unit
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        step.eval().requires_grad_(False)

    @torch.inference_mode()
    def answers(self, step: Step, inputs: Tensor) -> Tensor:
        """Outputs (n, C) of a student that stands alone."""
        with self.compute.autocast():
            parts = [step(part.to(self.compute.device))[2][:, -1].float().cpu() for part in torch.split(inputs, BATCH)]
        return torch.cat(parts).clone()


def compare(
    teacher: nn.Module,
    splits: Splits,
    compute: Compute,
    *,
    students: ConvStudents | None = None,
    rules: GameSettings | None = None,
    held_out: Tensor | None = None,
    pool: TeacherOutputs | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Distilled, list[AccuracyCurve]]:
    """B-DISTIL, and all that it is compared with at the multiply-adds of its prefixes, on the test split.

    Arguments are those of `amc.cascade.methods.bdistil.game.distil`.
    """
    rules, progress = rules or GameSettings(), progress or Silent()
    pool = pool or teacher_outputs_of(teacher, splits, compute, rules, seed)
    if students is None:
        example = pool.inputs[:1].to(compute.device)
        students = small_students(count_cut_macs(teacher, example), example, pool.target.shape[1])
    settings: dict[str, Any] = {
        "rules": rules, "held_out": held_out, "pool": pool, "seed": seed, "progress": progress
    }  # fmt: skip
    distilled = distil(teacher, splits, compute, students=students, **settings)
    apart = distil(teacher, splits, compute, students=replace(students, reuse=False), **settings)
    inputs, labels = all_of(splits.validation)
    chosen = torch.arange(len(labels)) if held_out is None else held_out
    comparison = StudentComparison(pool, (inputs[chosen], labels[chosen]), all_of(splits.test), rules, compute, seed)
    ours = comparison.curve("B-DISTIL", distilled.ensemble)
    average = [torch.ones(k + 1) for k in range(len(ours.macs))]
    plain = replace(distilled.ensemble, weights=tuple(average))
    bodies = [stage.cost.body for stage in distilled.ensemble.stages()]
    stage = progress.stage("train what it is compared with", 4)
    steps = independent(comparison, bodies)
    curves = [ours, comparison.curve("B-DISTIL, plain average", plain)]
    curves.append(comparison.curve("B-DISTIL, no reuse", apart.ensemble))
    curves += [uniform_average(comparison, steps), rescheduled(comparison, steps)]
    stage.advance()
    curves.append(residual_boosting(comparison, bodies))
    stage.advance()
    for known in (True, False):
        curves.append(single(comparison, ours.macs, distilled=known))
        stage.advance()
    return distilled, curves


def all_of(split: Split) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a whole split."""
    inputs, labels = (torch.cat(parts) for parts in zip(*split.batches(BATCH), strict=True))
    return inputs, labels


def independent(comparison: StudentComparison, macs: Sequence[float]) -> list[Step]:
    """Students that know nothing of each other, each distilled from the teacher, each of its own multiply-adds."""
    steps = []
    for salt, size in enumerate(macs):
        steps.append(comparison.student(size, salt))
        comparison.train(steps[-1], salt, comparison.pool.target)
    return steps


def uniform_average(comparison: StudentComparison, steps: Sequence[Step]) -> AccuracyCurve:
    """Independent students, each prefix their plain mean."""
    return comparison.curve(
        "uniform average", _ensemble(comparison, steps, [torch.ones(k + 1) for k in range(len(steps))])
    )


def rescheduled(comparison: StudentComparison, steps: Sequence[Step]) -> AccuracyCurve:
    """RESCHED: independent students, weighted as B-DISTIL's are."""
    outputs = torch.stack([comparison.answers(step, comparison.held_out[0]) for step in steps], 1)
    return comparison.curve(
        "RESCHED", _ensemble(comparison, steps, fit_ensemble_weights(outputs, comparison.held_out[1]))
    )


def residual_boosting(comparison: StudentComparison, macs: Sequence[float]) -> AccuracyCurve:
    """Each student by least squares on what the sum of those before has left of the teacher's outputs, and the labels
    given that sum.
    """
    steps, left = list[Step](), comparison.pool.target
    for salt, size in enumerate(macs):
        steps.append(comparison.student(size, 100 + salt))
        comparison.train(steps[-1], 100 + salt, left, comparison.pool.target - left)
        left = left - comparison.answers(steps[-1], comparison.pool.inputs)
    return comparison.curve(
        "residual boosting", _ensemble(comparison, steps, [torch.ones(k + 1) for k in range(len(steps))])
    )


def single(comparison: StudentComparison, macs: Sequence[float], *, distilled: bool) -> AccuracyCurve:
    """One network for each amount of multiply-adds: distilled (NO-RESCHED), or from the labels alone."""
    curves = []
    for salt, size in enumerate(macs):
        step = comparison.student(size, 200 + salt)
        comparison.train(step, 200 + salt, comparison.pool.target if distilled else None)
        curves.append(comparison.curve("", _ensemble(comparison, [step], [torch.ones(1)])))
    return AccuracyCurve(
        "NO-RESCHED" if distilled else "single, from scratch",
        tuple(curve.macs[0] for curve in curves),
        tuple(curve.accuracies[0] for curve in curves),
        torch.cat([curve.right for curve in curves]),
    )


def _ensemble(comparison: StudentComparison, steps: Sequence[Step], weights: Sequence[Tensor]) -> Ensemble:
    """Steps that stand alone, as an ensemble: they read nothing of the state but the inputs."""
    return Ensemble(tuple(steps), tuple(weights), comparison.example.to(comparison.compute.device))
