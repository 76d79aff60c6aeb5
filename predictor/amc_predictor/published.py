"""The predictor that SeerNet publishes, kept as the baseline ours must beat."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from amc_predictor.examples import checked_examples, checked_policies

CHECKED = 100  # epochs between two checkpoints
DROP = 0.6  # of the epochs, behind which the learning rate is a tenth


class SeerNetPredictor:
    """One small network, no spread: `predict` returns a standard deviation of zero.

    Linear(d, 15)-ELU-Linear(15, 15)-ELU-Linear(15, 1), mean squared error on the raw accuracy, full batch, Adam at
    `learning_rate`, ten times less after 60 % of `epochs`; nothing is standardised. Of the checkpoints every
    `CHECKED` epochs the one of the least training error is kept, as upstream does. Upstream also weights the loss, in
    name by counterfactuals; but it computes those weights after its only round of training, so that random ones are
    used, drawn once and shuffled among the examples: here there are none. Training collapses to a constant on some
    seeds.

    Source: arXiv 2304.06393; ZiweiWangTHU/SeerNet 01e4cd4, PGD/regression: MLP.py, regression.py, cf_loss.py.
    """

    def __init__(self, hidden: int = 15, epochs: int = 5000, learning_rate: float = 0.2, seed: int = 0) -> None:
        self.hidden, self.epochs, self.learning_rate, self.seed = hidden, epochs, learning_rate, seed
        self.network: nn.Sequential | None = None

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        """Learn from kept fractions (n, d) in [0, 1] and accuracies (n,) in [0, 1]."""
        inputs, labels = (values.float() for values in checked_examples(policies, accuracy))
        network = untrained_network(inputs.shape[1], self.hidden, self.seed)
        train_network(network, inputs, labels, self.epochs, self.learning_rate)
        self.network = network.double().requires_grad_(False)

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Kept fractions (b, d) -> mean (b,), zeros (b,); differentiable in the fractions."""
        if self.network is None:
            raise RuntimeError("fit the predictor before predicting")
        first = self.network[0]
        assert isinstance(first, nn.Linear)
        mean: Tensor = self.network(checked_policies(policies, first.in_features)).squeeze(1).to(policies.dtype)
        return mean, torch.zeros_like(mean)


def untrained_network(groups: int, hidden: int, seed: int) -> nn.Sequential:
    """Linear-ELU-Linear-ELU-Linear at PyTorch's default initial weights, drawn from a generator of our own."""
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise((groups, hidden, hidden, 1)):
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        modules += [linear, nn.ELU()]
    return nn.Sequential(*modules[:-1])


def train_network(
    network: nn.Sequential, inputs: Tensor, labels: Tensor, epochs: int, learning_rate: float, weight_decay: float = 0.0
) -> None:
    """Full-batch AdamW on (n, d) -> (n,), the best checkpoint kept; without `weight_decay` it is Adam."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(DROP * epochs)], gamma=0.1)
    best, least = network.state_dict(), math.inf
    for epoch in range(1, epochs + 1):
        with torch.enable_grad():
            loss = nn.functional.mse_loss(network(inputs).squeeze(1), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if epoch % CHECKED == 0 or epoch == epochs:
            with torch.no_grad():
                error = float(nn.functional.mse_loss(network(inputs).squeeze(1), labels))
            if error < least:
                best, least = {name: tensor.clone() for name, tensor in network.state_dict().items()}, error
    network.load_state_dict(best)
