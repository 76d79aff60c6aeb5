"""The command line: every command parses, calls one function and prints."""

from amc.cli.entry import app as app
from amc.cli.entry import main as main
