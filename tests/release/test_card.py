import copy
import hashlib

import pytest

from amc.job.run import Run
from amc.release.card import model_card
from tests.tiny import report_inputs_of


@pytest.fixture(scope="module")
def card(tiny_run: Run) -> str:
    return (tiny_run.folder / "README.md").read_text(encoding="utf-8")


def test_front_matter_claims_nothing_unknown(card: str) -> None:
    """The front matter names no licence, base model or data set of a hub: AMC cannot know them."""
    assert card.startswith("---\npipeline_tag: image-classification\n")
    head = card.split("---")[1]
    assert not any(key in head for key in ("license", "base_model", "datasets", "model-index"))


def test_digest_is_that_of_the_weights(card: str, tiny_run: Run) -> None:
    """The SHA-256 told is that of the file beside the card."""
    assert hashlib.sha256((tiny_run.folder / "model.safetensors").read_bytes()).hexdigest() in card


def test_card_tells_split_sizes_and_preprocessing(card: str) -> None:
    """Who loads the network learns how pictures must be, and how few it was judged on."""
    assert "400 images to train, 100 to choose the policy, 100 to test" in card
    assert "(batch, 1, 28, 28)" in card
    assert "mean (0.286)" in card
    assert 'amc.load("."' in card
    assert "95% interval" in card


def test_card_names_no_local_path(card: str, tiny_run: Run) -> None:
    """A card is passed on: of the dense weights' file it tells the name, not the folder."""
    assert "`dense.safetensors`" in card
    assert str(tiny_run.folder.parent) not in card


def test_names_cannot_break_the_markdown(tiny_run: Run) -> None:
    """Names from outside stay in their code span, on their line."""
    metrics = copy.deepcopy(tiny_run.metrics)
    metrics["model"] = "a`|\n# b <img src=x>"
    text = model_card(tiny_run.folder, report_inputs_of(tiny_run, metrics))
    assert "\n# b" not in text
    assert "`a'¦ # b <img src=x>`" in text
    assert "# a\\`\\| \\# b &lt;img src=x&gt;" in text


def test_card_tells_removed_branches_and_stopped_trials(card: str, shallow_run: Run) -> None:
    """Who loads the network learns which branches it lacks, and how many policies were not measured to the end."""
    text = (shallow_run.folder / "README.md").read_text(encoding="utf-8")
    names = ", ".join(f"`{name}`" for name in shallow_run.metrics["released"]["removed"])
    assert f"named by their first layer: {names}." in text
    assert f"({shallow_run.metrics['stopped']} of them stopped early" in text
    assert "first layer" not in card


def test_card_of_a_run_of_an_earlier_version(tiny_run: Run) -> None:
    """Metrics without stopped trials and removed branches still make a card."""
    metrics = copy.deepcopy(tiny_run.metrics)
    del metrics["stopped"], metrics["released"]["removed"]
    assert "stopped early" not in model_card(tiny_run.folder, report_inputs_of(tiny_run, metrics))
