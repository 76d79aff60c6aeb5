"""Small networks alone, without a Gaussian process."""

from __future__ import annotations

import torch
from torch import Tensor

from amc_predictor.calibrated import NOISE_FLOOR, CalibratedPredictor
from amc_predictor.examples import bits_mask
from amc_predictor.features import Scaling
from amc_predictor.link import Link
from amc_predictor.model import Model
from amc_predictor.networks import Training
from amc_predictor.process import Process
from amc_predictor.trees import Trees


class MLPPredictor(CalibratedPredictor):
    """An ensemble of `members` multilayer perceptrons on bootstraps; how far they differ is what is not known.

    They learn accuracy itself, less its mean, from the features of `amc_predictor.features`.

    Source: the predictor of SeerNet (arXiv 2304.06393) is one such network; Lakshminarayanan et al., arXiv
    1612.01474: spread by ensembles.
    """

    default_training = Training(steps=400, learning_rate=0.01, gain=1.0)

    def _models(self, inputs: Tensor, values: Tensor, fold: Tensor) -> list[Model]:
        bits = bits_mask(inputs.shape[1], self.bits)
        scaling = Scaling.of(inputs, bits, self.sensitivity)
        features = scaling(inputs)
        seen = fold != torch.arange(int(fold.max()) + 2)[:, None]  # (K + 1, n): the last row sees every policy
        means = torch.stack([values[rows].mean() for rows in seen])
        offset = means[:, None].expand(-1, len(values))
        unit = float(values.std(correction=0).clamp_min(NOISE_FLOOR))
        every = self._trained(features, values, offset, seen, Link(), unit)
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
