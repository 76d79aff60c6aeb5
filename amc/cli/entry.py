"""The program: its commands, its own options, and what becomes of an error. Data on stdout, all else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from amc.cli.bench import bench
from amc.cli.cascades import cascade, export, serve
from amc.cli.doctor import doctor
from amc.cli.making import compress, train, worker
from amc.cli.options import print_result
from amc.cli.recipes import recipes
from amc.cli.runs import front, retarget, show, verify
from amc.system.errors import EXIT_CODES, INTERRUPTED, UNEXPECTED, AmcError, UsageError

WHEN_INTERRUPTED = "interrupted; what was measured is kept: the same command goes on"
DEBUG = "--debug"

app = typer.Typer(
    name="amc",
    help="Make a trained network fit a device: the best per-layer policy under a cap, from few measured trials.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
)


def version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print_result(version("amc-compress"))


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show where an error comes from, as a traceback.")] = False,
) -> None:
    """Options of the program itself."""


MAIN: tuple[Callable[..., None], ...] = (
    compress, worker, train, retarget, cascade, serve, export, front, show, verify, doctor, recipes, version,
)  # fmt: skip
for command in MAIN:
    app.command()(command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line; every error of ours is one line and its documented exit code."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer may swallow Ctrl-C and hand back the code that a shell would show
            _fail(WHEN_INTERRUPTED, INTERRUPTED)
    except AmcError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(WHEN_INTERRUPTED, INTERRUPTED)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of typer's
            _fail(f"{error.format_message().rstrip('.?')}; see `amc --help`", UsageError.exit_code)
        first = (str(error).splitlines() or [""])[0]
        _fail(f"unexpected {type(error).__name__}: {first}; please report it with what `amc --debug` shows", UNEXPECTED)


def _fail(text: str, code: int) -> None:
    if DEBUG in sys.argv:
        import traceback

        traceback.print_exc()
    print(f"amc: {text}", file=sys.stderr)
    sys.exit(code)
