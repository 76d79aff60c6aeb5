"""The weights of B-DISTIL's game, and what they certify."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.cascade.methods.bdistil.hedge import CertificateBroken, ErrorBound, Hedge, best_eta
from amc.cascade.methods.bdistil.weak_learner import surrogate

SEEDS = st.integers(0, 10**6)


def some_errors(seed: int, rounds: int, limit: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return limit * (2 * torch.rand(rounds, 7, 3, generator=draw, dtype=torch.float64) - 1)


@given(SEEDS, st.integers(1, 12), st.floats(0.1, 10), st.floats(0.05, 20))
@settings(deadline=None)
def test_the_certificate_holds_for_any_students_and_any_step(seed: int, rounds: int, limit: float, eta: float) -> None:
    """`add` checks it; edges may have any sign."""
    game, errors = Hedge((7, 3), limit, eta), some_errors(seed, rounds, limit)
    for count, error in enumerate(errors, 1):
        found = game.add(error)
        average = errors[:count].mean(0).abs()
        assert found.error == pytest.approx(float(average.max()))
        assert found.mean_error == pytest.approx(float(average.mean()))
        assert found.error <= found.potential + 1e-9 <= found.bound + 2e-9


@given(SEEDS, st.integers(1, 8), st.floats(0.05, 5))
@settings(deadline=None)
def test_weights_are_those_of_the_updates_round_by_round(seed: int, rounds: int, eta: float) -> None:
    """K+ times exp(-eta error), K- times exp(+eta error), both normalised together."""
    game = Hedge((7, 3), 1.0, eta)
    plus = minus = torch.full((7, 3), 1 / 42, dtype=torch.float64)
    for error in some_errors(seed, rounds, 1.0):
        game.add(error)
        plus, minus = plus * (-eta * error).exp(), minus * (eta * error).exp()
        total = plus.sum() + minus.sum()
        plus, minus = plus / total, minus / total
    found = game.weights()
    assert torch.allclose(found[0], plus) and torch.allclose(found[1], minus)
    assert float(found[0].sum() + found[1].sum()) == pytest.approx(1.0)


@given(SEEDS, st.floats(0.2, 5), st.booleans())
@settings(deadline=None)
def test_a_positive_surrogate_is_proof_of_an_edge(seed: int, reach: float, uneven: bool) -> None:
    """S <= e / 2B for all weights and all errors inside the barrier."""
    draw = torch.Generator().manual_seed(seed)
    plus, minus = torch.rand(2, 5, 4, generator=draw, dtype=torch.float64) ** (6 if uneven else 1)
    towards = torch.sign(plus - minus) if seed % 2 else torch.ones(5, 4)
    error = 1.999 * reach * towards * torch.rand(5, 4, generator=draw, dtype=torch.float64) ** 3
    found, edge = float(surrogate(plus, minus, error, reach)), float(((plus - minus) * error).sum())
    assert found <= edge / (2 * reach) + 1e-12
    if found > 0:
        assert edge > 0


def test_in_the_first_round_nobody_has_an_edge_and_the_surrogate_is_a_squared_loss() -> None:
    """With uniform weights the surrogate is the mean square, times a constant."""
    game = Hedge((7, 3), 1.0, 0.5)
    error = some_errors(3, 1, 0.01)[0]
    assert game.edge(error) == pytest.approx(0.0, abs=1e-15)
    assert float(surrogate(*game.weights(), error, 1.0)) == pytest.approx(-float(error.square().mean()) / 8, rel=1e-3)


def test_a_student_that_makes_up_for_the_one_before_has_an_edge() -> None:
    """The opposite of the last error has a positive edge, the error again a negative one."""
    game = Hedge((7, 3), 1.0, 0.5)
    error = some_errors(4, 1, 1.0)[0]
    game.add(error)
    assert game.edge(-error) > 0 > game.edge(error)


def test_the_best_step_makes_the_bound_smallest() -> None:
    """Any other step size has a larger bound."""

    def bound(eta: float) -> float:
        return eta * 1.5**2 / 2 + math.log(42) / (eta * 6)

    best = best_eta(42, 6, 1.5)
    assert bound(best) < min(bound(0.99 * best), bound(1.01 * best))


def test_an_error_beyond_the_limit_or_a_broken_inequality_is_raised() -> None:
    """Certificates do not hold outside their assumptions, and say so."""
    with pytest.raises(CertificateBroken, match="at most 1"):
        Hedge((7, 3), 1.0, 0.5).add(torch.full((7, 3), 1.01))
    with pytest.raises(CertificateBroken, match="error <= potential <= bound"):
        ErrorBound(3, error=0.5, mean_error=0.1, potential=0.4, bound=0.6).check()
    with pytest.raises(CertificateBroken):
        ErrorBound(3, error=float("nan"), mean_error=0.1, potential=0.4, bound=0.6).check()
