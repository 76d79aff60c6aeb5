"""Modules that compute, once channels have gone, what the dense network computes with those channels at zero.

Each replaces a module by a change of its class: the names of its tensors, its hooks and mode stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from amc.surgery.empty_branch import EmptyConvolution, EmptyNorm, EmptyPool
from amc.surgery.materialised import materialised_as, record_of, restore_materialised
from amc.surgery.narrow_attention import NarrowAttention
from amc.surgery.narrow_norm import NarrowNorm
from amc.surgery.replacement import Replacement, replace_module
from amc.surgery.shape_patches import ShapePatched
from amc.system.errors import ModelError

Record = Mapping[str, Mapping[str, Any]]  # kind -> settings, JSON values
MATERIALISED = "baked"  # its name in the files since the first of them
REPLACEMENTS: tuple[type[Replacement], ...] = (
    NarrowNorm,
    NarrowAttention,
    ShapePatched,
    EmptyConvolution,
    EmptyNorm,
    EmptyPool,
)
KINDS = {replacement.kind: replacement for replacement in REPLACEMENTS}


def replacement_record(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What `restore_replacement` needs to make the same of the dense network's module; empty for an unchanged one."""
    found = {}
    if (plain := materialised_as(module)) is not None:
        found[MATERIALISED] = record_of(plain)
    if isinstance(module, Replacement):
        found[module.kind] = module.record()
    return found


def restore_replacement(module: nn.Module, record: Record) -> None:
    """Make of a module of the dense network what was recorded; call it before or after its small tensors are put in.

    A materialised layer has other tensors than the dense one: call it before for those.

    Raises:
        ModelError: the record is of no kind known here, or does not fit the module.
    """
    for kind, settings in record.items():
        if kind != MATERIALISED and kind not in KINDS:
            raise ModelError(
                f"replacement modules are {', '.join([MATERIALISED, *KINDS])}, got {kind!r}; the file is of a newer AMC"
            )
        try:
            if kind == MATERIALISED:
                restore_materialised(module, settings)
            else:
                replace_module(module, KINDS[kind], KINDS[kind].Settings(**settings))
        except TypeError as error:
            raise ModelError(f"the {kind} of a file of this version has no settings {dict(settings)}") from error
