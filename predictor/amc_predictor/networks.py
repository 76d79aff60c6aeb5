"""Ensembles of small networks, trained side by side: on what the Gaussian process leaves over, or alone.

An exact process leaves little over that a network could learn from as few policies; one that is projected on a few
anchors sees less of many policies than they tell, and there the networks speak.

Symbols: m networks at once, n policies, d inputs, h hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.link import Link

PATIENCE = 40  # steps without a lower held-out error after which training ends


@dataclass(frozen=True)
class Networks:
    """m networks Linear(d, h)-tanh-Linear(h, 1) with no output bias; tanh keeps them bounded far from the data.

    Attributes:
        inner: (m, d, h).
        bias: (m, 1, h).
        outer: (m, h, 1).
    """

    inner: Tensor
    bias: Tensor
    outer: Tensor

    @classmethod
    def untrained(cls, count: int, groups: int, hidden: int, generator: torch.Generator) -> Networks:
        """Random inner layers, outer layers at zero: before training every network says 0."""
        inner = torch.randn(count, groups, hidden, generator=generator) / groups**0.5
        bias = torch.randn(count, 1, hidden, generator=generator)
        return cls(inner, bias, torch.zeros(count, hidden, 1))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Standardised inputs (b, d or more) or (m, b, d or more), of which the first d count -> outputs (m, b)."""
        hidden = torch.matmul(inputs[..., : self.inner.shape[1]], self.inner).add(self.bias).tanh()
        return torch.matmul(hidden, self.outer).squeeze(-1)

    def some(self, members: slice) -> Networks:
        """Those of them, as float64."""
        return Networks(*(parameter[members].double() for parameter in self.parameters()))

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inner, self.bias, self.outer


@dataclass(frozen=True)
class Training:
    """How networks are trained by AdamW.

    Attributes:
        steps: at most; 0: not at all, so that they say nothing.
        learning_rate, weight_decay: of AdamW.
        batch: policies drawn at every step, while the rate falls to 0; 0: all of them, at one rate.
        every: steps between two looks at the held-out error; the best networks looked at are kept.
        gain: share of the held-out squared error before training to which networks must cut it, or stay silent.
    """

    steps: int = 150
    learning_rate: float = 0.003
    weight_decay: float = 0.1
    batch: int = 0
    every: int = 10
    gain: float = 0.9


def train(
    networks: Networks,
    inputs: Tensor,
    offset: Tensor,
    accuracy: Tensor,
    weight: Tensor,
    held: Tensor,
    link: Link,
    training: Training,
    generator: torch.Generator,
    unit: float = 1.0,
) -> Networks:
    """Train all networks at once on weighted squared error of accuracy; returns them at the best step looked at.

    Step 0, where the networks say nothing, is among those: what the networks cannot learn they do not spoil.

    Args:
        networks: m untrained ones.
        inputs: (n, d) standardised.
        offset: (m, n) scores of each network's process.
        accuracy: (n,).
        weight: (m, n) how often each network sees each policy, 0 where held out.
        held: (m, n) 1 where the network's output counts as held-out prediction of the policy, else 0.
        link: from score to accuracy.
        training: settings.
        generator: draws the batches.
        unit: score that an output of 1 stands for while training.
    """
    parameters = [parameter.clone().requires_grad_() for parameter in networks.parameters()]
    current = Networks(*parameters)
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0 if training.batch else 1.0, max(training.steps, 1))
    spread = accuracy.var(correction=0).clamp_min(1e-6)
    silent, lowest, lowest_step, best = torch.inf, torch.inf, 0, networks
    for step in range(training.steps + 1):
        if step % training.every == 0:
            with torch.no_grad():
                mean = (held * (offset + unit * current(inputs))).sum(dim=0) / held.sum(dim=0)
            missed = float((link.accuracy(mean) - accuracy).square().mean())
            silent = missed if step == 0 else silent
            if missed < lowest:
                lowest, lowest_step = missed, step
                if missed < training.gain * silent:
                    inner, bias, outer = (parameter.detach().clone() for parameter in parameters)
                    best = Networks(inner, bias, unit * outer)
            elif step - lowest_step >= PATIENCE:
                break
        known, expected, truth, counts = inputs, offset, accuracy, weight
        if training.batch:
            rows = torch.multinomial(weight, training.batch, replacement=True, generator=generator)
            known, expected, truth, counts = (
                inputs[rows],
                offset.gather(1, rows),
                accuracy[rows],
                torch.ones(rows.shape),
            )
        with torch.enable_grad():
            error = (link.accuracy(expected + unit * current(known)) - truth).square()
            loss = (counts * error / (spread * counts.sum(dim=1, keepdim=True))).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return best
