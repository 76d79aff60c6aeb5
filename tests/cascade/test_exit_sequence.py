"""The exit sequence: exits of a frozen pair, computed one by one as the base goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from amc.cascade.methods.esn.exit_sequence import ExitSequence, SequenceSize
from amc.cascade.methods.esn.sequence_stages import Pair, SequenceComponent, load_sequence, new_sequence, pair_networks
from amc.cascade.methods.esn.sequence_training import (
    SequenceTraining,
    fit_sequence,
    mix,
    run_pair,
    sequence_loss,
    train_sequence,
)
from amc.cascade.rules.scorers import FeatureScorer
from amc.cascade.rules.stop_rule import StopRule, scores_of, simulate
from amc.cascade.serving.runtime import Cascade
from amc.cascade.stages.component import NetworkComponent, macs_of
from amc.cascade.stages.recording import record
from amc.cascade.stages.stage import path_costs, without
from amc.cost.trace import digest_tensors
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import ModelError, RunError, UsageError
from amc.system.progress import Silent
from amc.zoo.call import Call
from amc.zoo.networks.checkpoint import load_weights, read_weights
from amc.zoo.networks.source import ModelSource
from tests.cascade.cascades import assert_alike, decided
from tests.tiny import network, pictures, trained_weights

CPU = Compute(torch.device("cpu"), False)
SHAPE = (1, 28, 28)


def member(name: str, source: ModelSource, model: nn.Module) -> NetworkComponent:
    model = model.eval()
    return NetworkComponent(name, model, macs_of(model, Call((torch.zeros(1, *SHAPE),))), source, SHAPE, "dense")


def large(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """A network of five convolutions in a row."""
    layers: list[nn.Module] = []
    for width, wide, stride in ((in_channels, 12, 2), (12, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 1)):
        layers += [nn.Conv2d(width, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


LARGE = ModelSource("tests.cascade.test_exit_sequence:large")
SMALL = ModelSource("tests.tiny:network")


def tiny_pair(exits: int = 2) -> Pair:
    """A small network of ours and a larger one, with random weights."""
    return pair_networks(member("small", SMALL, SMALL.build(1)), member("large", LARGE, LARGE.build(2)), exits)


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    home = tmp_path_factory.mktemp("pair")
    members = []
    for source, factory in ((SMALL, network), (LARGE, large)):
        model, path = source.build(), home / f"{factory.__name__}.safetensors"
        load_weights(model, read_weights(trained_weights(path, factory)), factory.__name__)
        members.append(member(factory.__name__, source, model))
    return pair_networks(*members, 2)


def run(part: SequenceComponent, inputs: Tensor) -> list[Tensor]:
    state, found = {}, []
    for stage in part.stages:
        logits, state = stage.run(inputs, state)
        found.append(logits)
    return found


@torch.no_grad()
def test_stages_give_the_savers_answer_the_exits_and_the_bases_answer() -> None:
    """In this order; on the same batch saver and base answer exactly as by themselves."""
    pair = tiny_pair()
    part = SequenceComponent(pair, new_sequence(pair).eval())
    inputs = torch.randn(5, *SHAPE)
    found = run(part, inputs)
    pooled, logits, answers = pair.watched(inputs)
    exits = part.sequence(pooled, logits)
    assert torch.equal(found[0], pair.saver.model(inputs)) and torch.equal(found[-1], answers)
    assert torch.equal(found[-1], pair.base.model(inputs))
    for ours, at_once in zip(found[1:-1], exits, strict=True):
        torch.testing.assert_close(ours, at_once)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 1000))
@torch.no_grad()
def test_tokens_one_by_one_are_the_tokens_all_at_once(exits: int, layers: int, seed: int) -> None:
    """Extending the sequence by one token at a time changes nothing but rounding."""
    sequence = ExitSequence([3] * (exits + 1), 4, SequenceSize(dim=16, layers=layers, heads=4))
    sequence.reset(seed)
    pooled = list(torch.randn(exits + 1, 6, 3, generator=torch.Generator().manual_seed(seed)).unbind())
    whole, _ = sequence.extend(pooled, 0, None)
    memory, found = None, []
    for place, each in enumerate(pooled):
        token, memory = sequence.extend([each], place, memory)
        found.append(token)
    torch.testing.assert_close(torch.cat(found, 1), whole)


@torch.no_grad()
def test_an_exit_does_not_see_what_comes_after_it() -> None:
    """A later feature changes later exits only."""
    sequence = ExitSequence([3, 3, 3], 4, SequenceSize(dim=16, layers=2, heads=4))
    sequence.reset(0)
    pooled, logits = list(torch.randn(3, 6, 3).unbind()), torch.randn(6, 4)
    changed = [*pooled[:2], torch.randn(6, 3)]
    before, after = sequence(pooled, logits), sequence(changed, logits)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_stages_cost_the_saver_the_base_and_every_token_and_head_once() -> None:
    """A count by hand gives the same multiply-adds."""
    pair = tiny_pair()
    sequence = new_sequence(pair).eval()
    part = SequenceComponent(pair, sequence)
    added = path_costs([stage.cost for stage in part.stages], range(4))
    assert added[0] == pair.saver.macs
    pooled = [torch.randn(1, width) for width in pair.channels]
    size, counted = sequence.size, 0
    for place in range(3):  # attention to `place` + 1 tokens, once with the keys and once with the values
        first, second = size.dim * size.dim * 4, size.dim * size.dim * (4 + 2 * size.expansion)
        counted += pair.channels[place] * size.dim + first + second
    attention = size.layers * 2 * size.dim * (4 + 3)  # tokens 0 and 1 at once: 2 x 2; token 2: 3
    heads = 2 * size.dim * pair.classes
    assert sum(added) == pair.saver.macs + pair.base.macs + counted + attention + heads
    whole = count_cut_macs(sequence, Call((pooled, torch.randn(1, pair.classes))))
    assert counted + attention + heads <= whole  # all at once, each token is set against later ones too


@torch.no_grad()
def test_an_exit_left_out_changes_no_other_answer_and_saves_its_head() -> None:
    """The rest runs on the same shapes: equal answers, and costs of the shorter path."""
    pair = tiny_pair()
    part = SequenceComponent(pair, new_sequence(pair).eval())
    inputs = torch.randn(4, *SHAPE)
    whole, state, found = run(part, inputs), {}, []
    kept = without(part.stages, [0, 2, 3])
    for stage in kept:
        logits, state = stage.run(inputs, state)
        found.append(logits)
    assert all(torch.equal(found[i], whole[j]) for i, j in enumerate([0, 2, 3]))
    all_costs = [stage.cost for stage in part.stages]
    assert path_costs([stage.cost for stage in kept], range(3)) == path_costs(all_costs, [0, 2, 3])


@torch.no_grad()
def test_survivors_go_on_as_they_would_have_in_the_whole_batch() -> None:
    """Examples that stay after a stage get the logits of the whole batch, up to rounding."""
    pair = tiny_pair()
    part = SequenceComponent(pair, new_sequence(pair).eval())
    inputs = torch.randn(6, *SHAPE)
    whole, keep = run(part, inputs), torch.tensor([1, 4, 5])
    _, state = part.stages[0].run(inputs, {})
    _, state = part.stages[1].run(inputs, state)
    state = {chain: tuple(each[keep] for each in tree) for chain, tree in state.items()}
    logits, _ = part.stages[2].run(inputs[keep], state)
    torch.testing.assert_close(logits, whole[2][keep])


@torch.no_grad()
def test_a_run_cascade_costs_and_answers_as_planned_on_records(trained_pair: Pair) -> None:
    """Stops, predictions and costs of a run are those simulated on records, where rounding does not decide."""
    part = SequenceComponent(trained_pair, new_sequence(trained_pair).eval())
    measure = pictures().validation
    records = record(part.stages, measure, CPU)
    scorer = FeatureScorer("confidence")
    scores = scores_of(records, scorer)
    thresholds = tuple(float(scores[stage].quantile(share)) for stage, share in enumerate((0.7, 0.5, 0.3)))
    cascade = Cascade(part.stages, StopRule(scorer, thresholds))
    planned = simulate(records, cascade.rule, path_costs([stage.cost for stage in part.stages], range(4)))
    inputs, _ = next(iter(measure.batches(100)))
    ran = cascade.run(inputs)
    assert len(planned.stop.unique()) == 4
    assert_alike(ran, planned, decided(records, cascade.rule))


@pytest.mark.parametrize(
    ("saver", "base"), [("timm:test_convnext", "timm:test_vit"), ("timm:test_vit", "timm:test_resnet")]
)
@torch.no_grad()
def test_networks_of_tokens_and_of_maps_make_pairs(saver: str, base: str) -> None:
    """A transformer and a convolutional network can be saver and base of each other."""
    shape, members = (3, 160, 160), []
    for name in (saver, base):
        source = ModelSource(name)
        model = source.build().eval()
        macs = macs_of(model, Call((torch.zeros(1, *shape),)))
        members.append(NetworkComponent(name, model, macs, source, shape, "independent"))
    pair = pair_networks(members[0], members[1], 3)
    part = SequenceComponent(pair, new_sequence(pair, SequenceSize(dim=16)).eval())
    inputs = torch.randn(2, *shape)
    found = run(part, inputs)
    torch.testing.assert_close(found[0], pair.saver.model(inputs))
    torch.testing.assert_close(found[-1], pair.base.model(inputs))
    spent = sum(path_costs([stage.cost for stage in part.stages], range(len(found))))
    assert 1 < spent / (pair.saver.macs + pair.base.macs) < 1.05


def test_the_loss_counts_an_example_by_what_the_saver_lacks_in_confidence() -> None:
    """A count by hand gives the same loss."""
    exits, saver = torch.randn(2, 5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    by_hand = 0.0
    for exit_ in exits:
        for example in range(5):
            weight = 2 * (1 - float(softmax(saver[example], 0).max()))
            by_hand += weight * float(cross_entropy(exit_[example], labels[example])) / 5
    targets = torch.nn.functional.one_hot(labels, 3).float()
    assert float(sequence_loss(exits, saver, targets)) == pytest.approx(by_hand, rel=1e-5)
    sure = torch.tensor([[99.0, 0.0, 0.0]]).expand(5, 3)
    assert float(sequence_loss(exits, sure, targets)) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_mixed_targets_are_shares_of_what_stands_in_the_picture(seed: int) -> None:
    """For mixup and CutMix alike, and they sum to one."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.stack([torch.full((1, 12, 12), float(i)) for i in (0, 1)])
    targets = torch.eye(2)
    mixed, shares = mix(inputs, targets, SequenceTraining(), draw)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), shares[:, 1])
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_tokens_of_text_are_not_mixed() -> None:
    """Integer inputs and their targets come back as they were."""
    words, targets = torch.randint(0, 9, (4, 7)), torch.eye(4)
    mixed, shares = mix(words, targets, SequenceTraining(), torch.Generator())
    assert torch.equal(mixed, words) and torch.equal(shares, targets)


