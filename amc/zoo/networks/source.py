"""From the name of a network to the network, with its weights.

Names: our own (`FACTORIES`), torchvision's (`resnet50` or `torchvision:resnet50`: classifiers, segmentation, detection,
video and optical flow alike), `timm:NAME`, or the user's `package.module:factory`, a function that returns an
`nn.Module`. `object:package.Class` is a network that was handed over as an object: no name builds it again.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc.system.errors import ModelError
from amc.system.factory import FACTORY, call_factory, import_factory, one_line
from amc.zoo.networks.char_transformer import char_transformer
from amc.zoo.networks.checkpoint import load_weights, read_weights
from amc.zoo.networks.cifar_resnet import resnet20, resnet56
from amc.zoo.networks.hub import timm_pretrained, torchvision_pretrained
from amc.zoo.networks.mobilenet_small import mobilenet_v2_small
from amc.zoo.networks.msdnet import msdnet
from amc.zoo.networks.sensor_net import sensor_net
from amc.zoo.networks.vgg_small import vgg_small
from amc.zoo.trust import Trust, check_trusted, is_own_code

FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "mobilenet_v2_small": mobilenet_v2_small,
    "vgg_small": vgg_small,
    "sensor_net": sensor_net,
    "char_transformer": char_transformer,
    "msdnet": msdnet,
}
NO_IMAGES = ("sensor_net", "char_transformer")  # what those of ours read that read no images
IMAGE_CHANNELS = (1, 3, 4)
# Trained by `amc train`, for Fashion-MNIST: 1 channel, 10 classes.
SHIPPED = {"resnet20": Path(__file__).parent / "weights" / "resnet20-fashion-mnist.safetensors"}
# Auxiliary outputs are a tuple while training, which is no classifier's output; init_weights silences a warning.
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
AUXILIARY = ("deeplabv3_", "fcn_")  # segmentation networks whose fetched weights have an auxiliary head


OBJECT = "object:"  # before the class of a network that was handed over as an object
# Options that make a library fetch or read files: no record may hold them.
READS_FILES = ("weights", "weights_backbone", "pretrained", "checkpoint_path", "pretrained_cfg",
               "pretrained_cfg_overlay", "cache_dir")  # fmt: skip

Structure = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True)
class ModelSource:
    """All that is needed to build the dense network again, weights apart; every field but `structure` is plain.

    `num_classes`, `in_channels` and `size` (pixels) are given to factories that take them; None leaves their default.
    `structure` takes the factory's place: a fresh instance, or what makes one. No record holds it.
    """

    name: str
    num_classes: int | None = None
    in_channels: int | None = None
    size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    structure: Structure | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_object(cls, model: nn.Module) -> ModelSource:
        """The source of a network handed over as an object: its structure as it is now, buffers with their values."""
        kind = type(model)
        known: dict[int, Any] = {  # in place of a copy: parameters without values, which are always put in afterwards
            id(tensor): nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad) for tensor in model.parameters()
        }
        known |= {id(tensor): tensor.detach().cpu().clone() for tensor in model.buffers()}
        return cls(f"{OBJECT}{kind.__module__}.{kind.__qualname__}", structure=copy.deepcopy(model, known))

    @property
    def is_object(self) -> bool:
        """Whether no name builds the network again."""
        return self.name.startswith(OBJECT)

    def build(self, seed: int = 0) -> nn.Module:
        """The network with random weights drawn from `seed`; torch's own random state is left as it was.

        Raises:
            ModelError: the name is unknown, its library is missing, or it cannot be built with these arguments.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build(self) if self.structure is None else _made(self.name, self.structure)
        if not isinstance(model, nn.Module):
            raise ModelError(f"{self.name} must return an nn.Module, but returned {type(model).__name__}")
        _check_channels(self, model)
        return model

    def skeleton(self) -> nn.Module:
        """The network without its values: quick, for one whose every tensor is put in afterwards."""
        with _NoDrawing():
            return self.build()

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "size": self.size,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], trust: Trust = (), structure: Structure | None = None) -> ModelSource:
        """The inverse of `to_json`: what it names is built only if it is known or the caller trusts it.

        Args:
            record: what `to_json` gave.
            trust: names of the caller's own code that the record may import (`amc.zoo.trust`).
            structure: a fresh network, or what makes one, in place of what the record names.

        Raises:
            ModelError: the record is none, names code that is not trusted, or asks a library to read files.
        """
        keys = [key for key in cls.__dataclass_fields__ if key != "structure"]
        if not isinstance(record, Mapping) or not set(record) <= set(keys) or not isinstance(record.get("name"), str):
            raise ModelError(f"a model record must hold {', '.join(keys)}, but holds {str(record)[:80]}")
        source = cls(**record, structure=structure)
        if structure is None:
            check_trusted([source.name], trust, "the release's record", ModelError)
            odd = sorted(set(source.options) & set(READS_FILES))
            if odd and not is_own_code(source.name):
                raise ModelError(
                    f"a record must not make a library read files, but has the option {odd[0]!r}; give model="
                )
        return source


