"""Small networks written to mislead: sizes that agree by chance, shapes in the code, numbers taken from shapes.

What of them can be cut is not the question; what is cut must be cut rightly, and the rest must stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm, linear, pad, relu

from tests.surgery.compositions import Net
from tests.surgery.transformers import HEAD_WIDTH, HEADS, TOKENS, WIDTH, Biased, Case, Encoder, Fused


class Literal(nn.Module):
    """Attention with every size written down."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 4, 6).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(2, 3) * 0.408).softmax(3) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(-1, 16, 24))
        return out


class Merged(nn.Module):
    """Heads become part of the batch, as before there were products of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = HEADS, HEAD_WIDTH
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape

        def apart(t: Tensor) -> Tensor:
            return t.view(b, n, self.heads, self.head_dim).transpose(1, 2).reshape(b * self.heads, n, self.head_dim)

        scores = torch.bmm(apart(self.q(x)) * self.head_dim**-0.5, apart(self.k(x)).transpose(1, 2))
        x = torch.bmm(scores.softmax(-1), apart(self.v(x)))
        out: Tensor = self.out(x.view(b, self.heads, n, self.head_dim).transpose(1, 2).reshape(b, n, c))
        return out


class Training(Fused):
    """Something is scaled, and reshaped, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = (x * 0.5).reshape(x.shape) * 2.0
        return super().forward(x)


class OneByOne(nn.Module):
    """Every example by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(example) for example in x])

    def one(self, x: Tensor) -> Tensor:
        n, c = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, HEADS, c // HEADS).permute(1, 2, 0, 3).unbind(0)
        attention = (q @ k.transpose(1, 2) * (c // HEADS) ** -0.5).softmax(-1)
        out: Tensor = self.proj((attention @ v).transpose(0, 1).reshape(n, c))
        return out


class Transposed(nn.Module):
    """As many tokens as channels: the one is added to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(TOKENS, TOKENS), nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x) + self.b(x).transpose(1, 2)
        return out


class Does(nn.Module):
    """Two convolutions with some function of a tensor, and perhaps of the module, between them."""

    def __init__(self, act: Callable[[Any, Tensor], Tensor], width: int = 12, after: int | None = None) -> None:
        super().__init__()
        self.act, self.width = act, width
        self.a, self.b = nn.Conv2d(16, width, 1), nn.Conv2d(after or width, 16, 1)
        self.free = nn.Parameter(torch.randn(width))
        self.square = nn.Parameter(torch.randn(width, width) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.act(self, self.a(x)))
        return out


def _misread(me: Any, x: Tensor) -> Tensor:
    """Places and channels change their parts without a transpose."""
    b, c, h, w = x.shape
    return x.reshape(b, h, w, c).permute(0, 3, 1, 2)


def _path(me: Any, x: Tensor) -> Tensor:
    return x.tanh() if x.shape[1] >= 10 else x.sigmoid()


def _both_ways(me: Any, x: Tensor) -> Tensor:
    y = linear(linear(x.flatten(2).transpose(1, 2), me.square), me.square.t())
    return y.transpose(1, 2).reshape(x.shape)


def _gram(me: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return ((flat @ flat.transpose(1, 2)).softmax(-1) @ flat).view_as(x)


def _picked(me: Any, x: Tensor) -> Tensor:
    return x[:, torch.tensor([3, 1, 2, 0, 4, 5, 6, 7, 8, 9, 11, 10])]


def _by_size(me: Any, x: Tensor) -> Tensor:
    return interpolate(x, size=(x.shape[1], x.shape[1])).mean((2, 3), keepdim=True) + x


def _one_hot(me: Any, x: Tensor) -> Tensor:
    return x + torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)


def _written_shape(me: Any, x: Tensor) -> Tensor:
    x[:, 2:7] = x[:, 7:12]
    return x


ACTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "misread": _misread,
    "path by width": _path,
    "one matrix both ways": _both_ways,
    "gram": _gram,
    "picked by number": _picked,
    "size by width": _by_size,
    "one hot": _one_hot,
    "moved within": _written_shape,
    "divided by a width": lambda me, x: x / x.shape[1],
    "divided by its own width": lambda me, x: x / me.width,
    "root of a width": lambda me, x: x * torch.tensor(me.width**-0.5),
    "mean of channels": lambda me, x: x - x.mean(1, keepdim=True),
    "softmax of channels": lambda me, x: x.softmax(1),
    "cumulated": lambda me, x: x.cumsum(1),
    "sorted": lambda me, x: x.sort(1)[0],
    "rolled": lambda me, x: x.roll(3, 1),
    "every second": lambda me, x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "last ones first": lambda me, x: torch.cat([x[:, -5:], x[:, :-5]], 1),
    "first ones only": lambda me, x: pad(x[:, :7], (0, 0, 0, 0, 0, 5)),
    "ones by number": lambda me, x: x * torch.arange(12).view(12, 1, 1),
    "ones by width": lambda me, x: x * torch.arange(x.shape[1]).view(-1, 1, 1),
    "normed by hand": lambda me, x: layer_norm(x.transpose(1, 3), (12,), me.free).transpose(1, 3),
    "channels as places": lambda me, x: relu(x.flatten(2).mT.reshape(len(x), 8, 8, 12).permute(0, 3, 1, 2)),
    "pairs by literals": lambda me, x: x.view(-1, 6, 2, 8, 8).flip(2).reshape(-1, 12, 8, 8),
    "pairs by fractions": lambda me, x: x.unflatten(1, (x.shape[1] // 3, 3)).amax(2).repeat_interleave(3, 1),
    "repeated": lambda me, x: x[:, :1].repeat(1, x.shape[1], 1, 1) + x,
    "batch by literal": lambda me, x: x.reshape(1, -1, 8, 8).view(x.shape),
    "batch in the middle": lambda me, x: x.transpose(0, 1).reshape(12 * len(x), 64).view(12, -1, 8, 8).transpose(0, 1),
    "walked": lambda me, x: torch.stack([x[:, i] * (i + 1) for i in range(x.shape[1])], 1),
    "through numpy": lambda me, x: x * float(x.detach().abs().mean()),
    "looked at": lambda me, x: x * x.flatten()[17],
    "as strided": lambda me, x: x.contiguous().as_strided(x.shape, x.contiguous().stride()),
    "fourier over channels": lambda me, x: torch.fft.fft(x, dim=1).real,
}  # fmt: skip

CASES: dict[str, Case] = {
    "windows as large as heads are many": Case(lambda: Encoder(_biased(4)), {}),
    "as many tokens as channels": Case(lambda: Encoder(Fused(TOKENS, 2), TOKENS), {}),
    "heads as wide as many": Case(lambda: Encoder(Fused(16, 4), 16), {}),
    "heads as wide as many tokens": Case(lambda: Encoder(Fused(32, 2), 32), {}),
    "tokens on channels": Case(lambda: Encoder(Transposed(), TOKENS), {}),
    "literal attention": Case(lambda: Encoder(Literal()), {}),
    "heads in the batch": Case(lambda: Encoder(Merged()), {}),
    "more in training": Case(lambda: Encoder(Training()), {}),
    "one by one": Case(lambda: Encoder(OneByOne()), {}),
    **{kind: Case(lambda act=act: Net(Does(act), 16), {}) for kind, act in ACTS.items()},  # type: ignore[misc]
}


def _biased(heads: int) -> nn.Module:
    module = Biased()
    module.num_heads, module.table = heads, nn.Parameter(torch.randn(9, heads))
    return module


def make(kind: str) -> nn.Module:
    """A user's factory."""
    return CASES[kind].make()
