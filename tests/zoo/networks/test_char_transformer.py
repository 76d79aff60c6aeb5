import pytest
import torch

from amc.job.doctor.examination import examine_or_say_why, subject_of
from amc.job.recipe import load_recipe
from amc.surgery.grouping import trace_groups
from amc.zoo.networks.example_inputs import example_of, usual_shape
from amc.zoo.networks.source import ModelSource, build_model

SMALL = {"depth": 2, "width": 32, "heads": 2}


def test_no_place_sees_what_comes_later() -> None:
    """A changed character changes the logits from its own place on; any length up to the context is read."""
    model = build_model("char_transformer", num_classes=20, size=16, options=SMALL).eval()
    tokens = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    with torch.no_grad():
        one, two = model(tokens), model(changed)
    assert one.shape == (3, 20, 12)
    assert torch.allclose(one[..., :7], two[..., :7], atol=1e-6)
    assert bool(((one - two)[..., 7:].abs().amax((0, 1)) > 1e-6).all())


def test_heads_widths_and_branches_of_every_block_can_be_cut() -> None:
    """Each block has its heads, their width and its MLP; the heads and the MLP may go whole; one embedding for all."""
    model = build_model("char_transformer", num_classes=20, size=16, options=SMALL)
    example = example_of("char_transformer", (16,), num_classes=20)
    groups = {group.name: group for group in trace_groups(model.eval(), example).groups}
    wanted = {"blocks.0.attention.out": 32}
    for block in range(2):
        part = f"blocks.{block}"
        wanted |= {f"{part}.attention.qkv:heads": 2, f"{part}.attention.qkv:width": 16, f"{part}.fc1": 128}
    assert {name: group.size for name, group in groups.items()} == wanted
    gone = {name for name, group in groups.items() if group.removable}
    assert gone == {name for name in wanted if name.endswith((":heads", "fc1"))}


def test_the_doctor_finds_all_checks_hold() -> None:
    """On tokens it draws itself, without any data."""
    recipe = load_recipe(None, {"model.name": "char_transformer", "model.weights": "none", "model.options": SMALL})
    record = examine_or_say_why(recipe, subject_of(recipe, None, explicit_data=False))
    assert record["ok"], record["reason"]
    assert record["input_shape"] == [128] and record["min_macs"] < 0.02 * record["macs"]


@pytest.mark.parametrize(
    "name", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("mobilenet_v2_small", "resnet56")), "sensor_net"]
)
def test_the_networks_of_the_tasks_can_be_cut_exactly(name: str) -> None:
    """All of the doctor's checks hold at the size of the task's examples."""
    narrow = {"mobilenet_v2_small": {"width": 0.5}}.get(name, {})
    shape = "6x128" if name == "sensor_net" else "1x28x28"
    recipe = load_recipe(None, {"model.name": name, "model.weights": "none", "model.options": narrow})
    record = examine_or_say_why(recipe, subject_of(recipe, shape, explicit_data=False))
    assert record["ok"], record["reason"]
    assert record["cut_share"] > 0.9


def test_the_example_is_tokens_that_the_network_knows() -> None:
    """Of the context's length; below the number of classes."""
    source = ModelSource("char_transformer")
    assert usual_shape(source) == (128,) and usual_shape(source, 64) == (64,)
    tokens = example_of("char_transformer", (64,), 5, num_classes=7).args[0]
    assert tokens.shape == (5, 64) and tokens.dtype == torch.int64 and 0 <= int(tokens.min()) <= int(tokens.max()) < 7
