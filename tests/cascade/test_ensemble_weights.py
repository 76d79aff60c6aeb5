"""How much each student's answer counts."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from amc.cascade.methods.bdistil.ensemble_weights import fit_ensemble_weights, held_out_loss, ridge_weights


def some_outputs(seed: int, students: int, number: int = 60, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (number,), generator=draw)
    truth = torch.nn.functional.one_hot(labels, 4).float()
    spoilt = noise * torch.randn(number, students, 4, generator=draw) * torch.linspace(2, 0.5, students)[:, None]
    return truth[:, None] + spoilt, labels


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_prefixes_never_lose_accuracy_on_the_examples_they_are_fitted_on(seed: int, students: int) -> None:
    """Nor do they come below the uniform average."""
    outputs, labels = some_outputs(seed, students)
    right = [
        int((torch.einsum("nkc,k->nc", outputs[:, : len(w)], w).argmax(1) == labels).sum())
        for w in fit_ensemble_weights(outputs, labels)
    ]
    uniform = [int((outputs[:, : k + 1].mean(1).argmax(1) == labels).sum()) for k in range(students)]
    assert right == sorted(right)
    assert all(ours >= theirs for ours, theirs in zip(right, uniform, strict=True))


def test_a_student_of_noise_alone_hardly_counts() -> None:
    """Its weight is a tenth of the other's at most."""
    outputs, labels = some_outputs(0, 2, 2000)
    outputs[:, 0] = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
    weights = ridge_weights(outputs.double(), labels)
    assert abs(float(weights[0])) < 0.1 * float(weights[1])


def test_logits_come_out_calibrated() -> None:
    """No other temperature would give a smaller loss by more than the grid's step."""
    outputs, labels = some_outputs(1, 3, 500)
    logits = torch.einsum("nkc,k->nc", outputs, fit_ensemble_weights(outputs, labels)[-1])
    losses = [float(cross_entropy(logits * t, labels)) for t in (0.7, 1.0, 1.4)]
    assert losses[1] < min(losses[0], losses[2])


def test_the_held_out_loss_does_not_reward_fitting() -> None:
    """Students of noise alone come out at the loss of knowing nothing, or above."""
    outputs = torch.randn(400, 6, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(3))
    assert held_out_loss(outputs, labels) > torch.log(torch.tensor(4.0)) - 0.01
