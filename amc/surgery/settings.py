"""Which channels go first, and in what steps: a table of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from amc.system.factory import FACTORY
from amc.system.isolation import Limits
from amc.system.settings import Settings

IMPORTANCE = ("magnitude", "taylor", "lamp", "geometric_median", "activation_norm", "package.module:function")


def _importance(value: object) -> object:
    if value in IMPORTANCE[:-1] or (isinstance(value, str) and FACTORY.fullmatch(value)):
        return value
    raise PydanticCustomError("importance", "input should be {names}", {"names": ", ".join(IMPORTANCE)})


def _step(value: object) -> object:
    if value == "auto" or (type(value) is int and 1 <= value <= 1024):
        return value
    raise PydanticCustomError("step", "input should be a whole number from 1 to 1024, or auto")


class SurgerySettings(Settings):
    """Which channels go first, and in what steps."""

    importance: Annotated[str, PlainValidator(_importance)] = Field(
        default="magnitude", description=f"what ranks the channels of a group: {', '.join(IMPORTANCE)}"
    )
    round_to: Annotated[int | Literal["auto"], PlainValidator(_step)] = Field(
        default=8,
        description="channels are kept in multiples of this, where a group is wide enough; auto: as the machine's "
        "layer speeds have it",
    )
    trace_seconds: float = Field(default=600.0, gt=0, description="seconds that tracing the network may take")
    trace_gigabytes: float = Field(default=16.0, gt=0, description="memory that tracing the network may take")

    @property
    def limits(self) -> Limits:
        """What tracing may take."""
        return Limits(self.trace_seconds, self.trace_gigabytes)

    @property
    def step(self) -> int:
        """`round_to` as a number: `auto` is settled before anything is traced (`amc.job.rounding`)."""
        assert isinstance(self.round_to, int)
        return self.round_to
