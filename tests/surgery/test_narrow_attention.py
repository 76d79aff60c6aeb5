import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc.surgery.narrow_attention import can_narrow_attention, narrow_attention
from amc.system.errors import ModelError
from tests.surgery.exactness import assert_exact

E, H, D = 12, 4, 3
SCALE = D**-0.5


def subsets(size: int, least: int = 1) -> st.SearchStrategy[Tensor]:
    kept = st.sets(st.integers(0, size - 1), min_size=least)
    return kept.map(lambda found: torch.tensor(sorted(found), dtype=torch.long))


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, H, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module.eval()


def rows(heads: Tensor, widths: Tensor) -> Tensor:
    """Which of the H D features of queries, keys or values stay."""
    return (heads[:, None] * D + widths).flatten()


def masked(module: nn.MultiheadAttention, heads: Tensor, widths: Tensor, embedding: Tensor) -> nn.MultiheadAttention:
    """The dense attention with zeros where heads, head width or embedding width went."""
    twin = copy.deepcopy(module)
    inner, outer = torch.zeros(H * D), torch.zeros(E)
    inner[rows(heads, widths)], outer[embedding] = 1, 1
    with torch.no_grad():
        twin.in_proj_weight.mul_(inner.repeat(3)[:, None] * outer)
        twin.out_proj.weight.mul_(outer[:, None] * inner)
        if twin.in_proj_bias is not None:
            twin.in_proj_bias.mul_(inner.repeat(3))
            twin.out_proj.bias.mul_(outer)
        if twin.bias_k is not None and twin.bias_v is not None:
            twin.bias_k.mul_(inner)
            twin.bias_v.mul_(inner)
    return twin


def cut(module: nn.MultiheadAttention, heads: Tensor, widths: Tensor, embedding: Tensor) -> nn.MultiheadAttention:
    twin, inner = copy.deepcopy(module), rows(heads, widths)
    three = torch.cat([inner + i * H * D for i in range(3)])
    twin.in_proj_weight = nn.Parameter(module.in_proj_weight[three][:, embedding].detach())
    twin.out_proj.weight = nn.Parameter(module.out_proj.weight[embedding][:, inner].detach())
    if module.in_proj_bias is not None:
        twin.in_proj_bias = nn.Parameter(module.in_proj_bias[three].detach())
        twin.out_proj.bias = nn.Parameter(module.out_proj.bias[embedding].detach())
    if module.bias_k is not None and module.bias_v is not None:
        twin.bias_k = nn.Parameter(module.bias_k[..., inner].detach())
        twin.bias_v = nn.Parameter(module.bias_v[..., inner].detach())
    narrow_attention(twin, len(heads), len(widths), SCALE)
    return twin