def test_training_makes_exits_better_than_the_saver_and_leaves_the_pair_alone(trained_pair: Pair) -> None:
    """Digests of both networks are the same before and after."""
    splits = pictures()
    members = trained_pair.saver, trained_pair.base
    before = [digest_tensors(each.model.state_dict()) for each in members]
    training = SequenceTraining(passes=2, epochs=10)
    part = train_sequence(trained_pair, splits.train, CPU, SequenceSize(dim=32), training, seed=1)
    found = record(part.stages, splits.train, CPU).accuracies
    assert found[2] > found[0]
    assert before == [digest_tensors(each.model.state_dict()) for each in members]


def test_training_makes_the_loss_smaller_and_depends_on_the_seed_alone(trained_pair: Pair) -> None:
    """Two trainings with one seed in one process end with equal weights."""
    training = SequenceTraining(passes=1, epochs=4)
    seen = run_pair(trained_pair, pictures().train, CPU, training, 0, Silent())
    size = SequenceSize(dim=16, layers=1)

    @torch.no_grad()
    def loss(sequence: ExitSequence) -> float:
        exits = sequence(seen.pooled, seen.saver_logits)
        return float(sequence_loss(exits, seen.saver_logits, seen.targets))

    fitted = [fit_sequence(new_sequence(trained_pair, size, 3), seen, training, 3) for _ in range(2)]
    assert loss(fitted[0]) < loss(new_sequence(trained_pair, size, 3))
    assert all(torch.equal(a, b) for a, b in zip(*(each.parameters() for each in fitted), strict=True))


