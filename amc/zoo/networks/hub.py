"""Weights that torchvision and timm fetch: tried briefly, refused in one line, never waited for.

Both libraries keep what they fetched, so a second run needs no network.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import Any

from torch import Tensor

from amc.system.errors import ModelError
from amc.system.factory import one_line

PROBE_SECONDS = 5.0
SOCKET_SECONDS = 20.0
MEND = "give --weights FILE, or --weights none for random ones"


def torchvision_pretrained(name: str, num_classes: int | None, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of torchvision's default weights of `name`, for a network built with `options`.

    Raises:
        ModelError: there are none, they know another number of classes, or they cannot be fetched.
    """
    from torchvision.models import get_model, get_model_weights

    choice = getattr(get_model_weights(name), "DEFAULT", None)
    if choice is None:
        raise ModelError(f"{name} has no default weights in torchvision; {MEND}")
    if "categories" in choice.meta:  # optical flow has none
        _check_classes(name, len(choice.meta["categories"]), num_classes)
    try:
        with short_sockets():
            # By way of a network, because torchvision renames keys of some files (DenseNet) only there.
            state: dict[str, Tensor] = get_model(name, weights=choice, **options).state_dict()
    except (OSError, HTTPException, RuntimeError, ValueError, pickle.UnpicklingError) as cause:
        raise ModelError(_refused(name, cause)) from None
    return state


def timm_pretrained(timm: Any, name: str, num_classes: int | None, in_channels: int | None) -> dict[str, Tensor]:
    """The state of timm's weights of `name`, for images of `in_channels` (timm adapts the first layer).

    Raises:
        ModelError: as for `torchvision_pretrained`.
    """
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(f"timm:{name} has no default weights; {MEND}")
    _check_classes(f"timm:{name}", config.num_classes, num_classes)
    arguments = {} if in_channels is None else {"in_chans": in_channels}
    try:
        with short_sockets(), _no_retries():
            state: dict[str, Tensor] = timm.create_model(name, pretrained=True, **arguments).state_dict()
    except Exception as cause:  # hub clients differ from version to version in what they raise
        raise ModelError(_refused(f"timm:{name}", cause)) from None
    return state


def _check_classes(name: str, known: int, wanted: int | None) -> None:
    if wanted is not None and wanted != known:
        raise ModelError(
            f"default weights must know the data's classes, but those of {name} know {known} and the data "
            f"has {wanted}; fine-tune the network first and give --weights FILE"
        )


def _refused(name: str, cause: Exception) -> str:
    return f"the default weights of {name} must be fetched once, but that failed ({one_line(cause)[:100]}); {MEND}"


@contextlib.contextmanager
def short_sockets() -> Iterator[None]:
    """A silent server is given up after some seconds, for torch.hub sets no limit; stdout stays ours."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub tells of its downloads there
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _no_retries() -> Iterator[None]:
    """Put the hub client off line where the hub does not answer: else it tries again for most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    """Whether a server says anything at all; proxies of the environment are used."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not the one asked for
    except (OSError, HTTPException, ValueError):
        return False
    return True