OPTIONS: tuple[dict[str, bool], ...] = (
    {}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True, "batch_first": True}
)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cut_attention_is_the_dense_one_with_zeros(options: dict[str, bool]) -> None:
    """For any heads, head width and embedding width, of one input and of three, with masks, and gradients too."""
    module = attention(**options)
    first = options.get("batch_first", False)

    @settings(max_examples=40, deadline=None)
    @given(subsets(H, 0), subsets(D), subsets(E), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 9))
    def check(
        heads: Tensor, widths: Tensor, embedding: Tensor, cross: bool, weights: bool, padded: bool, seed: int
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        batch, targets, sources = 2, 5, 6 if cross else 5
        query, key, value = (torch.randn(batch, n, E, generator=draw) for n in (targets, sources, sources))
        inputs = [query, key, value] if cross else [query] * 3
        inputs = inputs if first else [x.transpose(0, 1) for x in inputs]
        inputs = inputs if cross else [inputs[0]] * 3
        given: dict[str, Any] = {"need_weights": weights, "attn_mask": torch.randn(targets, sources, generator=draw)}
        if padded:
            given["key_padding_mask"] = torch.zeros(batch, sources, dtype=torch.bool)
            given["key_padding_mask"][0, -2:] = True
            given["attn_mask"] = torch.ones(targets, sources, dtype=torch.bool).triu(1)
        dense, small = masked(module, heads, widths, embedding), cut(module, heads, widths, embedding)
        few = [x[..., embedding] for x in inputs] if cross else [inputs[0][..., embedding]] * 3
        expected, found = dense(*inputs, **given)[0], small(*few, **given)[0]
        assert_exact(found, expected[..., embedding])
        expected.square().sum().backward()
        found.square().sum().backward()
        assert dense.out_proj.weight.grad is not None and small.out_proj.weight.grad is not None
        assert_exact(small.out_proj.weight.grad, dense.out_proj.weight.grad[embedding][:, rows(heads, widths)])

    check()


@pytest.mark.parametrize("options", [*OPTIONS, {"dropout": 0.5, "batch_first": True}], ids=str)
@pytest.mark.parametrize("weights", [True, False])
def test_attention_that_lost_nothing_is_the_library_one(options: dict[str, bool], weights: bool) -> None:
    """Outputs and attention weights, averaged and not, with three-dimensional masks, batched and not."""
    dense = attention(**options)
    small = cut(dense, torch.arange(H), torch.arange(D), torch.arange(E))
    x, masks = torch.randn(5, 5, E), torch.randn(5 * H, 5, 5)
    for averaged, inputs, mask in (
        (True, x, masks),
        (False, x, masks),
        (True, x[0], masks[:H]),
        (False, x[0], masks[0]),
    ):
        expected, seen = dense(*[inputs] * 3, None, weights, mask, averaged)
        found, ours = small(*[inputs] * 3, None, weights, mask, averaged)
        assert_exact(found, expected)
        assert (seen is None) == (ours is None)
        if seen is not None and ours is not None:
            assert_exact(ours, seen)


def test_attention_in_training_drops_weights_at_its_rate() -> None:
    """Different outputs at every call."""
    module = cut(attention(dropout=0.5), torch.tensor([0, 2]), torch.arange(D), torch.arange(E)).train()
    x = torch.randn(5, 2, E)
    for weights in (True, False):
        assert not torch.equal(module(x, x, x, need_weights=weights)[0], module(x, x, x, need_weights=weights)[0])


def test_torchs_own_encoder_layer_does_not_go_past_the_stand_in() -> None:
    """Its fused kernel would read the tensors as those of a dense attention."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True).eval()
    heads, widths, everything = torch.tensor([1, 3]), torch.arange(D), torch.arange(E)
    dense, small = copy.deepcopy(layer), copy.deepcopy(layer)
    dense.self_attn = masked(layer.self_attn, heads, widths, everything)
    small.self_attn = cut(layer.self_attn, heads, widths, everything)
    x = torch.randn(2, 5, E)
    with torch.inference_mode():
        assert_exact(small(x), dense(x))
        assert_exact(nn.TransformerEncoder(small, 2, enable_nested_tensor=False)(x), dense(dense(x)))


def test_cut_attention_can_be_exported() -> None:
    """With its batch size left open."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(E), attention(batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return torch.as_tensor(x + self.attention(y, y, y, need_weights=False)[0])

    block = Block().eval()
    block.attention = cut(block.attention, torch.tensor([1, 2, 3]), torch.tensor([0, 2]), torch.arange(E))
    x = torch.randn(3, 5, E)
    exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))
    assert_exact(exported.module()(x[:2]), block(x[:2]))


def test_whoever_counts_calls_sees_one_for_the_whole_attention() -> None:
    """The dense module shows none of its own either."""

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    module, x = cut(attention(), torch.tensor([1]), torch.arange(D), torch.arange(E)), torch.randn(5, 2, E)
    with Calls(), Calls():
        found = module(x, x, x)[0]
    assert seen == ["forward", "forward"]
    assert_exact(found, module(x, x, x)[0])


def test_only_one_matrix_for_queries_keys_and_values_can_be_cut() -> None:
    """Other attention keeps its class; sizes that the tensors do not have are refused."""
    for module in (nn.MultiheadAttention(E, H, kdim=5), nn.Linear(E, E)):
        assert not can_narrow_attention(module)
        with pytest.raises(ModelError, match="attention can be cut where"):
            narrow_attention(module, H, D, SCALE)
    with pytest.raises(ModelError, match="2 heads of 3 make 18 rows of in_proj_weight, got 36"):
        narrow_attention(attention(), 2, 3, SCALE)
    x = torch.randn(5, 2, E)
    with pytest.raises(ModelError, match="give the causal mask"):
        cut(attention(), torch.arange(H), torch.arange(D), torch.arange(E))(x, x, x, is_causal=True)
