"""Which of the user's own code a file may name: this alone decides what is imported for a record.

A name that the user types (a flag, an argument, a recipe they name) is theirs and runs. A name that stands in a file
which may come from elsewhere (a release, a cascade, a run folder, a shared study) runs only if it is known:

- names of our networks and data sets, torchvision's and timm's, and our worked examples (`OURS`), or
- names that the user trusts, `package.module:factory`, or `package.module` for all of that module: those they typed
  in this process, those given as `trust=` or `--trust`, and those in the environment variable `AMC_TRUST`, separated
  by commas.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from amc.system.errors import AmcError
from amc.system.factory import FACTORY
from amc.zoo.settings import DataSettings, ModelSettings, TaskSettings

OURS = ("amc.zoo.examples.characters", "amc.zoo.examples.kinds", "amc.zoo.examples.shapes")
LIBRARIES = ("timm", "torchvision", "object")  # what stands before the colon of a name that is no module
VARIABLE = "AMC_TRUST"

Trust = str | Sequence[str]


def is_own_code(name: str) -> bool:
    """Whether a name is that of a function of the user's, `package.module:factory`, and not of a library's network."""
    return FACTORY.fullmatch(name) is not None and name.partition(":")[0] not in LIBRARIES


def trusted(name: str, trust: Trust = (), *, own_environment: bool = True) -> bool:
    """Whether `name`, read from a file, may be imported. Names that import nothing of the user's always may.

    Args:
        own_environment: whether what was trusted in this process counts.
    """
    if not is_own_code(name):
        return True
    module, _, path = name.partition(":")
    known = {*_listed(trust), *(_listed(os.environ.get(VARIABLE, "")) if own_environment else ())}
    # An attribute of an attribute may lead out of a module (`package.module:os.system`): it must be named whole.
    return name in known or (module in {*known, *OURS} and "." not in path)


def allow(trust: Trust) -> None:
    """Trust names from now on, in this process and those it starts, which inherit `AMC_TRUST`."""
    known = _listed(os.environ.get(VARIABLE, ""))
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*known, *_listed(trust)]))


def check_trusted(names: Iterable[str | None], trust: Trust, origin: str, error: type[AmcError]) -> None:
    """Raises `error` where any of `names` may not be imported; `origin` says where they stand."""
    unknown = list(dict.fromkeys(name for name in names if name is not None and not trusted(name, trust)))
    if unknown:
        listed = ",".join(unknown)
        raise error(
            f"{origin} names code of its own, {', '.join(unknown)}, which runs only if you trust it; "
            f'give --trust {listed} (trust="{listed}")'
        )


def names_in(model: ModelSettings, data: DataSettings, task: TaskSettings) -> tuple[str, ...]:
    """All names in a recipe that may be functions of the user's."""
    return tuple(name for name in (model.name, data.name, task.batch, task.metric, task.loss) if name is not None)


def _listed(trust: Trust) -> list[str]:
    names = trust.split(",") if isinstance(trust, str) else trust
    return [name.strip() for name in names if name.strip()]
