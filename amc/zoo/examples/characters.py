"""Judging a network that says, at every place of a text, which character comes next."""

from __future__ import annotations

from torch import Tensor

from amc.zoo.task import calibrated_losses


def next_character_accuracy(logits: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Of each text: the share of characters foretold, (n,), and its mean cross-entropy in nats, (n, temperatures).

    logits (n, classes, t), the characters that came (n, t). A loss over ln 2 is in bits per character.
    """
    wanted = batch[1]
    places = logits.movedim(1, -1)  # (n, t, classes)
    losses = calibrated_losses(places.flatten(0, 1), wanted.flatten())
    return {
        "scores": (places.argmax(-1) == wanted).double().mean(1),
        "losses": losses.view(*wanted.shape, -1).mean(1),
    }
