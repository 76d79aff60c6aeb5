"""Learned chances that a stage is right, from all that a stop rule sees: one logistic regression for each stage."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from amc.cascade.stages.records import FEATURES

RIDGE = 10.0  # on the weights of standardised inputs, against a loss summed over the examples
STEPS = 100


def probability(features: Tensor, weights: Tensor) -> Tensor:
    """Features (b, F) and weights (F + 2,) -> (b,) in [0, 1]."""
    return torch.sigmoid((_inputs(features) * weights).sum(1))


def fit_probability(features: Tensor, right: Tensor) -> Tensor:
    """Weights (F + 2,) of the ridge-penalised logistic regression of `right` (n,) on features (n, F), by Newton."""
    inputs, targets = _inputs(features), right.double()
    mean, spread = inputs.mean(0), inputs.std(0, correction=0)
    mean[0], spread[0] = 0.0, 1.0
    varies = spread > 1e-9  # a constant input, such as the streak at the first stage, gets no weight
    scaled = torch.where(varies, (inputs - mean) / spread.clamp(min=1e-9), 0.0)
    ridge = torch.full_like(mean, RIDGE)
    ridge[0] = 1e-3  # hardly any on the intercept: only so that all right or all wrong has an end
    weights = torch.zeros_like(mean)

    def loss(at: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(scaled @ at, targets, reduction="sum") + (ridge * at**2).sum() / 2

    for _ in range(STEPS):
        fitted = torch.sigmoid(scaled @ weights)
        gradient = scaled.T @ (fitted - targets) + ridge * weights
        curvature = (scaled.T * (fitted * (1 - fitted))) @ scaled + torch.diag(ridge)
        step = torch.linalg.solve(curvature, gradient)
        here = loss(weights)
        while loss(weights - step) > here and float(step.abs().max()) > 1e-9:
            step = step / 2
        weights = weights - step
        if float(step.abs().max()) < 1e-9:
            break
    raw = torch.where(varies, weights / spread.clamp(min=1e-9), 0.0)
    raw[0] = weights[0] - (raw[1:] * mean[1:]).sum()
    return raw


def _inputs(features: Tensor) -> Tensor:
    """(b, F) -> (b, F + 2): one, the features, and the log-odds of the confidence, which it is nearly linear in."""
    confidence = features[:, FEATURES.index("confidence")].clamp(1e-6, 1 - 1e-6)
    odds = torch.log(confidence / (1 - confidence))
    return torch.cat([torch.ones_like(odds)[:, None], features, odds[:, None]], 1)
