"""Exits on the way through a network."""
