"""Small networks with attention, each written in one of the ways in which libraries write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention, silu

SHAPE = (3, 8, 8)  # 16 patches of 2 x 2
TOKENS, WIDTH, HEADS, HEAD_WIDTH = 16, 24, 4, 6


@dataclass(frozen=True)
class Case:
    """A network, what it reads, and the groups it must have.

    Attributes:
        groups: name -> size of every group.
        integers: module name -> attribute -> the group whose keep-count it must be, or two whose product it must be.
        removable: the groups that may keep nothing.
    """

    make: Callable[[], nn.Module]
    groups: dict[str, int]
    shape: tuple[int, ...] = SHAPE
    integers: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    removable: tuple[str, ...] = ()


class Patches(nn.Module):
    """Pictures into tokens, (n, 16, width)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Encoder(nn.Module):
    """Patches, attention in a residual branch, an MLP in another, the mean of the tokens, a classifier."""

    def __init__(self, attention: nn.Module, width: int = WIDTH, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.patch, self.attn = Patches(width), attention
        self.norm1, self.norm2, self.norm = norm(width), norm(width), norm(width)
        self.fc1, self.fc2, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(gelu(self.fc1(self.norm2(x))))
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


class Fused(nn.Module):
    """timm's: qkv in one layer, `reshape(B, N, 3, heads, width)`, and back with C read from the input."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))
        return out


class Separate(nn.Module):
    """Three layers, widths from `C // heads`, and the scale from the shape of the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / (k.shape[-1] ** 0.5)
        out: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(b, n, -1))
        return out


