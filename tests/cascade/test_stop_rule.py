"""Planning on records is what running the cascade would do."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.cascade.rules.stop_rule import NEVER, StopRule, simulate
from amc.cascade.stages.records import FEATURES, Records, features_of
from amc.cascade.stages.stage import StageCost, path_costs


class Confident:
    kind = "confident"

    def score(self, stage: int, features: Tensor) -> Tensor:
        return features[:, FEATURES.index("confidence")]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


def some_records(seed: int, stages: int = 3, number: int = 40, classes: int = 4) -> Records:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(stages, number, classes, generator=draw)
    names = tuple(f"s{i}" for i in range(stages))
    return Records(names, logits, torch.randint(0, classes, (number,), generator=draw))


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1.1), min_size=2, max_size=2), st.booleans())
@settings(deadline=None)
def test_a_walk_is_what_each_example_by_itself_would_do(seed: int, thresholds: list[float], best: bool) -> None:
    """Stop, answer and cost of each example by a plain loop."""
    records, added = some_records(seed), [1.0, 2.0, 4.0]
    found = simulate(records, StopRule(Confident(), tuple(thresholds), best), added)
    for example in range(len(records)):
        seen: list[float] = []
        for stage in range(3):
            features = features_of(records.logits[: stage + 1, example : example + 1])
            seen.append(float(Confident().score(stage, features)[0]))
            if stage == 2 or seen[-1] >= thresholds[stage]:
                break
        answered = max(range(stage + 1), key=lambda k: (seen[k], k)) if best else stage
        assert found.stop[example] == stage
        assert found.predictions[example] == records.predictions[answered, example]
        assert found.cost[example] == list(accumulate(added))[stage]


def test_thresholds_above_every_score_give_the_last_stage_and_below_every_score_the_first() -> None:
    """With the cost of the whole path or of one stage."""
    records = some_records(0)
    never = simulate(records, StopRule(Confident(), (NEVER, NEVER)), [1.0, 1.0, 1.0])
    at_once = simulate(records, StopRule(Confident(), (-1.0, -1.0)), [1.0, 1.0, 1.0])
    assert torch.equal(never.predictions, records.predictions[2]) and never.mean_cost == 3.0
    assert torch.equal(at_once.predictions, records.predictions[0]) and at_once.mean_cost == 1.0


def test_only_a_visited_stage_answers_even_where_none_has_a_score() -> None:
    """Of stages without a score, as of an empty bin's, the last one that was visited answers."""
    records = some_records(0)
    scores = torch.full((3, len(records)), -NEVER, dtype=torch.float64)
    found = simulate(records, StopRule(Confident(), (NEVER, -NEVER), best=True), [1.0, 1.0, 1.0], scores)
    assert set(found.stop.tolist()) == set(found.answered.tolist()) == {1}


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_features_lie_between_zero_and_one_and_see_only_visited_stages(seed: int) -> None:
    """Other logits at a later stage change no earlier feature."""
    records = some_records(seed)
    assert bool(((records.features >= 0) & (records.features <= 1)).all())
    changed = records.logits.clone()
    changed[2] += 1
    other = Records(records.stages, changed, records.labels)
    assert torch.equal(records.features[:2], other.features[:2])


def test_parts_are_disjoint_and_together_all() -> None:
    """Every example is in one part."""
    records = Records(("a",), torch.randn(1, 31, 3), torch.arange(31))
    first, second = records.parted(seed=5)
    assert sorted([*first.labels.tolist(), *second.labels.tolist()]) == list(range(31))


def test_an_exit_left_out_lends_its_body_to_the_next_of_its_chain_but_not_its_head() -> None:
    """Path costs by hand, for some of the stages."""
    costs = [StageCost("a", 10, 1), StageCost("b", 100), StageCost("a", 20, 2), StageCost("a", 30, 3)]
    assert path_costs(costs, [0, 1, 2, 3]) == [11, 100, 22, 33]
    assert path_costs(costs, [2, 3]) == [32, 33]
    assert path_costs(costs, [1, 3]) == [100, 63]
