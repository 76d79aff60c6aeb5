"""B-DISTIL: a teacher taken apart into small students, each prefix of which answers (after arXiv 2302.10093).

A game of two players. One holds weights over (example, output, sign) and moves them to where the average of the
students is still wrong (`amc.cascade.methods.bdistil.hedge`); the other searches a class of small networks for one with
an edge under those weights (`amc.cascade.methods.bdistil.weak_learner`). Every round tries all that the class offers
(`amc.cascade.methods.bdistil.students`) and keeps what is worth most on held-out examples; where none is worth its
multiply-adds the class grows. What the ensemble's average can be wrong by is certified after every round, and checked.

The paper's code is not public: this is a reconstruction, with three changes. A student without an edge is accepted too
if it is worth its multiply-adds on held-out examples; half of what students learn from is the true labels; and prefixes
answer by weights fitted on held-out examples, not by the average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.methods.bdistil.ensemble_weights import fit_ensemble_weights, held_out_loss
from amc.cascade.methods.bdistil.hedge import ErrorBound, Hedge, best_eta
from amc.cascade.methods.bdistil.prefix_ensemble import Ensemble, Step
from amc.cascade.methods.bdistil.students import Draw, Students, small_students
from amc.cascade.methods.bdistil.teacher_outputs import BATCH, State, TeacherOutputs, run_teacher
from amc.cascade.methods.bdistil.weak_learner import surrogate, train_student
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Progress, Silent
from amc.train.settings import Schedule
from amc.zoo.call import Call
from amc.zoo.data.splits import Split, Splits

NEAR = 1.5  # times the cheapest first student's multiply-adds: what it is compared with


@dataclass(frozen=True)
class GameSettings:
    """How the game is played.

    Attributes:
        rounds: T, students wanted.
        reach: B, of the students' range.
        share: of the reach, the teacher's largest output.
        eta: Hedge's step as a multiple of the one that makes the certificate's bound smallest after T rounds.
        copies: of every training example, the first plain and the others augmented.
        passes: over all copies, in a student's training.
        labels: share of a student's loss that is the cross-entropy of the true labels, given the sum of all students.
        worth: what a student without an edge must at least be worth: the fall in held-out loss, as a share of it, over
            the rise in multiply-adds, as a share of all so far.
    """

    rounds: int = 6
    reach: float = 1.0
    share: float = 0.5
    eta: float = 0.2
    copies: int = 2
    passes: float = 10.0
    batch_size: int = 64
    weight_decay: float = 1e-3
    labels: float = 0.5
    worth: float = 0.02

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.share <= 1 or self.reach <= 0 or self.eta <= 0:
            raise UsageError(
                f"a game needs rounds >= 1, 0 < share <= 1, reach > 0 and eta > 0, but has rounds={self.rounds}, "
                f"share={self.share}, reach={self.reach}, eta={self.eta}"
            )


@dataclass(frozen=True)
class Round:
    """One attempt at a student, kept or not.

    Attributes:
        number: of the round, from 1; a round takes several attempts, of which one is kept at most.
        size: of the class of functions it was drawn from.
        student: which of the class.
        macs: of the student, given what the students before have left.
        edge: e_t under the weights it was trained for; 0 in the first round for any student.
        surrogate: S; where it is positive so is the edge.
        accepted: "loss" (first round), "edge", "worth", or "" where it was not, or a better one was.
        loss: held-out nats with it.
        worth: as in `GameSettings`; None in the first round.
        certificate: what holds with it; None where it was not accepted.
    """

    number: int
    size: int
    student: str
    macs: int
    edge: float
    surrogate: float
    accepted: str
    loss: float
    worth: float | None
    certificate: ErrorBound | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Distilled:
    """What a game has come to.

    Attributes:
        rounds: every attempt, in order.
        why: why it ended.
        outputs: (n, T, C) of the students on the held-out examples.
    """

    ensemble: Ensemble
    rounds: tuple[Round, ...]
    why: str
    outputs: Tensor

    @property
    def loss(self) -> float:
        """Held-out nats of the whole ensemble."""
        return next(attempt.loss for attempt in reversed(self.rounds) if attempt.accepted)


def distil(
    teacher: nn.Module,
    splits: Splits,
    compute: Compute,
    *,
    students: Students | None = None,
    rules: GameSettings | None = None,
    held_out: Tensor | None = None,
    pool: TeacherOutputs | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Distilled:
    """Play the game on the train split of a classification task.

    Args:
        teacher: on `compute.device`; it is not changed.
        students: None: small convolutional ones of `ConvStudents`, the smallest of about a twentieth of the teacher's
            multiply-adds.
        pool: what `pool_of` gives for these rules, where it is known already.
        held_out: indices (n,) of the validation split for judging students and fitting ensemble weights; None: all.

    Raises:
        ModelError: the teacher does not classify, or a loss is not finite.
        UsageError: no student was better than the answer that knows nothing, or the settings cannot be.
        CertificateBroken: a bug.
    """
    rules = rules or GameSettings()
    torch.manual_seed(seed)
    pool = replace(pool, features=None) if pool else teacher_outputs_of(teacher, splits, compute, rules, seed)
    example = pool.inputs[:1].to(compute.device)
    chosen = students or small_students(count_cut_macs(teacher, example), example, pool.target.shape[1])
    game = _Game(pool, chosen, rules, splits.validation, held_out, compute, example, progress or Silent())
    why = game.play(seed)
    return Distilled(game.ensemble(), tuple(game.rounds), why, game.held_outputs)


def teacher_outputs_of(
    teacher: nn.Module, splits: Splits, compute: Compute, rules: GameSettings, seed: int
) -> TeacherOutputs:
    """The examples that a game is played on, with the teacher's outputs. Raises as `distil` does."""
    return run_teacher(
        teacher, splits.train, compute, reach=rules.reach, share=rules.share, copies=rules.copies, seed=seed
    )


