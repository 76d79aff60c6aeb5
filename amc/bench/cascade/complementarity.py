"""How the errors of two networks go together: what makes one a good saver of the other beside its own accuracy.

A saver loses accuracy only where it is wrong, sure of itself, and the base is right. Networks pruned from the base make
its errors again, so their agreement is weak evidence that both are right; independent ones disagree where one is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amc.cascade import FEATURES, Records

RESAMPLES = 400  # for the interval of phi


@dataclass(frozen=True)
class Complementarity:
    """A saver and a base on the same n examples; shares are of all examples, and the first five add up to one.

    Attributes:
        both_right: share.
        saver_only: the saver right, the base wrong.
        base_only: the base right, the saver wrong: what handing over gains.
        wrong_alike: both wrong, with the same answer.
        wrong_apart: both wrong, with different answers.
        both_wrong_by_chance: share of both wrong, were errors independent.
        alike_by_chance: share of one wrong answer for both among the examples where both are wrong, were their wrong
            answers independent given the label; 0 where there are none.
        phi: correlation of being wrong, 0 if errors are independent; 0 too where one of them is never or always wrong.
        phi_interval: 95 %, of resampled examples.
        gain_ranked: chance that the saver is less confident of an example on which handing over gains than of one on
            which it does not (area under the ROC curve); 0.5 where there are none.
        agreement_right: of the examples on which both give one answer, the share on which it is right.
    """

    saver: str
    base: str
    number: int
    both_right: float
    saver_only: float
    base_only: float
    wrong_alike: float
    wrong_apart: float
    both_wrong_by_chance: float
    alike_by_chance: float
    phi: float
    phi_interval: tuple[float, float]
    gain_ranked: float
    agreement_right: float

    @property
    def both_wrong(self) -> float:
        return self.wrong_alike + self.wrong_apart

    @property
    def alike(self) -> float:
        """Of the examples where both are wrong, the share with one answer."""
        return self.wrong_alike / self.both_wrong if self.both_wrong else 0.0


def complementarity(pair: Records, seed: int = 0) -> Complementarity:
    """Judge a saver and a base by what they said.

    Args:
        pair: records of two stages, the saver first.
        seed: of the resampling.
    """
    saver, base = pair.right
    same = pair.predictions[0] == pair.predictions[1]
    cells = torch.stack([saver & base, saver & ~base, ~saver & base, ~saver & ~base]).double().mean(1)
    drawn = np.random.default_rng(seed).multinomial(len(pair), (cells / cells.sum()).numpy(), RESAMPLES)
    resampled = phi_of(torch.from_numpy(drawn).double() / len(pair))
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    wrong = ~saver & ~base
    return Complementarity(
        saver=pair.stages[0],
        base=pair.stages[1],
        number=len(pair),
        both_right=float(cells[0]),
        saver_only=float(cells[1]),
        base_only=float(cells[2]),
        wrong_alike=float((wrong & same).double().mean()),
        wrong_apart=float((wrong & ~same).double().mean()),
        both_wrong_by_chance=float((1 - pair.accuracies).prod()),
        alike_by_chance=_alike_by_chance(pair, wrong),
        phi=float(phi_of(cells)),
        phi_interval=(low, high),
        gain_ranked=_ranked(pair.features[0][:, FEATURES.index("confidence")], ~saver & base),
        agreement_right=float(saver[same].double().mean()) if bool(same.any()) else 0.0,
    )


def phi_of(cells: Tensor) -> Tensor:
    """Correlation of two yes-or-no answers from the shares (..., 4) of yes-yes, yes-no, no-yes and no-no."""
    both, first, second, neither = cells.unbind(-1)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    return torch.where(product > 0, (both * neither - first * second) / product.clamp(min=1e-300).sqrt(), 0.0)


def _alike_by_chance(pair: Records, wrong: Tensor) -> float:
    """Expected share of equal answers among those where both are wrong, each drawing from its own errors by label."""
    if not bool(wrong.any()):
        return 0.0
    classes = pair.logits.shape[2]
    tables = []
    for predictions, right in zip(pair.predictions, pair.right, strict=True):
        table = torch.zeros(classes, classes, dtype=torch.float64)
        table.index_put_(
            (pair.labels[~right], predictions[~right]), torch.ones((), dtype=torch.float64), accumulate=True
        )
        tables.append(table / table.sum(1, keepdim=True).clamp(min=1))
    return float((tables[0] * tables[1]).sum(1)[pair.labels[wrong]].mean())


def _ranked(confidence: Tensor, gains: Tensor) -> float:
    """Area under the ROC curve of low confidence as a sign of `gains`; equal confidences count half."""
    of, others = confidence[gains], confidence[~gains].sort().values
    if not len(of) or not len(others):
        return 0.5
    above = len(others) - torch.searchsorted(others, of, right=True)
    equal = torch.searchsorted(others, of, right=True) - torch.searchsorted(others, of)
    return float((above + equal / 2).double().mean() / len(others))
