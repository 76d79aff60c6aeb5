import torch
from torch import Tensor, nn

from amc.zoo.call import Call, as_call, float_tensors, on_cpu


class Sum(nn.Module):
    def forward(self, a: Tensor, pair: tuple[Tensor, Tensor], *, scale: Tensor) -> dict[str, Tensor]:
        return {"out": (a + pair[0] + pair[1]) * scale}


def test_a_call_gives_a_network_all_its_arguments() -> None:
    """Positional, nested and keyword arguments arrive as they were given."""
    one = torch.ones(3, 2)
    call = Call((one, (one, 2 * one)), {"scale": torch.tensor(2.0)})
    assert torch.equal(call.on(Sum())["out"], 8 * one)


def test_a_call_knows_how_many_examples_it_holds() -> None:
    """The first tensor's first dimension, or the length of a list of pictures, wherever it stands."""
    picture = torch.zeros(3, 8, 8)
    assert len(as_call(torch.zeros(5, 2))) == 5
    assert len(Call(([picture] * 4,))) == 4
    assert len(Call((), {"tokens": torch.zeros(7, 3)})) == 7
    assert len(Call(({"left": torch.zeros(6, 1)},))) == 6
    assert len(Call((torch.tensor(1.0), torch.zeros(2, 3)))) == 2


def test_the_head_of_a_call_is_its_first_examples() -> None:
    """Whatever is as long as the call is shortened; what is shared by all examples stays."""
    call = Call((torch.arange(5), [torch.zeros(1)] * 5, {"all": torch.zeros(9)}), {"more": (torch.arange(5, 10),)})
    head = call.head(2)
    assert len(head) == 2
    assert head.args[0].tolist() == [0, 1] and len(head.args[1]) == 2
    assert head.args[2]["all"].shape == (9,) and head.kwargs["more"][0].tolist() == [5, 6]


def test_outputs_of_any_shape_are_read_in_one_order() -> None:
    """Integer tensors and other values are passed over; floats come back as float32."""
    tree = {"b": [torch.zeros(2, dtype=torch.bfloat16)], "a": (torch.ones(1), torch.tensor([1]), "text", None)}
    assert sorted(tuple(tensor.shape) for tensor in float_tensors(tree)) == [(1,), (2,)]
    assert on_cpu(tree)["b"][0].dtype == torch.float32 and on_cpu(tree)["a"][1].dtype == torch.int64


def test_a_call_moves_whole() -> None:
    """Every tensor in it goes to the device asked for."""
    moved = Call((torch.zeros(1), [torch.zeros(1)]), {"x": torch.zeros(1)}).to("meta")
    assert {tensor.device.type for tensor in float_tensors((moved.args, dict(moved.kwargs)))} == {"meta"}
