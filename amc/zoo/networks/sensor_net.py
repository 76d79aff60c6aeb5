"""A small one-dimensional convolutional network for windows of sensor data: accelerometers, gyroscopes and the like."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class SensorNet(nn.Module):
    """Four convolutions of 5 samples, each but the last halving the window; (B, C, L) -> (B, classes)."""

    LENGTH: ClassVar[int] = 128  # samples in a window: 2.56 s at 50 Hz

    def __init__(self, num_classes: int = 12, in_channels: int = 6, width: int = 32) -> None:
        super().__init__()
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        channels = in_channels
        for index, out_channels in enumerate((width, 2 * width, 4 * width, 4 * width)):
            layers += [
                nn.Conv1d(channels, out_channels, 5, padding=2, bias=False),
                nn.BatchNorm1d(out_channels),
                nn.ReLU(inplace=True),
            ]
            if index < 3:
                layers.append(nn.MaxPool1d(2))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.features(x)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


def sensor_net(num_classes: int = 12, in_channels: int = 6, width: int = 32) -> SensorNet:
    """A 1-D network for sensor windows: 0.14 M parameters, 3.4 MMACs on 6 channels of 128 samples."""
    return SensorNet(num_classes, in_channels, width)
