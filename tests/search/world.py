"""A small known world: spaces, costs and a predictor whose truth the tests can compute."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from amc_search import Cap, Policies, Space, costs_of


@dataclass(frozen=True)
class Macs:
    """A sum over layers of a product of two non-negative linear forms of the keep-counts: forms are (layers, d)."""

    inputs: Tensor
    outputs: Tensor
    unit: str = "MACs"

    def __call__(self, policies: Tensor) -> Tensor:
        return ((policies @ self.inputs.T + 1) * (policies @ self.outputs.T + 1)).sum(dim=-1)


class Ridge:
    """Ridge on (x, log x), with the spread of bootstrap refits as standard deviation."""

    def __init__(self, members: int = 10, penalty: float = 1e-2, seed: int = 0) -> None:
        self.members, self.penalty, self.seed = members, penalty, seed
        self.fits = 0

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        rng = np.random.default_rng(self.seed)
        features, values = self._features(policies.double()), accuracy.double()
        self.offset, self.scale, self.mean = features.mean(0), features.std(0, correction=0) + 1e-3, values.mean()
        features = (features - self.offset) / self.scale
        weights = []
        for member in range(self.members):
            drawn = torch.as_tensor(rng.integers(len(values), size=len(values)) if member else np.arange(len(values)))
            chosen = features[drawn]
            gram = chosen.T @ chosen + self.penalty * len(values) * torch.eye(chosen.shape[1], dtype=torch.float64)
            weights.append(torch.linalg.solve(gram, chosen.T @ (values[drawn] - self.mean)))
        self.weights = torch.stack(weights, dim=1).float()
        self.fits += 1

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        features = (self._features(policies) - self.offset.float()) / self.scale.float()
        answers = features @ self.weights + self.mean.float()
        return answers.mean(dim=1), (answers.var(dim=1) + 1e-10).sqrt()

    def _features(self, policies: Tensor) -> Tensor:
        return torch.cat([policies, policies.clamp(min=1e-3).log()], dim=-1)


def fitted_ridge(space: Space, seed: int = 0) -> Ridge:
    """A ridge that learned noise on random fractions: any opinion will do."""
    rng = np.random.default_rng(seed)
    fractions = torch.as_tensor(rng.uniform(0.05, 1, (24, len(space)))).float()
    ridge = Ridge(members=4)
    ridge.fit(fractions, fractions.mean(dim=1) * 0.3 + 0.5 + 0.05 * torch.as_tensor(rng.normal(size=24)).float())
    return ridge


def chain(groups: int, seed: int = 0, step: int = 4, size: int = 64) -> tuple[Space, Macs]:
    """A chain of layers: layer i reads group i - 1 and writes group i, on a feature map that shrinks."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(s) for s in step * rng.integers(size // (2 * step), 2 * size // step, groups))
    inputs, outputs = torch.zeros(groups, groups, dtype=torch.float64), torch.eye(groups, dtype=torch.float64)
    for layer in range(1, groups):
        inputs[layer, layer - 1] = float(2 ** rng.integers(0, 4)) * 9
    inputs[0] = 0
    space = Space(tuple(f"group{i}" for i in range(groups)), sizes, (step,) * groups)
    return space, Macs(inputs, outputs)


def every_other_removable(space: Space) -> Space:
    """The same space, of which groups 1, 3, 5, ... may be dropped, as the inner channels of residual blocks are."""
    return replace(space, removable=tuple(group % 2 == 1 for group in range(len(space))))


def dense_cost(space: Space, cost: Macs) -> float:
    return float(cost(torch.as_tensor(space.high[None], dtype=torch.float64))[0])


def smallest_cost(space: Space, cost: Macs) -> float:
    return float(cost(torch.as_tensor(space.low[None], dtype=torch.float64))[0])


def cap_at(space: Space, cost: Macs, share: float) -> Cap:
    """The cap that lies `share` of the way from the smallest to the dense cost."""
    low, high = smallest_cost(space, cost), dense_cost(space, cost)
    return Cap(cost, low + share * (high - low))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Space, tuple[Cap, ...]]:
    """Random spaces, some with removable groups, under one to three random monotone caps, all reachable."""
    groups = draw(st.integers(1, 6))
    steps = tuple(draw(st.sampled_from((1, 2, 8))) for _ in range(groups))
    sizes = tuple(step * draw(st.integers(1, 24)) for step in steps)
    removable = draw(st.one_of(st.just(()), st.tuples(*[st.booleans()] * groups)))
    space = Space(tuple(f"g{i}" for i in range(groups)), sizes, steps, removable)
    caps = []
    for _ in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        layers = int(rng.integers(1, 5))
        forms = [
            torch.as_tensor(rng.integers(0, 9, (layers, groups)) * (rng.random((layers, groups)) < 0.7)).double()
            for _ in range(2)
        ]
        caps.append(cap_at(space, Macs(forms[0], forms[1]), draw(st.floats(0, 1))))
    return space, tuple(caps)


def assert_lawful(policies: Policies, space: Space, caps: tuple[Cap, ...]) -> None:
    """Every policy is an integer on its grid and its exact cost is under every cap."""
    assert policies.dtype == np.int64 and policies.shape[-1] == len(space)
    assert space.is_legal(policies).all()
    assert (costs_of(policies, caps) <= 1).all()


@dataclass(frozen=True)
class Truth:
    """An additive concave accuracy: every group saturates at its own pace and matters by its own weight."""

    weight: NDArray[np.float64]
    pace: NDArray[np.float64]

    @classmethod
    def drawn(cls, groups: int, seed: int) -> Truth:
        rng = np.random.default_rng(seed)
        weight = rng.lognormal(0, 1, groups)
        return cls(0.5 * weight / weight.sum(), rng.uniform(2, 8, groups))

    def __call__(self, policies: Policies, space: Space) -> NDArray[np.float64]:
        fractions = policies / space.high
        kept = (1 - np.exp(-self.pace * fractions)) / (1 - np.exp(-self.pace))
        accuracy: NDArray[np.float64] = 0.45 + (self.weight * kept).sum(axis=-1)
        return accuracy
