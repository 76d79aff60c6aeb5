"""The network of an exit sequence: a causal transformer over one token per place where a pair of networks may stop.

Token 0 is made of the saver's last feature map, tokens 1 to K of the base network's intermediate ones. An exit adds
what its token says to the saver's logits. Tokens are made one after the other as the base is run: what earlier ones
left for attention is carried along, so that none is computed twice. As in the released code of arXiv 2403.17726, but
for the mask: there -1000 is added above the diagonal, here later tokens are not seen at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.system.errors import UsageError

SPREAD = 0.02  # standard deviation of new weights


@dataclass(frozen=True)
class SequenceSize:
    """How large the network is.

    Attributes:
        dim: of a token.
        layers: blocks of the transformer; 0: each exit sees its own token alone.
        heads: of attention.
        expansion: width of a block's hidden layer, as a multiple of `dim`.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 8
    expansion: int = 4

    def __post_init__(self) -> None:
        if min(self.dim, self.heads, self.expansion) < 1 or self.layers < 0 or self.dim % self.heads:
            raise UsageError(
                f"an exit sequence needs a dim that its heads divide, but got {asdict(self)}; take dim 64 and heads 8"
            )


class TokenEmbedding(nn.Module):
    """Pooled features (b, channels) -> token (b, dim)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, dim)

    def forward(self, pooled: Tensor) -> Tensor:
        return torch.relu(self.linear(self.norm(pooled)))


class CausalBlock(nn.Module):
    """Attention to earlier tokens and, in all blocks but the last, a hidden layer; both added to their inputs."""

    def __init__(self, size: SequenceSize, is_last: bool) -> None:
        super().__init__()
        dim = size.dim
        self.heads = size.heads
        self.norm = nn.LayerNorm(dim)
        self.inward = nn.Linear(dim, 3 * dim, bias=False)
        self.outward = nn.Linear(dim, dim)
        self.hidden: nn.Module | None = None
        if not is_last:
            wide = size.expansion * dim
            self.hidden = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))

    def forward(self, tokens: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """New tokens (b, m, dim), and the keys and values of t earlier ones (b, 2, t, dim) -> both, grown by m."""
        number, new, dim = tokens.shape
        queries, keys, values = self.inward(self.norm(tokens)).chunk(3, -1)
        grown = torch.stack([keys, values], 1)
        if memory is not None:
            grown = torch.cat([memory, grown], 2)
        seen = grown.shape[2]
        split = (self.heads, dim // self.heads)
        queries = queries.reshape(number, new, *split).transpose(1, 2) * split[1] ** -0.5
        keys, values = grown.reshape(number, 2, seen, *split).transpose(2, 3).unbind(1)
        scores = queries @ keys.transpose(-2, -1)
        if new > 1:
            later = torch.ones(new, seen, dtype=torch.bool, device=tokens.device).triu(seen - new + 1)
            scores = scores.masked_fill(later, float("-inf"))
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(number, new, dim)
        tokens = tokens + self.outward(mixed)
        if self.hidden is not None:
            tokens = tokens + self.hidden(tokens)
        return tokens, grown


class ExitSequence(nn.Module):
    """Logits of K exits from the saver's features and logits and the base network's intermediate features.

    Args:
        channels: K + 1 widths of pooled features, the saver's first.
        classes: of the logits.
        size: of the transformer.
    """

    def __init__(self, channels: Sequence[int], classes: int, size: SequenceSize) -> None:
        super().__init__()
        self.channels, self.classes, self.size = tuple(channels), classes, size
        self.embeddings = nn.ModuleList(TokenEmbedding(width, size.dim) for width in channels)
        self.blocks = nn.ModuleList(CausalBlock(size, layer == size.layers - 1) for layer in range(size.layers))
        self.exits = nn.ModuleList(nn.Linear(size.dim, classes, bias=False) for _ in channels[1:])

    def reset(self, seed: int) -> None:
        """Draw all weights of linear layers anew, and set their biases to zero."""
        draw = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=SPREAD, generator=draw)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pooled: Sequence[Tensor], saver_logits: Tensor) -> Tensor:
        """K + 1 pooled features (b, channels) and logits (b, classes) -> (K, b, classes): all exits at once."""
        tokens, _ = self.extend(pooled, 0, None)
        answers = [head(tokens[:, place + 1]) for place, head in enumerate(self.exits)]
        return torch.stack(answers) + saver_logits

    def extend(self, pooled: Sequence[Tensor], place: int, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The m tokens of the pooled features at `place`, `place` + 1, ... -> (b, m, dim), and the grown memory.

        Args:
            memory: (b, layers, 2, place, dim) keys and values of the tokens before `place`; None where there are none.
        """
        tokens = torch.stack([self.embeddings[place + i](each) for i, each in enumerate(pooled)], 1)
        grown = []
        for layer, block in enumerate(self.blocks):
            tokens, kept = block(tokens, None if memory is None else memory[:, layer])
            grown.append(kept)
        if not grown:
            return tokens, tokens.new_zeros(len(tokens), 0, 2, place + len(pooled), self.size.dim)
        return tokens, torch.stack(grown, 1)

    def to_json(self) -> dict[str, Any]:
        """What the network is built from."""
        return {"channels": list(self.channels), "classes": self.classes, "size": asdict(self.size)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ExitSequence:
        """The network that `to_json` described, with weights that mean nothing."""
        return cls(record["channels"], record["classes"], SequenceSize(**record["size"]))


def pool(features: Tensor, channel_dim: int) -> Tensor:
    """The mean over all places: (b, ..., c, ...) -> (b, c).

    Args:
        channel_dim: 1 or -1.
    """
    if features.ndim == 2:
        return features
    places = list(range(2, features.ndim)) if channel_dim == 1 else list(range(1, features.ndim - 1))
    return features.mean(places)
