"""What the numbers run on: device, number format and memory layout, found once and recorded with every trial."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from amc.system.errors import UsageError

VARIABLE = "AMC_DEVICE"

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """Device and precision; parameters always stay float32, `bfloat16` is the format of the products."""

    device: torch.device
    bfloat16: bool

    @classmethod
    def detect(cls) -> Compute:
        """The process's own GPU where there is one, else the CPU; bfloat16 where the hardware multiplies in it.

        The environment variable `AMC_DEVICE` names another one.
        """
        if named := os.environ.get(VARIABLE):
            return cls.of(named)
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            return cls(device, torch.cuda.is_bf16_supported(including_emulation=False))
        return cls(torch.device("cpu"), bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))

    @classmethod
    def of(cls, device: Compute | torch.device | str | None) -> Compute:
        """A device by name ("cpu", "cuda:1", "mps"), or `detect` for None; `AMC_DEVICE` wins over a name.

        Raises:
            UsageError: there is no such device.
        """
        if isinstance(device, Compute):
            return device
        if device is None:
            return cls.detect()
        device = os.environ.get(VARIABLE) or device
        try:
            wanted = torch.device(device)
            torch.empty(1, device=wanted)
        except (RuntimeError, AssertionError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise UsageError(f"a device must be one of this machine's, but {str(device)!r} is not: {first}") from None
        if wanted.type == "cpu":
            return cls(wanted, bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        return cls(wanted, wanted.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))

    @property
    def name(self) -> str:
        return f"{self.device.type} {'bfloat16' if self.bfloat16 else 'float32'}"

    def autocast(self) -> AbstractContextManager[object]:
        """The context every forward pass runs in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()

    def exact(self) -> AbstractContextManager[object]:
        """Inside `autocast`: everything as it is written."""
        return torch.autocast(self.device.type, enabled=False) if self.bfloat16 else nullcontext()

    def place(self, model: Module) -> Module:
        """Move `model` to the device, 4-d weights channels-last where all others have no such order; in place."""
        model = model.to(device=self.device)
        if all(parameter.ndim != 5 for parameter in model.parameters()):  # torch refuses the format for clips
            model = model.to(memory_format=torch.channels_last)
        return model
