"""`python -m amc.cli` is `amc`."""

from amc.cli import main

main()
