"""Modules that compute, once channels have gone, what the dense network computes with those channels at zero.

Each is put in the place of a module by a change of its class: the names of its tensors, its hooks and mode stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from amc.surgery.baking import bake as bake
from amc.surgery.baking import baked, record_of, restore_baked
from amc.surgery.narrow_attention import NarrowAttention, can_narrow_attention
from amc.surgery.narrow_attention import narrow_attention as narrow_attention
from amc.surgery.narrow_norm import NarrowNorm, norm_rule
from amc.surgery.narrow_norm import narrow_norm as narrow_norm
from amc.surgery.resizing import Resized
from amc.surgery.substitute import Substitute, put_in_place
from amc.surgery.vanished import VanishedConvolution, VanishedNorm, VanishedPool
from amc.surgery.vanished import vanish as vanish
from amc.system.errors import ModelError

Record = Mapping[str, Mapping[str, Any]]  # kind -> settings, JSON values
BAKED = "baked"
SUBSTITUTES: tuple[type[Substitute], ...] = (
    NarrowNorm,
    NarrowAttention,
    Resized,
    VanishedConvolution,
    VanishedNorm,
    VanishedPool,
)
KINDS = {substitute.kind: substitute for substitute in SUBSTITUTES}


def can_narrow(module: nn.Module) -> bool:
    """Whether a module looks at all of its channels at once, and can go on doing so when some are gone."""
    return isinstance(module, NarrowNorm) or can_narrow_attention(module) or norm_rule(module) is not None


def record(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What `restore` needs to make the same of a module of the dense network; empty for one left as it was."""
    found = {}
    if (plain := baked(module)) is not None:
        found[BAKED] = record_of(plain)
    if isinstance(module, Substitute):
        found[module.kind] = module.record()
    return found


def restore(module: nn.Module, record: Record) -> None:
    """Make of a module of the dense network what was recorded; call it before or after its small tensors are put in.

    A baked layer has other tensors than the dense one: call it before for those.

    Raises:
        ModelError: the record is of no kind known here, or does not fit the module.
    """
    for kind, settings in record.items():
        if kind != BAKED and kind not in KINDS:
            raise ModelError(f"stand-ins are {', '.join([BAKED, *KINDS])}, got {kind!r}; the file is of a newer AMC")
        try:
            if kind == BAKED:
                restore_baked(module, settings)
            else:
                put_in_place(module, KINDS[kind], KINDS[kind].Settings(**settings))
        except TypeError as error:
            raise ModelError(f"the {kind} of a file of this version has no settings {dict(settings)}") from error
