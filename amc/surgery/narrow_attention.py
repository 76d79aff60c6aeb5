"""`nn.MultiheadAttention` with heads, head width and embedding width that no longer follow from each other.

Softmax goes on dividing by the square root of the dense head width, so removing an index of the head width from queries
and keys equals zeroing it. The same care is due where a network calls `scaled_dot_product_attention` without `scale`:
its divisor follows the width it is given, D' of D, so the query rows (weight and bias) must be multiplied by
sqrt(D' / D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, pad, scaled_dot_product_attention
from torch.overrides import handle_torch_function, has_torch_function

from amc.surgery.replacement import Replacement, replace_module
from amc.system.errors import ModelError


@dataclass(frozen=True)
class AttentionSizes:
    """The integers that the tensors of a cut attention no longer determine, and the factor of its logits."""

    num_heads: int
    head_dim: int
    scale: float


class NarrowAttention(Replacement, nn.MultiheadAttention):
    """Multi-head attention of H heads of width D on embeddings of width E, three numbers of their own.

    `in_proj_weight` is (3 H D, E), `out_proj.weight` (E, H D). A three-dimensional `attn_mask` has N H rows, and
    averaged attention weights are over the H heads that are left.
    """

    kind = "attention"
    prefix = "Narrow"
    Settings = AttentionSizes
    settings: AttentionSizes

    @property
    def scale(self) -> float:
        """What dot products are multiplied by: the dense head width to the power of -1/2."""
        return self.settings.scale

    def settle(self) -> None:
        self.num_heads, self.head_dim = self.settings.num_heads, self.settings.head_dim
        # TransformerEncoderLayer hands the tensors of an attention that says so to a fused kernel of its own
        self._qkv_same_embed_dim = False
        if self.in_proj_weight is not None:
            self.embed_dim = self.kdim = self.vdim = self.in_proj_weight.shape[1]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`; `is_causal` is a hint about `attn_mask`, which is used as it is."""
        tensors = (query, key, value)
        if has_torch_function(tensors):  # one call to whoever counts calls (`resizing`), as the dense module is
            return handle_torch_function(
                NarrowAttention.forward, tensors, self, query, key, value,
                key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal,
            )  # fmt: skip
        if is_causal and attn_mask is None:
            raise ModelError("is_causal says what attn_mask holds, got no attn_mask; give the causal mask")
        batched, sequence_first = query.dim() == 3, not self.batch_first
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask[None]
        inputs = [query] if query is key and key is value else [query, key, value]
        if not batched:
            inputs = [x[None] for x in inputs]
        elif sequence_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = self._heads(inputs)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[2])
        attended, weights = self._attend(q, k, v, mask, need_weights)
        outputs = linear(attended.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return outputs[0], None if weights is None else weights[0]
        return (outputs.transpose(0, 1) if sequence_first else outputs), weights

    def _heads(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, L, D), keys and values (N, H, S', D), with whatever positions the module itself adds."""
        width = self.num_heads * self.head_dim
        if len(inputs) == 1:  # self-attention: one product
            all_three = linear(inputs[0], self.in_proj_weight, self.in_proj_bias)
            q, k, v = all_three.reshape(*all_three.shape[:2], 3, width).unbind(2)
        else:
            weights = self.in_proj_weight.reshape(3, width, self.embed_dim)
            biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.reshape(3, width)
            q, k, v = (linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1).to(k.dtype)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1).to(v.dtype)], 1)
        if self.add_zero_attn:
            k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, positions: int) -> Tensor | None:
        """Both masks as one that is added to the logits, (N or 1, H or 1, L or 1, S')."""
        parts = []
        if mask is not None:
            mask = _added(mask, q.dtype)
            parts.append(mask.reshape(len(q), self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask[None, None])
        if padding is not None:
            parts.append(_added(padding, q.dtype)[:, None, None])
        # positions added by the module itself come last and are never masked
        padded = [pad(part, (0, positions - part.shape[-1])) for part in parts]
        return sum(padded[1:], padded[0]) if padded else None

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What heads return, (N, H, L, D), and with `need_weights` their attention, (N, H, L, S')."""
        chance = self.dropout if self.training else 0.0
        if not need_weights:
            return scaled_dot_product_attention(q, k, v, mask, chance, scale=self.scale), None
        logits = (q * self.scale) @ k.transpose(-2, -1)
        weights = (logits if mask is None else logits + mask).softmax(-1)
        weights = dropout(weights, chance) if chance else weights
        return weights @ v, weights


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to logits: minus infinity where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def narrow_attention(module: nn.Module, num_heads: int, head_dim: int, scale: float) -> None:
    """Let an `nn.MultiheadAttention`, its tensors already cut, compute with these sizes.

    Args:
        scale: what the dense module multiplies dot products by, its head width to the power of -1/2.

    Raises:
        ModelError: the module is no attention of this kind, or its tensors are not of these sizes.
    """
    if not can_narrow_attention(module):
        raise ModelError(
            f"attention can be cut where keys and values are as wide as queries, got {type(module).__name__}; ignore it"
        )
    rows, expected = len(module.in_proj_weight), 3 * num_heads * head_dim  # type: ignore[arg-type]
    if rows != expected:
        raise ModelError(f"{num_heads} heads of {head_dim} make {expected} rows of in_proj_weight, got {rows}")
    replace_module(module, NarrowAttention, AttentionSizes(num_heads, head_dim, scale))


def can_narrow_attention(module: nn.Module) -> bool:
    """Whether it is the library's attention, with one matrix for queries, keys and values."""
    own = type(module).forward is nn.MultiheadAttention.forward
    return isinstance(module, NarrowAttention) or (own and getattr(module, "in_proj_weight", None) is not None)
