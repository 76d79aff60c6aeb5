"""The command line: every command parses, calls one function and prints."""

from amc.cli.commands import app as app
from amc.cli.commands import main as main
