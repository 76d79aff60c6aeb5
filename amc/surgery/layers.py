"""The layers that hold weights: which they are, and which dimension of a tensor stands for channels."""

from __future__ import annotations

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)


def out_dim(module: nn.Module) -> int:
    """The dimension of a layer's weight that stands for its output channels."""
    return 1 if isinstance(module, TRANSPOSED) else 0
