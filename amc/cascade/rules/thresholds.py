"""The search for thresholds, exact over the scores observed on records.

| symbol | shape      | meaning                                                |
|--------|------------|--------------------------------------------------------|
| S, n   |            | stages, examples                                       |
| P      |            | stop rules looked at together                            |
| right  | (S, n)     | 1 where what is answered on stopping there is right    |
| reach  | (S,)       | cost of an example that stops there                    |
| order  | (S - 1, n) | examples, the best score of the stage first            |
| cuts   | (S - 1, n) | the threshold that stops the first i + 1, and equals   |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from amc.cascade.rules.stop_rule import NEVER
from amc.cascade.stages.records import Records

RATIOS = torch.arange(1, 40, dtype=torch.float64) / 20  # MSDNet's p
PRICES = torch.logspace(-3.5, 1.5, 48, dtype=torch.float64)  # in accuracy, of visiting all stages
PASSES = 8  # over the stages for one price; mostly three suffice
MOVES = 24  # places to which one threshold is moved by itself


@dataclass(frozen=True, eq=False)
class ThresholdSets:
    """P stop rules and what they do.

    Attributes:
        thresholds: (P, S - 1).
        hits: (P,) float64 whole numbers, how many examples are answered right.
        cost: (P,) float64, mean over the examples.
    """

    thresholds: Tensor
    hits: Tensor
    cost: Tensor

    def __len__(self) -> int:
        return len(self.hits)

    def take(self, index: Tensor) -> ThresholdSets:
        """Some of them."""
        return ThresholdSets(self.thresholds[index], self.hits[index], self.cost[index])

    def by_cost(self) -> ThresholdSets:
        """The cheapest first, the best of equals first."""
        best = self.take(self.hits.argsort(descending=True, stable=True))
        return best.take(best.cost.argsort(stable=True))

    def front(self) -> ThresholdSets:
        """Those with more hits than every cheaper one, cheapest first."""
        ranked = self.by_cost()
        before = torch.cat([torch.tensor([-1.0], dtype=torch.float64), ranked.hits.cummax(0).values[:-1]])
        return ranked.take(ranked.hits > before)

    def thinned(self, at_most: int) -> ThresholdSets:
        """At most so many of those sorted by cost: the first, and the last of each of equal spans of cost."""
        if len(self) <= at_most:
            return self
        span = (self.cost - self.cost[0]) / (self.cost[-1] - self.cost[0])
        cell = (span * (at_most - 1)).ceil()  # the first by itself
        last = torch.cat([cell[1:] != cell[:-1], torch.tensor([True])])
        return self.take(last)


def together(found: Sequence[ThresholdSets]) -> ThresholdSets:
    """All stop rules of several searches."""
    return ThresholdSets(
        torch.cat([part.thresholds for part in found]),
        torch.cat([part.hits for part in found]),
        torch.cat([part.cost for part in found]),
    )


class ThresholdSearch:
    """Outcomes and scores of n > 0 examples at S stages, laid out for the search.

    Args:
        added: S costs, what visiting each stage adds.
        scores: (S, n) float64.
        best: as in `amc.cascade.rules.stop_rule.StopRule`.
    """

    def __init__(self, records: Records, added: Sequence[float], scores: Tensor, best: bool = False) -> None:
        self.scores, self.last, self.number = scores, len(scores) - 1, scores.shape[1]
        self.right = (_right_of_best(records.right, scores) if best else records.right).double()
        self.reach = torch.tensor(list(accumulate(added)), dtype=torch.float64)
        ranked = scores[: self.last].sort(dim=1, descending=True, stable=True)
        self.order = ranked.indices
        self.cuts, self.real = _cuts(ranked.values)

    def measured(self, thresholds: Tensor) -> ThresholdSets:
        """What the stop rules (P, S - 1) do."""
        hits, cost = [], []
        for rows in torch.split(thresholds, 64):
            right, reach = self.right[-1].expand(len(rows), -1), self.reach[-1].expand(len(rows), self.number)
            for stage in reversed(range(self.last)):
                stops = self.scores[stage] >= rows[:, stage, None]
                right = torch.where(stops, self.right[stage], right)
                reach = torch.where(stops, self.reach[stage], reach)
            hits.append(right.sum(1))
            cost.append(reach.mean(1))
        return ThresholdSets(thresholds, torch.cat(hits), torch.cat(cost))

    def common(self) -> ThresholdSets:
        """One threshold for all stages: all that differ, the lowest (and cheapest) first.

        An example leaves stage k for the next one where the threshold passes the largest of its scores so far: these
        n (S - 1) events, sorted, give every stop rule's totals in one pass.
        """
        if not self.last:
            return self.measured(torch.zeros(1, 0, dtype=torch.float64))
        events = self.scores[: self.last].cummax(0).values.flatten().sort()
        more_hits = self.right.diff(dim=0).flatten()[events.indices].cumsum(0)
        more_cost = self.reach.diff()[:, None].expand(-1, self.number).flatten()[events.indices].cumsum(0)
        ends = torch.cat([events.values[1:] != events.values[:-1], torch.tensor([True])]).nonzero()[:, 0]
        values = torch.cat([events.values[ends], torch.tensor([NEVER], dtype=torch.float64)])
        levels, hits, cost = between(values[:-1], values[1:]), more_hits[ends], more_cost[ends]
        if bool(values[0].isfinite()):  # and one at which no example goes on
            levels, zero = torch.cat([values[:1], levels]), torch.zeros(1, dtype=torch.float64)
            hits, cost = torch.cat([zero, hits]), torch.cat([zero, cost])
        rows = levels[:, None].expand(-1, self.last)
        return ThresholdSets(rows, self.right[0].sum() + hits, self.reach[0] + cost / self.number)

    def geometric(self) -> ThresholdSets:
        """MSDNet's budgeted batch (1703.09844): the share of the examples that leaves at stage k falls as p^k."""
        shares = RATIOS[:, None] ** torch.arange(1, self.last + 2)
        leaving = (shares / shares.sum(1, keepdim=True) * self.number).floor()
        thresholds = torch.full((len(RATIOS), self.last), NEVER, dtype=torch.float64)
        here = torch.ones(len(RATIOS), self.number, dtype=torch.bool)
        for stage in range(self.last):
            count = here[:, self.order[stage]].cumsum(1)
            place = (count < leaving[:, stage, None]).sum(1)
            some = (leaving[:, stage] > 0) & (place < self.number)
            cut = self.cuts[stage][place.clamp(max=self.number - 1)]
            thresholds[:, stage] = torch.where(some, cut, NEVER)
            here &= self.scores[stage] < thresholds[:, stage, None]
        return self.measured(thresholds)

    def priced(self, prices: Tensor = PRICES) -> ThresholdSets:
        """For each price (P,), thresholds that no change of one stage's makes better: (P, S - 1).

        What is maximised is accuracy - price * mean cost / cost of all stages: DyCE's search (2403.17726), with an
        exact choice of each threshold, the others being held, in place of a bounded scalar search, and repeated.
        """
        thresholds = torch.full((len(prices), self.last), NEVER, dtype=torch.float64)
        values = self.right - (prices[:, None] * self.reach / self.reach[-1])[:, :, None]  # (P, S, n)
        for _ in range(PASSES):
            before = thresholds.clone()
            reached = self._reached(thresholds)
            going_on = values[:, -1]
            for stage in reversed(range(self.last)):
                here = values[:, stage]
                gain = self._gain(stage, reached[stage], here - going_on).masked_fill(~self.real[stage], -NEVER)
                most = gain.max(1)
                thresholds[:, stage] = torch.where(most.values > 1e-9, self.cuts[stage][most.indices], NEVER)
                going_on = torch.where(self.scores[stage] >= thresholds[:, stage, None], here, going_on)
            if torch.equal(before, thresholds):
                break
        return self.measured(thresholds)

    def moved(self, start: ThresholdSets) -> ThresholdSets:
        """Each threshold of each stop rule moved by itself over what was observed, `MOVES` places: fills gaps."""
        reached = self._reached(start.thresholds)
        right, reach = self.right[-1].expand(len(start), -1), self.reach[-1].expand(len(start), self.number)
        found = []
        for stage in reversed(range(self.last)):
            ends = self.real[stage].nonzero()[:, 0]
            places = ends[torch.linspace(0, len(ends) - 1, min(MOVES, len(ends))).round().long()]
            hits = self._gain(stage, reached[stage], self.right[stage] - right)
            cost = self._gain(stage, reached[stage], self.reach[stage] - reach)
            stops = self.scores[stage] >= start.thresholds[:, stage, None]
            now = reached[stage] & stops
            without_hits = start.hits - torch.where(now, self.right[stage] - right, 0.0).sum(1)
            without_cost = start.cost * self.number - torch.where(now, self.reach[stage] - reach, 0.0).sum(1)
            rows = start.thresholds[:, None].repeat(1, len(places), 1)
            rows[:, :, stage] = self.cuts[stage][places]
            found.append(
                ThresholdSets(
                    rows.flatten(0, 1),
                    (without_hits[:, None] + hits[:, places]).flatten(),
                    (without_cost[:, None] + cost[:, places]).flatten() / self.number,
                )
            )
            right = torch.where(stops, self.right[stage], right)
            reach = torch.where(stops, self.reach[stage], reach)
        return together(found)

    def _reached(self, thresholds: Tensor) -> list[Tensor]:
        """For each stage but the last, (P, n) bool: who goes on at all earlier ones."""
        reached = [torch.ones(len(thresholds), self.number, dtype=torch.bool)]
        for stage in range(self.last - 1):
            reached.append(reached[-1] & (self.scores[stage] < thresholds[:, stage, None]))
        return reached

    def _gain(self, stage: int, reached: Tensor, gain: Tensor) -> Tensor:
        """What stopping the first i + 1 in the stage's order adds, of those who reach it: (P, n) -> (P, n)."""
        return torch.where(reached, gain, 0.0)[:, self.order[stage]].cumsum(1)


def between(low: Tensor, high: Tensor) -> Tensor:
    """Thresholds in (low, high]: half-way, so that the same score computed in another batch falls on the same side."""
    middle = (low + high) / 2
    return torch.where(low.isfinite() & (middle > low), middle, high)


def _cuts(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (K, n), descending -> the cuts, and whether no example below a place has the score of that place."""
    lower = torch.cat([ranked[:, 1:], torch.full_like(ranked[:, :1], -NEVER)], 1)
    real = (lower < ranked) & ranked.isfinite()
    cuts = torch.where(real, between(lower, ranked), -NEVER)
    # a place among equals has the cut of the last of them: cuts descend, so it is the largest at or after the place
    cuts = cuts.flip(1).cummax(1).values.flip(1)
    return torch.where(ranked.isfinite(), cuts, NEVER), real


def _right_of_best(right: Tensor, scores: Tensor) -> Tensor:
    """(S, n) bool: whether the visited stage with the largest score, the later of equals, is right."""
    chosen, top = right.clone(), scores[0].clone()
    for stage in range(1, len(scores)):
        better = scores[stage] >= top
        chosen[stage] = torch.where(better, right[stage], chosen[stage - 1])
        top = torch.where(better, scores[stage], top)
    return chosen
