"""Budgets: what a released network may cost, as the user writes it.

    1.2GFLOPs  1.2GMACs  600M        multiply-adds of one example (1 FLOP of a budget is 1 multiply-add)
    2.4GFLOPs2x                      the same, counted 2 per multiply-add, as torch's own counter does
    2.5Mparams                       numbers in the weights
    9MB  512KB  4MiB  300bytes       bytes of the released weights (MB = 10**6, MiB = 2**20)
    1.5MBact                         peak bytes of activations
    40%  60%params  50%bytes  70%act a share of the dense network's cost

Case does not matter, except that `9Mb` (megabits?) is refused. `parse_budget` and `str` are inverse, and what
`format_cost` and its like print is read as the cost that was printed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from amc.system.errors import UsageError

Unit = Literal["macs", "params", "bytes", "activation_bytes"]
UNITS: tuple[Unit, ...] = get_args(Unit)

GRAMMAR = "1.2GFLOPs, 600M, 40%, 2.5Mparams, 60%params, 9MB, 50%bytes or 1.5MBact"
PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_PREFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
NUMBER = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?(?:nan|inf(?:inity)?))"
    r"(?P<suffix>.*)",
    re.IGNORECASE,
)
TWICE = "FLOPs2x"  # counted 2 per multiply-add
# What stands behind the prefix when a budget is written out.
WRITTEN: dict[Unit, tuple[str, str]] = {  # unit: without a prefix, with one
    "macs": ("MACs", "MACs"),
    "params": ("params", "params"),
    "bytes": ("bytes", "B"),
    "activation_bytes": ("bytesact", "Bact"),
}
SHARES: dict[str, Unit] = {
    "%": "macs",
    "%macs": "macs",
    "%flops": "macs",
    "%params": "params",
    "%bytes": "bytes",
    "%act": "activation_bytes",
}


def _suffixes() -> dict[str, tuple[Unit, float]]:
    """Every suffix of an absolute budget in its best spelling, with its unit and scale."""
    table: dict[str, tuple[Unit, float]] = {}
    for prefix, scale in PREFIXES.items():
        table |= dict.fromkeys((prefix + word for word in ("MACs", "FLOPs", "MAC", "FLOP")), ("macs", scale))
        table[prefix + TWICE] = ("macs", scale / 2)
        table |= dict.fromkeys((prefix + word for word in ("params", "param", "parameters")), ("params", scale))
    sizes = {prefix + "B": scale for prefix, scale in (PREFIXES | BINARY_PREFIXES).items() if prefix}
    for word, scale in (sizes | {"bytes": 1, "byte": 1}).items():  # a bare B could be bytes or billions: not taken
        table[word] = ("bytes", scale)
        table[word + "act"] = ("activation_bytes", scale)
    return table | {prefix: ("macs", scale) for prefix, scale in PREFIXES.items() if prefix}


SPELLINGS = {
    suffix.lower(): suffix for suffix in (*_suffixes(), *SHARES) if suffix.endswith(("s", "x", "B", "act", "%"))
}
SUFFIXES = {suffix.lower(): meaning for suffix, meaning in _suffixes().items()}


@dataclass(frozen=True)
class Budget:
    """The largest cost allowed in one unit.

    `value` is in whole units (multiply-adds, parameters, bytes) or, where `relative`, a share in (0, 1] of the dense
    network's cost.

    Raises:
        UsageError: the unit is unknown, or the value is not above zero and finite, or a share is above 1.
    """

    unit: Unit
    value: float
    relative: bool = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UsageError(f"a budget's unit must be one of {', '.join(UNITS)}, but is {self.unit!r}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise UsageError(f"a budget must be a finite number above zero, but is {self.value}; give e.g. {GRAMMAR}")
        if self.relative and self.value > 1:
            raise UsageError(
                f"a budget in % must be at most 100% of the dense network, but is {self.value:.6g} of it; "
                "a network cannot grow by pruning"
            )

    def limit(self, dense: Mapping[str, float]) -> float:
        """The cap in whole units, given the dense network's cost in each unit."""
        if not self.relative:
            return float(self.value)
        if self.unit not in dense:
            raise UsageError(
                f"budget {self} needs the dense network's {self.unit}, but only "
                f"{', '.join(dense) or 'nothing'} is known; give the budget in whole units"
            )
        return float(_decimal(self.value) * _decimal(dense[self.unit]))  # 29% of 100 is 29, not 28.999...

    def __str__(self) -> str:
        """Write the budget so that `parse_budget` gives it back exactly."""
        number = _decimal(self.value)
        if self.relative:
            share = next(text for text, unit in SHARES.items() if unit == self.unit)
            return _plain(number * 100) + share
        prefix = max((p for p in PREFIXES if number >= PREFIXES[p] or not p), key=lambda p: PREFIXES[p])
        return _plain(number / PREFIXES[prefix]) + prefix + WRITTEN[self.unit][bool(prefix)]


