"""FastNAS of nvidia-modelopt on the dense network, scored by our own evaluation.

What it does, read from version 0.47: it lowers one layer at a time to each width on offer and calls the score function,
then bisects a threshold: every layer takes its smallest width whose loss of score is below it. Its score function is
called on networks that share the dense weights, their BatchNorm re-estimated by its own code.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc import Job
from amc.bench.search_methods.widths import PeerFailed, failure, policy_left
from amc_search import Cap, Policies, utilisation
from amc_search.baselines.extra import MissingExtra
from amc_search.baselines.problem import Problem

WIDTHS = 20  # on offer for a layer, its default: every 5 %
BATCHES = 50  # it re-estimates no BatchNorm unless given so many, and says so in a warning only
BATCH = 32
TIGHTER = 0.95  # of its constraint, after a policy that is over a cap
TRIES = 15
UNMET = "Profiling Results"  # in the text of its error where its smallest network is over the constraint
# Its unit, and how much of it one of ours is: it counts two FLOPs a multiply-add.
CONSTRAINTS = {"macs": ("flops", 2.0), "params": ("params", 1.0), "bytes": ("params", 0.25)}


@dataclass
class FastNAS:
    """Pruning by the largest tolerable loss of one layer (nvidia-modelopt, `modelopt.torch.prune`, mode "fastnas").

    Every call of its score function is a true evaluation on the validation split, and stands in no list of trials: so
    many widths are on offer that calls and the final trial together are no more than the problem's trials. Losses are
    measured once for all caps. It takes one constraint: that of the first cap, made tighter until the legal policy
    nearest to the widths it leaves is under all caps. Layers that it cannot follow it leaves whole.

    Attributes:
        calls: of the score function, over all problems so far.
    """

    job: Job
    calls: int = 0
    _known: dict[int, bytes] = field(default_factory=dict)  # widths on offer -> losses, in its own format

    def __call__(self, problem: Problem) -> None:
        """Measure the policy that it leaves.

        Raises:
            PeerFailed: it fails on this network, knows no such cap, or needs more trials.
            MissingExtra: nvidia-modelopt is not installed.
        """
        problem.measure(self.policy(problem.caps, problem.trials))

    def policy(self, caps: tuple[Cap, ...], trials: int) -> Policies:
        """A legal policy (d,) under all caps."""
        widths = min(WIDTHS, 1 + (trials - 2) // len(self.job.space))
        if widths < 2:
            raise PeerFailed(
                f"FastNAS needs at least {len(self.job.space) + 2} trials for {len(self.job.space)} groups, but "
                f"has {trials}; allow more trials"
            )
        cap = caps[0]
        if cap.cost.unit not in CONSTRAINTS:
            raise PeerFailed(f"FastNAS takes caps in {', '.join(CONSTRAINTS)}, but the first is in {cap.cost.unit}")
        unit, times = CONSTRAINTS[cap.cost.unit]
        for attempt in range(TRIES):
            left = self.pruned(unit, cap.limit * times * TIGHTER**attempt, widths)
            policy = policy_left(self.job, left)
            if utilisation(policy[None], caps)[0] <= 1:
                return policy
        raise PeerFailed(f"FastNAS met its own constraint of {unit} {TRIES} times, but never all caps; use one cap")

    def pruned(self, unit: str, limit: float, widths: int) -> nn.Module:
        """A copy of the dense network, pruned by it to at most `limit` of its "flops" or "params"."""
        try:
            with _quiet():
                from modelopt.torch.prune import prune
        except ImportError:  # of it, or of what it imports
            raise MissingExtra("modelopt-fastnas", "nvidia-modelopt") from None
        copied = copy.deepcopy(self.job.model).to(memory_format=torch.contiguous_format)  # it sorts no other order
        try:
            with _quiet(), self._losses(widths) as path:
                settings = {
                    "score_func": self._score, "forward_loop": self._calibrate, "checkpoint": path, "verbose": False,
                }  # fmt: skip
                found: nn.Module = prune(
                    copied, [("fastnas", self._rules(widths))], {unit: limit}, self._example, settings
                )[0]
        except Exception as error:  # in many ways
            if UNMET in str(error):
                raise PeerFailed(f"FastNAS can prune no network to {limit:.4g} {unit}; raise the cap") from None
            raise failure("FastNAS", error) from None
        return found

    @contextlib.contextmanager
    def _losses(self, widths: int) -> Iterator[str]:
        """A file where it finds the losses that it measured before, and leaves those it measures."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "losses.pth"
            if widths in self._known:
                path.write_bytes(self._known[widths])
            yield str(path)
            self._known[widths] = path.read_bytes()

    @property
    def _example(self) -> tuple[Any, ...]:
        """One example as it wants it: a last dictionary is taken for keyword arguments."""
        return (*self.job.trace.example.args, dict(self.job.trace.example.kwargs))

    def _score(self, model: nn.Module) -> float:
        """The likelihood of the right answer on the validation split, in (0, 1]; accuracy where a task has no loss."""
        self.calls += 1
        model.eval()  # this re-estimates BatchNorm by its own hook
        found = self.job.measure.evaluate(model)
        return math.exp(-found.loss) if found.loss else found.accuracy

    def _calibrate(self, model: nn.Module) -> None:
        """Show it training examples, which it keeps to re-estimate BatchNorm for every network."""
        seeds = itertools.count()
        batches = itertools.chain.from_iterable(self.job.measure.train.batches(BATCH, seed=seed) for seed in seeds)
        with torch.no_grad():
            for batch in itertools.islice(batches, BATCHES):
                self.job.task.call(batch).to(self.job.compute.device).on(model)

    def _rules(self, widths: int) -> dict[str, Any]:
        """Its settings: so many equally spaced widths a layer, multiples of our step."""
        from modelopt.torch.prune.fastnas import FastNASConfig

        rules: dict[str, Any] = FastNASConfig().model_dump()
        modules = dict(self.job.model.named_modules())
        steps = {name: group.step for group in self.job.trace.table.groups for name in group.layers}
        for kind, by_name in rules.items():
            for setting in by_name["*"] or ():
                if setting.endswith("_ratio"):
                    by_name["*"][setting] = tuple(index / widths for index in range(1, widths + 1))
            divisor = next((setting for setting in by_name["*"] or () if setting.endswith("_divisor")), None)
            for name, step in steps.items():
                if divisor and name in modules and kind == f"nn.{type(modules[name]).__name__}":
                    by_name[name] = by_name["*"] | {divisor: step}
        return rules


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It prints, draws bars, logs and warns; what goes wrong it raises as well."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
