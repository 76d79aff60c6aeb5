import torch
from torch import Tensor


def assert_exact(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Equal up to the order of summation in float32: to a share of the largest entry."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative * largest + 1e-7)