class Kernel(nn.Module):
    """torch's own attention function, scaled by the width it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, HEAD_WIDTH
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return out


class Biased(nn.Module):
    """Swin's: windows of 2 x 2 tokens, a table of relative positions, looked up and permuted to (heads, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.window = 3, 2
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(9, self.num_heads))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]).permute(1, 2, 0) + 1
        self.register_buffer("index", apart[..., 0] * 3 + apart[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        side, w = 4, self.window
        x = x.view(b, side // w, w, side // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
        m = x.shape[0]
        q, k, v = self.qkv(x).reshape(m, w * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        scores = (q * (c // self.num_heads) ** -0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(m, w * w, c))
        x = x.view(b, side // w, side // w, w, w, -1).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(b, n, -1)


class Normed(nn.Module):
    """Queries and keys are normalised over the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, HEAD_WIDTH
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = nn.LayerNorm(HEAD_WIDTH), nn.LayerNorm(HEAD_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) * self.head_dim**-0.5
        out: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


class Cosine(nn.Module):
    """Swin v2's: queries and keys of length one, and a temperature for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q, self.kv, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, -1).permute(0, 2, 1, 3)
        k, v = self.kv(x).reshape(b, n, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        out: Tensor = self.proj((scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(b, n, -1))
        return out


class Summed(nn.Module):
    """Attention as two `einsum`s."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.dim_head = HEADS, HEAD_WIDTH
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.num_heads, self.dim_head)) for f in (self.q, self.k, self.v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.4
        out: Tensor = self.out(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2))
        return out


class Own(nn.Module):
    """`nn.MultiheadAttention` as a self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mha(x, x, x, need_weights=False)[0]
        return out


class ChannelWise(nn.Module):
    """XCiT's: attention between the channels of a head, not between tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 4, 1).unbind(0)
        scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        out: Tensor = self.proj((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c))
        return out


class ClassToken(nn.Module):
    """ViT's stream: a class token and an embedding of places meet the patches; the token alone is read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attn = Patches(), Fused()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.1)
        self.places = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH) * 0.1)
        self.norm1, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.attn(self.norm1(x))
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


class Torch(nn.Module):
    """torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = Patches()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=True, dropout=0.0)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.patch(x)).mean(1))
        return out


class Swish(nn.Module):
    """LLaMA's block: RMSNorm, and an MLP of which one half gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.last = Patches(), nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        y = self.norm(x)
        x = x + self.down(silu(self.gate(y)) * self.up(y))
        out: Tensor = self.head(self.last(x).mean(1))
        return out


class TokenMixer(nn.Module):
    """MLP-Mixer: one MLP over tokens, between two transposes, and one over channels.

    The width stays: biases of the first MLP reach channels that are zero before a norm over all of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm1, self.norm2 = Patches(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens1, self.tokens2 = nn.Linear(TOKENS, 20), nn.Linear(20, TOKENS)
        self.fc1, self.fc2, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x + self.tokens2(gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.fc2(gelu(self.fc1(self.norm2(x))))
        out: Tensor = self.head(x.mean(1))
        return out


STREAM = {"patch.proj": WIDTH, "fc1": 32}
BRANCHES = ("fc1",)


def _joint(layer: str, heads: int = HEADS, width: int = HEAD_WIDTH) -> dict[str, int]:
    return {f"attn.{layer}:heads": heads, f"attn.{layer}:width": width}


CASES: dict[str, Case] = {
    "fused": Case(
        lambda: Encoder(Fused()),
        STREAM | _joint("qkv"),
        integers={"attn": {"num_heads": ("attn.qkv:heads",), "head_dim": ("attn.qkv:width",)}},
        removable=("attn.qkv:heads", "fc1"),
    ),
    "separate": Case(
        lambda: Encoder(Separate()),
        STREAM | {"attn.q:heads": HEADS, "attn.v:width": HEAD_WIDTH},
        integers={"attn": {"heads": ("attn.q:heads",)}},
    ),
    "kernel": Case(
        lambda: Encoder(Kernel()),
        STREAM | _joint("qkv"),
        integers={"attn": {"num_heads": ("attn.qkv:heads",), "head_dim": ("attn.qkv:width",)}},
    ),
    "windows": Case(
        lambda: Encoder(Biased()), STREAM | _joint("qkv", 3, 8), integers={"attn": {"num_heads": ("attn.qkv:heads",)}}
    ),
    "normed": Case(
        lambda: Encoder(Normed()),
        STREAM | {"attn.qkv:heads": HEADS},
        integers={"attn": {"num_heads": ("attn.qkv:heads",)}},
    ),
    "cosine": Case(
        lambda: Encoder(Cosine()),
        STREAM | {"attn.q:heads": HEADS},
        integers={"attn": {"num_heads": ("attn.q:heads",)}},
    ),
    "einsum": Case(
        lambda: Encoder(Summed()),
        STREAM | {"attn.q:heads": HEADS, "attn.v:width": HEAD_WIDTH},
        integers={"attn": {"num_heads": ("attn.q:heads",)}},
    ),
    "torch's own": Case(
        lambda: Encoder(Own()),
        STREAM | _joint("mha"),
        integers={"attn.mha": {"num_heads": ("attn.mha:heads",), "head_dim": ("attn.mha:width",)}},
    ),
    "channel-wise": Case(
        lambda: Encoder(ChannelWise()),
        STREAM | {"attn.qkv:heads": HEADS},
        integers={"attn": {"num_heads": ("attn.qkv:heads",)}},
    ),
    "rms stream": Case(lambda: Encoder(Fused(), norm=nn.RMSNorm), STREAM | _joint("qkv")),
    "class token": Case(ClassToken, {"patch.proj": WIDTH} | _joint("qkv")),
    "encoder layer": Case(
        Torch,
        {"patch.proj": WIDTH, "layer.self_attn:heads": HEADS, "layer.self_attn:width": HEAD_WIDTH, "layer.linear1": 32},
    ),
    "gated mlp": Case(Swish, {"patch.proj": WIDTH, "gate": 32}, removable=("gate",)),
    "mixer": Case(TokenMixer, {"tokens1": 20, "fc1": 32}, removable=("tokens1", "fc1")),
}


def make(kind: str) -> nn.Module:
    """A user's factory."""
    return CASES[kind].make()