@dataclass(frozen=True, eq=False)
class _Said:
    """What a student leaves and answers, on the pool and on the held-out examples."""

    features: Tensor
    outputs: Tensor
    held_features: Tensor
    held_outputs: Tensor


@dataclass(frozen=True, eq=False)
class _Attempt:
    step: Step
    said: _Said
    error: Tensor
    found: Round


@dataclass
class _Game:
    """The state of one game."""

    pool: TeacherOutputs
    students: Students
    rules: GameSettings
    validation: Split
    held_out: Tensor | None
    compute: Compute
    example: Tensor
    progress: Progress
    steps: list[Step] = field(default_factory=list)
    known: dict[str, _Said] = field(default_factory=dict)  # of students that are taken as they are
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (len(self.pool), self.pool.target.shape[1])
        limit = self.rules.reach + float(self.pool.target.abs().max())
        eta = self.rules.eta * best_eta(2 * shape[0] * shape[1], self.rules.rounds, limit)
        self.hedge = Hedge(shape, limit, eta)
        batches = list(self.validation.batches(BATCH))
        inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        chosen = torch.arange(len(labels)) if self.held_out is None else self.held_out
        self.judged, self.labels = inputs[chosen], labels[chosen]
        self.held_features: Tensor | None = None
        self.held_outputs = torch.zeros(len(self.labels), 0, shape[1])
        self.example_state: State = self.example
        self.macs, self.loss = 0, float("inf")

    def play(self, seed: int) -> str:
        """Round after round; returns why it ended."""
        stage = self.progress.stage("distil students", self.rules.rounds)
        size = 0
        for number in range(1, self.rules.rounds + 1):
            while not self._round(number, size, seed):
                size += 1
                if size >= self.students.sizes:
                    return self._ended(number)
            certificate = self.hedge.certificate()
            stage.advance(1, f"held-out loss {self.loss:.4f}, error at most {certificate.bound:.3f}")
        return f"all {self.rules.rounds} rounds were played"

    def _ended(self, number: int) -> str:
        if number == 1:
            raise UsageError(
                "a first student must be better than the answer that knows nothing, but none was; "
                "give larger students, or more passes"
            )
        return f"round {number} found no student with an edge or worth its cost, in the largest class of functions"

    def _round(self, number: int, size: int, seed: int) -> bool:
        """Search the class `size`, and keep the best; whether there was one to keep."""
        before = self.example_state[1] if not isinstance(self.example_state, Tensor) else None
        draws = self.students.draws(number - 1, size, before, self.pool.range)
        used = {found.student for found in self.rounds if found.accepted}
        tried = [
            self._attempt(number, size, draw, seed * 1009 + 31 * number + 7 * size + place)
            for place, draw in enumerate(draws)
            if draw.lr or draw.name not in used
        ]
        fit = [attempt for attempt in tried if attempt.found.accepted]
        if number == 1 and fit:  # of about one size: how small the first should be is for the caller to say
            most = NEAR * min(attempt.found.macs for attempt in fit)
            fit = [attempt for attempt in fit if attempt.found.macs <= most]
        best = max(fit, key=lambda each: (each.found.worth or 0.0, -each.found.loss), default=None)
        for attempt in tried:
            certificate = self._keep(attempt) if attempt is best else None
            accepted = attempt.found.accepted if attempt is best else ""
            self.rounds.append(replace(attempt.found, accepted=accepted, certificate=certificate))
        return best is not None

    def _attempt(self, number: int, size: int, draw: Draw, seed: int) -> _Attempt:
        """Train one student, and see what it would be worth."""
        start, weights = perf_counter(), self.hedge.weights()
        torch.manual_seed(seed)
        step = Step(self.compute.place(draw.make())).eval().requires_grad_(draw.lr > 0)
        if draw.lr:
            schedule = Schedule(
                epochs=self.rules.passes, optimizer="adamw", lr=draw.lr, batch_size=self.rules.batch_size,
                weight_decay=self.rules.weight_decay,
            )  # fmt: skip
            earlier = (self.hedge.total + len(self.steps) * self.pool.target).float()
            train_student(step, self.pool, weights, schedule, self.compute, seed, self.rules.labels, earlier)
            said = self._answers(step)
        else:
            said = self.known[draw.name] = self.known.get(draw.name) or self._answers(step)
        error = said.outputs.double() - self.pool.target.double()
        macs = count_cut_macs(step, Call((self.example_state,)))
        loss = held_out_loss(torch.cat([self.held_outputs, said.held_outputs[:, None]], 1), self.labels)
        edge, bound = self.hedge.edge(error), float(surrogate(*weights, error, self.rules.reach))
        worth = (1 - loss / self.loss) / (macs / self.macs) if self.macs else None
        knows = float(error.square().sum()) < float(self.pool.target.double().square().sum())
        accepted = judge(number, edge, worth, self.rules.worth, knows)
        taken = perf_counter() - start
        return _Attempt(
            step, said, error, Round(number, size, draw.name, macs, edge, bound, accepted, loss, worth, None, taken)
        )

    def _keep(self, attempt: _Attempt) -> ErrorBound:
        """Make an attempt's student the ensemble's next."""
        certificate, said = self.hedge.add(attempt.error), attempt.said
        self.pool.features, self.held_features = said.features, said.held_features
        self.held_outputs = torch.cat([self.held_outputs, said.held_outputs[:, None]], 1)
        with torch.no_grad():
            self.example_state = attempt.step(self.example_state)
        self.steps.append(attempt.step)
        self.macs, self.loss = self.macs + attempt.found.macs, attempt.found.loss
        return certificate

    def _answers(self, step: Step) -> _Said:
        return _Said(
            *self._run(step, self.pool.state, len(self.pool)), *self._run(step, self._held_state, len(self.labels))
        )

    def _held_state(self, index: Tensor, device: torch.device) -> State:
        inputs = self.judged[index].to(device)
        if self.held_features is None:
            return inputs
        return inputs, self.held_features[index].to(device), inputs.new_zeros(len(index), 0, self.pool.target.shape[1])

    @torch.inference_mode()
    def _run(self, step: Step, state: Callable[[Tensor, torch.device], State], number: int) -> tuple[Tensor, Tensor]:
        """Features (n, ...) and outputs (n, C) of a student on n examples, on the CPU."""
        features, outputs = [], []
        with self.compute.autocast():
            for index in torch.split(torch.arange(number), BATCH):
                _, left, answers = step(state(index, self.compute.device))
                features.append(left.cpu())
                outputs.append(answers[:, -1].float().cpu())
        found = torch.cat(outputs)
        if not bool(found.isfinite().all()):
            raise ModelError("a student's outputs must be finite, but some are not; lower the students' lr")
        return torch.cat(features).clone(), found.clone()

    def ensemble(self) -> Ensemble:
        return Ensemble(tuple(self.steps), tuple(fit_ensemble_weights(self.held_outputs, self.labels)), self.example)


def judge(number: int, edge: float, worth: float | None, least: float, knows: bool) -> str:
    """Why a student is accepted, empty where it is not; a negative edge alone rejects nobody.

    Args:
        knows: whether its squared error is smaller than that of the answer that knows nothing.
    """
    if number == 1 or worth is None:
        return "loss" if knows else ""  # with all weights alike nobody has an edge
    if edge > 0:
        return "edge"
    return "worth" if worth >= least else ""
