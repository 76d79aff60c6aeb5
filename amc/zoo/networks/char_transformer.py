"""A small causal transformer over characters: what comes next, at every place of a text.

Pre-LayerNorm blocks of attention and MLP (Vaswani et al. 2017, arXiv 1706.03762; Radford et al. 2019, GPT-2), learned
positions, no dropout. What can be cut: in every block the heads, their width and the MLP's width, down to
nothing of the branch; and the embedding's width throughout.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

SPREAD = (
    0.08  # of all random weights; with the 0.02 of wide networks, a narrow one stays at pairs of characters for long
)


class CausalAttention(nn.Module):
    """Every place looks at itself and at what came before it; (B, T, E) -> (B, T, E)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_width)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        # Operation by operation: torch's fused kernel takes twice as long for a training step of this size on a CPU.
        scores = (q * self.scale @ k.transpose(-2, -1)).masked_fill(later, -math.inf)
        out: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention in one residual branch, an MLP in another; (B, T, E) -> (B, T, E)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(gelu(self.fc1(self.norm2(x))))
        return out


class CharTransformer(nn.Module):
    """Tokens (B, T) int64, T up to the context -> logits of the next token at every place, (B, classes, T)."""

    CONTEXT: ClassVar[int] = 128
    CHARACTERS: ClassVar[int] = 96  # a new line and all that ASCII prints

    def __init__(self, num_classes: int, context: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(num_classes, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)
        self.apply(_draw)
        for block in self.blocks:  # as many branches add up in the residual stream
            for last in (block.attention.out, block.fc2):  # type: ignore[union-attr]
                nn.init.normal_(last.weight, std=SPREAD / math.sqrt(2 * depth))  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


def _draw(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=SPREAD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def char_transformer(
    num_classes: int = CharTransformer.CHARACTERS,
    size: int = CharTransformer.CONTEXT,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
) -> CharTransformer:
    """A character-level transformer: 0.83 M parameters; `size` is the longest text it reads, in characters."""
    return CharTransformer(num_classes, size, depth, width, heads)
