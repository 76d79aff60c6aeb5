"""The predictor of the product: a Gaussian process, small networks on top, and simpler members beside them.

Up to `LARGEST` measured policies the process is exact, and each fold has `members` networks, as has everything. Of more
the process is projected on so many anchors, and there is one network a fold: the cost grows linearly. Where columns are
bits, boosted trees are a member. Held-out errors say how much each member counts (`amc_predictor.stacking`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from amc_predictor.calibrated import NOISE_FLOOR, CalibratedPredictor
from amc_predictor.evidence import Evidence
from amc_predictor.examples import bits_mask
from amc_predictor.features import Scaling
from amc_predictor.link import Link, candidate_links
from amc_predictor.model import Model
from amc_predictor.networks import Networks, Training, train
from amc_predictor.process import Process, projections
from amc_predictor.trees import Trees

LARGEST = 320  # policies of an exact process, whose cost grows with their cube; of more, so many anchors
JUDGED = 160  # policies, drawn at random, that the search for variances looks at: it costs their cube at every step
MANY = Training(steps=250, learning_rate=0.03, weight_decay=0.01, batch=256, every=250, gain=1.0)
MANY_HIDDEN = 128


class EnsemblePredictor(CalibratedPredictor):
    """A Gaussian process with an ensemble of small networks, boosted trees where there are bits, and the mean.

    One fit trains the final networks and those of all folds in one batch.
    """

    def _models(self, inputs: Tensor, values: Tensor, fold: Tensor) -> list[Model]:
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(self.seed))
        anchors, judged = order[:LARGEST].sort().values, order[:JUDGED].sort().values
        bits = bits_mask(inputs.shape[1], self.bits)
        scaling = Scaling.of(inputs[anchors], bits, self.sensitivity)
        features = scaling(inputs)
        seen = fold != torch.arange(int(fold.max()) + 2)[:, None]  # (K + 1, n): the last row sees every policy
        if len(values) <= LARGEST:
            link, processes, offset = self._exact(features, values, seen, judged, bits)
            networks = self._trained(features[:, : inputs.shape[1]], values, offset, seen, link)
        else:
            link, processes, offset = self._projected(features, values, seen, anchors, judged, bits)
            networks = self._trained_on_many(features, values, offset, seen, link)
        models = []
        for process, score, own, rows in zip(processes, offset, networks, seen, strict=True):
            slope, mean = link.slope(score).median(), values[rows].mean()
            noise = process.noise.clamp_min((NOISE_FLOOR / slope).square())
            trees = Trees.fitted(inputs[rows], values[rows], self.seed) if self.bits else Trees.constant(mean)
            alone, one = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), torch.ones_like(slope)
            models.append(Model(scaling, link, replace(process, noise=noise), own, trees, mean, alone, slope, one))
        return models

    def _exact(
        self, features: Tensor, values: Tensor, seen: Tensor, judged: Tensor, bits: Tensor
    ) -> tuple[Link, list[Process], Tensor]:
        """The link most probable for all values; for each row of `seen` (K + 1, n) a process with the variances most
        probable for its own values, and their scores (K + 1, n).
        """
        evidence = Evidence(features[judged], bits)
        best = evidence.best(values[judged], candidate_links(values))
        known = [judged[rows[judged]] for rows in seen[:-1]]
        choices = [Evidence(features[rows], bits).best(values[rows], [best.link], best.logarithms) for rows in known]
        choices.append(evidence.settled(values[judged], best))
        score = best.link.score(values)
        processes = [
            Process.of(features[rows], score[rows], bits, choice) for rows, choice in zip(seen, choices, strict=True)
        ]
        return best.link, processes, torch.stack([process.score(features) for process in processes])

    def _projected(
        self, features: Tensor, values: Tensor, seen: Tensor, anchors: Tensor, judged: Tensor, bits: Tensor
    ) -> tuple[Link, list[Process], Tensor]:
        """The same of many policies: all processes have the same anchors and variances."""
        evidence = Evidence(features[judged], bits)
        choice = evidence.settled(values[judged], evidence.best(values[judged], candidate_links(values)))
        return choice.link, *projections(features, choice.link.score(values), seen, anchors, bits, choice)

    def _trained_on_many(
        self, features: Tensor, values: Tensor, offset: Tensor, seen: Tensor, link: Link
    ) -> list[Networks]:
        """One network a fold, which has not seen it, and all of them for everything."""
        folds = len(seen) - 1
        generator = torch.Generator().manual_seed(self.seed)
        untrained = Networks.untrained(folds, features.shape[1], MANY_HIDDEN, generator)
        weight = seen[:-1].float()
        trained = train(
            untrained,
            inputs=features.float(),
            offset=offset[:-1].float(),
            accuracy=values.float(),
            weight=weight,
            held=1 - weight,
            link=link,
            training=MANY if self.training.steps else self.training,
            generator=generator,
            unit=float((link.score(values) - offset[:-1]).abs().median()),  # robust: degenerate policies lie far off
        )
        return [*(trained.some(slice(number, number + 1)) for number in range(folds)), trained.some(slice(None))]
