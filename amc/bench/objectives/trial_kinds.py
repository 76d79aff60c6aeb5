"""Kinds of trials: what is done to a cut network before it is measured.

A kind is written `none`, `batchnorm` or `fold` (folding and BatchNorm), with `+STEPS` of distillation behind it, and
behind these `xIMAGES` in a step and `@RATE` of learning where they are not the recipe's: `fold+20`, `fold+50x64@0.1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from amc import RecoverySettings, UsageError

KIND = re.compile(r"(none|batchnorm|fold)(?:\+([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?(?:@(\d*\.?\d+))?)?")
NONE, FOLD = "none", "fold"


@dataclass(frozen=True)
class Kind:
    """What is done to a cut network before it is measured."""

    name: str
    base: str
    steps: int = 0
    images: int | None = None
    lr: float | None = None

    def recovery(self, given: RecoverySettings) -> RecoverySettings:
        """The recipe's recovery, changed to this kind's."""
        changed: dict[str, Any] = {"fold": self.base == FOLD, "steps": self.steps, "lr": self.lr or given.lr}
        changed["step_images"] = self.images or given.step_images
        images = given.batchnorm_images or RecoverySettings().batchnorm_images
        return given.model_copy(update={**changed, "batchnorm_images": 0 if self.base == NONE else images})


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """Kinds from a comma-separated list.

    Raises:
        UsageError: one is not of the form asked for, or stands there twice.
    """
    names = [name.strip() for name in text.split(",")]
    kinds = []
    for name in names:
        found = KIND.fullmatch(name)
        if found is None:
            raise UsageError(
                f"a kind of trial must be none, batchnorm or fold, or these and +STEPS, +20x64@0.1, but is {name!r}"
            )
        base, steps, images, rate = found.groups()
        kinds.append(Kind(name, base, int(steps or 0), int(images) if images else None, float(rate) if rate else None))
    if len(set(names)) < len(names):
        raise UsageError(f"kinds of trials must differ, but they are {text!r}")
    return tuple(kinds)


JUDGES = parse_kinds("fold,fold+20")  # by which good policies are chosen, whatever kinds are compared
JUDGED = " and ".join(kind.name for kind in JUDGES)
