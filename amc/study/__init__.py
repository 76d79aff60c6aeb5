"""Trials of one protocol: measured, kept, learned from."""
