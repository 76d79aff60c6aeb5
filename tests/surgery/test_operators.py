"""What each operation does to labels is told by what it does to numbers: a tensor filled with its own slots."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from amc.surgery.operators.sizes import reshaped
from amc.surgery.trace_record import NONE, Factor, Labels, TraceRecord
from amc.surgery.tracer import Tracer

SIZES = st.sampled_from([(12,), (3, 4), (2, 6), (6, 2), (2, 3, 2), (4, 3), (1, 12), (12, 1), (2, 1, 6)])


@given(SIZES, SIZES, st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_reshape_moves_slots_with_their_numbers(
    before: tuple[int, ...], after: tuple[int, ...], left: int, right: int, data: st.DataObject
) -> None:
    """Labels over any of the dimensions, read in another shape, are what the numbers are, read in that shape."""
    old, new = (left, *before, right), (left, *after, right)
    dims = data.draw(st.sets(st.integers(0, len(old) - 1), min_size=1))
    wide = tuple(sorted(dim for dim in dims if old[dim] > 1))
    slots = np.arange(int(np.prod([old[dim] for dim in wide]))).reshape([old[dim] for dim in wide])
    found = reshaped([Factor(wide, slots)] if wide else [], old, new)
    numbers = spread([Factor(wide, slots)], old).reshape(new)
    assert np.array_equal(spread(found, new), numbers)


def spread(factors: list[Factor], shape: tuple[int, ...]) -> np.ndarray:  # type: ignore[type-arg]
    """The slot of every entry of a tensor with one factor or none."""
    whole = np.zeros(shape, dtype=np.int64)
    for factor in factors:
        whole = whole + factor.slots.reshape([n if dim in factor.dims else 1 for dim, n in enumerate(shape)])
    return whole


MOVES: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 3),
    "swap and back": lambda x: x.mT.movedim(1, 0).transpose(0, 1),
    "view": lambda x: x.view(2, 3, 4, 8),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2, 3)),
    "squeeze": lambda x: x[:1].squeeze(0).unsqueeze(2),
    "expand": lambda x: x[:1].expand(5, -1, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat interleave": lambda x: x.repeat_interleave(3, 1),
    "chunk": lambda x: x.chunk(3, 1),
    "split unevenly": lambda x: x.split([5, 7], 1),
    "part": lambda x: x[:, 2:7, ::2],
    "every second": lambda x: x[:, 1::2],
    "cat": lambda x: torch.cat([x[:, 6:], x, x[:, :6]], 1),
    "stack": lambda x: torch.stack([x, x], 2),
    "flip": lambda x: x.flip(1, 2),
    "roll over places": lambda x: x.roll(1, 2),
    "looked up by place": lambda x: x[:, :, torch.tensor([1, 0, 1])],
    "chosen by place": lambda x: x.index_select(3, torch.tensor([1, 1])),
    "one place": lambda x: x.select(3, 1),
    "places apart": lambda x: x.unbind(2),
    "padded": lambda x: functional.pad(x, (0, 0, 0, 0, 2, 0), value=float(NONE)),
    "padded places": lambda x: functional.pad(x, (1, 1), value=0.0)[..., 1:-1],
    "reflected": lambda x: functional.pad(x, (1, 1, 1, 0), mode="reflect"),
    "pooled": lambda x: functional.max_pool2d(x, 2),
    "upsampled": lambda x: functional.interpolate(x, scale_factor=2),
    "unfolded": lambda x: functional.unfold(x, 2),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: functional.channel_shuffle(x, 3),
    "windows": lambda x: x.unfold(2, 1, 1).squeeze(-1),
    "copied": lambda x: x.clone().contiguous().detach(),
    "cast": lambda x: x.double().float(),
    "broadcast": lambda x: torch.broadcast_to(x, (3, 2, 12, 2, 4)),
    "tiled": lambda x: x.tile((2, 1, 1, 1)),
}


@pytest.mark.parametrize("name", MOVES)
def test_labels_go_where_numbers_go(name: str) -> None:
    """Every entry of a result stands for the slot whose number it holds, or for one that leaves together with it."""
    tracer = Tracer(nn.Module())
    slots = tracer.record.axis("x", 1, 12)
    x = torch.from_numpy(slots.astype(np.float32)).view(1, 12, 1, 1).expand(2, 12, 2, 4).contiguous()
    tracer.state.labels[x] = Labels((Factor((1,), slots),))
    with torch.no_grad(), tracer:
        results = MOVES[name](x)
    together = joined(tracer.record)
    for result in results if isinstance(results, (tuple, list)) else [results]:
        factors = list(tracer.state.of(result).factors)
        assert len(factors) == 1
        told = spread(factors, tuple(result.shape)).reshape(-1).tolist()
        held = result.reshape(-1).to(torch.int64).tolist()
        assert {together.get(slot, slot) for slot in told} == {together.get(slot, slot) for slot in held}
        assert [together.get(slot, slot) for slot in told] == [together.get(slot, slot) for slot in held]


def joined(record: TraceRecord) -> dict[int, int]:
    """Each slot -> the first of those it leaves with."""
    first: dict[int, int] = {}
    for _ in range(record.total):
        before = dict(first)
        for left, right in record.pairs:
            for a, b in zip(left.tolist(), right.tolist(), strict=True):
                least = min(first.get(a, a), first.get(b, b))
                first[a] = first[b] = least
        if first == before:
            break
    return first


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "sorted": lambda x: x.sort(1)[0],
    "cumulated": lambda x: x.cumsum(1),
    "softmax": lambda x: x.softmax(1),
    "rolled": lambda x: x.roll(1, 1),
    "one by number": lambda x: x[:, 3],
    "mean": lambda x: x.mean(1),
    "unknown operation": lambda x: torch.fft.fft(x, dim=1).real,
}


@pytest.mark.parametrize("name", LOST)
def test_what_mixes_channels_keeps_them_with_a_reason(name: str) -> None:
    """Where the place of a channel matters, or all are taken at once, they stay, and the operation is named."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return LOST[name](self.conv(x))

    model = Mixes()
    tracer = Tracer(model)
    with torch.no_grad(), tracer.watching(), tracer:
        model(torch.randn(1, 3, 2, 4))
    start, length = tracer.record.axes["conv.weight", 0]
    mine = set(range(start, start + length))
    together = joined(tracer.record)
    kept = {together.get(slot, slot): reason for slots, reason in tracer.record.kept for slot in slots.tolist()}
    kept |= {slot: reason for rows, reason in tracer.record.fixed for slot in rows.reshape(-1).tolist()}
    reasons = [kept.get(together.get(slot, slot), "") for slot in mine]
    assert any(" in the network" in reason for reason in reasons)
