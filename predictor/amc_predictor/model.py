"""One fitted model, policies -> accuracy with its spread, as tensors that can be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.curves import SensitivityCurves
from amc_predictor.features import SUMS, Scaling
from amc_predictor.kernel import terms_of
from amc_predictor.link import KINDS, Link
from amc_predictor.networks import Networks
from amc_predictor.process import PROCESS_TENSORS, Process
from amc_predictor.trees import TREE_TENSORS, Trees

MODEL_TENSORS = {
    *("center", "width", "kept", "harm", "floor", "link", "slope", "scale", "inner", "bias", "outer"),
    *PROCESS_TENSORS,
}
STACK_TENSORS = {*TREE_TENSORS, "constant", "shares"}  # states of before they were there are the model alone


@dataclass(frozen=True)
class Model:
    """One fitted ensemble: policies -> mean and standard deviation.

    Attributes:
        scaling: policies to features.
        link: score to accuracy.
        process: f and h.
        networks: g, m of them.
        trees: a member beside process and networks, of accuracy itself.
        constant: () the mean accuracy, the simplest member.
        shares: (3,) of process with networks, trees and constant in the mean.
        slope: () s_typical.
        scale: () of the standard deviation.
    """

    scaling: Scaling
    link: Link
    process: Process
    networks: Networks
    trees: Trees
    constant: Tensor
    shares: Tensor
    slope: Tensor
    scale: Tensor

    @property
    def groups(self) -> int:
        return len(self.scaling.bits)

    def __call__(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """(b, d) float64 -> mean (b,), std (b,)."""
        mean, variance = self._smooth(policies)
        if self.shares[0] < 1:
            members = self._members(policies, mean)
            mean = self.shares @ members
            variance = variance + self.shares @ (members - mean).square()
        return mean, self.scale * variance.sqrt()

    def members(self, policies: Tensor) -> Tensor:
        """(b, d) float64 -> what each member alone predicts, (3, b)."""
        return self._members(policies, self._smooth(policies)[0])

    def _members(self, policies: Tensor, smooth: Tensor) -> Tensor:
        return torch.stack([smooth, self.trees(policies), self.constant.expand(len(policies))])

    def _smooth(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """(b, d) float64 -> mean and variance of process and networks, (b,) each."""
        features = self.scaling(policies)
        outputs = self.networks(features)
        learned = outputs.mean(dim=0)
        expected, variance = self.process.score_and_variance(features)
        score = expected + learned
        unknown = variance + (outputs - learned).square().mean(dim=0)
        slope = self.link.slope(score)
        variance = slope.square() * self.process.noise + torch.maximum(slope, self.slope).square() * unknown
        return self.link.accuracy(score), variance

    def tensors(self) -> dict[str, Tensor]:
        """All that `of_tensors` needs, by name."""
        link = torch.tensor([KINDS.index(self.link.kind), self.link.floor, self.link.ceiling], dtype=torch.float64)
        scaling, curves = vars(self.scaling).copy(), self.scaling.sensitivity
        del scaling["sensitivity"]
        own = {name: getattr(self, name) for name in ("constant", "shares", "slope", "scale")}
        parts = scaling | vars(self.process) | vars(self.networks) | vars(self.trees) | own
        parts |= {"link": link, "kept": curves.kept, "harm": curves.loss}
        return {name: tensor.clone() for name, tensor in parts.items()}  # safetensors refuses what shares memory

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Model:
        """The model of `tensors`.

        Raises:
            ValueError: tensors are missing, foreign, or of other shapes than belong together.
        """
        if not MODEL_TENSORS <= tensors.keys() <= MODEL_TENSORS | STACK_TENSORS:
            raise ValueError(f"a model has the tensors {sorted(MODEL_TENSORS)}, got {sorted(tensors)}")
        bits, curves = tensors["bits"], SensitivityCurves(tensors["kept"], tensors["harm"])
        groups = len(bits)
        features, terms = 5 * groups + SUMS if curves else 4 * groups, terms_of(bits, bool(curves))
        if len(tensors["center"]) != features:
            raise ValueError(f"a predictor of {groups} groups has {features} features, got {len(tensors['center'])}")
        if len(tensors["amplitudes"]) != terms:
            raise ValueError(f"a kernel has {terms} amplitudes, got {len(tensors['amplitudes'])}")
        kind, floor, ceiling = tensors["link"].tolist()
        zero = torch.zeros((), dtype=torch.float64)
        return cls(
            scaling=Scaling(bits, tensors["center"], tensors["width"], curves, tensors["floor"]),
            link=Link(KINDS[int(kind)], floor, ceiling),
            process=Process(*(tensors[name] for name in PROCESS_TENSORS)),
            networks=Networks(*(tensors[name] for name in ("inner", "bias", "outer"))),
            trees=Trees(*(tensors[name] for name in TREE_TENSORS)) if "base" in tensors else Trees.constant(zero),
            constant=tensors.get("constant", zero),
            shares=tensors.get("shares", torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)),
            slope=tensors["slope"],
            scale=tensors["scale"],
        )