class _NoDrawing(TorchFunctionMode):
    """Fills in place of drawing random weights, which takes most of the time to build a large network.

    With the middle of what would be drawn: torch draws a truncated normal until every number lies within its bounds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_:
            return args[0].fill_(kwargs.get("mean", args[1] if len(args) > 1 else 0.0))
        if func is Tensor.uniform_:
            low = kwargs.get("from", args[1] if len(args) > 1 else 0.0)
            return args[0].fill_((low + kwargs.get("to", args[2] if len(args) > 2 else 1.0)) / 2)
        return func(*args, **kwargs)


def model_source(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    weights: str | Path = "none",
) -> ModelSource:
    """The source of a network, with what its default weights ask of its structure written into the options."""
    chosen, plain = dict(options or {}), name.removeprefix("torchvision:")
    if str(weights) == "default" and plain in TORCHVISION_OPTIONS:
        chosen.setdefault("transform_input", True)  # as torchvision sets it when it loads them
    if str(weights) == "default" and plain.startswith(AUXILIARY):
        chosen.setdefault("aux_loss", True)  # the fetched weights hold those of the auxiliary head
    return ModelSource(name, num_classes, in_channels, size, chosen)


def build_model(
    name: str,
    *,
    weights: str | Path = "none",
    num_classes: int | None = None,
    in_channels: int | None = None,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a network by name, with its weights.

    Args:
        name: a name as this module's docstring lists them.
        weights: "none" (random, drawn from `seed`), "default" (shipped by us or by the library; for a user's factory:
            whatever it returns), or a file: .safetensors, or a state dict of torch.save.
        num_classes: outputs; None leaves the network's own number.
        in_channels: channels of the images; None leaves the network's own number.
        size: height and width of the images, for networks that must know it.
        options: more keyword arguments for the network's factory.
        seed: what random weights are drawn from.

    Raises:
        ModelError: the name is unknown; a library, a file or a download is missing; the weights do not fit or are not
            finite.
    """
    source = model_source(
        name, num_classes=num_classes, in_channels=in_channels, size=size, options=options, weights=weights
    )
    if str(weights) == "default":
        return _with_default_weights(source, seed)
    model = source.build(seed)
    if str(weights) != "none":
        path = Path(weights).expanduser()
        load_weights(model, read_weights(path), str(path))
    return model


def _made(name: str, structure: Structure) -> Any:
    """A network of the given structure; an instance is copied, so that it stays as it is."""
    if isinstance(structure, nn.Module):
        return copy.deepcopy(structure)
    try:
        return structure()
    except Exception as cause:  # the user's function may fail in any way
        raise ModelError(f"model= must make a fresh {name}, but failed: {one_line(cause)}") from None


def _build(source: ModelSource) -> Any:
    """Call the factory that the name stands for."""
    if source.is_object:
        raise ModelError(
            f"a {source.name.removeprefix(OBJECT)} was handed over as an object, so no name builds it again; give "
            "model=, a fresh instance or a function that makes one (--model package.module:factory)"
        )
    kind, name = _family(source.name)
    given: dict[str, Any] = {"num_classes": source.num_classes}
    if kind == "own":
        given |= {"in_channels": source.in_channels, "size": source.size}
        return call_factory(source.name, FACTORIES[name], given, source.options, ModelError)
    if kind == "torchvision":
        from torchvision.models import get_model

        options = TORCHVISION_OPTIONS.get(name, {}) | _without_backbone_weights(name) | dict(source.options)
        return call_factory(source.name, partial(get_model, name, weights=None), given, options, ModelError)
    if kind == "timm":
        given |= {"in_chans": source.in_channels}
        create = partial(import_timm().create_model, name)
        return call_factory(source.name, create, given, source.options, ModelError)
    given |= {"in_channels": source.in_channels, "size": source.size}
    return call_factory(name, import_factory(name, ModelError), given, source.options, ModelError)


