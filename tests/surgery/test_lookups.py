"""Networks that read tokens: what is looked up by the input is no parameter, however it is looked up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amc.surgery.grouping import trace_groups
from amc.zoo.call import Call
from tests.surgery.transformers import HEAD_WIDTH, HEADS, WIDTH, Fused

LOOKUPS: dict[str, Callable[[nn.Embedding, Tensor], Tensor]] = {
    "embedding": lambda table, tokens: table(tokens),
    "index": lambda table, tokens: table.weight[tokens],
    "index_select": lambda table, tokens: table.weight.index_select(0, tokens.flatten()).unflatten(0, tokens.shape),
}


class Reader(nn.Module):
    """Tokens (n, t) through attention and an MLP to a class for each of them, (n, t, 5)."""

    def __init__(self, lookup: Callable[[nn.Embedding, Tensor], Tensor]) -> None:
        super().__init__()
        self.lookup, self.tokens, self.attn = lookup, nn.Embedding(20, WIDTH), Fused()
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.fc1, self.fc2, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.lookup(self.tokens, tokens)
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(torch.relu(self.fc1(self.norm2(x))))
        out: Tensor = self.head(self.norm(x))
        return out


@pytest.mark.parametrize("kind", LOOKUPS)
def test_all_that_follows_a_lookup_of_tokens_can_be_cut(kind: str) -> None:
    """The embedding, heads, their width and the MLP; heads and MLP may go whole, which takes other tokens to tell."""
    tokens = torch.randint(20, (1, 11), generator=torch.Generator().manual_seed(0))
    table = trace_groups(Reader(LOOKUPS[kind]).eval(), Call((tokens,)))
    sizes = {group.name.partition("#")[0]: group.size for group in table.groups}
    assert sizes == {"attn.proj": WIDTH, "attn.qkv:heads": HEADS, "attn.qkv:width": HEAD_WIDTH, "fc1": 32}
    assert {group.name for group in table.groups if group.removable} == {"attn.qkv:heads", "fc1"}
