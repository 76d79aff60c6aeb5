"""Micro-batches for serving: a queue before each stage, so that deep stages get full batches too.

One thread runs the stages. It takes the deepest stage whose batch is full; where none is, the one whose oldest input
has waited long enough.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from torch import Tensor

from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving.active_examples import ActiveExamples, Finished, joined_active
from amc.cascade.serving.runtime import Answers, Cascade
from amc.system.errors import AmcError, UsageError

Observer = Callable[
    [Tensor, Tensor], StopRule
]  # where inputs stopped (b,), logits (b, classes) -> what to run from now on


class Busy(AmcError):
    """More inputs are waiting than the queues may hold."""


@dataclass(eq=False)
class _Request:
    """Inputs that came together and are answered together.

    Attributes:
        depth: how many stages each may visit.
        deadline: of `perf_counter`.
    """

    future: Future[Answers]
    depth: int
    deadline: float
    left: list[Finished] = field(default_factory=list)
    missing: int = 0


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Active examples before their next stage, which is to run by `due` of `perf_counter`."""

    group: ActiveExamples
    due: float


class StageQueues:
    """Answers inputs as `Cascade.run` does, but in batches that are made anew before every stage."""

    def __init__(
        self, cascade: Cascade, batch: int = 64, wait: float = 0.002, room: int = 4096, observer: Observer | None = None
    ) -> None:
        """Start the thread; `close` ends it.

        Args:
            batch: inputs that a stage is run on at most.
            wait: seconds that an input waits before a stage for others to come.
            room: inputs that may be inside at a time.
            observer: called with the answers to requests without cap and deadline; what it returns is then in force.
        """
        self._cascade, self._batch, self._wait, self._room, self._observer = cascade, batch, wait, room, observer
        self._queues: list[deque[_Waiting]] = [deque() for _ in cascade.stages]
        self._owners: dict[int, tuple[_Request, int]] = {}  # row -> its request, and its place there
        self._rows, self._closed = 0, False
        self._changed = threading.Condition()
        self.answered = 0
        self._thread = threading.Thread(target=self._serve, name="cascade", daemon=True)
        self._thread.start()

    @property
    def rule(self) -> StopRule:
        """In force now."""
        return self._cascade.rule

    @property
    def inside(self) -> int:
        """Inputs that wait or are being run."""
        return len(self._owners)

    def submit(self, inputs: Tensor, max_cost: float | None = None, seconds: float | None = None) -> Future[Answers]:
        """Hand in inputs (n, ...), all of the shape and type of those handed in before; arguments as of `Cascade.run`.

        Raises:
            BudgetUnreachable: `max_cost` does not allow the first stage.
            Busy: there is no room for them now.
        """
        now = perf_counter()
        request = _Request(
            Future(), self._cascade.depth(max_cost), now + (float("inf") if seconds is None else seconds)
        )
        with self._changed:
            if self._closed:
                raise UsageError("queues must be open to take inputs, but are closed; make new ones")
            if len(inputs) == 0:
                raise UsageError("inputs must hold at least one example, but are empty; leave the call out")
            if self.inside + len(inputs) > self._room:
                raise Busy(
                    f"at most {self._room} inputs may wait, but {self.inside} do and {len(inputs)} came; try later"
                )
            rows = torch.arange(self._rows, self._rows + len(inputs))
            self._rows += len(inputs)
            request.missing = len(inputs)
            request.future.set_running_or_notify_cancel()
            self._owners |= {row: (request, place) for place, row in enumerate(rows.tolist())}
            self._queue(ActiveExamples(rows, inputs.to(self._cascade.compute.device), {}))
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answer what is inside, take no more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _serve(self) -> None:
        while (group := self._next()) is not None:
            try:
                self._advance(group)
            except Exception as error:  # of a stage: whose inputs were in it get the error, the others go on
                self._fail(group, error)

    def _next(self) -> ActiveExamples | None:
        """What to run now; waits for it. None when closed and empty."""
        with self._changed:
            while True:
                for queue in reversed(self._queues):
                    if sum(len(waiting.group) for waiting in queue) >= self._batch:
                        return self._taken(queue)
                filled = [queue for queue in self._queues if queue]
                if self._closed:  # the foremost first, so that those behind it fill
                    return self._taken(filled[0]) if filled else None
                first = min(filled, key=_due, default=None)
                patience = None if first is None else _due(first) - perf_counter()
                if first is not None and patience is not None and patience <= 0:
                    return self._taken(first)
                self._changed.wait(patience)

    def _queue(self, group: ActiveExamples) -> None:
        earliest = min(self._owners[row][0].deadline for row in group.rows.tolist())
        due = min(perf_counter() + self._wait, earliest - self._wait)
        self._queues[len(group.logits)].append(_Waiting(group, due))

    def _taken(self, queue: deque[_Waiting]) -> ActiveExamples:
        """At most a batch from the front; of a group that is too large the rest stays in front."""
        groups, room = [], self._batch
        while queue and room:
            waiting = queue.popleft()
            size = len(waiting.group)
            if size > room:
                queue.appendleft(_Waiting(waiting.group.take(torch.arange(room, size)), waiting.due))
                waiting = _Waiting(waiting.group.take(torch.arange(room)), waiting.due)
            groups.append(waiting.group)
            room -= len(waiting.group)
        return joined_active(groups)

    def _advance(self, group: ActiveExamples) -> None:
        """Answer who must not go on, run the next stage on the others, and queue who is left."""
        allowed = self._allowed(group)
        if allowed is None:
            return
        left, going = self._cascade.step(allowed)
        for part in left:
            self._observe(part)
            self._answer(part)
        going = None if going is None else self._allowed(going)
        if going is not None:
            with self._changed:
                self._queue(going)

    def _observe(self, left: Finished) -> None:
        """Show the observer those that had all stages and all time before them: of others only the early would show."""
        if self._observer is None:
            return
        requests = [self._owners[row][0] for row in left.rows.tolist()]
        every = len(self._cascade.stages)
        free = torch.tensor([each.depth == every and each.deadline == float("inf") for each in requests])
        rule = self._observer(left.stop[free], left.logits[free]) if bool(free.any()) else self.rule
        if rule is not self.rule:
            self._cascade = replace(self._cascade, rule=rule)

    def _allowed(self, group: ActiveExamples) -> ActiveExamples | None:
        """Who may visit the next stage; those for whom it is too expensive or too late are answered."""
        stage, now = len(group.logits), perf_counter()
        if stage == 0:
            return group
        curves = self._cascade.curves
        end = now + (curves[stage](len(group)) if curves else 0.0)
        requests = [self._owners[row][0] for row in group.rows.tolist()]
        late = torch.tensor([stage >= request.depth or end > request.deadline for request in requests])
        if not bool(late.any()):
            return group
        self._answer(group.answers(recall=True).take(late))
        return None if bool(late.all()) else group.take((~late).nonzero()[:, 0])

    def _answer(self, left: Finished) -> None:
        with self._changed:
            owners = [self._owners.pop(row) for row in left.rows.tolist()]
        self.answered += len(owners)
        for number, (request, place) in enumerate(owners):
            request.left.append(Finished(torch.tensor([place]), *(part[number : number + 1] for part in left[1:])))
            request.missing -= 1
            if request.missing == 0 and not request.future.done():
                request.future.set_result(self._cascade.in_order(request.left))

    def _fail(self, group: ActiveExamples, error: Exception) -> None:
        """Tell the requests whose inputs were in a failed run; what they have elsewhere goes on unheard."""
        with self._changed:
            owners = [self._owners.pop(row, None) for row in group.rows.tolist()]
        for owner in owners:
            if owner is not None and not owner[0].future.done():
                owner[0].future.set_exception(error)


def _due(queue: deque[_Waiting]) -> float:
    """When the next run of a queue is due: the earliest of its groups."""
    return min(waiting.due for waiting in queue)
