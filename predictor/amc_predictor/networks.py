"""The learned part: small networks on what the Gaussian process leaves over, trained side by side.

An exact process leaves little over that a network could learn from as few policies; one that is projected on a few
anchors sees less of many policies than they tell, and there the networks speak.

Symbols: m networks at once, n policies, d inputs, h hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.link import Link

EVERY = 10  # steps between two looks at the held-out error
PATIENCE = 40  # steps without a lower held-out error after which training ends
GAIN = 0.9  # networks must cut the held-out squared error to this share of what they find, or stay silent


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
    """How networks are trained: steps of AdamW; 0: not at all, so that they say nothing."""

    steps: int = 150
    learning_rate: float = 0.003
    weight_decay: float = 0.1


MANY = Training(steps=250, learning_rate=0.03, weight_decay=0.01)  # in batches, the rate falling to 0
MANY_HIDDEN, BATCH = 128, 256


def train(
    networks: Networks,
    inputs: Tensor,
    offset: Tensor,
    accuracy: Tensor,
    weight: Tensor,
    held: Tensor,
    link: Link,
    training: Training,
) -> Networks:
    """Train all networks at once, full batch, on weighted squared error of accuracy; returns them at the best step.

    Step 0, where the networks say nothing, is among those tried: what the networks cannot learn they do not spoil.

    Args:
        networks: m untrained ones.
        inputs: (n, d) standardised.
        offset: (m, n) scores of each network's process.
        accuracy: (n,).
        weight: (m, n) how often each network's bootstrap drew each policy, 0 where held out.
        held: (m, n) 1 where the network's output counts as held-out prediction of the policy, else 0.
        link: from score to accuracy.
        training: settings.
    """
    parameters = [parameter.clone().requires_grad_() for parameter in networks.parameters()]
    current = Networks(*parameters)
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    silent = torch.inf
    unit = accuracy.var(correction=0).clamp_min(1e-6) * weight.sum(dim=1, keepdim=True)
    lowest, lowest_step, best = torch.inf, 0, networks
    for step in range(training.steps + 1):
        with torch.enable_grad():
            output = current(inputs)
            loss = (weight * (link.accuracy(offset + output) - accuracy).square() / unit).sum()
        if step % EVERY == 0:
            mean = (held * (offset + output.detach())).sum(dim=0) / held.sum(dim=0)
            missed = float((link.accuracy(mean) - accuracy).square().mean())
            silent = missed if step == 0 else silent
            if missed < lowest:
                lowest, lowest_step = missed, step
                if missed < GAIN * silent:
                    best = Networks(*(parameter.detach().clone() for parameter in parameters))
            elif step - lowest_step >= PATIENCE:
                break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return best


def train_on_many(
    networks: Networks,
    inputs: Tensor,
    offset: Tensor,
    accuracy: Tensor,
    seen: Tensor,
    link: Link,
    generator: torch.Generator,
) -> Networks:
    """Train all networks at once in small batches, on squared error of accuracy; returns silent ones unless they help.

    They help where each predicts the policies that it has not seen better than its process alone does.

    Args:
        networks: m untrained ones.
        inputs: (n, F) standardised.
        offset: (m, n) scores of each network's process.
        accuracy: (n,).
        seen: (m, n) which policies each network learns from; by the others it is judged.
        link: from score to accuracy.
        generator: draws the batches.
    """
    few = int(seen.sum(dim=1).min())
    pools = torch.stack([rows.nonzero().squeeze(1)[:few] for rows in seen])
    unit = (link.score(accuracy) - offset).abs().median()  # robust: wrecked policies lie far off on some links
    error = (link.accuracy(offset) - accuracy).square()
    inner, bias, outer = (parameter.clone().requires_grad_() for parameter in networks.parameters())
    optimizer = torch.optim.AdamW([inner, bias, outer], lr=MANY.learning_rate, weight_decay=MANY.weight_decay)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, MANY.steps)
    for _ in range(MANY.steps):
        rows = pools.gather(1, torch.randint(few, (len(pools), BATCH), generator=generator))
        with torch.enable_grad():
            score = offset.gather(1, rows) + Networks(inner, bias, outer * unit)(inputs[rows])
            loss = (link.accuracy(score) - accuracy[rows]).square().mean(dim=1).sum() / error.mean().clamp_min(1e-12)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
    found = Networks(inner.detach(), bias.detach(), outer.detach() * unit)
    missed = (link.accuracy(offset + found(inputs)) - accuracy).square()
    return found if missed[~seen].mean() < error[~seen].mean() else networks
