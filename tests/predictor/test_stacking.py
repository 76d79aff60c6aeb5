"""Members beside the process: never worse than the mean by more than noise, whatever the columns hold."""

import pytest
import torch

from amc_predictor import EnsemblePredictor, MLPPredictor
from amc_predictor.ranks import kendall
from amc_predictor.stacking import stacked
from amc_predictor.trees import RATE, SAMPLE, STAGES, Trees
from tests.predictor.measured import BITS, mixed_network, sigmoid_network


def tangled_network(count: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Policies (count, columns), a third kept fractions, the rest bits from 2 to 8, of which few columns matter, most
    only together; accuracies with a spread of 0.036; and which columns are bits.
    """
    generator = torch.Generator().manual_seed(seed)
    pruned = columns // 3
    kept = torch.randint(1, 4, (count, pruned), generator=generator).double() / 4
    bits = torch.randint(2, 9, (count, columns - pruned), generator=generator).double()
    policies = torch.cat([kept, bits], dim=1)
    low = torch.cat([kept <= 0.25, bits <= 4], dim=1).double()
    chosen = torch.randint(columns, (2, 8), generator=generator)
    harm = torch.rand(8, generator=generator, dtype=torch.float64) ** 2
    lost = (low[:, chosen[0]] * low[:, chosen[1]] + 0.5 * low[:, chosen[0]]) @ harm
    noise = 0.05 * torch.randn(count, generator=generator, dtype=torch.float64)
    return policies, 0.85 - 0.036 * ((lost - lost.mean()) / lost.std() + noise), list(range(pruned, columns))


@pytest.mark.parametrize("columns", [50, 160])
@pytest.mark.parametrize("count", [20, 40])
def test_few_values_of_many_columns_of_bits_are_not_extrapolated(columns: int, count: int) -> None:
    """With fewer policies than columns, most of them bits, predictions are no worse than the mean but for noise."""
    for seed in range(2):
        policies, accuracy, bits = tangled_network(count + 300, columns, seed)
        predictor = EnsemblePredictor(seed=seed, bits=bits)
        predictor.fit(policies[:count], accuracy[:count])
        truth = accuracy[count:]
        error, mean = (
            float((guess - truth).square().mean().sqrt())
            for guess in (predictor.predict(policies[count:])[0], accuracy[:count].mean())
        )
        assert error < 1.15 * mean


def test_a_column_of_bits_whose_low_values_were_not_seen_is_on_the_scale_of_the_others() -> None:
    """Noise of a quantiser grows sixteenfold from 8 bits to 6, and 4,096-fold to 2: a column measured at 6 to 8 alone
    gives no policy at 2 bits a prediction far out of the values measured.
    """
    policies, accuracy = mixed_network(40)
    policies = torch.cat([policies, torch.randint(6, 9, (40, 1), generator=torch.Generator().manual_seed(0))], dim=1)
    predictor = EnsemblePredictor(bits=(*BITS, policies.shape[1] - 1))
    predictor.fit(policies, accuracy)
    policies[:, -1] = 2
    mean, _ = predictor.predict(policies)
    assert float(mean.min()) > float(accuracy.min()) - float(accuracy.max() - accuracy.min())


def test_what_trees_learn_better_is_learned() -> None:
    """Where few columns of many matter, and together, trees get a share and held-out errors fall by it."""
    policies, accuracy, bits = tangled_network(400, 60)
    predictor = EnsemblePredictor(bits=bits)
    predictor.fit(policies[:120], accuracy[:120])
    model = predictor._model
    assert model is not None and float(model.shares[1]) > 0.3
    smooth, _, _ = ((member - accuracy[120:]).square().mean() for member in model.members(policies[120:]))
    assert float((predictor.predict(policies[120:])[0] - accuracy[120:]).square().mean()) < 0.95 * float(smooth)


@pytest.mark.parametrize("count", [4, 30])
def test_trees_of_tensors_answer_as_scikit_learn_does(count: int) -> None:
    """Its trees, read into tensors, give its predictions."""
    from sklearn.ensemble import GradientBoostingRegressor

    policies, accuracy = mixed_network(200)
    theirs = GradientBoostingRegressor(
        n_estimators=STAGES, learning_rate=RATE, subsample=SAMPLE, max_depth=2, random_state=5
    ).fit(policies[:count].numpy(), accuracy[:count].numpy())
    ours = Trees.fitted(policies[:count], accuracy[:count], seed=5)
    torch.testing.assert_close(ours(policies), torch.from_numpy(theirs.predict(policies.numpy())), rtol=0, atol=1e-7)


def test_shares_are_shares() -> None:
    """They are at least 0 and sum to 1; a good process without trees is left alone, one that is no good is not."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    good, bad, mean = values + 0.1, torch.randn(40, generator=generator, dtype=torch.float64), torch.zeros(40).double()
    for members in ((good, bad, mean), (bad, good, mean), (bad, bad, mean)):
        for has_trees in (False, True):
            shares = stacked(torch.stack(members), values, has_trees)
            assert (shares >= 0).all() and float(shares.sum()) == pytest.approx(1)
    assert stacked(torch.stack([good, mean, mean]), values, has_trees=False).tolist() == [1, 0, 0]
    assert float(stacked(torch.stack([bad, mean, mean]), values, has_trees=False)[2]) > 0.5


def test_values_of_noise_are_predicted_by_their_mean() -> None:
    """Where policies tell nothing, no prediction is far from the mean of the values."""
    policies, accuracy = sigmoid_network(160, 30)
    accuracy = accuracy[torch.randperm(160, generator=torch.Generator().manual_seed(1))]
    predictor = EnsemblePredictor()
    predictor.fit(policies[:60], accuracy[:60])
    error = float((predictor.predict(policies[60:])[0] - accuracy[60:]).square().mean().sqrt())
    assert error < 1.05 * float((accuracy[:60].mean() - accuracy[60:]).square().mean().sqrt())


def test_a_state_without_members_is_the_process_alone() -> None:
    """What was kept before there were trees and shares still opens, and predicts the same."""
    policies, accuracy = sigmoid_network(60, 6)
    predictor = EnsemblePredictor()
    predictor.fit(policies, accuracy)
    names = ("base", "column", "threshold", "leaf", "constant", "shares")
    old = {name: tensor for name, tensor in predictor.state().items() if name.removeprefix("model.") not in names}
    for one, other in zip(
        predictor.predict(policies), EnsemblePredictor.from_state(old).predict(policies), strict=True
    ):
        assert torch.equal(one, other)


def test_networks_alone_order_policies_and_keep_their_state() -> None:
    """The pure ensemble of MLPs orders new policies, its intervals hold them, and it is kept exactly."""
    policies, accuracy = sigmoid_network(300, 8)
    predictor = MLPPredictor()
    predictor.fit(policies[:100], accuracy[:100])
    mean, _ = predictor.predict(policies[100:])
    low, high = predictor.interval(policies[100:])
    assert kendall(mean, accuracy[100:]) > 0.7
    assert 0.8 < float(((low <= accuracy[100:]) & (accuracy[100:] <= high)).double().mean())
    state = predictor.state()
    assert len({tensor.data_ptr() for tensor in state.values() if tensor.numel()}) == sum(
        tensor.numel() > 0 for tensor in state.values()
    )
    again = MLPPredictor.from_state(state)
    assert torch.equal(again.predict(policies)[0], predictor.predict(policies)[0])