def _without_backbone_weights(name: str) -> dict[str, Any]:
    """Segmentation and detection networks would fetch weights for their backbone even when asked for random ones."""
    from torchvision.models import get_model_builder

    takes = "weights_backbone" in inspect.signature(get_model_builder(name)).parameters
    return {"weights_backbone": None} if takes else {}


def _with_default_weights(source: ModelSource, seed: int) -> nn.Module:
    kind, name = _family(source.name)
    if kind == "own":
        path = SHIPPED.get(name)
        if path is None or not path.is_file():
            lack = "none are shipped" if path is None else f"{path} is not there"
            raise ModelError(
                f"--weights default needs weights of {name}, but {lack}; train them with `amc train`, or "
                "give --weights FILE or none"
            )
        model = source.build(seed)
        load_weights(model, read_weights(path), f"{name} (Fashion-MNIST)")
        return model
    model = source.build(seed)  # tells of wrong names and arguments before anything is fetched
    if kind == "torchvision":
        known = TORCHVISION_OPTIONS.get(name, {}) | dict(source.options)
        fetched = {key: value for key, value in known.items() if key != "init_weights"}  # refused beside weights
        load_weights(model, torchvision_pretrained(name, source.num_classes, fetched), source.name)
    elif kind == "timm":
        load_weights(model, timm_pretrained(import_timm(), name, source.num_classes, source.in_channels), source.name)
    return model


def _family(name: str) -> tuple[str, str]:
    """Where a name belongs (own, torchvision, timm, factory) and the name there."""
    prefix, _, rest = name.partition(":")
    if name in FACTORIES:
        return "own", name
    if prefix == "timm" and rest:
        return "timm", _known(name, rest, "timm:", timm_names())
    if prefix == "torchvision" and rest:
        return "torchvision", _known(name, rest, "torchvision:", torchvision_all())
    if FACTORY.fullmatch(name):
        return "factory", name
    if rest or name.endswith(":"):
        raise ModelError(
            f"a model with a colon must be timm:NAME, torchvision:NAME or package.module:factory, but is {name!r}; "
            "write the name behind the colon"
        )
    return "torchvision", _known(name, name, "", [*FACTORIES, *torchvision_all()])


def _known(whole: str, name: str, prefix: str, names: list[str]) -> str:
    if name.partition(".")[0] in names or name in names:
        return name
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(prefix + n for n in near)}? " if near else ""
    raise ModelError(
        f"a model must be one of {', '.join(FACTORIES)}, a name of torchvision, timm:NAME or "
        f"package.module:factory, but is {whole!r}; {hint}".rstrip("; ").rstrip()
    )


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def torchvision_all() -> list[str]:
    """Names of all of torchvision's networks: classifiers, segmentation, detection, video, optical flow."""
    import torchvision

    names: list[str] = torchvision.models.list_models()
    return names


def timm_names() -> list[str]:
    """Names of timm's networks, without their weights' tags. Raises `ModelError` where timm is not installed."""
    return list(_timm_names())


@lru_cache
def _timm_names() -> tuple[str, ...]:
    return tuple(import_timm().list_models())


def import_timm() -> Any:
    """The timm package, an extra. Raises `ModelError` where it is not installed."""
    try:
        import timm
    except ImportError:
        raise ModelError(
            "timm:NAME needs the package timm, but it is not installed; pip install 'amc-compress[timm]'"
        ) from None
    return timm


def _check_channels(source: ModelSource, model: nn.Module) -> None:
    """The first convolution must read as many channels as the images have."""
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    if source.in_channels is None or first is None or first.in_channels == source.in_channels:
        return
    if first.in_channels not in IMAGE_CHANNELS:  # it reads something made of the images
        return
    raise ModelError(
        f"a network must read the channels of the data, but {source.name} reads {first.in_channels} and "
        f"the data has {source.in_channels}; take a network of ours or of timm, or your own factory"
    )
