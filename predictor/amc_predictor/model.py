"""One fitted model, policies -> accuracy with its spread, as tensors that can be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.features import Scaling
from amc_predictor.link import KINDS, Link
from amc_predictor.networks import Networks
from amc_predictor.process import PROCESS_TENSORS, Process
from amc_predictor.sensitivity import Sensitivity

MODEL_TENSORS = (
    *("center", "width", "kept", "harm", "floor", "link", "slope", "scale", "inner", "bias", "outer"),
    *PROCESS_TENSORS,
)


@dataclass(frozen=True)
class Model:
    """One fitted ensemble: policies -> mean and standard deviation.

    Attributes:
        scaling: policies to features.
        link: score to accuracy.
        process: f and h.
        networks: g, m of them.
        slope: () s_typical.
        scale: () of the standard deviation.
    """

    scaling: Scaling
    link: Link
    process: Process
    networks: Networks
    slope: Tensor
    scale: Tensor

    @property
    def groups(self) -> int:
        return len(self.scaling.bits)

    def __call__(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """(b, d) float64 -> mean (b,), std (b,)."""
        features = self.scaling(policies)
        outputs = self.networks(features)
        learned = outputs.mean(dim=0)
        expected, variance = self.process.score_and_variance(features)
        score = expected + learned
        unknown = variance + (outputs - learned).square().mean(dim=0)
        slope = self.link.slope(score)
        variance = slope.square() * self.process.noise + torch.maximum(slope, self.slope).square() * unknown
        return self.link.accuracy(score), self.scale * variance.sqrt()

    def tensors(self) -> dict[str, Tensor]:
        link = torch.tensor([KINDS.index(self.link.kind), self.link.floor, self.link.ceiling], dtype=torch.float64)
        scaling = vars(self.scaling) | vars(self.scaling.sensitivity)
        del scaling["sensitivity"]
        parts = scaling | vars(self.process) | vars(self.networks)
        return parts | {"link": link, "slope": self.slope, "scale": self.scale}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Model:
        kind, floor, ceiling = tensors["link"].tolist()
        return cls(
            Scaling(
                tensors["bits"],
                tensors["center"],
                tensors["width"],
                Sensitivity(tensors["kept"], tensors["harm"]),
                tensors["floor"],
            ),
            Link(KINDS[int(kind)], floor, ceiling),
            Process(*(tensors[name] for name in PROCESS_TENSORS)),
            Networks(*(tensors[name] for name in ("inner", "bias", "outer"))),
            *(tensors[name] for name in ("slope", "scale")),
        )
