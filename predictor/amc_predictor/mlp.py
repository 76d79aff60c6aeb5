"""Small networks alone, without a Gaussian process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amc_predictor.calibrated import CalibratedPredictor
from amc_predictor.curves import SensitivityCurves
from amc_predictor.examples import bits_mask
from amc_predictor.features import Scaling
from amc_predictor.link import Link
from amc_predictor.model import Model
from amc_predictor.networks import Networks, Training, train
from amc_predictor.process import Process
from amc_predictor.trees import Trees

NOISE_FLOOR = 1e-4  # of accuracy: values that happen to agree are no proof of certainty


class MLPPredictor(CalibratedPredictor):
    """An ensemble of `members` multilayer perceptrons on bootstraps; their disagreement is what is not known.

    They learn accuracy itself, less its mean, from the features of `amc_predictor.features`.

    Args:
        members: networks in the ensemble.
        hidden: units of each.
        training: settings of the networks.
        seed, folds, bits, sensitivity: see `CalibratedPredictor`.

    Source: the predictor of SeerNet (arXiv 2304.06393) is one such network; Lakshminarayanan et al., arXiv
    1612.01474: spread by ensembles.
    """

    def __init__(
        self,
        members: int = 8,
        hidden: int = 32,
        training: Training = Training(steps=400, learning_rate=0.01, gain=1.0),
        *,
        seed: int = 0,
        folds: int = 5,
        bits: Sequence[int] = (),
        sensitivity: SensitivityCurves | None = None,
    ) -> None:
        if members < 1 or hidden < 1:
            raise ValueError(f"members and hidden must be at least 1, got {members=}, {hidden=}")
        super().__init__(seed=seed, folds=folds, bits=bits, sensitivity=sensitivity)
        self.members, self.hidden, self.training = members, hidden, training

    def _models(self, inputs: Tensor, values: Tensor, fold: Tensor) -> list[Model]:
        generator = torch.Generator().manual_seed(self.seed)
        bits = bits_mask(inputs.shape[1], self.bits)
        scaling = Scaling.of(inputs, bits, self.sensitivity)
        features = scaling(inputs)
        seen = fold != torch.arange(int(fold.max()) + 2)[:, None]  # (K + 1, n): the last row sees every policy
        means = torch.stack([values[rows].mean() for rows in seen])
        drawn, held = bootstraps(seen, self.members, generator)
        offset = means.repeat_interleave(self.members)[:, None].expand(-1, len(values))
        unit = float(values.std(correction=0).clamp_min(NOISE_FLOOR))
        networks = train(
            Networks.untrained(len(drawn), features.shape[1], self.hidden, generator),
            inputs=features.float(), offset=offset.float(), accuracy=values.float(), weight=drawn, held=held,
            link=Link(), training=self.training, generator=generator, unit=unit,
        )  # fmt: skip
        every = [networks.some(slice(row * self.members, (row + 1) * self.members)) for row in range(len(seen))]
        missed = torch.stack(
            [
                (values[~rows] - mean - own(features[~rows]).mean(dim=0)).square().mean()
                for rows, mean, own in zip(seen[:-1], means, every, strict=False)
            ]
        )
        noise = missed.mean().clamp_min(NOISE_FLOOR**2)
        one = torch.ones((), dtype=torch.float64)
        return [
            Model(
                scaling, Link(), Process.flat(bits, bool(scaling.sensitivity), features.shape[1], mean, noise), own,
                Trees.constant(mean), mean, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), one, one,
            )
            for mean, own in zip(means, every, strict=True)
        ]  # fmt: skip


def bootstraps(seen: Tensor, members: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of each row of `seen` (k, n) a bootstrap a member: how often each policy is drawn, (k members, n).

    With it, (k members, n), what each network's output counts in the held-out prediction of a policy.
    """
    chance = seen.float().repeat_interleave(members, dim=0)
    draws = torch.multinomial(chance, chance.shape[1], replacement=True, generator=generator)
    weight = torch.zeros_like(chance).scatter_add_(1, draws, torch.ones_like(chance))
    return weight, (1 - chance) / members