@torch.no_grad()
def test_what_was_saved_answers_and_costs_the_same(tmp_path: Path, trained_pair: Pair) -> None:
    """Loaded, it gives equal answers on the same batch, with its names, costs and digest."""
    part = SequenceComponent(trained_pair, new_sequence(trained_pair, SequenceSize(dim=16)).eval())
    part.save(tmp_path / "kept")
    loaded = load_sequence(tmp_path / "kept")
    inputs = torch.randn(3, *SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(run(part, inputs), run(loaded, inputs), strict=True))
    assert [stage.cost for stage in part.stages] == [stage.cost for stage in loaded.stages]
    assert [stage.name for stage in part.stages] == [stage.name for stage in loaded.stages]
    assert part.digest == loaded.digest


def test_a_damaged_sequence_is_told_in_one_line(tmp_path: Path) -> None:
    """Damaged or missing, the message says so and what to do."""
    pair = tiny_pair()
    SequenceComponent(pair, new_sequence(pair, SequenceSize(dim=16))).save(tmp_path)
    (tmp_path / "sequence.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="SHA-256"):
        load_sequence(tmp_path)
    with pytest.raises(RunError, match="make it anew"):
        load_sequence(tmp_path / "nowhere")


def test_a_saver_must_read_what_its_base_reads() -> None:
    """Networks with other input shapes make no pair."""
    other = NetworkComponent("small", network(in_channels=3), 1.0, SMALL, (3, 28, 28), "dense")
    with pytest.raises(ModelError, match="read what its base reads"):
        pair_networks(other, member("large", LARGE, LARGE.build()))


@torch.no_grad()
def test_a_sequence_taught_by_the_base_alone_needs_no_labels(trained_pair: Pair) -> None:
    """Its targets are the base's probabilities."""
    training = SequenceTraining(passes=1, distill=1.0, mixup=0, cutmix=0)
    seen = run_pair(trained_pair, pictures().train, CPU, training, 0, Silent())
    inputs, _ = next(iter(pictures().train.batches(250, seed=0, augment=True)))
    torch.testing.assert_close(seen.targets[:250], softmax(trained_pair.base.model(inputs), 1))


def test_heads_must_divide_the_dim() -> None:
    """An impossible size of attention is refused."""
    with pytest.raises(UsageError, match="heads divide"):
        SequenceSize(dim=20, heads=8)
