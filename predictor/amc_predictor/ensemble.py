"""The predictor of the product: a Gaussian process, an ensemble of small networks on top, calibrated spread.

Up to `LARGEST` measured policies the process is exact, and each fold has `members` networks, as has everything. Of more
the process is projected on so many anchors, and there is one network a fold: the cost grows linearly.

Notation in this package
n: measured policies. b: policies asked about. d: columns, one a group, or more where bits are chosen too.
m: members of the ensemble. K: folds.
x: policies (b, d): kept fractions in [0, 1], bits in [1, 32].
F: features (b, 4d), or (b, 5d + 2) with a sensitivity, scaled on the measured policies; see `amc_predictor.features`.
y: accuracy in [0, 1]. z: score, the scale of the link on which accuracy behaves; y = link.accuracy(z).
f: mean of the process, (b,) in score. g_j: network j of m, (b,) in score. mean = link.accuracy(f + mean_j g_j).
h: variance of f (b,), in score squared; grows with the distance from the measured policies.
sigma: noise, in score, as the labels' likelihood has it.
v: h + var_j g_j (b,), what is not known because too little was measured. sigma^2: what no model would know.
s: slope of the link, accuracy per score. std^2 = scale^2 (s^2 sigma^2 + max(s, s_typical)^2 v).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from amc_predictor import conformal
from amc_predictor.evidence import Evidence
from amc_predictor.examples import bits_mask, checked_examples, checked_policies, fold_of_each
from amc_predictor.features import TOLD, Scaling
from amc_predictor.kernel import terms_of
from amc_predictor.link import Link, candidate_links
from amc_predictor.model import MODEL_TENSORS, Model
from amc_predictor.networks import MANY_HIDDEN, Networks, Training, train, train_on_many
from amc_predictor.process import Process, projections
from amc_predictor.ranks import Ranks
from amc_predictor.sensitivity import Sensitivity

NOISE_FLOOR = 1e-4  # of accuracy: labels that happen to agree are no proof of certainty
SCALE_FLOOR = 0.1
MEDIAN_OF_NORMAL = 0.6745  # of |z|; a median, since one wrecked policy far off would widen every interval
LARGEST = 320  # policies of an exact process, whose cost grows with their cube; of more, so many anchors
JUDGED = 160  # policies, drawn at random, that the search for variances looks at: it costs their cube at every step
RANK_TENSORS = ("accuracy", "mean", "std", "low", "high", "fold")


class EnsemblePredictor:
    """A Gaussian process, plus an ensemble of small networks, with spread calibrated on out-of-fold errors.

    One fit trains the final networks and those of all folds in one batch. The folds' predictions choose the stopping
    step, scale the standard deviation, give the conformal scores, and are kept as `ranks`. Same seed and same data
    give bit-identical predictions; the global random state is not touched.

    Args:
        members: networks in the ensemble.
        hidden: units of each.
        seed: draws folds, initial weights and bootstraps.
        folds: at most this many for calibration; fewer where n is smaller.
        training: settings of the networks.
        bits: numbers of the columns that are bits, each from 1 to 32; all others are kept fractions.
        sensitivity: what is known of the groups before anything is measured; not where there are bits.

    Attributes:
        ranks: out-of-fold judgement of the last fit. Link and stopping step were chosen with all
            labels in view, so it is slightly kind; `cross_validate` is not.
    """

    ranks: Ranks

    def __init__(
        self,
        members: int = 8,
        hidden: int = 32,
        seed: int = 0,
        folds: int = 5,
        training: Training | None = None,
        bits: Sequence[int] = (),
        sensitivity: Sensitivity | None = None,
    ) -> None:
        if members < 1 or hidden < 1:
            raise ValueError(f"members and hidden must be at least 1, got {members=}, {hidden=}")
        if folds < 2:
            raise ValueError(f"folds must be at least 2, got {folds}")
        self.members, self.hidden, self.seed, self.folds = members, hidden, seed, folds
        if bits and sensitivity:
            raise ValueError(f"a sensitivity is of kept fractions, so no column may be bits, got bits={tuple(bits)}")
        self.training, self.bits, self.sensitivity = training or Training(), tuple(bits), sensitivity
        self._model: Model | None = None

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        """Learn from policies (n, d) and accuracies (n,) in [0, 1]; forgets earlier fits.

        Memory grows with n, seconds too: 10,000 policies of 60 groups take a few.

        Raises:
            ValueError: fewer than 4 policies, shapes that do not match, values not finite or
                outside [0, 1], or [1, 32] for bits.
        """
        inputs, labels = checked_examples(policies, accuracy, self.bits)
        fold = fold_of_each(len(labels), self.folds, self.seed)
        with torch.no_grad():
            *apart, whole = self._models(inputs, labels, fold)
            mean, std = torch.empty_like(labels), torch.empty_like(labels)
            for number, model in enumerate(apart):
                held = fold == number
                mean[held], std[held] = model(inputs[held])
            scale = (((labels - mean) / std).abs().median() / MEDIAN_OF_NORMAL).clamp_min(SCALE_FLOOR)
            std = std * scale
            low, high = conformal.cross_interval(mean, std, labels, fold, 0.9)
        self._model = replace(whole, scale=scale)
        self.ranks = Ranks.of(labels, mean, std, low, high, fold)

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Policies (b, d) -> mean (b,), standard deviation (b,) > 0, in the policies' dtype.

        The standard deviation is that of a new measurement about the mean: noise, and what too few policies left
        unknown, scaled to the size of the out-of-fold errors. Both are differentiable in the policies.
        """
        mean, std = self._fitted()(checked_policies(policies, self._fitted().groups, self.bits))
        return mean.to(policies.dtype), std.to(policies.dtype)

    def interval(self, policies: Tensor, coverage: float = 0.9) -> tuple[Tensor, Tensor]:
        """Policies (b, d) -> low (b,), high (b,), which hold a new measurement about `coverage` of the time.

        Holds for policies drawn like the measured ones; for policies that an ascent chose it is a guide. The ends lie
        in [0, 1]; fewer measured policies than the coverage needs (9 for 0.9) give the whole of [0, 1].
        """
        mean, std = self._fitted()(checked_policies(policies, self._fitted().groups, self.bits))
        scores = (self.ranks.accuracy - self.ranks.mean).abs() / self.ranks.std
        low, high = conformal.interval(mean, std, scores, coverage)
        return low.to(policies.dtype), high.to(policies.dtype)

    def state(self) -> dict[str, Tensor]:
        """All that `from_state` needs, as tensors: predictions, intervals and ranks survive exactly."""
        tensors = {f"ranks.{name}": getattr(self.ranks, name) for name in RANK_TENSORS}
        return tensors | {f"model.{name}": tensor for name, tensor in self._fitted().tensors().items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted predictor that `state` came from; `fit` on it starts afresh with the default settings."""
        model = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
        missing = set(RANK_TENSORS) - {name.removeprefix("ranks.") for name in state}
        if missing or model.keys() != set(MODEL_TENSORS):
            raise ValueError(f"a predictor's state has tensors model.* and ranks.*, got {sorted(state)}")
        groups = len(model["bits"])
        sensitivity = Sensitivity(model["kept"], model["harm"])
        features = 5 * groups + TOLD if sensitivity else 4 * groups
        terms = terms_of(model["bits"], bool(sensitivity))
        if len(model["center"]) != features:
            raise ValueError(f"a predictor of {groups} groups has {features} features, got {len(model['center'])}")
        if len(model["amplitudes"]) != terms:
            raise ValueError(f"a kernel has {terms} amplitudes, got {len(model['amplitudes'])}")
        bits = model["bits"].nonzero().squeeze(1).tolist()
        predictor = cls(bits=bits, sensitivity=sensitivity or None)
        predictor._model = Model.of_tensors(model)
        predictor.ranks = Ranks.of(*(state[f"ranks.{name}"] for name in RANK_TENSORS))
        return predictor

    def _fitted(self) -> Model:
        if self._model is None:
            raise RuntimeError("fit the predictor before asking it")
        return self._model

    def _models(self, inputs: Tensor, labels: Tensor, fold: Tensor) -> list[Model]:
        """One model a fold, which has not seen it, then the model of everything."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        anchors, judged = order[:LARGEST].sort().values, order[:JUDGED].sort().values
        bits = bits_mask(inputs.shape[1], self.bits)
        scaling = Scaling.of(inputs[anchors], bits, self._sensitivity(inputs.shape[1]))
        features = scaling(inputs)
        seen = fold != torch.arange(int(fold.max()) + 2)[:, None]  # (K + 1, n): the last row sees every policy
        if len(labels) <= LARGEST:
            link, processes, offset = self._exact(features, labels, seen, judged, bits)
            networks = self._trained(features[:, : inputs.shape[1]], labels, offset, seen, link)
        else:
            link, processes, offset = self._projected(features, labels, seen, anchors, judged, bits)
            networks = self._trained_on_many(features, labels, offset, seen, link)
        models = []
        for process, score, own in zip(processes, offset, networks, strict=True):
            slope = link.slope(score).median()
            noise = process.noise.clamp_min((NOISE_FLOOR / slope).square())
            models.append(Model(scaling, link, replace(process, noise=noise), own, slope, torch.ones_like(slope)))
        return models

    def _sensitivity(self, groups: int) -> Sensitivity | None:
        if self.sensitivity is not None and len(self.sensitivity.kept) != groups:
            raise ValueError(
                f"the sensitivity must have a curve for each of {groups} groups, got {len(self.sensitivity.kept)}"
            )
        return self.sensitivity

    def _exact(
        self, features: Tensor, labels: Tensor, seen: Tensor, judged: Tensor, bits: Tensor
    ) -> tuple[Link, list[Process], Tensor]:
        """The link that all labels speak for, for each row of `seen` (K + 1, n) a process with the variances that its
        own labels speak for, and their scores (K + 1, n).
        """
        evidence = Evidence(features[judged], bits)
        best = evidence.best(labels[judged], candidate_links(labels))
        known = [judged[rows[judged]] for rows in seen[:-1]]
        choices = [Evidence(features[rows], bits).best(labels[rows], [best.link], best.logarithms) for rows in known]
        choices.append(evidence.settled(labels[judged], best))
        score = best.link.score(labels)
        processes = [
            Process.of(features[rows], score[rows], bits, choice) for rows, choice in zip(seen, choices, strict=True)
        ]
        return best.link, processes, torch.stack([process.score(features) for process in processes])

    def _projected(
        self, features: Tensor, labels: Tensor, seen: Tensor, anchors: Tensor, judged: Tensor, bits: Tensor
    ) -> tuple[Link, list[Process], Tensor]:
        """The same of many policies: all processes have the same anchors and variances."""
        evidence = Evidence(features[judged], bits)
        choice = evidence.settled(labels[judged], evidence.best(labels[judged], candidate_links(labels)))
        return choice.link, *projections(features, choice.link.score(labels), seen, anchors, bits, choice)

    def _trained(self, inputs: Tensor, labels: Tensor, offset: Tensor, seen: Tensor, link: Link) -> list[Networks]:
        """The networks of all folds, and of everything, trained at once: (K + 1) times `members` of them."""
        generator = torch.Generator().manual_seed(self.seed)
        count = len(seen) * self.members
        chance = seen.float().repeat_interleave(self.members, dim=0)
        draws = torch.multinomial(chance, len(labels), replacement=True, generator=generator)
        weight = torch.zeros_like(chance).scatter_add_(1, draws, torch.ones_like(chance))
        trained = train(
            Networks.untrained(count, inputs.shape[1], self.hidden, generator),
            inputs=inputs.float(),
            offset=offset.float().repeat_interleave(self.members, dim=0),
            accuracy=labels.float(),
            weight=weight,
            held=(1 - chance) / self.members,
            link=link,
            training=self.training,
        )
        return [trained.some(slice(index * self.members, (index + 1) * self.members)) for index in range(len(seen))]

    def _trained_on_many(
        self, features: Tensor, labels: Tensor, offset: Tensor, seen: Tensor, link: Link
    ) -> list[Networks]:
        """One network a fold, which has not seen it, and all of them for everything."""
        folds = len(seen) - 1
        generator = torch.Generator().manual_seed(self.seed)
        trained = Networks.untrained(folds, features.shape[1], MANY_HIDDEN, generator)
        if self.training.steps:
            trained = train_on_many(
                trained, features.float(), offset[:-1].float(), labels.float(), seen[:-1], link, generator
            )
        return [*(trained.some(slice(number, number + 1)) for number in range(folds)), trained.some(slice(None))]
