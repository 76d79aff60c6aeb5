"""The predictor that SeerNet publishes, kept as the baseline ours must beat."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from amc_predictor.examples import checked_examples, checked_policies


class SeerNetPredictor:
    """One small network, no spread: `predict` returns a standard deviation of zero.

    Linear(d, 15)-ELU-Linear(15, 15)-ELU-Linear(15, 1), mean squared error on the raw accuracy, full batch, Adam at
    `learning_rate`, ten times less after 60 % of `epochs`; nothing is standardised. Its training collapses to a
    constant on some seeds.

    Source: arXiv 2304.06393; ZiweiWangTHU/SeerNet 01e4cd4, MLP.py and regression.py.
    """

    def __init__(self, hidden: int = 15, epochs: int = 5000, learning_rate: float = 0.2, seed: int = 0) -> None:
        self.hidden, self.epochs, self.learning_rate, self.seed = hidden, epochs, learning_rate, seed
        self.network: nn.Sequential | None = None

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        """Learn from kept fractions (n, d) in [0, 1] and accuracies (n,) in [0, 1]."""
        inputs, labels = (values.float() for values in checked_examples(policies, accuracy))
        network = self._untrained(inputs.shape[1])
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.6 * self.epochs)], gamma=0.1)
        with torch.enable_grad():
            for _ in range(self.epochs):
                optimizer.zero_grad()
                nn.functional.mse_loss(network(inputs).squeeze(1), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        self.network = network.double().requires_grad_(False)

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Kept fractions (b, d) -> mean (b,), zeros (b,); differentiable in the fractions."""
        if self.network is None:
            raise RuntimeError("fit the predictor before predicting")
        first = self.network[0]
        assert isinstance(first, nn.Linear)
        mean: Tensor = self.network(checked_policies(policies, first.in_features)).squeeze(1).to(policies.dtype)
        return mean, torch.zeros_like(mean)

    def _untrained(self, groups: int) -> nn.Sequential:
        """The network at PyTorch's default initial weights, drawn from our own generator."""
        generator = torch.Generator().manual_seed(self.seed)
        sizes = (groups, self.hidden, self.hidden, 1)
        modules: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            linear: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in linear.parameters():
                    parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            modules += [linear, nn.ELU()]
        return nn.Sequential(*modules[:-1])