def parse_budget(text: str) -> Budget:
    """Read one budget, e.g. `1.2GFLOPs`, `40%` or `9MB`.

    Raises:
        UsageError: the text is empty, has no unit or an unknown one, or its number is not above zero and finite.
    """
    compact = "".join(text.split())
    if not compact:
        raise UsageError(f"a budget must not be empty; give e.g. {GRAMMAR}")
    found = NUMBER.fullmatch(compact)
    if found is None:
        raise UsageError(f"a budget must be a number and a unit, but is {text!r}; give e.g. {GRAMMAR}")
    number, suffix = found["number"], found["suffix"]
    if not suffix:
        raise UsageError(
            f"a budget needs a unit, but is {text!r}; write {number}%, {number}GFLOPs, {number}Mparams or {number}MB"
        )
    relative = suffix.lower() in SHARES
    if not relative and suffix.lower() not in SUFFIXES:
        near = difflib.get_close_matches(suffix.lower(), SPELLINGS, 1)
        hint = f"did you mean {number}{SPELLINGS[near[0]]}? " if near else ""
        raise UsageError(f"a budget's unit must be known, but {text!r} ends in {suffix!r}; {hint}give e.g. {GRAMMAR}")
    if re.fullmatch(r"[KMGT]i?b(act)?", suffix):
        raise UsageError(
            f"a budget of bytes ends in a capital B, but {text!r} could mean bits; "
            f"write {number}{suffix.replace('b', 'B', 1)}"
        )
    value = Decimal(number)
    if not (value.is_finite() and value > 0):
        raise UsageError(f"a budget must be a finite number above zero, but is {text!r}; give e.g. {GRAMMAR}")
    if relative and value > 100:
        raise UsageError(
            f"a budget in % must be at most 100% of the dense network, but is {text!r}; "
            "a network cannot grow by pruning"
        )
    if value.adjusted() > 300 or value.adjusted() < -300:  # would be infinity or zero as a float
        raise UsageError(f"a budget must be a number of sensible size, but is {text!r}; give e.g. {GRAMMAR}")
    if relative:
        return Budget(SHARES[suffix.lower()], float(value / 100), relative=True)
    unit, scale = SUFFIXES[suffix.lower()]
    return Budget(unit, float(value * _decimal(scale)))


def parse_budgets(given: str | Budget | Iterable[str | Budget]) -> tuple[Budget, ...]:
    """Read one budget or several that must all hold; a text may hold several, comma between them.

    Raises:
        UsageError: no budget at all, a malformed one, or two of one unit (which of them holds would be a guess).
    """
    parts: list[Budget] = []
    for each in (given,) if isinstance(given, (str, Budget)) else given:
        parts += [each] if isinstance(each, Budget) else [parse_budget(part) for part in each.split(",")]
    if not parts:
        raise UsageError(f"at least one budget must be given, but there is none; give e.g. {GRAMMAR}")
    for index, budget in enumerate(parts):
        same = next((other for other in parts[:index] if other.unit == budget.unit), None)
        if same is not None:
            raise UsageError(
                f"each unit can have one budget, but {same} and {budget} both cap {budget.unit}; keep the tighter one"
            )
    return tuple(parts)


def flops_2x(macs: float) -> float:
    """The same cost counted 2 per multiply-add, as torch's own counter does."""
    return 2 * macs


def format_macs(macs: float) -> str:
    """Multiply-adds for people: `1.20 GMACs`."""
    return _scaled(macs, "MACs")


def format_flops_2x(macs: float) -> str:
    """The 2-per-multiply-add figure of a cost in multiply-adds, under its own name: `2.40 GFLOPs2x`."""
    return _scaled(flops_2x(macs), TWICE)


def format_params(params: float) -> str:
    """Parameters for people: `2.50 M params`."""
    return _scaled(params, " params")


def format_bytes(size: float) -> str:
    """Bytes for people, in powers of ten: `9.00 MB`, `300 bytes`."""
    return _sized("bytes", size)


def format_cost(unit: Unit, cost: float) -> str:
    """A cost of any unit for people."""
    if unit in ("bytes", "activation_bytes"):
        return _sized(unit, cost)
    return format_macs(cost) if unit == "macs" else format_params(cost)


def _sized(unit: Unit, size: float) -> str:
    whole, prefixed = WRITTEN[unit]
    return _scaled(size, whole if round(size, 2) < 1000 else prefixed)


def _scaled(number: float, word: str) -> str:
    """Two digits after the point and the prefix that leaves less than 1000 before it; whole numbers below 1000."""
    for prefix, scale in PREFIXES.items():
        if round(number / scale, 2) < 1000 or prefix == "T":
            digits = f"{number / scale:.2f}" if prefix or number % 1 else f"{number:.0f}"
            return f"{digits} {prefix.replace('K', 'k')}{word}" if prefix else f"{digits} {word.strip()}"
    raise AssertionError("the largest prefix takes any number")


def _decimal(value: float) -> Decimal:
    return Decimal(repr(float(value)))


def _plain(number: Decimal) -> str:
    """All digits, no exponent, no zeros behind the point."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
