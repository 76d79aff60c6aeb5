"""How much each student's answer counts in a prefix: weights fitted by ridge regression on held-out examples.

The uniform average is what the certificate is about, and what the weights shrink towards; they are taken where they are
right on as many held-out examples at least, and so are a prefix's against those of the prefix before. So the accuracy
of the prefixes, on the examples that they were fitted on, never falls.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

RIDGES = (0.0, 0.01, 0.1, 1.0, 10.0)  # times the mean square of the students' outputs
SHARPNESS = torch.logspace(-1, 1.5, 51, dtype=torch.float64)  # standard deviations of the logits that are tried


def fit_ensemble_weights(outputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Weights (k,) float32 of each prefix k = 1, ..., T; they hold the temperature at which the logits are calibrated.

    Args:
        outputs: (n, T, C) of the students on held-out examples, in order.
        labels: (n,) int64.
    """
    outputs = outputs.double()
    found: list[Tensor] = []
    for count in range(1, outputs.shape[1] + 1):
        prefix = outputs[:, :count]
        choices = [ridge_weights(prefix, labels), torch.full((count,), 1 / count, dtype=torch.float64)]
        if found:
            choices.append(torch.cat([found[-1].double(), torch.zeros(1, dtype=torch.float64)]))
        sharp = [sharpened(prefix, weights, labels) for weights in choices]
        found.append(min(sharp, key=lambda weights: _badness(prefix, weights, labels)).float())
    return found


def ridge_weights(outputs: Tensor, labels: Tensor) -> Tensor:
    """Weights (k,) by least squares on centred one-hot labels, shrunk towards the best multiple of the uniform average.

    How strongly, of `RIDGES`, two-fold cross-validation says.

    Args:
        outputs: (n, k, C) float64.
        labels: (n,).
    """
    fold = torch.arange(len(labels)) % 2 == 0

    def loss(ridge: float) -> float:
        total = 0.0
        for part in (fold, ~fold):
            weights = _ridge(outputs[part], labels[part], ridge)
            other = outputs[~part], labels[~part]
            total += _loss(other[0], sharpened(other[0], weights, other[1]), other[1]) * len(other[1])
        return total

    return _ridge(outputs, labels, min(RIDGES, key=loss) if len(labels) > 3 else RIDGES[-1])


def held_out_loss(outputs: Tensor, labels: Tensor) -> float:
    """Nats of the whole prefix (n, k, C) on examples that its weights were not fitted on, two-fold."""
    outputs, fold = outputs.double(), torch.arange(len(labels)) % 2 == 0
    total = 0.0
    for part in (fold, ~fold):
        weights = fit_ensemble_weights(outputs[part], labels[part])[-1].double()
        total += _loss(outputs[~part], weights, labels[~part]) * int((~part).sum())
    return total / len(labels)


def sharpened(outputs: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
    """The weights (k,) times the inverse temperature that makes the cross-entropy smallest."""
    logits = torch.einsum("nkc,k->nc", outputs, weights)
    size = float(logits.std())
    if size == 0:
        return weights
    losses = [float(cross_entropy(logits * (sharp / size), labels)) for sharp in SHARPNESS]
    return weights * (SHARPNESS[int(torch.tensor(losses).argmin())] / size)


def _ridge(outputs: Tensor, labels: Tensor, ridge: float) -> Tensor:
    classes, count = outputs.shape[2], outputs.shape[1]
    answers = one_hot(labels, classes).double() - 1 / classes
    flat, wanted = outputs.transpose(1, 2).reshape(-1, count), answers.flatten()
    average = flat.mean(1)
    level = float(average @ wanted) / max(float(average @ average), 1e-12) / count
    gram = flat.T @ flat
    shrink = (ridge * float(gram.diagonal().mean()) + 1e-9) * torch.eye(count, dtype=torch.float64)
    beyond: Tensor = torch.linalg.solve(gram + shrink, flat.T @ (wanted - level * flat.sum(1)))
    return level + beyond


def _loss(outputs: Tensor, weights: Tensor, labels: Tensor) -> float:
    return float(cross_entropy(torch.einsum("nkc,k->nc", outputs, weights), labels))


def _badness(outputs: Tensor, weights: Tensor, labels: Tensor) -> tuple[int, float]:
    logits = torch.einsum("nkc,k->nc", outputs, weights.float().double())
    return int((logits.argmax(1) != labels).sum()), float(cross_entropy(logits, labels))
