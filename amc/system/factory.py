"""The user's own `package.module:factory`: a function that returns a network or splits."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from amc.system.errors import AmcError

FACTORY = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")


def import_factory(name: str, error: type[AmcError]) -> Callable[..., Any]:
    """Import the function that `package.module:factory` names; modules in the working folder are found too.

    Raises:
        error: the module cannot be imported, or holds no such function.
    """
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it shadows nothing; a console script does not have it
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as cause:  # the user's module may fail in any way
        raise error(
            f"{name} must name a module that can be imported, but: {one_line(cause)}; "
            "run from its folder, or install it"
        ) from None
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise error(f"{name} must name a function, but {module_name} has no callable {path!r}")
    function: Callable[..., Any] = found
    return function


def call_factory(
    name: str, function: Callable[..., Any], given: Mapping[str, Any], options: Mapping[str, Any], error: type[AmcError]
) -> Any:
    """Call a factory with `options`, and with those of `given` that are not None and that its signature takes.

    Raises:
        error: it takes no such option, or fails.
    """
    try:
        taken = inspect.signature(function).parameters
    except ValueError:  # some builtins have no signature
        taken = inspect.signature(lambda: None).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    wanted = {key: value for key, value in given.items() if value is not None and (any_name or key in taken)}
    strange = [] if any_name else sorted(set(options) - set(taken))
    if strange:
        near = difflib.get_close_matches(strange[0], taken, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(taken) or 'none'}"
        raise error(f"options of {name} must be arguments it takes, but {strange[0]!r} is none; {hint}")
    try:
        return function(**(wanted | dict(options)))
    except AmcError:
        raise
    except Exception as cause:  # the user's function, or a library's, may fail in any way
        raise error(f"{name} must return what it is asked for, but failed: {one_line(cause)}") from None


def one_line(cause: BaseException) -> str:
    """An exception's kind and text on one line of at most 200 characters."""
    text = " ".join(f"{type(cause).__name__}: {cause}".split())
    return text if len(text) <= 200 else text[:197] + "..."
