"""One measured policy, and all that its number depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Trial:
    """What one measurement gave.

    Attributes:
        policy: keep-counts, one a group, in the order of the space.
        costs: unit -> cost ("macs", "params", "bytes").
        accuracy: top-1 on the validation split, 0..1, after recovery and before any fine-tune.
        loss: calibrated mean cross-entropy there, nats (`amc.train.evaluation`).
        seconds: wall time of each part: cut, fold, batchnorm, evaluate; and train, where recovery has steps.
        stopped: it ended early (`amc.study.stopping`): accuracy and loss are of what was seen.
        images: how many examples that was; None where it was not kept: all of them.
    """

    policy: tuple[int, ...]
    costs: Mapping[str, float]
    accuracy: float
    loss: float
    seconds: Mapping[str, float]
    stopped: bool = False
    images: int | None = None


@dataclass(frozen=True)
class Protocol:
    """All that the number of a trial depends on. Two trials compare only if their protocols are equal."""

    model: str
    weights_digest: str
    data_digest: str
    groups_digest: str
    importance: str
    fold: bool
    moment_images: int
    batchnorm_images: int
    measure_images: int
    batch_size: int
    compute: str
    seed: int
    versions: tuple[str, ...]
    task: str = "accuracy"
    training: str = ""

    @property
    def digest(self) -> str:
        """The study's name."""
        fields = asdict(self)
        if not self.training:
            del fields["training"]  # studies from before there was any go by the same name
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
